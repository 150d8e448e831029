"""Faster arithmetic: rounded or compiled passes stay near the exact ones, and metrics stay exact."""

import copy
import weakref

import pytest
import torch
from conftest import make_batch, make_classifier, tiny_network
from torch import nn

from camexp.errors import CamexpError
from camexp.methods.gradcam import GradCAM
from camexp.methods.rise import RISE
from camexp.methods.scorecam import ScoreCAM
from camexp.models import forward_batch, precision
from camexp.models.forward_batch import ON_CPU, graph_bytes, largest_batch, out_of_memory
from camexp.models.speed_up import speed_up


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1))


@pytest.mark.parametrize("method", [RISE(masks=64), ScoreCAM()], ids=["rise", "scorecam"])
def test_bf16_maps_are_near_the_exact_ones(method):
    images, pairs = make_batch()
    exact = method(make_classifier(), images, pairs)
    rounded = method(make_classifier(precision="bf16"), images, pairs)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    assert cosine(rounded, exact).min() >= 0.999


def test_bf16_leaves_gradient_methods_alone():
    images, pairs = make_batch()
    exact, rounded = (GradCAM()(make_classifier(precision=p), images, pairs) for p in ("fp32", "bf16"))
    assert torch.equal(exact, rounded)


def test_exactly_measures_without_rounding():
    images, _ = make_batch()
    plain, rounded = make_classifier(), make_classifier(precision="bf16")
    with rounded.exactly():
        assert torch.equal(rounded.scores(images), plain.scores(images))
    assert not torch.equal(rounded.scores(images), plain.scores(images))
    with pytest.raises(RuntimeError, match="stop"), rounded.exactly():
        raise RuntimeError("stop")
    assert rounded.precision == "bf16"


def test_unknown_precision():
    with pytest.raises(CamexpError, match="precision must be one of fp32, tf32, bf16, not 'fp8'"):
        make_classifier(precision="fp8")


def test_compiled_passes_agree_for_every_batch_size(monkeypatch):
    shapes = []

    def compile_nothing(network, **options):  # a real compiler takes minutes
        return lambda images: shapes.append(images.shape) or network(images)

    monkeypatch.setattr(torch, "compile", compile_nothing)
    images, _ = make_batch(5)
    plain, compiled = make_classifier(forward_batch=2), make_classifier(forward_batch=2, compiled=True)
    torch.testing.assert_close(compiled.scores(images), plain.scores(images))
    assert set(shapes) == {(2, 3, 16, 16)}  # one shape: another would be compiled anew
    with compiled.exactly():
        compiled.scores(images)
    assert len(shapes) == 3


def test_short_compiled_passes_are_not_filled_up_to_the_whole(monkeypatch):
    shapes = []
    monkeypatch.setattr(torch, "compile", lambda network, **_: lambda x: shapes.append(len(x)) or network(x))
    compiled = make_classifier(forward_batch=64, compiled=True)
    for images in (1, 2, 8, 9, 64, 65):
        compiled.scores(torch.zeros(images, 3, 16, 16))
    assert shapes == [1, 8, 8, 64, 64, 64, 1]


def test_hooks_see_passes_of_a_compiled_network(monkeypatch):
    def compile_once(network, **options):  # keeps what it has compiled, as the real one: hooks set later are not seen
        return copy.deepcopy(network)

    monkeypatch.setattr(torch, "compile", compile_once)
    images, _ = make_batch(3)
    plain, compiled = make_classifier(), make_classifier(compiled=True)
    expected = plain.logits(images)
    torch.testing.assert_close(compiled.logits(images), expected)
    changed = []
    for classifier in (plain, compiled):
        with classifier.hooks([classifier.cam_layer], lambda name, output: output * 0):
            changed.append(classifier.logits(images))
    assert not torch.equal(changed[0], expected)
    torch.testing.assert_close(*changed)


def test_tf32_is_for_passes_without_a_graph(monkeypatch):
    """Where products of a GPU are rounded; here no factor is, but whether it may be can be seen."""
    allowed = []

    def rounded() -> tuple[bool, bool]:
        return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    network = tiny_network()
    network[0].register_forward_hook(lambda *_: allowed.append(rounded()))
    images, pairs = make_batch()
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)  # as it was afterwards
    precision.exact_products()
    classifier = make_classifier(network, precision="tf32")
    classifier.scores(images)
    assert allowed == [(True, True)]
    GradCAM()(classifier, images, pairs)
    with classifier.exactly():
        classifier.scores(images)
    make_classifier(network, precision="fp32").scores(images)
    assert set(allowed[1:]) == {(False, False)}
    assert rounded() == (False, False)


def test_forward_batch_on_the_cpu_is_that_of_small_graphs():
    assert largest_batch(tiny_network(), torch.device("cpu"), 16) == ON_CPU


@pytest.mark.parametrize(("graphs", "batch"), [(0.5, 1), (1, 1), (3.9, 2), (4, 4), (100, 16)])
def test_forward_batch_on_the_cpu_bounds_the_graph(monkeypatch, graphs, batch):
    network, images = tiny_network().requires_grad_(False), torch.zeros(1, 3, 16, 16)
    monkeypatch.setattr(forward_batch, "GRAPH_ON_CPU", graphs * graph_bytes(network, images))
    assert largest_batch(network, torch.device("cpu"), 16) == batch


def test_graph_is_what_layers_keep():
    layers = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Dropout(), nn.Conv2d(4, 5, 1), nn.ReLU()
    network = nn.Sequential(*layers).eval().requires_grad_(False)
    # the images, and two maps that are what a ReLU keeps and what the next convolution keeps
    assert graph_bytes(network, torch.zeros(1, 3, 8, 8)) == 4 * 64 * (3 + 4 + 5)
    network = network.to(memory_format=torch.channels_last)
    speed_up(network, packed_weights=True, winograd=False, fused_activations=False, onednn_linear=False)
    packed = torch.zeros(1, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    kept_by_pytorch = 0 if torch.backends.mkldnn.is_available() else 3
    assert graph_bytes(network, packed) == 4 * 64 * (kept_by_pytorch + 4 + 5)  # packed convolutions keep no images


@pytest.mark.parametrize(
    ("per_image", "free", "batch"),
    [(100 << 20, 80 << 30, 256), (100 << 20, 8 << 30, 32), (1 << 20, 80 << 30, 512), (8 << 30, 8 << 30, 1)],
)
def test_forward_batch_fills_half_of_the_free_memory(monkeypatch, per_image, free, batch):
    device = torch.device("cuda")
    monkeypatch.setattr(torch, "zeros", lambda *shape, **kwargs: torch.ones(shape, requires_grad=True))
    for name, value in {
        "reset_peak_memory_stats": None,
        "memory_allocated": 0,
        "max_memory_allocated": 8 * per_image,
        "empty_cache": None,
        "mem_get_info": (free, free),
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *args, value=value: value)
    assert largest_batch(tiny_network(), device, 16) == batch


def test_forward_batch_is_tried_with_one_image_where_memory_is_short(monkeypatch):
    tried = []

    def bytes_per_image(network, device, size, images):
        tried.append(images)
        if images > 1:
            raise RuntimeError("CUDA error: out of memory")
        return 1 << 30

    monkeypatch.setattr(forward_batch, "_bytes_per_image", bytes_per_image)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 << 30, 8 << 30))
    assert largest_batch(tiny_network(), torch.device("cuda"), 16) == 2
    assert tried == [8, 1]


def test_forward_batch_is_tried_again_when_the_memory_of_the_first_try_is_free(monkeypatch):
    alive = []

    def bytes_per_image(network, device, size, images):
        kept = torch.ones(3)
        alive.append(weakref.ref(kept))
        if images > 1:
            raise RuntimeError("CUDA error: out of memory")
        assert alive[0]() is None
        return 1 << 30

    monkeypatch.setattr(forward_batch, "_bytes_per_image", bytes_per_image)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (4 << 30, 8 << 30))
    largest_batch(tiny_network(), torch.device("cuda"), 16)
    assert len(alive) == 2


@pytest.mark.parametrize(
    ("error", "ran_out"),
    [
        (torch.OutOfMemoryError(), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_what_tells_that_memory_ran_out(error, ran_out):
    assert out_of_memory(error) == ran_out
