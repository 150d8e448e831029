"""Convolutions that add and rectify: the same numbers for everybody who looks, and nothing of anybody's overwritten."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from conftest import Operations
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torchvision.models.resnet import BasicBlock, Bottleneck

from camexp.methods.base import Method
from camexp.methods.deeplift import DeepLIFT
from camexp.methods.extremal_perturbation import ExtremalPerturbation
from camexp.methods.fullgrad import FullGrad
from camexp.methods.gradient import Gradient
from camexp.methods.guided_backprop import GuidedBackprop
from camexp.methods.guided_gradcam import GuidedGradCAM
from camexp.methods.sise import SISE
from camexp.models.build import narrow
from camexp.models.classifier import Classifier
from camexp.models.fold import fold_batch_norms
from camexp.models.fuse import Fused, fuse_activations, watched
from camexp.models.pack import pack_convolutions
from camexp.models.tail import tail_behind
from camexp.pairs import Pairs

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")

NETWORKS = ("vgg11", "vgg11_bn", "resnet18", "resnet50")


def plain_network(name: str, fold: bool = True) -> nn.Module:
    """A narrow network of torchvision's in channels-last order, whose activations overwrite nothing."""
    torch.manual_seed(0)
    network = torchvision.models.get_model(name, weights=None, num_classes=4)
    narrow(network, 0.125, 16)
    network.eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # otherwise they do next to nothing
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_()
            module.running_mean.normal_()
        module.inplace = False  # type: ignore[assignment]
    if fold:
        fold_batch_norms(network, biased=True)
    return network.to(memory_format=torch.channels_last)


def fused(network: nn.Module) -> nn.Module:
    """A copy that is packed and fused."""
    other = copy.deepcopy(network)
    assert pack_convolutions(other) > 0
    assert fuse_activations(other).on
    return other


def taken(network: nn.Module) -> int:
    """How many modules are run in their place."""
    return sum(isinstance(vars(module).get("forward"), Fused) for module in network.modules())


def images(n: int = 2, size: int = 64, channels: int = 3) -> Tensor:
    batch = torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(1))
    return batch.contiguous(memory_format=torch.channels_last)


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("n", [1, 3])
def test_outputs_are_the_same(name: str, n: int) -> None:
    network = plain_network(name)
    other = fused(network)
    with torch.inference_mode():
        same(other(images(n)), network(images(n)))


@pytest.mark.parametrize(
    ("name", "relus", "adds", "over"), [("vgg11", 2, 0, 0), ("resnet18", 0, 8, 7), ("resnet50", 0, 16, 16)]
)
def test_what_is_left_to_do_apart(name: str, relus: int, adds: int, over: int) -> None:
    """The ReLUs of VGG's linear layers; the first block of ResNet-18, whose input is a pooling's, leaves it alone."""
    other = fused(plain_network(name))
    with Operations() as done, torch.inference_mode():
        other(images())
    assert done.count("aten.relu") == relus
    assert done.count("aten.add") == done.count("aten.convolution") == 0
    assert done.count("_convolution_pointwise") == sum(isinstance(m, nn.Conv2d) for m in other.modules())
    assert done.count("_convolution_pointwise.binary") + done.count("_convolution_pointwise_.binary") == adds
    assert done.count("_convolution_pointwise_.binary") == over


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_can_be_watched(name: str) -> None:
    """Each hook sees what it would see in the plain network, also after the pass, and may change it."""
    network = plain_network(name)
    other = fused(network)
    for path, _ in network.named_modules():
        seen = [_watch(each, path, lambda output: None) for each in (network, other)]
        changed = [_watch(each, path, lambda output: output + 0.5) for each in (network, other)]
        assert len(seen[0][0]) == len(seen[1][0])
        for expected, found in zip(seen[0][0], seen[1][0], strict=True):
            same(found, expected)
        same(seen[1][1], seen[0][1])
        same(changed[1][1], changed[0][1])
    for path, _ in network.named_modules():
        inputs = [_inputs(each, path) for each in (network, other)]
        assert len(inputs[0]) == len(inputs[1])
        for expected, found in zip(*inputs, strict=True):
            same(found, expected)


def _watch(network: nn.Module, path: str, change: Callable[[Tensor], Tensor | None]) -> tuple[list[Tensor], Tensor]:
    """All outputs of a module in one pass, as they are after it, and the pass's own."""
    found: list[Tensor] = []

    def look(module: nn.Module, args: object, output: Tensor) -> Tensor | None:
        found.append(output)
        return change(output)

    handle = network.get_submodule(path).register_forward_hook(look)
    with torch.inference_mode():
        logits = network(images())
    handle.remove()
    return found, logits


def _inputs(network: nn.Module, path: str) -> list[Tensor]:
    found: list[Tensor] = []
    handle = network.get_submodule(path).register_forward_pre_hook(lambda module, args: found.extend(args))
    with torch.inference_mode():
        network(images())
    handle.remove()
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_can_be_replaced(name: str) -> None:
    """As the tail behind a layer does."""
    network = plain_network(name)
    other = fused(network)
    for path, module in network.named_modules():
        if path and list(module.parameters()):
            same(_negated(other, path), _negated(network, path))


def test_a_replaced_pass_of_a_resnet_is_what_runs() -> None:
    network = plain_network("resnet18")
    usual = network._forward_impl
    network._forward_impl = lambda x: -usual(x)  # type: ignore[assignment, operator]
    other = fused(network)
    with torch.inference_mode():
        same(other(images()), network(images()))


def _negated(network: nn.Module, path: str) -> Tensor:
    """The output when a module gives the negative of what it otherwise gives."""
    module = network.get_submodule(path)
    own, forward = vars(module), module.forward
    with pytest.MonkeyPatch.context() as patched, torch.inference_mode():
        patched.setitem(own, "forward", lambda x: -forward(x))  # type: ignore[arg-type]
        return network(images())


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_the_same(name: str) -> None:
    network = plain_network(name)
    found: list[list[Tensor]] = []
    for each in (network, fused(network)):
        batch = images().requires_grad_()
        with Operations() as done:
            total = each(batch)[:, 0].sum()
        (first,) = torch.autograd.grad(total, batch, create_graph=True)
        (again,) = torch.autograd.grad(total, batch, retain_graph=True)
        assert torch.allclose(first, again, atol=1e-5 * float(again.abs().max()))
        found.append([first, torch.autograd.grad(first.pow(2).sum(), batch)[0]])
    linear = sum(isinstance(m, nn.Linear) for m in network.modules()) - 1  # whose ReLUs are done apart
    assert done.count("aten.relu") == linear
    for one, other in zip(*found, strict=True):
        same(other, one)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_can_be_watched_with_a_graph(name: str) -> None:
    """Outputs, and gradients that are changed on their way back."""
    network = plain_network(name)
    other = fused(network)
    for path, _ in network.named_modules():
        found = []
        for each in (network, other):
            seen: list[Tensor] = []

            def look(module: nn.Module, args: object, output: Tensor, seen: list[Tensor] = seen) -> None:
                seen.append(output.detach().clone())
                output.register_hook(lambda gradient: 2 * gradient)

            handle = each.get_submodule(path).register_forward_hook(look)
            batch = images().requires_grad_()
            each(batch)[:, 0].sum().backward()
            handle.remove()
            assert batch.grad is not None
            found.append([*seen, batch.grad])
        for one, two in zip(*found, strict=True):
            same(two, one)


def test_everybody_who_watches_all_modules_sees_them() -> None:
    network = plain_network("resnet18")
    for module in network.modules():
        module.inplace = isinstance(module, nn.ReLU)  # type: ignore[assignment]
    others = [Classifier(copy.deepcopy(network), {"cam": "layer4"}, packed_weights=packed) for packed in (True, False)]
    seen: list[str] = []
    kept: list[Tensor] = []

    def look(module: nn.Module, args: object, output: Tensor) -> None:
        seen.append(type(module).__name__)
        kept.append(output)

    handle = register_module_forward_hook(look)
    try:
        for classifier in others:
            classifier.logits(images())
    finally:
        handle.remove()
    half = len(seen) // 2
    assert seen[:half] == seen[half:]
    assert seen.count("ReLU") == 2 * 17
    bn = seen.index("Identity")
    assert float(kept[bn].min()) < 0  # what is kept is not written over
    for one, other in zip(kept[:half], kept[half:], strict=True):
        same(one, other)


@pytest.mark.parametrize("name", ["vgg11_bn", "resnet18", "resnet50"])
def test_batch_norms_that_are_not_folded_are_not_left_out(name: str) -> None:
    network = plain_network(name, fold=False)
    same(fused(network)(images()), network(images()))


class Dense(nn.Module):
    """Reads the input of its blocks again."""

    def __init__(self, block: type[BasicBlock] | type[Bottleneck]):
        super().__init__()
        width = 16 // block.expansion
        self.first, self.second = (block(16, width, norm_layer=nn.Identity) for _ in range(2))  # type: ignore[arg-type]
        self.sequence = nn.Sequential(*(block(16, width, norm_layer=nn.Identity) for _ in range(2)))  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z = self.second(y)
        return torch.cat([x, y, z, self.sequence(z), z], 1)


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_a_block_leaves_the_input_that_others_read(block: type[BasicBlock] | type[Bottleneck]) -> None:
    torch.manual_seed(0)
    network = Dense(block).eval().requires_grad_(False).to(memory_format=torch.channels_last)
    other = fused(network)
    batch = images(channels=16)
    before = batch.clone()
    with Operations() as done, torch.inference_mode():
        found = other(batch)
    assert (done.count("_convolution_pointwise.binary"), done.count("_convolution_pointwise_.binary")) == (3, 1)
    assert torch.equal(batch, before)
    for module in network.modules():
        module.inplace = False  # type: ignore[assignment]
    same(found, network(batch))


@pytest.mark.parametrize("name", ["vgg11", "resnet18"])
def test_copies_are_of_their_own(name: str) -> None:
    other = fused(plain_network(name))
    expected = other(images())
    for each in (copy.deepcopy(other), pickle.loads(pickle.dumps(other))):
        same(each(images()), expected)
        for parameter in each.parameters():
            parameter.zero_()
        assert not each(images()).any()
    same(other(images()), expected)


def test_copies_of_inference_mode_are_computed_as_ever() -> None:
    """Their weights do not count their changes."""
    other = fused(plain_network("vgg11"))
    expected = other(images())
    with torch.inference_mode():
        each = copy.deepcopy(other)
        same(each(images()), expected)
        each.features[0].weight.zero_()
        assert not torch.allclose(each(images()), expected)


@pytest.mark.parametrize("name", ["vgg11", "resnet50"])
def test_layers_stay_what_they_are(name: str) -> None:
    network = plain_network(name)
    other = fused(network)
    kinds = [{path: type(module) for path, module in each.named_modules()} for each in (network, other)]
    assert kinds[0] == kinds[1]
    assert list(network.state_dict()) == list(other.state_dict())
    assert str(torch.fx.symbolic_trace(network).graph) == str(torch.fx.symbolic_trace(other).graph)


def test_only_known_types_are_taken() -> None:
    class Own(nn.Sequential):
        def forward(self, input: Tensor) -> Tensor:
            return -super().forward(input)

    network = Own(nn.Conv2d(3, 4, 3), nn.ReLU()).requires_grad_(False)
    pack_convolutions(network)
    fuse_activations(network)
    assert taken(network) == 0
    around = nn.Sequential(network)
    fuse_activations(around)
    assert taken(around) == 1
    replaced = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    replaced.forward = lambda x: x  # type: ignore[method-assign, assignment]
    fuse_activations(replaced)
    assert taken(replaced) == 0


def test_sequences_of_other_things_are_run_as_ever() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, 2 * x

    class Sum(nn.Module):
        def forward(self, both: tuple[Tensor, Tensor]) -> Tensor:
            return both[0] + both[1]

    network = nn.Sequential(Two(), Sum(), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.Identity(), nn.ReLU(), nn.Sequential())
    network.requires_grad_(False).to(memory_format=torch.channels_last)
    same(fused(network)(images()), network(images()))


@pytest.mark.parametrize("size", [(2, 3, 4, 4), (2, 5, 64, 64)], ids=["too small", "channels"])
def test_wrong_images_are_refused_in_the_usual_words(size: tuple[int, ...]) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 5), nn.ReLU(), nn.MaxPool2d(2)).requires_grad_(False)
    other = fused(network)
    errors = []
    for each in (network, other):
        with pytest.raises(RuntimeError) as error:
            each(torch.zeros(size).contiguous(memory_format=torch.channels_last))
        errors.append(str(error.value))
    assert errors[0] == errors[1]


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_a_shortcut_of_another_shape_is_refused_in_the_usual_words(block: type[BasicBlock] | type[Bottleneck]) -> None:
    network = nn.Sequential(block(8, 4)).eval().requires_grad_(False).to(memory_format=torch.channels_last)
    fold_batch_norms(network)
    other = fused(network)
    errors = []
    for each in (network, other):
        with pytest.raises(RuntimeError) as error:
            each(images(channels=8))
        errors.append(str(error.value))
    assert errors[0] == errors[1]


EVERYWHERE = [
    nn.modules.module.register_module_forward_pre_hook,
    nn.modules.module.register_module_forward_hook,
    nn.modules.module.register_module_full_backward_pre_hook,
    nn.modules.module.register_module_full_backward_hook,
]


@pytest.mark.parametrize("register", EVERYWHERE, ids=lambda register: register.__name__)
def test_every_way_to_watch_all_modules_is_noticed(register: Any) -> None:
    assert not watched([nn.ReLU()])
    handle = register(lambda *args: None)
    try:
        assert watched([nn.ReLU()])
    finally:
        handle.remove()
    assert not watched([nn.ReLU()])


@pytest.mark.parametrize(("packed", "fuse"), [(True, True), (True, False), (False, True)])
def test_classifiers_fuse_unless_told_otherwise(packed: bool, fuse: bool) -> None:
    options = {"packed_weights": packed, "fused_activations": fuse}
    classifier = Classifier(plain_network("resnet18"), {"cam": "layer4"}, **options)  # type: ignore[arg-type]
    with Operations() as done:
        classifier.logits(images())
    assert (done.count("relu") == 0) == (packed and fuse)


def test_activations_of_a_classifier_are_not_overwritten() -> None:
    network = plain_network("resnet50")
    layers = ["layer1.0", "layer1.1", "layer1", "layer2.0.downsample", "relu", "layer3.1.bn3"]
    found = Classifier(copy.deepcopy(network), {"cam": "layer4"}).activations(images(), layers)
    expected = Classifier(network, {"cam": "layer4"}, packed_weights=False).activations(images(), layers)
    for one, other in zip(found, expected, strict=True):
        same(one, other)


# --------------------------------------------------------------------------- what is not as torchvision makes it


@pytest.mark.parametrize("activation", [nn.LeakyReLU(0.3), nn.SiLU(), nn.Identity(), nn.ReLU6()], ids=str)
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_other_activations_are_not_taken_for_relus(name: str, activation: nn.Module) -> None:
    network = plain_network(name)
    for module in network.modules():
        if isinstance(module, BasicBlock | Bottleneck):
            module.relu = activation  # type: ignore[assignment]
    same(fused(network)(images()), network(images()))


class Saving(nn.Module):
    """Keeps what it was given, as no hook does."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module, self.given = module, torch.zeros(0)

    def forward(self, x: Tensor) -> Tensor:
        self.given = x
        return self.module(x)


@pytest.mark.parametrize("part", ["conv1", "relu", "bn1", "bn2", "conv2", "downsample"])
def test_what_modules_of_others_keep_is_not_written_over(part: str) -> None:
    network = plain_network("resnet18")
    for block in (network.layer1[0], network.layer2[0], network.layer2[1]):  # type: ignore[index, union-attr]
        block.downsample = block.downsample if block.downsample is not None else nn.Sequential()
        setattr(block, part, Saving(getattr(block, part)))
    other = fused(network)
    with torch.inference_mode():
        same(other(images()), network(images()))
    kept = [[m.given for m in each.modules() if isinstance(m, Saving)] for each in (network, other)]
    assert len(kept[0]) == len(kept[1]) >= 3
    for expected, found in zip(*kept, strict=True):
        same(found, expected)


@pytest.mark.parametrize(
    "shortcut", [nn.Identity(), nn.Sequential(), nn.Dropout()], ids=["identity", "empty", "dropout"]
)
def test_a_shortcut_that_is_the_input_is_not_written_over(shortcut: nn.Module) -> None:
    torch.manual_seed(0)
    network = Dense(BasicBlock)
    for block in (network.first, network.second):
        block.downsample = shortcut  # type: ignore[assignment]
    network = network.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    other = fused(network)
    for module in network.modules():
        module.inplace = False  # type: ignore[assignment]
    with torch.inference_mode():
        same(other(images(channels=16)), network(images(channels=16)))


@pytest.mark.parametrize(
    "layer", ["layer1.0", "layer1.0.bn2", "layer2.0.downsample", "layer2.0.downsample.1", "layer2"]
)
def test_rows_given_to_a_tail_are_left_as_they_are(layer: str) -> None:
    logits = []
    for fuse in (False, True):
        classifier = Classifier(plain_network("resnet18"), {"cam": layer}, fused_activations=fuse)
        with torch.inference_mode(), tail_behind(classifier, images(1), layer) as tail:
            rows = tail.activations.clone()
            logits += [tail.run(rows, 0), tail.run(rows, 0)]
            assert torch.equal(rows, tail.activations)
    for found in logits[1:]:
        same(found, logits[0])


# ---------------------------------------------------------------------------------------------- not a number


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_not_a_number_shows_in_the_logits(name: str, value: float) -> None:
    """By it a failed pair is known; a fused ReLU would make it 0."""
    classifier = Classifier(plain_network(name), {"cam": "features.0" if "vgg" in name else "layer4"})
    batch = images(3)
    batch[1, 0, 20, 20] = value
    logits = classifier.logits(batch)
    assert logits.isfinite().all(1).tolist() == [True, False, True]
    same(logits[[0, 2]], classifier.logits(images(3))[[0, 2]])
    assert classifier.logits(images(3)).isfinite().all()


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_not_a_number_shows_in_gradients(name: str) -> None:
    classifier = Classifier(plain_network(name), {"cam": "features.0" if "vgg" in name else "layer4"})
    batch, pairs = images(3), Pairs(torch.arange(3), torch.zeros(3, dtype=torch.long), ("a", "b", "c"))
    expected = classifier.input_gradients(batch, pairs)
    batch[1, 0, 20, 20] = float("nan")
    _, logits = classifier.capture(batch, [classifier.cam_layer])
    assert logits.isfinite().all(1).tolist() == [True, False, True]
    same(classifier.input_gradients(batch, pairs)[[0, 2]], expected[[0, 2]])


METHODS = {
    "gradient": Gradient(),
    "guided_backprop": GuidedBackprop(),
    "guided_gradcam": GuidedGradCAM(),
    "fullgrad": FullGrad(),
    "deeplift": DeepLIFT(),
    "extremal_perturbation": ExtremalPerturbation(areas=(0.1, 0.3), iterations=3, step=16, sigma=16.0),
    "sise": SISE(),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("name", ["vgg11_bn", "resnet18"])
def test_maps_of_methods_that_go_back_are_the_same(name: str, method: Method) -> None:
    sise = ("features.2", "features.13") if "vgg" in name else ("relu", "layer2")
    layers = {"cam": "features.25" if "vgg" in name else "layer4", "sise": sise}
    network = plain_network(name)
    pairs = Pairs(torch.tensor([0, 0, 1]), torch.tensor([0, 2, 1]), ("a", "b"))
    plain = Classifier(copy.deepcopy(network), layers, packed_weights=False)
    expected = method(plain, images(), pairs)
    assert expected.std() > 0
    same(method(Classifier(network, layers), images(), pairs), expected)


def test_weights_that_are_not_numbers_show_in_the_logits() -> None:
    network = plain_network("resnet18")
    network.layer2[0].conv1.weight[0, 0, 0, 0] = float("nan")  # type: ignore[index, union-attr]
    assert Classifier(network, {"cam": "layer4"}).logits(images()).isnan().all()


def test_biases_get_their_gradients() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).requires_grad_(False).to(memory_format=torch.channels_last)
    other = fused(network)
    for each in (network, other):
        each[0].bias.requires_grad_()
        each(images()).sum().backward()
    same(other[0].bias.grad, network[0].bias.grad)


def test_the_random_numbers_of_others_stay() -> None:
    states = []
    for packed in (True, False):
        torch.manual_seed(3)
        Classifier(nn.Sequential(nn.Conv2d(3, 4, 3)), {}, packed_weights=packed)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
