"""What the plain network costs on this machine, and the floor: the least time that a method's passes take with it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, fields
from functools import cached_property
from statistics import median

import torch
from torch import Tensor, nn

from camexp.bench.work import Work
from camexp.explain import clock
from camexp.models.classifier import Classifier
from camexp.models.fold import fold_batch_norms
from camexp.models.tail import tail_behind

SIZES = {"cpu": (4, 8, 16, 32), "cuda": (16, 64, 256)}
"""Images per pass that are tried."""

GRADIENT_SIZES = {"cpu": (4, 8, 16), "cuda": (16, 64, 128)}

ROWS_OF_TAIL = {"cpu": 128, "cuda": 256}

PULSE = {"cpu": 4, "cuda": 64}
"""Images of the small pass that other times are related to, as a machine is not always equally fast."""

REPEATS = 9
"""Of a measurement; three times fewer where it only chooses the number of images."""


@dataclass(frozen=True)
class Rates:
    """Time per row of each kind of `Work`, in seconds or in pulses."""

    forward: float
    backward: float
    layers_backward: float
    tail: float
    tail_backward: float

    def floor(self, work: Work) -> float:
        """Time of a call's work."""
        return sum(getattr(self, kind.name) * getattr(work, kind.name) for kind in fields(work))

    def scaled(self, factor: float) -> "Rates":
        """The rates in a unit of which the present one has so many: pulses in seconds."""
        return Rates(*(factor * getattr(self, kind.name) for kind in fields(self)))


class Stopwatch:
    """Times the passes of one network at its best.

    Parameters
    ----------
    network: as torchvision builds it; a copy gets batch norms folded, channels last and no gradients of parameters.
    layers: module paths by role, "cam" and "sise".
    size: side of the images.
    """

    def __init__(self, network: nn.Module, layers: dict[str, tuple[str, ...]], size: int, device: torch.device):
        best = deepcopy(network).eval()
        fold_batch_norms(best)
        self.network = best.to(device, memory_format=torch.channels_last).requires_grad_(False)  # type: ignore[call-overload]
        self.layers, self.size, self.device = layers, size, device

    def images(self, rows: int) -> Tensor:
        generator = torch.Generator().manual_seed(rows)
        images = torch.randn(rows, 3, self.size, self.size, generator=generator).to(self.device)
        return images.contiguous(memory_format=torch.channels_last)

    def seconds(self, one_pass: Callable[[Tensor], object], rows: Tensor) -> float:
        """Per row, of one pass."""
        started = clock(self.device)
        one_pass(rows)
        return (clock(self.device) - started) / len(rows)

    def pulse(self) -> float:
        """Seconds per row of a small plain forward: how fast the machine is at this moment."""
        return self.seconds(self.forward_pass, self._few)

    @cached_property
    def _few(self) -> Tensor:
        few = self.images(PULSE[self.device.type])
        self.forward_pass(few)
        return few

    def in_pulses(self, one_pass: Callable[[Tensor], object], rows: Tensor, repeats: int = REPEATS) -> float:
        """Median time per row over that of the pulses right before and after it."""
        found, before = [], self.pulse()
        for _ in range(repeats):
            took, after = self.seconds(one_pass, rows), self.pulse()
            found.append(2 * took / (before + after))
            before = after
        return median(found)

    def best(self, one_pass: Callable[[Tensor], object], sizes: tuple[int, ...]) -> tuple[int, float]:
        """The number of images per pass with the least time per image, and that time in pulses."""
        first = {rows: self.in_pulses(one_pass, self.images(rows), 1) for rows in sizes}
        nearest = sorted(first, key=first.__getitem__)[:2]
        again = {rows: self.in_pulses(one_pass, self.images(rows), REPEATS // 3) for rows in nearest}
        rows = min(again, key=again.__getitem__)
        return rows, self.in_pulses(one_pass, self.images(rows))  # anew: the least of several is too low by chance

    # ------------------------------------------------------------------------------------------- passes

    @torch.inference_mode()
    def forward_pass(self, images: Tensor) -> Tensor:
        return self.network(images)

    def gradient_pass(self, images: Tensor) -> Tensor:
        """Forth and back to the input."""
        with torch.enable_grad():
            images = images.detach().requires_grad_()
            return torch.autograd.grad(self.network(images)[:, 0].sum(), images)[0]

    def layers_pass(self, images: Tensor) -> Tensor:
        """Forth, and back to the first of SISE's layers."""
        with self.graph_from(self.layers["sise"][0]) as found, torch.enable_grad():
            score = self.network(images)[:, 0].sum()
            return torch.autograd.grad(score, found[0])[0]

    @contextmanager
    def graph_from(self, layer: str) -> Iterator[list[Tensor]]:
        """While the context lasts nothing before the layer is recorded; its output is added to the list."""
        found: list[Tensor] = []

        def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            found.append(output.detach().requires_grad_())
            return found[-1]

        handle = self.network.get_submodule(layer).register_forward_hook(keep)
        try:
            yield found
        finally:
            handle.remove()

    # -------------------------------------------------------------------------------------------- rates

    @cached_property
    def _forward(self) -> tuple[int, float]:
        return self.best(self.forward_pass, SIZES[self.device.type])

    @cached_property
    def _gradient(self) -> tuple[int, float]:
        return self.best(self.gradient_pass, GRADIENT_SIZES[self.device.type])

    @cached_property
    def _layers(self) -> float:
        return self.in_pulses(self.layers_pass, self.images(self._gradient[0]))

    @cached_property
    def _tail(self) -> tuple[float, float]:
        """Pulses per row through the tail behind the CAM layer, and forward and backward."""
        (layer,) = self.layers["cam"][:1]
        network = deepcopy(self.network)
        classifier = Classifier(network, {"cam": layer}, device=self.device, packed_weights=False, onednn_linear=False)
        with tail_behind(classifier, self.images(1), layer) as tail:
            rows = tail.activations.repeat(ROWS_OF_TAIL[self.device.type], 1, 1, 1)

            def forth(rows: Tensor) -> Tensor:
                with torch.no_grad():
                    return tail.run(rows, 0)

            def forth_and_back(rows: Tensor) -> Tensor:
                with torch.enable_grad():
                    rows = rows.detach().requires_grad_()
                    return torch.autograd.grad(tail.run(rows, 0)[:, 0].sum(), rows)[0]

            forth(rows)
            forth_and_back(rows)
            return self.in_pulses(forth, rows), self.in_pulses(forth_and_back, rows)

    def rates(self, works: list[Work]) -> Rates:
        """The rates that these works need, in pulses; those that none needs are 0."""
        asked = {kind.name for kind in fields(Work) if any(getattr(work, kind.name) for work in works)}
        forward = self._forward[1]
        tail, tail_gradient = self._tail if asked & {"tail", "tail_backward"} else (0.0, 0.0)
        return Rates(
            forward=forward,
            backward=max(0.0, self._gradient[1] - forward) if "backward" in asked else 0.0,
            layers_backward=max(0.0, self._layers - forward) if "layers_backward" in asked else 0.0,
            tail=tail,
            tail_backward=max(0.0, tail_gradient - tail),
        )
