"""Convolutions that add and rectify while they write their result, instead of in further passes over memory."""

from collections.abc import Callable, Iterable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock, Bottleneck

from camexp.models.pack import PackedProduct


def fuse_activations(network: nn.Module) -> int:
    """Let sequences, residual blocks and the stems of ResNets fuse convolutions with what follows; returns how many do.

    In place; layers stay what they are and where they are. What somebody watches with a hook, has replaced, or wants
    a graph of is computed as ever, and so are convolutions whose weights are not packed (`camexp.models.pack`).
    """
    found = [module for module in network.modules() if type(module) in FUSED and "forward" not in vars(module)]
    for module in found:
        vars(module)["forward"] = FUSED[type(module)](module)  # what nn.Module.__call__ calls
    return len(found)


def in_turn(modules: Iterable[nn.Module], images: Tensor) -> Tensor:
    """One module after the other; convolutions before ReLUs rectify, and blocks write over the output of blocks."""
    steps = [module for module in modules if not (type(module) is nn.Identity and _unseen(module))]
    turns = pairwise([*steps, None])
    own = False  # whether the images are kept nowhere else
    for module, following in turns:
        assert module is not None
        rectified = _product(module, images) if type(following) is nn.ReLU and _unseen(following) else None
        block = vars(module).get("forward")
        if rectified is not None:
            images, own = rectified, False
            next(turns)
        elif isinstance(block, FusedBlock) and not _watched(*module.modules()):
            images, own = block(images, own), True
        else:
            images, own = module(images), False
    return images


def _product(module: nn.Module, images: Tensor, plus: Tensor | None = None, over: bool = False) -> Tensor | None:
    """The rectified result of a packed convolution, None of anything else."""
    packed = vars(module).get("_conv_forward")
    if not isinstance(packed, PackedProduct) or not isinstance(module, nn.Conv2d) or not _unseen(module):
        return None
    return packed.product(images, module.weight, module.bias, "relu", plus, over)


def _unseen(module: nn.Module) -> bool:
    """Whether nobody would notice that the module is not called."""
    return not _watched(module) and "forward" not in vars(module)


def _watched(*modules: nn.Module) -> bool:
    """Whether any of the modules has a hook."""
    return any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks for m in modules)


class FusedSequence:
    """`nn.Sequential`."""

    def __init__(self, sequence: nn.Sequential):
        self.sequence = sequence

    def __call__(self, input: Tensor) -> Tensor:
        return in_turn(self.sequence, input)


class FusedBlock:
    """torchvision's residual blocks, relu(convolutions(x) + shortcut(x))."""

    def __init__(self, block: BasicBlock | Bottleneck):
        self.block = block

    def __call__(self, x: Tensor, own: bool = False) -> Tensor:
        """Parameters: x: (N,C,H,W); own: it is read by nobody else, and may be written over."""
        block = self.block
        first: tuple[nn.Module, ...] = (block.conv1, block.bn1, block.relu)
        convolution, norm = block.conv2, block.bn2
        if isinstance(block, Bottleneck):
            first, convolution, norm = (*first, block.conv2, block.bn2, block.relu), block.conv3, block.bn3
        out = in_turn(first, x)
        shortcut = x
        if block.downsample is not None:
            shortcut, own = block.downsample(x), not _watched(*block.downsample.modules())
        fusable = type(norm) is nn.Identity and _unseen(norm) and _unseen(block.relu)
        found = _product(convolution, out, shortcut, own) if fusable else None
        if found is None:
            out = norm(convolution(out))
            out += shortcut
            found = block.relu(out)
        return found


class FusedResNet:
    """torchvision's ResNets, of which the stem is a convolution and a ReLU."""

    def __init__(self, network: ResNet):
        self.network = network

    def __call__(self, x: Tensor) -> Tensor:
        n = self.network
        pooled = in_turn((n.conv1, n.bn1, n.relu, n.maxpool, n.layer1, n.layer2, n.layer3, n.layer4, n.avgpool), x)
        return n.fc(torch.flatten(pooled, 1))


FUSED: dict[type[nn.Module], Callable[..., Callable[[Tensor], Tensor]]] = {
    nn.Sequential: FusedSequence,
    BasicBlock: FusedBlock,
    Bottleneck: FusedBlock,
    ResNet: FusedResNet,
}
"""What runs a module of a type in its place."""
