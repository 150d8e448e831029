"""What is measured: a network with random weights, camexp's classifier around it, and the libraries' copies of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from camexp import config
from camexp.bench.floor import Stopwatch
from camexp.bench.peer import Asked, Case, Networks, Peer
from camexp.bench.peers import PEERS
from camexp.bench.watch import Contender, Course, rows_of
from camexp.bench.work import MASKS, Shape, needed
from camexp.models.build import build
from camexp.models.classifier import Classifier
from camexp.pairs import Pairs

CLASSES = 20

COUNTED = 4
"""Images of which it is counted how many masks they ask for; the others are taken to ask for as many."""

PLAIN = ("dataset=voc", "model.checkpoint=random")
"""Full width, no pretrained weights: time does not depend on them."""


@dataclass(frozen=True)
class Cell:
    """One line of the table."""

    method: str
    model: str
    images: int
    classes: int

    def __str__(self) -> str:
        return f"{self.method} {self.model} {self.images}x{self.classes}"


def _of_images(method: Any, shape: Shape) -> float:
    return shape.images


BEFORE: dict[str, Callable[[Any, Shape], float]] = {
    "igcam": lambda method, shape: int(method.variant == "paper"),  # A(I')
    "expected_gradcam": _of_images,
    "smooth_gradcam_pp": _of_images,
    "ablationcam": lambda method, shape: shape.images + 1,  # one to see what the tail reads
    "scorecam": _of_images,
    "sise": _of_images,
    "ada_sise": _of_images,
    "occlusion": _of_images,
}
"""Rows that camexp forwards before the uniform part of a call; 0 for the others."""


class Subject:
    """One network, for camexp, for the libraries, and by itself.

    Parameters
    ----------
    model: a file of `configs/model/`.
    options: as of `python -m camexp.run`, for camexp alone.
    """

    def __init__(self, model: str, options: tuple[str, ...] = ()):
        cfg = config.compose_config([*PLAIN, f"model={model}", *options])
        self.model, self.size = model, cfg.protocol.size
        torch.manual_seed(cfg.seed)
        network = build(cfg.model.architecture, CLASSES, cfg.model.width, cfg.model.head)
        self.classifier, _ = config.make_classifier(cfg, CLASSES)
        self.device = self.classifier.device
        self.network: nn.Module = network.to(self.device)
        self.networks = Networks(self.network)
        self.batch = 16 if self.device.type == "cpu" else min(128, self.classifier.forward_batch)

    @cached_property
    def stopwatch(self) -> Stopwatch:
        """The network by itself."""
        return Stopwatch(self.network, self.classifier.layers, self.size, self.device)

    @cached_property
    def channels(self) -> int:
        """Channels of the CAM layer."""
        images, _ = self.batch_of(1, 1)
        return self.classifier.activations(images, [self.classifier.cam_layer])[0].shape[1]

    def method(self, name: str) -> Any:
        """The method with its default parameters, which are the papers'."""
        return config.make_method(config.compose_config([*PLAIN, f"method={name}"]))

    def batch_of(self, images: int, classes: int) -> tuple[Tensor, Pairs]:
        """Random images, each with the same number of different classes."""
        generator = torch.Generator().manual_seed(0)
        batch = torch.randn(images, 3, self.size, self.size, generator=generator)
        target = torch.stack([torch.randperm(CLASSES, generator=generator)[:classes] for _ in range(images)])
        ids = tuple(f"image{i}" for i in range(images))
        pairs = Pairs(torch.arange(images).repeat_interleave(classes), target.flatten(), ids)
        return batch.to(self.device), pairs.to(self.device)

    def shape(self, cell: Cell, method: Any) -> Shape:
        """What the cell asks for, with the masks that its images ask for."""
        masks = 0
        if cell.method in MASKS:
            counted = min(cell.images, COUNTED)
            found = MASKS[cell.method](method, self.classifier, *self.batch_of(counted, cell.classes))
            masks = round(found * cell.images / counted)
        return Shape(cell.images, cell.classes, self.size, self.size, masks)

    # --------------------------------------------------------------------------------------- contenders

    def ours(self, cell: Cell, method: Any, shape: Shape) -> Contender:
        """camexp's way to make the cell's maps."""
        images, pairs = self.batch_of(cell.images, cell.classes)
        return Contender(
            "camexp",
            lambda: method(self.classifier, images, pairs),
            lambda tell: telling(self.classifier, tell),
            self.course(cell.method, method, shape),
        )

    def course(self, name: str, method: Any, shape: Shape) -> Course:
        """The passes of camexp's call."""
        before = BEFORE[name](method, shape) if name in BEFORE else 0
        if name == "ablationcam":
            return Course(before + shape.masks, before)
        return Course(needed(name, method, shape).forward, before)

    def theirs(self, cell: Cell, method: Any, shape: Shape, peer: Peer) -> Contender:
        """A library's way to make the cell's maps."""
        network = self.networks.of(peer)
        images, pairs = self.batch_of(cell.images, cell.classes)
        targets, layer = pairs.target.view(cell.images, cell.classes), self.classifier.cam_layer
        case = Case(network, layer, method, images, targets, self.batch)
        return Contender(
            peer.library,
            lambda: peer.explain(case),
            lambda tell: rows_of(network, tell),
            peer.course(Asked(method, shape, self.channels, self.batch)),
        )

    def contenders(self, cell: Cell, method: Any, shape: Shape, skip: tuple[str, ...] = ()) -> list[Contender]:
        """camexp, and every installed library that has the method."""
        peers = [peer for peer in PEERS.get(cell.method, ()) if peer.installed and peer.library not in skip]
        return [self.ours(cell, method, shape), *(self.theirs(cell, method, shape, peer) for peer in peers)]


@contextmanager
def telling(classifier: Classifier, tell: Callable[[int], None]) -> Iterator[None]:
    """Tell of the rows of every pass of a classifier while the context lasts."""
    before = classifier.on_forward
    classifier.on_forward = tell
    try:
        yield
    finally:
        classifier.on_forward = before
