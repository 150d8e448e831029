"""Convolutions that add and rectify while they write their result, instead of in further passes over memory.

Those that `camexp.models.winograd` computes do it afterwards, in the memory of their result.

A fused ReLU makes 0 of what is not a number, where PyTorch's lets it through to the logits, by which a failure is
known. So nothing is fused in networks whose weights are not all finite, and while images are not (`Fusion.on`). What
comes later may be lost: weights made so, finite values that overflow, or what a hook or the rows given to a tail
(`camexp.models.tail`) bring into the network.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock, Bottleneck

from camexp.models.pack import PackedProduct


def fuse_activations(network: nn.Module) -> "Fusion":
    """Let the sequences, residual blocks and stem of a network fuse their convolutions with what follows.

    In place; layers stay what they are and where they are. What somebody watches with a hook or has replaced is
    computed as ever, and so are batch norms that are not folded and convolutions whose weights are not packed, or are
    differentiated (`camexp.models.pack`).
    """
    fusion = Fusion()
    if all(bool(parameter.isfinite().all()) for parameter in network.parameters()):
        for module in network.modules():
            replaced = vars(module).keys() & {"forward", "_forward_impl"}  # the latter is what ResNet.forward calls
            if type(module) in FUSED and not replaced:
                vars(module)["forward"] = FUSED[type(module)](module, fusion)  # what nn.Module.__call__ calls
    return fusion


def fusion_of(network: nn.Module) -> "Fusion | None":
    """What the modules of a network look at, if any of them fuses."""
    runs = (vars(module).get("forward") for module in network.modules())
    return next((each.fusion for each in runs if isinstance(each, Fused)), None)


class Fusion:
    """Whether the modules of a network fuse."""

    on = True

    def watch(self, images: Tensor) -> None:
        """On if all values of the images are numbers and nobody watches all modules; called before every pass."""
        self.on = bool(images.detach().sum().isfinite()) and not _all_watched()


def in_turn(modules: Iterable[nn.Module], images: Tensor) -> Tensor:
    """One module after the other.

    A convolution before a ReLU rectifies as well; a block may write over the output of the block before it.
    """
    steps: list[nn.Module | None] = [m for m in modules if not (type(m) is nn.Identity and _unseen(m))]
    own = False  # whether the images are kept nowhere else
    while steps:
        module, following = steps.pop(0), steps[0] if steps else None
        assert module is not None
        block, rectified = vars(module).get("forward"), None
        if type(following) is nn.ReLU and _unseen(following):
            rectified = _product(module, images)
        if rectified is not None:
            images, own = rectified, False
            steps.pop(0)
        elif isinstance(block, FusedBlock) and block.known():
            images, own = block.fused(images, own), True
        else:
            images, own = module(images), False
    return images


def _product(module: nn.Module, images: Tensor, plus: Tensor | None = None, over: bool = False) -> Tensor | None:
    """relu(convolution(images) + plus), in the memory of `plus` if `over`; None if it must be computed as ever."""
    packed = vars(module).get("_conv_forward")
    if not isinstance(packed, PackedProduct) or not isinstance(module, nn.Conv2d) or not _unseen(module):
        return None
    return packed.product(images, module.weight, module.bias, "relu", plus, over)


def _unseen(module: nn.Module) -> bool:
    """Whether nobody would notice that the module is not called."""
    forward = vars(module).get("forward")
    return not _hooked(module) and (forward is None or isinstance(forward, Fused))


def watched(modules: Iterable[nn.Module]) -> bool:
    """Whether somebody watches what goes into or out of any of the modules, and may keep it."""
    return _all_watched() or any(map(_hooked, modules))


def _all_watched() -> bool:
    """Whether there is a hook on every module."""
    hooks = vars(nn.modules.module)
    return any(hooks[f"_global_{when}_hooks"] for when in ("forward_pre", "forward", "backward_pre", "backward"))


def _hooked(module: nn.Module) -> bool:
    m = module
    return bool(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks)


class Fused(ABC):
    """Runs a module in its place.

    Parameters
    ----------
    fusion: of the whole network.
    """

    def __init__(self, module: nn.Module, fusion: Fusion):
        self.module, self.fusion = module, fusion

    def __call__(self, input: Tensor) -> Tensor:
        plain = not self.fusion.on or type(input) is not Tensor  # what only behaves like one expects the usual calls
        return type(self.module).forward(self.module, input) if plain else self.run(input)

    @abstractmethod
    def run(self, x: Tensor) -> Tensor:
        """The module's output for x (N,C,H,W), with convolutions fused where that is possible."""


class FusedSequence(Fused):
    """`nn.Sequential`."""

    def run(self, x: Tensor) -> Tensor:
        assert isinstance(self.module, nn.Sequential)
        return in_turn(self.module, x)


class FusedResNet(Fused):
    """torchvision's ResNets, of which the stem is a convolution and a ReLU."""

    def run(self, x: Tensor) -> Tensor:
        assert isinstance(self.module, ResNet)
        n = self.module
        pooled = in_turn((n.conv1, n.bn1, n.relu, n.maxpool, n.layer1, n.layer2, n.layer3, n.layer4, n.avgpool), x)
        return n.fc(torch.flatten(pooled, 1))


class FusedBlock(Fused):
    """torchvision's residual blocks, relu(convolutions(x) + shortcut(x))."""

    def run(self, x: Tensor) -> Tensor:
        return self.fused(x, own=False) if self.known() else type(self.module).forward(self.module, x)

    def known(self) -> bool:
        """Whether the block is made of convolutions and ReLUs alone, and nobody sees what goes in, on and out."""
        block = self.module
        parts = [getattr(block, name) for name in KINDS[type(block)]]
        shortcut = _steps(block.downsample)  # type: ignore[arg-type]
        return (
            tuple(map(type, parts)) == tuple(KINDS[type(block)].values())
            and all(type(step) in (nn.Conv2d, nn.Identity) for step in shortcut)
            and all(map(_unseen, (block, *parts, *shortcut)))
            and (block.downsample is None or _unseen(block.downsample))  # type: ignore[arg-type]
        )

    def fused(self, x: Tensor, own: bool) -> Tensor:
        """The output of a known block; parameters: own: x is read by nobody else, and may be written over."""
        block = self.module
        assert isinstance(block, BasicBlock | Bottleneck)
        *first, last = (getattr(block, name) for name, kind in KINDS[type(block)].items() if kind is nn.Conv2d)
        out = x
        for convolution in first:
            out = in_turn((convolution, block.relu), out)
        shortcut = x
        if block.downsample is not None:
            shortcut = block.downsample(x)
            own = own or any(isinstance(step, nn.Conv2d) for step in _steps(block.downsample))  # its result is new
        found = _product(last, out, shortcut, own)
        return F.relu(last(out) + shortcut) if found is None else found


def _steps(shortcut: nn.Module | None) -> tuple[nn.Module, ...]:
    """The layers of a block's `downsample`."""
    if shortcut is None:
        return ()
    return tuple(shortcut) if type(shortcut) is nn.Sequential else (shortcut,)


def _kinds(convolutions: int) -> dict[str, type[nn.Module]]:
    """The layers of a residual block with folded batch norms, by name."""
    numbers = range(1, convolutions + 1)
    return {f"conv{i}": nn.Conv2d for i in numbers} | {f"bn{i}": nn.Identity for i in numbers} | {"relu": nn.ReLU}


KINDS: dict[type[nn.Module], dict[str, type[nn.Module]]] = {BasicBlock: _kinds(2), Bottleneck: _kinds(3)}


FUSED: dict[type[nn.Module], type[Fused]] = {
    nn.Sequential: FusedSequence,
    BasicBlock: FusedBlock,
    Bottleneck: FusedBlock,
    ResNet: FusedResNet,
}
"""By type of module: what runs it in its place."""
