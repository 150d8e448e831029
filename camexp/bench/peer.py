"""What a library's implementation of a method is: an adapter, the passes that it makes, and a network of its own."""

import importlib.metadata
import importlib.util
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from camexp.bench.watch import Course
from camexp.bench.work import Shape

MODULES = {"grad-cam": "pytorch_grad_cam", "torchcam": "torchcam", "captum": "captum"}
"""Names on the package index, and what is imported."""


@dataclass(frozen=True)
class Case:
    """What a library is asked for.

    Attributes
    ----------
    network: the library's own; layer: path of the CAM layer; method: camexp's, for its parameters.
    images: (B,3,H,W); targets: (B,C), classes of each image.
    batch: rows per pass.
    """

    network: nn.Module
    layer: str
    method: Any
    images: Tensor
    targets: Tensor
    batch: int = 16

    @property
    def module(self) -> nn.Module:
        return self.network.get_submodule(self.layer)

    def by_pair(self, explain: Callable[[Tensor, Tensor], Tensor], at_once: int | None = None) -> Tensor:
        """Maps (B*C,H,W) of `explain(inputs (p,3,H,W), classes (p,))`, for libraries that share nothing."""
        inputs = self.images.repeat_interleave(self.targets.shape[1], 0)
        size = at_once or self.batch
        parts = zip(inputs.split(size), self.targets.flatten().split(size), strict=True)
        return torch.cat([explain(part, classes) for part, classes in parts])

    def enlarged(self, maps: Tensor) -> Tensor:
        """Maps (N,h,w) at the images' size."""
        return F.interpolate(maps[:, None], tuple(self.images.shape[2:]), mode="bilinear", align_corners=False)[:, 0]


def _as_it_is(network: nn.Module) -> nn.Module:
    return network


@dataclass(frozen=True)
class Peer:
    """A library's implementation of a method.

    Attributes
    ----------
    explain: makes maps (B*C,H,W).
    course: the passes of a call.
    prepare: what the library asks of the network.
    """

    library: str
    explain: Callable[[Case], Tensor]
    course: "Callable[[Asked], Course]"
    prepare: Callable[[nn.Module], nn.Module] = _as_it_is

    @property
    def installed(self) -> bool:
        return importlib.util.find_spec(MODULES[self.library]) is not None


@dataclass(frozen=True)
class Asked:
    """What the number of passes depends on: parameters, pairs, channels of the CAM layer, rows per pass."""

    method: Any
    shape: Shape
    channels: int
    batch: int


def version(library: str) -> str | None:
    """The installed version; None without one."""
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


class Networks:
    """A library's own network with the weights of another one, made when it is first asked for."""

    def __init__(self, network: nn.Module):
        self.network = network
        self._made: dict[tuple[str, Any], nn.Module] = {}

    def of(self, peer: Peer) -> nn.Module:
        key = (peer.library, peer.prepare)
        if key not in self._made:
            self._made[key] = peer.prepare(deepcopy(self.network))
        return self._made[key]
