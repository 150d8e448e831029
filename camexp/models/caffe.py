"""VGG16 and ResNet-50 as Caffe's releases define them: torchvision's networks, changed in place.

Weights that were trained in Caffe (among them those of TorchRay, which Excitation Backprop and SISE measure) need the
definitions that they were trained with (Simonyan & Zisserman, 2015; He et al., 2016, and the prototxt files that both
released). They differ from torchvision's in a few places:

- every max-pool rounds the size of its output up (Caffe has no other way), and ResNet's first one has no padding;
- ResNet's conv1 has a bias;
- ResNet's stages 2 to 4 halve the resolution in the first 1x1 convolution of their first block, torchvision's in the
  3x3 convolution after it.

Modules keep the names that they have in torchvision, so that layers are named alike in both. For images of 224 x 224
all maps have the sizes of torchvision's.

Images of other sizes: both heads first pool to a fixed size, as torchvision's do. VGG16 pools the last maps to 7 x 7
(adaptive average pooling, the identity for 224 x 224) and gives one vector of logits. The fully convolutional form of
the same weights would instead slide its 7 x 7 window over the maps and average the logits of all places; the two agree
for 224 x 224 only. ResNet's global average pooling gives the same in both forms.
"""

from collections.abc import Callable

from torch import nn
from torchvision.models import VGG, ResNet


def vgg16_caffe(network: VGG) -> None:
    """Make torchvision's VGG16 Caffe's: all five max-pools 2x2/2 round up."""
    _round_up(network)


def resnet50_caffe(network: ResNet) -> None:
    """Make torchvision's ResNet-50 Caffe's: bias of conv1, max-pool 3x3/2 unpadded, strides in the 1x1 convolutions."""
    conv1 = nn.Conv2d(3, network.conv1.out_channels, 7, stride=2, padding=3, bias=True)
    nn.init.kaiming_normal_(conv1.weight, mode="fan_out", nonlinearity="relu")
    network.conv1, network.maxpool = conv1, nn.MaxPool2d(3, stride=2)
    _round_up(network)
    for stage in (network.layer2, network.layer3, network.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)


def _round_up(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.MaxPool2d):
            module.ceil_mode = True


CAFFE_STYLE: dict[str, tuple[str, Callable[..., None]]] = {
    "vgg16_caffe": ("vgg16", vgg16_caffe),
    "resnet50_caffe": ("resnet50", resnet50_caffe),
}
"""By architecture: torchvision's network, and what changes it."""
