"""Caffe-style networks, and TorchRay's checkpoints for them: against networks written out from Caffe's definitions."""

import importlib.util
import json
import os
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors import safe_open
from test_models import Intruder, saved
from torch import Tensor, nn
from torch.nn import functional as F

from camexp.config import compose_config, make_classifier
from camexp.datasets.coco import COCO
from camexp.errors import CamexpError
from camexp.models import checkpoint
from camexp.models.build import build
from camexp.models.caffe import CAFFE_STYLE
from camexp.models.convert import convert_torchray, from_torchvision, provenance, to_torchvision
from camexp.models.fold import fold_batch_norms
from camexp.models.preprocess import Preprocess

State = dict[str, Tensor]

NARROW = 1 / 16
CLASSES = 20
SIZES = ((224, 224), (224, 299), (299, 224), (225, 231), (193, 160))

VGG16_BLOCKS = (((0, 2), 64), ((5, 7), 128), ((10, 12, 14), 256), ((17, 19, 21), 512), ((24, 26, 28), 512))
RESNET50_STAGES = ((1, 3, 64), (2, 4, 128), (3, 6, 256), (4, 3, 512))
LAYERS = {
    "vgg16": {"features.3": 224, "features.8": 112, "features.15": 56, "features.22": 28, "features.29": 14},
    "resnet50": {"relu": 112, "layer1": 56, "layer2": 28, "layer3": 14, "layer4": 7},
}
"""Sides of the SISE layers' maps for images of 224 x 224."""

every_architecture = pytest.mark.parametrize("architecture", ["vgg16", "resnet50"])


# ------------------------------------------------------------------------------- files as TorchRay publishes them


def vgg16_shapes(width: float, classes: int, convolutional: bool) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of TorchRay's VGG16 files, written out."""
    shapes: dict[str, tuple[int, ...]] = {}
    inputs = 3
    for layers, full in VGG16_BLOCKS:
        for number in layers:
            outputs = round(full * width)
            shapes |= {f"features.{number}.weight": (outputs, inputs, 3, 3), f"features.{number}.bias": (outputs,)}
            inputs = outputs
    hidden = round(4096 * width)
    for number, outputs, channels, side in ((0, hidden, inputs, 7), (2, hidden, hidden, 1), (4, classes, hidden, 1)):
        weight = (outputs, channels, side, side) if convolutional else (outputs, channels * side * side)
        shapes |= {f"classifier.{number}.weight": weight, f"classifier.{number}.bias": (outputs,)}
    return shapes


def resnet50_shapes(width: float, classes: int) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of TorchRay's ResNet-50 files, written out."""
    shapes: dict[str, tuple[int, ...]] = {}

    def convolution(name: str, norm: str, outputs: int, inputs: int, side: int) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs, side, side)
        for key in ("0.running_mean", "0.running_var", "1.weight", "1.bias"):
            shapes[f"{norm}.{key}"] = (outputs,)

    inputs = round(64 * width)
    convolution("conv1", "bn1", inputs, 3, 7)
    shapes["conv1.bias"] = (inputs,)
    for stage, blocks, full in RESNET50_STAGES:
        planes = round(full * width)
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            convolution(f"{name}.conv1", f"{name}.bn1", planes, inputs, 1)
            convolution(f"{name}.conv2", f"{name}.bn2", planes, planes, 3)
            convolution(f"{name}.conv3", f"{name}.bn3", 4 * planes, planes, 1)
            if block == 0:
                convolution(f"{name}.downsample.0", f"{name}.downsample.1", 4 * planes, inputs, 1)
            inputs = 4 * planes
    return shapes | {"fc.weight": (classes, inputs), "fc.bias": (classes,)}


def file_shapes(architecture: str, width: float = NARROW, convolutional: bool = False) -> dict[str, tuple[int, ...]]:
    if architecture == "vgg16":
        return vgg16_shapes(width, CLASSES, convolutional)
    return resnet50_shapes(width, CLASSES)


def torchray_file(architecture: str, convolutional: bool = False) -> State:
    """A narrow file with random values that keep activations in a sensible range."""
    generator = torch.Generator().manual_seed(5)
    state = {}
    for key, shape in file_shapes(architecture, convolutional=convolutional).items():
        values = torch.randn(shape, generator=generator)
        if key.endswith(("running_var", "1.weight")) and len(shape) == 1:
            values = values.abs() + 0.5
        elif len(shape) > 1:
            values = values * (2 / torch.Size(shape[1:]).numel()) ** 0.5
        state[key] = values * (0.02 if key in ("features.0.weight", "conv1.weight") else 1)  # pixels reach 255
    return state


# ------------------------------------------------------------------- networks as Caffe defines them, written out


def convolve(state: State, name: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), stride, padding)


def standardise_and_scale(state: State, name: str, x: Tensor) -> Tensor:
    """Caffe's BatchNorm (eps 1e-5) with the stored statistics, then Scale."""
    mean, variance, weight, bias = (
        state[f"{name}.{key}"][:, None, None] for key in ("0.running_mean", "0.running_var", "1.weight", "1.bias")
    )
    return (x - mean) / (variance + 1e-5).sqrt() * weight + bias


def pool(x: Tensor, size: int, stride: int) -> Tensor:
    """Caffe's max-pool without padding: ceil((n - size) / stride) + 1 windows, the last one cut at the border."""

    def beyond(length: int) -> int:
        windows = -(-(length - size) // stride) + 1
        return (windows - 1) * stride + size - length

    padded = F.pad(x, (0, beyond(x.shape[3]), 0, beyond(x.shape[2])), value=-torch.inf)
    return F.max_pool2d(padded, size, stride)


def mean_regions(x: Tensor, side: int) -> Tensor:
    """Means (N,C,side,side) of regions that cover the maps, from floor(i n / side) to ceil((i + 1) n / side)."""
    height, width = x.shape[2:]
    return torch.stack(
        [
            torch.stack(
                [
                    x[
                        :,
                        :,
                        i * height // side : -(-(i + 1) * height // side),
                        j * width // side : -(-(j + 1) * width // side),
                    ].mean((2, 3))
                    for j in range(side)
                ],
                -1,
            )
            for i in range(side)
        ],
        -2,
    )


def caffe_vgg16(state: State, bgr: Tensor) -> Tensor:
    x = bgr
    for layers, _ in VGG16_BLOCKS:
        for number in layers:
            x = convolve(state, f"features.{number}", x, padding=1).relu()
        x = pool(x, 2, 2)
    x = mean_regions(x, 7).flatten(1)
    for number in (0, 2, 4):
        weight = state[f"classifier.{number}.weight"]
        x = x @ weight.reshape(len(weight), -1).T + state[f"classifier.{number}.bias"]
        x = x if number == 4 else x.relu()
    return x


def caffe_resnet50(state: State, bgr: Tensor) -> Tensor:
    x = standardise_and_scale(state, "bn1", convolve(state, "conv1", bgr, 2, 3)).relu()
    x = pool(x, 3, 2)
    for stage, blocks, _ in RESNET50_STAGES:
        for block in range(blocks):
            name, stride = f"layer{stage}.{block}", 2 if block == 0 and stage > 1 else 1
            branch = standardise_and_scale(state, f"{name}.bn1", convolve(state, f"{name}.conv1", x, stride)).relu()
            branch = standardise_and_scale(state, f"{name}.bn2", convolve(state, f"{name}.conv2", branch, 1, 1)).relu()
            branch = standardise_and_scale(state, f"{name}.bn3", convolve(state, f"{name}.conv3", branch))
            if block == 0:
                shortcut = convolve(state, f"{name}.downsample.0", x, stride)
                x = standardise_and_scale(state, f"{name}.downsample.1", shortcut)
            x = (x + branch).relu()
    return x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


CAFFE = {"vgg16": caffe_vgg16, "resnet50": caffe_resnet50}


def photograph(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(height + width).integers(0, 256, (height, width, 3), np.uint8))


def as_caffe_feeds(image: Image.Image) -> Tensor:
    """(1,3,H,W): blue, green, red in [0,255] less the mean of each."""
    red, green, blue = torch.from_numpy(np.array(image)).permute(2, 0, 1).double()
    return torch.stack([blue - 103.939, green - 116.779, red - 123.68])[None]


def converted(architecture: str, state: State) -> nn.Module:
    network = build(f"{architecture}_caffe", CLASSES, NARROW)
    network.load_state_dict(to_torchvision(state, NARROW), strict=True)
    return network.double()


# ----------------------------------------------------------------------------------------------------- the check


@every_architecture
@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_converted_network_is_caffes(architecture: str, size: tuple[int, int]) -> None:
    state, image = torchray_file(architecture), photograph(*size)
    expected = CAFFE[architecture]({key: value.double() for key, value in state.items()}, as_caffe_feeds(image))
    fed = Preprocess("caffe", size=min(size), resize="shorter_side").image(image)[None].double()
    network = converted(architecture, state)
    assert fed.shape[2:] == size
    assert expected.std() > 0.1
    torch.testing.assert_close(network(fed), expected, rtol=1e-5, atol=1e-5)  # the fed pixels are float32
    exact = as_caffe_feeds(image).flip(1)
    torch.testing.assert_close(network(exact), expected, rtol=1e-10, atol=1e-10)


@every_architecture
@torch.no_grad()
def test_the_check_tells_every_difference_from_torchvision(architecture: str) -> None:
    """Were one part of the conversion or of the network left out, the test above would fail."""
    state, image = torchray_file(architecture), photograph(225, 231)
    fed = as_caffe_feeds(image).flip(1)
    expected = CAFFE[architecture]({key: value.double() for key, value in state.items()}, as_caffe_feeds(image))

    def differs(network: nn.Module, images: Tensor = fed) -> bool:
        return not torch.allclose(network(images), expected, rtol=1e-3, atol=1e-3)

    assert not differs(converted(architecture, state))
    assert differs(converted(architecture, state), fed.flip(1))  # channels
    assert differs(converted(architecture, state), fed + 116)  # mean
    for name, module in converted(architecture, state).named_modules():
        if isinstance(module, nn.MaxPool2d):
            network = converted(architecture, state)
            network.get_submodule(name).ceil_mode = False  # type: ignore[assignment]
            assert differs(network), name
    if architecture == "resnet50":
        for stage in ("layer2", "layer3", "layer4"):
            network = converted(architecture, state)
            first = network.get_submodule(f"{stage}.0")
            first.conv1.stride, first.conv2.stride = (1, 1), (2, 2)  # type: ignore[union-attr, assignment]
            assert differs(network), stage
        network = converted(architecture, state)
        network.conv1.bias.zero_()  # type: ignore[union-attr, operator]
        assert differs(network)


@torch.no_grad()
def test_folding_batch_norms_keeps_the_converted_network() -> None:
    network = converted("resnet50", torchray_file("resnet50"))
    images = as_caffe_feeds(photograph(193, 160)).flip(1)
    expected = network(images)
    assert fold_batch_norms(network) == 52  # the first convolution has a bias of its own
    torch.testing.assert_close(network(images), expected)
    assert fold_batch_norms(network, biased=True) == 1
    torch.testing.assert_close(network(images), expected)


# ------------------------------------------------------------------------------------------------ both directions


@every_architecture
@pytest.mark.parametrize("convolutional", [False, True])
def test_round_trip_from_the_file(architecture: str, convolutional: bool) -> None:
    state = torchray_file(architecture, convolutional)
    before = {key: value.clone() for key, value in state.items()}
    back = from_torchvision(to_torchvision(state, NARROW), convolutional)
    assert set(back) == set(state) == set(before)
    for key, value in back.items():
        assert torch.equal(value, before[key]), key
        assert torch.equal(state[key], before[key]), key


@every_architecture
@pytest.mark.parametrize("convolutional", [False, True])
def test_round_trip_from_the_network(architecture: str, convolutional: bool) -> None:
    torch.manual_seed(0)
    state = build(f"{architecture}_caffe", CLASSES, NARROW).state_dict()
    expected = {key: value.clone() for key, value in state.items() if "num_batches" not in key}
    file = from_torchvision(dict(state), convolutional)
    assert {key: tuple(value.shape) for key, value in file.items()} == file_shapes(architecture, NARROW, convolutional)
    back = to_torchvision(file, NARROW)
    assert set(back) == set(expected)
    assert all(torch.equal(back[key], value) for key, value in expected.items())


@every_architecture
@pytest.mark.parametrize("convolutional", [False, True])
def test_full_width_has_the_shapes_of_the_published_files(architecture: str, convolutional: bool) -> None:
    with torch.device("meta"):  # shapes without memory
        file = {key: torch.empty(shape) for key, shape in file_shapes(architecture, 1.0, convolutional).items()}
        network = build(f"{architecture}_caffe", CLASSES)
        theirs = torchvision.models.get_model(architecture, weights=None, num_classes=CLASSES).state_dict()
        shapes = {key: tuple(value.shape) for key, value in to_torchvision(file).items()}
        for size in SIZES[:2]:
            assert network(torch.empty(2, 3, *size)).shape == (2, CLASSES)
    expected = {key: tuple(value.shape) for key, value in theirs.items() if "num_batches" not in key}
    assert shapes == (expected | {"conv1.bias": (64,)} if architecture == "resnet50" else expected)


@every_architecture
def test_flat_and_convolutional_weights_convert_alike(architecture: str) -> None:
    flat, folded = (to_torchvision(torchray_file(architecture, shape), NARROW) for shape in (False, True))
    assert all(torch.equal(flat[key], folded[key]) for key in flat)


def test_channels_names_and_order_of_weights_by_hand() -> None:
    state = torchray_file("vgg16", convolutional=True)
    found = to_torchvision(state, NARROW)
    assert torch.equal(found["features.0.weight"][:, 0], state["features.0.weight"][:, 2])  # red
    assert torch.equal(found["features.0.weight"][:, 1], state["features.0.weight"][:, 1])
    assert torch.equal(found["features.2.weight"], state["features.2.weight"])  # no other convolution is turned
    assert torch.equal(found["classifier.3.bias"], state["classifier.2.bias"])
    assert torch.equal(found["classifier.6.bias"], state["classifier.4.bias"])
    assert found["classifier.0.weight"][5, 3 * 49 + 2 * 7 + 6] == state["classifier.0.weight"][5, 3, 2, 6]
    state = torchray_file("resnet50")
    found = to_torchvision(state, NARROW)
    for key, theirs in {
        "bn1.running_mean": "bn1.0.running_mean",
        "layer1.0.bn3.weight": "layer1.0.bn3.1.weight",
        "layer4.0.downsample.1.bias": "layer4.0.downsample.1.1.bias",
        "layer4.0.downsample.0.weight": "layer4.0.downsample.0.weight",
        "fc.weight": "fc.weight",
    }.items():
        assert torch.equal(found[key], state[theirs]), key


def test_half_precision_becomes_float32() -> None:
    found = to_torchvision({key: value.half() for key, value in torchray_file("resnet50").items()}, NARROW)
    assert {value.dtype for value in found.values()} == {torch.float32}


@torch.no_grad()
def test_counters_and_a_scale_of_batch_norms_own_are_merged() -> None:
    state = torchray_file("resnet50")
    images = as_caffe_feeds(photograph(193, 160)).flip(1)
    plain = converted("resnet50", state)(images)
    units = {f"{key.removesuffix('0.running_mean')}0": value for key, value in state.items() if "running_mean" in key}
    neutral = {f"{norm}.weight": torch.ones_like(like) for norm, like in units.items()}
    neutral |= {f"{norm}.bias": torch.zeros_like(like) for norm, like in units.items()}
    counters = {f"{norm}.num_batches_tracked": torch.tensor(7) for norm in units}
    torch.testing.assert_close(converted("resnet50", {**counters, **neutral, **state})(images), plain)
    # y = g1 (2 z + 3) + b1 is the plain one with g1 doubled and b1 raised by 3 g1
    doubled = {f"{norm}.weight": torch.full_like(like, 2) for norm, like in units.items()}
    doubled |= {f"{norm}.bias": torch.full_like(like, 3) for norm, like in units.items()}
    by_hand = dict(state)
    for norm in units:
        scale = norm[:-1] + "1"
        by_hand[f"{scale}.bias"] = state[f"{scale}.bias"] + 3 * state[f"{scale}.weight"]
        by_hand[f"{scale}.weight"] = 2 * state[f"{scale}.weight"]
    expected = converted("resnet50", by_hand)(images)
    torch.testing.assert_close(converted("resnet50", {**state, **doubled})(images), expected)
    assert not torch.allclose(expected, plain)


# ----------------------------------------------------------------------------------------------------- wrong files


def test_torchvisions_own_state_is_an_unknown_layout() -> None:
    with torch.device("meta"):
        states = [build(name, CLASSES).state_dict() for name in ("vgg16", "resnet50", "resnet101")]
    for state in states:
        with pytest.raises(CamexpError, match=r"unknown layout: expected classifier.4.weight or bn1.1.weight .* found"):
            to_torchvision(state)
    with pytest.raises(CamexpError, match=r"unknown layout: .* found none"):
        to_torchvision({})
    with pytest.raises(CamexpError, match=r"unknown layout: expected classifier.6.weight or conv1.bias"):
        from_torchvision(states[1])


@pytest.mark.parametrize(
    ("architecture", "change", "message"),
    [
        ("vgg16", {"features.5.bias": None}, r"features.5.bias: missing in the file"),
        ("vgg16", {"features.30.weight": (1, 1)}, r"features.30.weight: not in the network"),
        ("vgg16", {"features.0.weight": None}, r"features.0.weight: missing in the file"),
        (
            "vgg16",
            {"features.0.weight": (4, 1, 3, 3)},
            r"features.0.weight: shape \(4, 1, 3, 3\) in the file, \(4, 3, ",
        ),
        ("vgg16", {"classifier.0.weight": (1, 1, 7, 7)}, r"classifier.0.weight: shape \(1, 49\) in the file, \(256, "),
        (
            "vgg16",
            {"classifier.6.weight": (20, 256)},
            r"two entries of the file are classifier.6.weight of the network",
        ),
        ("resnet50", {"conv1.bias": None}, r"conv1.bias: missing in the file"),
        ("resnet50", {"fc.weight": None}, r"fc.weight: missing in the file"),
        ("resnet50", {"layer1.0.bn2.0.running_var": None}, r"layer1.0.bn2.running_var: missing in the file"),
        ("resnet50", {"layer3.6.conv1.weight": (1, 1, 1, 1)}, r"layer3.6.conv1.weight: not in the network"),
        ("resnet50", {"bn1.0.weight": (4,)}, r"two entries of the file are bn1.weight of the network"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(architecture: str, change: dict[str, Any], message: str) -> None:
    state = torchray_file(architecture)
    for key, shape in change.items():
        state.pop(key, None)
        if shape is not None:
            state[key] = torch.zeros(shape)
    with pytest.raises(CamexpError, match=message):
        to_torchvision(state, NARROW)


@every_architecture
@pytest.mark.parametrize("nesting", [None, "state_dict", "model"])
@torch.no_grad()
def test_files_convert_and_load(architecture: str, nesting: str | None, tmp_path: Path) -> None:
    state = torchray_file(architecture, convolutional=True)
    source = saved(tmp_path / f"{architecture}_voc.pth.tar", {nesting: state, "epoch": 3} if nesting else state)
    target = tmp_path / "weights" / "converted.safetensors"
    convert_torchray(source, target, NARROW)
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    network = build(f"{architecture}_caffe", CLASSES, NARROW)
    checkpoint.load(network, target)
    images = as_caffe_feeds(photograph(193, 160)).flip(1)
    torch.testing.assert_close(network.double()(images), converted(architecture, state)(images), rtol=0, atol=0)
    with safe_open(target, "pt") as file:
        assert {str(file.get_tensor(key).dtype) for key in file.keys()} == {"torch.float32"}  # noqa: SIM118
    origin = {"source": source.name, "source_sha256": checkpoint.sha256(source)}
    assert provenance(target) == {"architecture": f"{architecture}_caffe", **origin}
    first = target.read_bytes()  # the file's hash is part of a run's identity
    convert_torchray(source, target, NARROW)
    assert target.read_bytes() == first


def test_files_of_the_old_format_convert(tmp_path: Path) -> None:
    state = torchray_file("resnet50")
    torch.save(state, tmp_path / "old.pth.tar", _use_new_zipfile_serialization=False)
    convert_torchray(tmp_path / "old.pth.tar", tmp_path / "new.safetensors", NARROW)
    assert (tmp_path / "new.safetensors").is_file()


def test_wrong_sources_are_refused_and_the_target_stays(tmp_path: Path) -> None:
    target = tmp_path / "target.safetensors"
    target.write_bytes(b"before")
    sources = {
        "gone.pth": "TorchRay's checkpoint not found: looked for",
        "empty.pth": "cannot read the checkpoint",
        "evil.pth": "cannot read the checkpoint",
        "list.pth": "is not a state dict",
        "other.pth": "other.pth: unknown layout",
        "vgg16_voc-b050e8c3.pth.tar": "is damaged: its SHA-256 begins with .*, not with b050e8c3 as its name says",
    }
    (tmp_path / "empty.pth").touch()
    saved(tmp_path / "evil.pth", {"state_dict": {}, "extra": Intruder(tmp_path / "was here")})
    saved(tmp_path / "list.pth", [1, 2])
    saved(tmp_path / "other.pth", {"weight": torch.zeros(1)})
    saved(tmp_path / "vgg16_voc-b050e8c3.pth.tar", torchray_file("vgg16"))
    for name, message in sources.items():
        with pytest.raises(CamexpError, match=message):
            convert_torchray(tmp_path / name, target, NARROW)
    assert target.read_bytes() == b"before"
    assert not (tmp_path / "was here").exists()


def test_the_hash_in_a_name_is_that_of_the_file(tmp_path: Path) -> None:
    source = saved(tmp_path / "plain.pth.tar", torchray_file("resnet50"))
    named = source.rename(tmp_path / f"resnet50_voc-{checkpoint.sha256(source)[:8]}.pth.tar")
    convert_torchray(named, tmp_path / "target.safetensors", NARROW)
    assert (tmp_path / "target.safetensors").is_file()


def test_a_failed_write_leaves_the_old_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = saved(tmp_path / "source.pth", torchray_file("resnet50")), tmp_path / "target.safetensors"
    target.write_bytes(b"before")

    def full(descriptor: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CamexpError, match=r"cannot write .*target.safetensors: No space left"):
        convert_torchray(source, target, NARROW)
    assert target.read_bytes() == b"before"
    assert {path.name for path in tmp_path.iterdir()} == {"source.pth", "target.safetensors"}
    monkeypatch.undo()
    with pytest.raises(CamexpError, match="cannot write"):
        convert_torchray(source, source / "below a file" / "target.safetensors", NARROW)


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent.parent / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command = script("convert_checkpoint")
    monkeypatch.setattr(command, "convert_torchray", lambda source, target: convert_torchray(source, target, NARROW))
    source = saved(tmp_path / "resnet50_coco.pth.tar", torchray_file("resnet50"))
    assert command.main([str(source), str(tmp_path / "new.safetensors")]) == 0
    shown = capsys.readouterr().out
    assert "resnet50_caffe from resnet50_coco.pth.tar" in shown
    assert checkpoint.sha256(source) in shown
    assert command.main([str(tmp_path / "gone"), str(tmp_path / "new.safetensors")]) == 2
    assert capsys.readouterr().err.startswith("error: TorchRay's checkpoint not found")


# --------------------------------------------------------------------------------------------- in a run of camexp


@every_architecture
def test_configs_run_the_converted_network(architecture: str, tmp_path: Path) -> None:
    state = torchray_file(architecture)
    convert_torchray(
        saved(tmp_path / "source.pth", state), tmp_path / f"weights/voc2007_{architecture}.safetensors", NARROW
    )
    options = [f"model={architecture}", f"model.width={NARROW}", f"data_dir={tmp_path}", "device=cpu"]
    cfg = compose_config(["dataset=voc2007", *options])
    classifier, _ = make_classifier(cfg, CLASSES)
    image = photograph(224, 224)
    fed = Preprocess(cfg.model.preprocess).image(image)[None]
    layers = classifier.layer_names("sise")
    maps = classifier.activations(fed, layers)
    assert {name: found.shape[2] for name, found in zip(layers, maps, strict=True)} == LAYERS[architecture]
    assert classifier.cam_layer == layers[-1]
    expected = CAFFE[architecture]({key: value.double() for key, value in state.items()}, as_caffe_feeds(image))
    torch.testing.assert_close(classifier.logits(fed).double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "commands"),
    [
        *(
            (
                f"{dataset}_{model}",
                ["`make weights`", "python scripts/convert_checkpoint.py", "model.preprocess=imagenet"],
            )
            for dataset in ("voc2007", "coco2014")
            for model in ("vgg16", "resnet50")
        ),
        ("severstal_resnet101", ["`python scripts/train.py dataset=severstal model=resnet101`"]),
    ],
)
def test_a_missing_checkpoint_says_which_command_makes_it(name: str, commands: list[str], tmp_path: Path) -> None:
    dataset, model = name.split("_")
    cfg = compose_config([f"dataset={dataset}", f"model={model}", f"data_dir={tmp_path}"])
    with pytest.raises(CamexpError) as error:
        make_classifier(cfg, CLASSES)
    message = str(error.value)
    assert f"looked for {tmp_path}/weights/{name}.safetensors" in message
    for command in commands:
        assert command in message


@pytest.mark.parametrize("name", ["vgg16_voc", "resnet50_voc", "vgg16_coco", "resnet50_coco"])
def test_hints_name_torchrays_files(name: str, tmp_path: Path) -> None:
    model, dataset = name.split("_")
    cfg = compose_config([f"dataset={ {'voc': 'voc2007', 'coco': 'coco2014'}[dataset] }", f"model={model}"])
    assert re.search(rf"convert_checkpoint.py {name}-[0-9a-f]{{8}}\.pth\.tar data/weights/", cfg.model.hint)
    assert cfg.model.architecture == f"{model}_caffe"
    assert cfg.model.architecture in CAFFE_STYLE
    assert cfg.model.preprocess == "caffe"


@every_architecture
def test_torchvisions_own_checkpoint_is_one_command(architecture: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    network = build(architecture, CLASSES, NARROW)
    file = saved(tmp_path / "own.pth", network.state_dict())
    own = [f"model.architecture={architecture}", "model.preprocess=imagenet", f"model.checkpoint={file}"]
    cfg = compose_config(["dataset=voc2007", f"model={architecture}", f"model.width={NARROW}", "device=cpu", *own])
    classifier, _ = make_classifier(cfg, CLASSES)
    images = torch.randn(1, 3, 64, 80)
    torch.testing.assert_close(classifier.logits(images), network(images), rtol=1e-4, atol=1e-4)


@every_architecture
def test_an_unconverted_file_is_recognised(architecture: str, tmp_path: Path) -> None:
    file = saved(tmp_path / "file.pth.tar", torchray_file(architecture))
    with pytest.raises(CamexpError, match=r"does not fit the network:[^$]*scripts/convert_checkpoint.py converts it"):
        checkpoint.load(build(f"{architecture}_caffe", CLASSES, NARROW), file)


def test_coco_classes_are_in_the_order_of_the_networks_outputs(tmp_path: Path) -> None:
    """TorchRay's 80 outputs follow COCO's category ids 1..90, of which ten are not used."""
    ids = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
    boxes = [
        {"id": n, "image_id": 9, "category_id": c, "bbox": [1, 1, 3, 3], "area": 9, "iscrowd": 0,
         "segmentation": [[1, 1, 4, 1, 4, 4, 1, 4]]}
        for n, c in enumerate(ids, 1)
    ]  # fmt: skip
    content = {
        "images": [{"id": 9, "file_name": "9.jpg", "width": 8, "height": 8}],
        "categories": [{"id": c, "name": f"category {c}"} for c in reversed(ids)],
        "annotations": boxes,
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "val2014").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "val2014" / "9.jpg")
    (tmp_path / "annotations" / "instances_val2014.json").write_text(json.dumps(content))
    dataset = COCO(str(tmp_path))
    assert len(dataset.classes) == 80
    # person, stop sign, bench, toothbrush by their places in TorchRay's list of class names
    assert [dataset.classes.index(f"category {c}") for c in (1, 13, 15, 90)] == [0, 11, 13, 79]
    assert [target.class_id for target in dataset.targets[0]] == list(range(80))
