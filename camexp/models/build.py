"""Networks of the papers: torchvision's VGG16, ResNet-50 and ResNet-101 or Caffe's, at full or scaled-down width."""

import torch
import torchvision
from torch import nn

from camexp.errors import CamexpError
from camexp.models.caffe import CAFFE_STYLE
from camexp.models.fold import fold_batch_norms

ARCHITECTURES = ("vgg16", "resnet50", "resnet101")


def build(architecture: str, num_classes: int, width: float = 1.0, head: int | None = None) -> nn.Module:
    """A network with random weights, in evaluation mode.

    Parameters
    ----------
    architecture: "vgg16", "resnet50" or "resnet101", as torchvision builds it ("vgg16_bn" for training), or
        "vgg16_caffe" or "resnet50_caffe" (`camexp.models.caffe`).
    num_classes: number of outputs.
    width: factor on every channel count; the topology, and with it the maps' sizes, stay those of width 1.
    head: units of VGG16's hidden linear layers; scaled by `width` like the rest unless given.

    Raises
    ------
    CamexpError: for another name.
    """
    known = (*ARCHITECTURES, *CAFFE_STYLE)
    if architecture not in (*known, "vgg16_bn"):
        raise CamexpError(f"unknown model.architecture {architecture!r}; one of {', '.join(known)}")
    if width == 1.0 and head is None:
        return _full(architecture, num_classes).eval()
    with torch.device("meta"):  # the topology only: every layer with weights is replaced
        network = _full(architecture, num_classes)
    narrow(network, width, head)
    return network.eval()


def _full(architecture: str, num_classes: int) -> nn.Module:
    """The network at full width."""
    name, change = CAFFE_STYLE.get(architecture, (architecture, None))
    network = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    if change is not None:
        change(network)
    return network


def narrow(network: nn.Module, width: float, head: int | None = None) -> None:
    """Replace every convolution, batch norm and linear layer by one with `width` times the channels.

    The input's three channels and the last layer's outputs are kept; hidden linear layers get `head` units if given.
    """
    layers = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]
    last, hidden = layers[-1][1], None
    for name, layer in layers:
        narrowed: nn.Module
        if isinstance(layer, nn.Conv2d):
            narrowed = nn.Conv2d(
                layer.in_channels if layer.in_channels == 3 else _scaled(layer.in_channels, width),
                _scaled(layer.out_channels, width),
                layer.kernel_size,  # type: ignore[arg-type]
                layer.stride,  # type: ignore[arg-type]
                layer.padding,  # type: ignore[arg-type]
                bias=layer.bias is not None,
            )
            nn.init.kaiming_normal_(narrowed.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.BatchNorm2d):
            narrowed = nn.BatchNorm2d(_scaled(layer.num_features, width))
        else:
            inputs = hidden or _scaled(layer.in_features, width)
            hidden = head
            outputs = layer.out_features if layer is last else hidden or _scaled(layer.out_features, width)
            narrowed = nn.Linear(inputs, outputs)
        network.set_submodule(name, narrowed)


def _scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))


def fold_vgg_batch_norm(network: nn.Module) -> nn.Module:
    """A trained `vgg16_bn` as a plain `vgg16` with the same outputs: each batch norm folded into its convolution."""
    fold_batch_norms(network.eval(), biased=True)
    assert isinstance(network.features, nn.Sequential)
    network.features = nn.Sequential(*(layer for layer in network.features if not isinstance(layer, nn.Identity)))
    return network
