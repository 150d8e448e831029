"""TorchRay's checkpoints as state dicts of `camexp.models.caffe`'s networks, and back.

TorchRay (Fong, Patrick & Vedaldi, ICCV 2019) publishes the VGG16 and ResNet-50 that Zhang et al. (Excitation Backprop,
ECCV 2016) fine-tuned in Caffe on VOC2007 and COCO2014. In its four files the values are Caffe's; what differs:

================  =====================================================  ==================================
                  in the file                                            in the network
================  =====================================================  ==================================
first convolution input channels blue, green, red                        red, green, blue
VGG16             `classifier.0`, `2`, `4`: no dropout between           `classifier.0`, `3`, `6`
VGG16             classifier weights flat (out,in) or as convolutions    flat
                  (out,channels,h,w)
ResNet-50         `bn1.0` (BatchNorm: running mean and variance) and     `bn1`
                  `bn1.1` (Scale: weight, bias); so every batch norm
================  =====================================================  ==================================

The converted network is fed RGB: 255 x - (123.68, 116.779, 103.939), `model.preprocess=caffe`. Its outputs are VOC's
classes in alphabetical order or COCO's by category id. The weights are under CC BY-NC, converted or not.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from camexp.errors import CamexpError
from camexp.files import make_folder, write_atomically
from camexp.models.build import build
from camexp.models.checkpoint import first_of, mismatches, read_state, sha256

State = dict[str, Tensor]

_NORM = r"\b(bn\d|downsample\.1)"  # every batch norm of a ResNet


def _number_with_dropout(key: str) -> str:
    return re.sub(r"^classifier\.([024])\.", lambda found: f"classifier.{int(found[1]) // 2 * 3}.", key)


def _number_without_dropout(key: str) -> str:
    return re.sub(r"^classifier\.([036])\.", lambda found: f"classifier.{int(found[1]) // 3 * 2}.", key)


def _join_norm(key: str) -> str:
    return re.sub(_NORM + r"\.[01]\.", r"\1.", key)


def _split_norm(key: str) -> str:
    key = re.sub(_NORM + r"\.(running_mean|running_var)$", r"\1.0.\2", key)
    return re.sub(_NORM + r"\.(weight|bias)$", r"\1.1.\2", key)


@dataclass(frozen=True)
class Layout:
    """How the file of one architecture differs from the network's state dict.

    Attributes
    ----------
    architecture: the network, as `camexp.models.build` names it.
    mark, network_mark: keys that tell that a file, or a state dict of the network, is of this layout.
    first: weight of the first convolution.
    last: weight of the last layer in the network; its rows are the classes.
    renamed, original: a file's key -> the network's, and back.
    """

    architecture: str
    mark: str
    network_mark: str
    first: str
    last: str
    renamed: Callable[[str], str]
    original: Callable[[str], str]


LAYOUTS = (
    Layout(
        architecture="vgg16_caffe",
        mark="classifier.4.weight",
        network_mark="classifier.6.weight",
        first="features.0.weight",
        last="classifier.6.weight",
        renamed=_number_with_dropout,
        original=_number_without_dropout,
    ),
    Layout(
        architecture="resnet50_caffe",
        mark="bn1.1.weight",
        network_mark="conv1.bias",
        first="conv1.weight",
        last="fc.weight",
        renamed=_join_norm,
        original=_split_norm,
    ),
)


def to_torchvision(state: State, width: float = 1.0) -> State:
    """The state dict of `camexp.models.caffe`'s network, float32, from that of a TorchRay file.

    Parameters
    ----------
    state: tensors of any float type by the file's keys; not changed.
    width: factor on the channel counts (1 in TorchRay's files).

    Raises
    ------
    CamexpError: for another layout, with the first missing and unexpected keys and the shapes that differ.
    """
    layout = _layout_with(state, "mark")
    renamed: State = {}
    for key, value in _without_double_scale(state).items():
        name = layout.renamed(key)
        if name in renamed:
            raise CamexpError(f"two entries of the file are {name} of the network; one of them is {key}")
        renamed[name] = value.float()
    classes = len(renamed[layout.last]) if layout.last in renamed else 0
    expected = _expected(layout.architecture, max(classes, 1), width)
    fitted = {
        key: _flat(value) if key in expected and expected[key].ndim == 2 else value for key, value in renamed.items()
    }
    problems = mismatches(expected, fitted)
    if problems:
        raise CamexpError(f"it is not a TorchRay file of {layout.architecture}:\n  {first_of(problems)}")
    return {**fitted, layout.first: fitted[layout.first].flip(1)}


def from_torchvision(state: State, convolutional: bool = False) -> State:
    """The inverse of `to_torchvision`: the network's state dict as a TorchRay file holds it.

    Parameters
    ----------
    state: a state dict of "vgg16_caffe" or "resnet50_caffe"; not changed.
    convolutional: write VGG16's classifier weights as convolutions (out,channels,h,w), the first of them 7 x 7.

    Raises
    ------
    CamexpError: when it is neither's.
    """
    layout = _layout_with(state, "network_mark")
    kept = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    kept[layout.first] = kept[layout.first].flip(1)
    if convolutional:
        for key in [key for key in kept if re.fullmatch(r"classifier\.\d\.weight", key)]:
            side = 7 if key == "classifier.0.weight" else 1
            kept[key] = kept[key].reshape(len(kept[key]), -1, side, side)
    return {layout.original(key): value for key, value in kept.items()}


def _layout_with(state: State, attribute: str) -> Layout:
    """The layout whose marking key is in the state."""
    for layout in LAYOUTS:
        if getattr(layout, attribute) in state:
            return layout
    marks = " or ".join(getattr(layout, attribute) for layout in LAYOUTS)
    shown = [f"{key} {tuple(value.shape)}" for key, value in list(state.items())[:4]]
    raise CamexpError(f"unknown layout: expected {marks} among the keys, found {', '.join(shown) or 'none'} ...")


def _without_double_scale(state: State) -> State:
    """The state without counters, and with a scale of BatchNorm's own, which Caffe does not have, merged into Scale's.

    Scale(BatchNorm(x)) = g1 (g0 z + b0) + b1 = (g1 g0) z + (g1 b0 + b1), z being the standardised x.
    """
    merged = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    for key in [key for key in merged if re.search(_NORM + r"\.0\.weight$", key)]:
        norm, scale = key.removesuffix("0.weight"), key.removesuffix("0.weight") + "1."
        if {f"{norm}0.bias", f"{scale}weight", f"{scale}bias"} <= set(merged):
            own_weight, own_bias = merged.pop(key), merged.pop(f"{norm}0.bias")
            merged[f"{scale}bias"] = merged[f"{scale}weight"] * own_bias + merged[f"{scale}bias"]
            merged[f"{scale}weight"] = merged[f"{scale}weight"] * own_weight
    return merged


def _flat(weight: Tensor) -> Tensor:
    return weight.flatten(1) if weight.ndim > 2 else weight


def _expected(architecture: str, classes: int, width: float) -> State:
    """Keys and shapes of the network's state dict, without memory for the values."""
    with torch.device("meta"):
        state = build(architecture, classes, width).state_dict()
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def convert_torchray(source: Path, target: Path, width: float = 1.0) -> None:
    """Convert a file of TorchRay to .safetensors, in float32, with the source's name and SHA-256 as metadata.

    Parameters
    ----------
    source: `vgg16_voc-<hash>.pth.tar`, or the same of `resnet50` and `coco`; no code in it is run.
    target: what is written, all or nothing.
    width: factor on the channel counts (1 in TorchRay's files).

    Raises
    ------
    CamexpError: when the source is missing, damaged or of another layout, or the target cannot be written.
    """
    if not source.is_file():
        raise CamexpError(f"TorchRay's checkpoint not found: looked for {source.absolute()}")
    digest = sha256(source)
    _require_digest_of_name(source, digest)
    state = read_state(source)
    try:
        converted = to_torchvision(state, width)
    except CamexpError as error:
        raise CamexpError(f"{source.absolute()}: {error}") from None
    architecture = _layout_with(converted, "network_mark").architecture
    about = {"architecture": architecture, "source": source.name, "source_sha256": digest}
    _write(converted, target, about)


def _require_digest_of_name(source: Path, digest: str) -> None:
    """TorchRay's file names carry the first eight digits of the file's SHA-256."""
    named = re.search(r"-([0-9a-f]{8})\.", source.name)
    if named and not digest.startswith(named[1]):
        raise CamexpError(
            f"{source.absolute()} is damaged: its SHA-256 begins with {digest[:8]}, not with {named[1]} as its name "
            "says. Delete it and fetch it again."
        )


def provenance(path: Path) -> dict[str, str]:
    """What `convert_torchray` wrote of a file's origin: architecture, source (a file name) and source_sha256."""
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["converted"])


def _write(state: State, target: Path, about: dict[str, str]) -> None:
    # one key: safetensors writes several in random order, and the file's SHA-256 would change from call to call
    metadata = {"converted": json.dumps(about)}
    try:
        make_folder(target.parent)
        write_atomically(target, save({key: value.contiguous() for key, value in state.items()}, metadata))
    except OSError as error:
        raise CamexpError(f"cannot write {target.absolute()}: {error}") from error
