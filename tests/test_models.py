"""Building networks, loading checkpoints, and what a network is fed."""

import copy
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from camexp.datasets.base import Failure, Sample, Target
from camexp.errors import CamexpError
from camexp.models import checkpoint
from camexp.models.build import ARCHITECTURES, build, fold_vgg_batch_norm, narrow
from camexp.models.fold import fold_batch_norms
from camexp.models.preprocess import NORMALISATIONS, Preprocess, feed

LAYERS = {
    "vgg16": {"features.3": 224, "features.8": 112, "features.15": 56, "features.22": 28, "features.29": 14},
    "resnet50": {"relu": 112, "layer1": 56, "layer2": 28, "layer3": 14, "layer4": 7},
    "resnet101": {"relu": 112, "layer1": 56, "layer2": 28, "layer3": 14, "layer4": 7},
}
"""Sides of the SISE layers' maps for images of 224 x 224."""

every_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def outputs(network: nn.Module, images: Tensor, layers: list[str]) -> dict[str, Tensor]:
    """What the layers give for the images, by plain hooks."""
    found: dict[str, Tensor] = {}
    for layer in layers:
        network.get_submodule(layer).register_forward_hook(lambda m, a, out, layer=layer: found.setdefault(layer, out))
    with torch.no_grad():
        found["logits"] = network(images)
    return found


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


# ---------------------------------------------------------------------------------------------------- building


@every_architecture
def test_full_width_is_torchvisions(architecture: str) -> None:
    with torch.device("meta"):  # shapes without memory
        ours = build(architecture, 20)
        theirs = torchvision.models.get_model(architecture, weights=None, num_classes=20)
    assert list(shapes(ours)) == list(shapes(theirs))
    assert shapes(ours) == shapes(theirs)
    assert not ours.training


@every_architecture
def test_narrow_networks_keep_topology(architecture: str) -> None:
    network = build(architecture, 5, width=1 / 16)
    with torch.device("meta"):
        full = build(architecture, 5)
    assert list(shapes(network)) == list(shapes(full))
    found = outputs(network, torch.randn(1, 3, 224, 224), list(LAYERS[architecture]))
    assert {layer: found[layer].shape[2] for layer in LAYERS[architecture]} == LAYERS[architecture]
    assert found["logits"].shape == (1, 5)
    assert found["logits"].isfinite().all()
    assert not network.training
    for layer, module in full.named_modules():
        if isinstance(module, nn.Conv2d):
            small = network.get_submodule(layer)
            assert small.out_channels == module.out_channels // 16
            assert small.in_channels == (3 if module.in_channels == 3 else module.in_channels // 16)
            for key in ("kernel_size", "stride", "padding", "dilation", "groups"):
                assert getattr(small, key) == getattr(module, key)
            assert (small.bias is None) == (module.bias is None)


@every_architecture
def test_narrow_networks_are_made_of_real_tensors(architecture: str) -> None:
    network = build(architecture, 5, width=1 / 16)
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    assert {tensor.device.type for tensor in tensors.values()} == {"cpu"}
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_every_channel_count_is_at_least_one() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 7))
    narrow(network, 0.01)
    assert shapes(network)["0.weight"] == (1, 3, 3, 3)
    assert shapes(network)["1.weight"] == (1,)
    assert shapes(network)["3.weight"] == (7, 1)


def test_builds_are_reproducible_by_the_seed() -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(build("resnet50", 3, width=1 / 16).state_dict()["conv1.weight"])
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_unknown_architecture_names_the_known_ones() -> None:
    with pytest.raises(CamexpError, match=r"unknown model.architecture 'vgg19'; one of vgg16, resnet50, resnet101"):
        build("vgg19", 20)


def test_folded_batch_norm_gives_the_same_outputs() -> None:
    torch.manual_seed(0)
    network = build("vgg16_bn", 5, width=1 / 16)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = network(images)
        folded = fold_vgg_batch_norm(network)
        assert torch.allclose(folded(images), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
    assert shapes(folded) == shapes(build("vgg16", 5, width=1 / 16))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())


def test_batch_norm_without_statistics_of_its_own_is_not_folded() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    assert fold_batch_norms(network) == 0
    assert isinstance(network[1], nn.BatchNorm2d)


# ------------------------------------------------------------------------------------------------- checkpoints


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def other_state() -> dict[str, Tensor]:
    """A state that fits `small_network` and differs from it."""
    return {
        key: value + 1 if value.is_floating_point() else value for key, value in small_network().state_dict().items()
    }


def assert_loads(path: Path, tolerance: float = 0.0) -> None:
    network = small_network()
    checkpoint.load(network, path)
    for key, value in other_state().items():
        assert torch.allclose(network.state_dict()[key], value, rtol=0, atol=tolerance)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_state_dicts_load(tmp_path: Path) -> None:
    assert_loads(saved(tmp_path / "state.pth", other_state()))
    save_file(other_state(), tmp_path / "state.safetensors")
    assert_loads(tmp_path / "state.safetensors")


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_nested_state_dicts_load(tmp_path: Path, key: str) -> None:
    assert_loads(saved(tmp_path / "state.pth.tar", {key: other_state(), "epoch": 7, "optimizer": {"lr": 0.1}}))


def test_prefix_of_data_parallel_is_dropped(tmp_path: Path) -> None:
    state = {f"module.{key}": value for key, value in other_state().items()}
    assert_loads(saved(tmp_path / "state.pth", {"state_dict": state}))


def test_half_precision_loads_as_float32(tmp_path: Path) -> None:
    half = {k: v.half() if v.is_floating_point() else v for k, v in other_state().items()}
    save_file(half, tmp_path / "half.safetensors")
    assert_loads(tmp_path / "half.safetensors", tolerance=2e-3)
    assert_loads(saved(tmp_path / "half.pth", half), tolerance=2e-3)


def test_counters_of_batch_norm_may_be_missing(tmp_path: Path) -> None:
    state = {key: value for key, value in other_state().items() if "num_batches" not in key}
    assert_loads(saved(tmp_path / "state.pth", state))


def test_mismatches_are_named_with_both_shapes(tmp_path: Path) -> None:
    state = other_state()
    state["3.weight"] = torch.zeros(20, 8)
    del state["0.bias"]
    state["4.weight"] = torch.zeros(1)
    path = saved(tmp_path / "state.pth", state)
    network = small_network()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(CamexpError) as error:
        checkpoint.load(network, path)
    message = str(error.value)
    assert str(path) in message
    assert "3.weight: shape (20, 8) in the file, (3, 8) in the network" in message
    assert "0.bias: missing in the file" in message
    assert "4.weight: not in the network" in message
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_many_mismatches_are_counted(tmp_path: Path) -> None:
    path = saved(tmp_path / "state.pth", {f"layer{i}": torch.zeros(1) for i in range(10)})
    with pytest.raises(CamexpError, match=r"0\.weight: missing in the file[^$]*and 12 more"):
        checkpoint.load(small_network(), path)  # 8 missing, 10 too many, 6 shown


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    state = other_state()
    state["3.bias"][1] = value
    with pytest.raises(CamexpError, match=r"not finite, first in 3\.bias"):
        checkpoint.load(small_network(), saved(tmp_path / "state.pth", state))


@pytest.mark.parametrize("name", ["broken.pth", "broken.safetensors"])
def test_corrupt_files_are_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"no checkpoint at all, but a text\n" * 9)
    with pytest.raises(CamexpError, match=f"cannot read the checkpoint {path}"):
        checkpoint.load(small_network(), path)


def test_empty_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty.pth").touch()
    with pytest.raises(CamexpError, match="cannot read the checkpoint"):
        checkpoint.load(small_network(), tmp_path / "empty.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_files_are_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut{suffix}"
    if suffix == ".pth":
        saved(path, other_state())
    else:
        save_file(other_state(), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CamexpError, match="cannot read the checkpoint"):
        checkpoint.load(small_network(), path)


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {"weight": 3.0}, {"state_dict": {"a": "b"}}])
def test_other_contents_are_no_state_dict(tmp_path: Path, content: Any) -> None:
    with pytest.raises(CamexpError, match="is not a state dict"):
        checkpoint.load(small_network(), saved(tmp_path / "state.pth", content))


class Intruder:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    path = saved(tmp_path / "evil.pth", {"state_dict": other_state(), "extra": Intruder(tmp_path / "was here")})
    with pytest.raises(CamexpError, match="cannot read the checkpoint") as caught:
        checkpoint.load(small_network(), path)
    assert "weights_only" not in str(caught.value)  # no advice to run it
    assert not (tmp_path / "was here").exists()
    torch.load(path, weights_only=False)  # the intruder is real
    assert (tmp_path / "was here").exists()


def test_random_weights_need_no_file() -> None:
    assert checkpoint.resolve("random", "resnet50", "voc2007") is None


@pytest.mark.parametrize("nothing", [None, ""])
def test_no_checkpoint_says_what_to_pass(nothing: str | None) -> None:
    with pytest.raises(
        CamexpError, match=r"no checkpoint for model=vgg16 on dataset=voc2007[^$]*model.checkpoint=FILE"
    ):
        checkpoint.resolve(nothing, "vgg16", "voc2007")


def test_missing_file_is_named_with_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CamexpError, match=f"looked for {tmp_path / 'weights.pth'}"):
        checkpoint.resolve("weights.pth", "vgg16", "voc2007")
    (tmp_path / "weights.pth").touch()
    assert checkpoint.resolve("weights.pth", "vgg16", "voc2007") == Path("weights.pth")


def test_embedded_checkpoint_of_an_unknown_combination_lists_those_that_ship(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("minivoc_vgg16", "minivoc_resnet50"):
        (tmp_path / f"{name}.safetensors").touch()
    monkeypatch.setattr(checkpoint, "EMBEDDED", tmp_path)
    assert checkpoint.resolve("embedded", "vgg16", "minivoc") == tmp_path / "minivoc_vgg16.safetensors"
    with pytest.raises(
        CamexpError, match=r"no embedded checkpoint severstal_vgg16; .*: minivoc_resnet50, minivoc_vgg16"
    ):
        checkpoint.resolve("embedded", "vgg16", "severstal")


def test_sha256_is_the_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"weights")
    assert checkpoint.sha256(tmp_path / "file") == hashlib.sha256(b"weights").hexdigest()


# ------------------------------------------------------------------------------------------------- preprocessing


def naive_mask(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """The value of the source pixel in which the centre of each target pixel lies, in whole numbers."""
    result = np.zeros((height, width), dtype=bool)
    for y in range(height):
        for x in range(width):
            result[y, x] = mask[(2 * y + 1) * mask.shape[0] // (2 * height), (2 * x + 1) * mask.shape[1] // (2 * width)]
    return result


@pytest.mark.parametrize(("height", "width"), [(37, 50), (10, 7), (24, 24), (9, 31), (16, 64)])
@pytest.mark.parametrize("resize", ["squash", "shorter_side"])
def test_masks_scale_by_pixel_centres(height: int, width: int, resize: str) -> None:
    generator = np.random.default_rng(0)
    masks = [generator.random((height, width)) < share for share in (0.2, 0.7)]
    preprocess = Preprocess(size=24, resize=resize)
    resized = preprocess.masks(masks, width, height)
    assert resized.dtype == torch.bool
    expected = [naive_mask(mask, *preprocess.shape(width, height)) for mask in masks]
    assert np.array_equal(resized.numpy(), np.stack(expected))


def test_masks_by_hand() -> None:
    # from 4x4 to 2x2: the centres of the large pixels lie on corners of small ones, and belong to the lower right
    mask = np.zeros((4, 4), dtype=bool)
    mask[1, 1] = mask[2, 3] = mask[3, 3] = True
    assert Preprocess(size=2).masks([mask], 4, 4)[0].tolist() == [[True, False], [False, True]]
    # enlarged to 8x8 every pixel becomes a block
    assert np.array_equal(Preprocess(size=8).masks([mask], 4, 4)[0].numpy(), mask.repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize("axis", [0, 1])
def test_thin_objects_keep_a_pixel(axis: int) -> None:
    # at the scale 1/10 the centres sample the lines 5, 15, 25 ...: line 22 lies between them
    mask = np.zeros((60, 60), dtype=bool)
    mask[22, 7:50] = True
    mask = mask if axis == 0 else mask.T
    resized = Preprocess(size=6).masks([mask, np.ones((60, 60), dtype=bool)], 60, 60)
    assert not naive_mask(mask, 6, 6).any()
    expected = torch.zeros(6, 6, dtype=torch.bool)
    expected[2, 1:5] = True  # the pixels of line 20..29 that are covered over their whole length
    assert torch.equal(resized[0] if axis == 0 else resized[0].T, expected)
    assert resized[1].all()


def test_a_single_pixel_survives() -> None:
    mask = np.zeros((100, 100), dtype=bool)
    mask[33, 78] = True
    resized = Preprocess(size=10).masks([mask], 100, 100)[0]
    assert resized.nonzero().tolist() == [[3, 7]]


def test_no_masks_give_an_empty_stack() -> None:
    assert Preprocess(size=8, resize="shorter_side").masks([], 30, 20).shape == (0, 8, 12)


def test_shape_of_the_fed_image() -> None:
    assert Preprocess(size=224).shape(500, 375) == (224, 224)
    # width x height in, (height, width) out: 500 * 224 / 375 = 298.67
    assert Preprocess(size=224, resize="shorter_side").shape(500, 375) == (224, 299)
    assert Preprocess(size=224, resize="shorter_side").shape(375, 500) == (299, 224)
    image = Preprocess(size=24, resize="shorter_side").image(Image.new("RGB", (50, 37)))
    assert image.shape == (3, 24, 32)


@pytest.mark.parametrize("centring", ["model", "none"])
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_black_is_what_a_black_pixel_becomes(normalisation: str, centring: str) -> None:
    preprocess = Preprocess(normalisation, size=4, centring=centring)
    fed = preprocess.image(Image.new("RGB", (6, 5)))
    assert preprocess.black().shape == (3, 1, 1)
    assert torch.allclose(preprocess.black().expand(3, 4, 4), fed)
    assert bool(preprocess.black().any()) == (centring == "model")


def test_normalisations_by_hand() -> None:
    image = Image.new("RGB", (4, 4), (51, 102, 255))  # 0.2, 0.4, 1
    fed = {name: Preprocess(name, size=4).image(image)[:, 0, 0].tolist() for name in NORMALISATIONS}
    expected = [(0.2 - 0.485) / 0.229, (0.4 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    assert fed["imagenet"] == pytest.approx(expected, abs=1e-5)
    assert fed["caffe"] == pytest.approx([51 - 123.68, 102 - 116.779, 255 - 103.939], abs=1e-4)
    uncentred = Preprocess("caffe", size=4, centring="none").image(image)[:, 0, 0]
    assert uncentred.tolist() == pytest.approx([51, 102, 255])


def test_images_and_masks_keep_their_axes() -> None:
    # the left third is white, in the image and in the mask
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[:, :20] = 255
    preprocess = Preprocess("caffe", size=12, centring="none")
    fed = preprocess.image(Image.fromarray(pixels))
    mask = preprocess.masks([pixels[:, :, 0] > 0], 60, 40)[0]
    assert fed.dtype == torch.float32
    assert torch.equal(fed[0] > 127, mask)
    assert mask[:, :4].all()
    assert not mask[:, 4:].any()


def test_images_shrink_with_antialiasing() -> None:
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    fed = Preprocess("caffe", size=8, centring="none").image(Image.fromarray(stripes))
    assert fed.min() > 100  # without, columns of one colour would be picked
    assert fed.max() < 155


@pytest.mark.parametrize(("resize", "size"), [("squash", (24, 24)), ("shorter_side", (24, 32))])
def test_images_are_resized_by_pillow(resize: str, size: tuple[int, int]) -> None:
    """In whole numbers: PyTorch's results hang on its version and on the processor."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
    fed = Preprocess("caffe", size=24, resize=resize, centring="none").image(image)
    expected = np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR))
    assert fed.shape == (3, *size)
    assert torch.equal(fed.round().byte().permute(1, 2, 0), torch.from_numpy(expected.copy()))
    near = torch.nn.functional.interpolate(
        torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].double(), size, mode="bilinear", antialias=True
    )[0]
    assert (fed - near).abs().max() < 1.001  # rounded after each of the two ways


def test_unknown_options_are_named() -> None:
    with pytest.raises(CamexpError, match=r"unknown model.preprocess 'keras'; one of imagenet, caffe"):
        Preprocess("keras")
    with pytest.raises(CamexpError, match=r"protocol.resize must be squash or shorter_side, not 'crop'"):
        Preprocess(resize="crop")


def test_feeding_a_sample() -> None:
    mask = np.zeros((20, 30), dtype=bool)
    mask[:10] = True
    failure = Failure("image0", 4, "ground truth: broken")
    sample = Sample("image0", Image.new("RGB", (30, 20), (255, 255, 255)), (Target(3),), (mask,), (failure,))
    fed = feed(sample, Preprocess("caffe", size=6, centring="none"))
    assert fed.image is not None
    assert fed.image.shape == (3, 6, 6)
    assert fed.image.eq(255).all()
    assert fed.masks[0, :3].all()
    assert not fed.masks[0, 3:].any()
    assert (fed.sample.image_id, fed.sample.targets, fed.sample.failures) == ("image0", (Target(3),), (failure,))
    assert fed.sample.image is None  # the decoded image is let go


def test_feeding_an_unreadable_sample() -> None:
    sample = Sample("image0", None, (), (), (Failure("image0", None, "image: truncated"),))
    fed = feed(sample, Preprocess())
    assert fed.image is None
    assert fed.sample is sample


# ------------------------------------------------------------------------------------------ folded batch norms


def with_statistics(network: nn.Module) -> nn.Module:
    """Random scales, shifts and running statistics in every batch norm."""
    generator = torch.Generator().manual_seed(3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in (
                (module.weight, 0.5),
                (module.bias, -0.5),
                (module.running_mean, -0.5),
                (module.running_var, 0.5),
            ):
                tensor.data = torch.rand(tensor.shape, generator=generator) + low
    return network.eval()


@pytest.mark.parametrize(("name", "norms"), [("resnet50", 53), ("resnet101", 104)])
def test_folding_changes_neither_logits_nor_layers(name: str, norms: int) -> None:
    torch.manual_seed(0)
    plain = with_statistics(build(name, 5, 0.0625)).double()
    folded = copy.deepcopy(plain)
    assert fold_batch_norms(folded) == norms
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    outputs: list[Tensor] = []
    for network in (plain, folded):
        network.get_submodule("layer2.1.bn2").register_forward_hook(lambda m, args, output: outputs.append(output))
    torch.testing.assert_close(folded(images), plain(images))
    torch.testing.assert_close(outputs[0], outputs[1])


def test_a_batch_norm_is_not_folded_where_the_convolution_has_another_use() -> None:
    class TwoUses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, images: Tensor) -> Tensor:
            found = self.conv(images)
            return (self.bn(found) + found).mean((2, 3))

    network = with_statistics(TwoUses())
    images = torch.randn(2, 3, 5, 5)
    expected = network(images)
    assert fold_batch_norms(network) == 0
    torch.testing.assert_close(network(images), expected)


def test_a_network_that_cannot_be_traced_is_left_alone() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, images: Tensor) -> Tensor:
            return self.bn(self.conv(images)) if images.sum() > 0 else images

    network = with_statistics(Branching())
    assert fold_batch_norms(network) == 0
    assert isinstance(network.bn, nn.BatchNorm2d)
