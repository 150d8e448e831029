"""A technique against its absence: what is compared, and the table's line about it."""

import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from camexp.bench.watch import Contender, Trial, rehearse, timed

COLUMNS = [
    *("technique", "switch", "measured with", "without, ms per map", "with, ms per map"),
    *("without/with", "of each round"),
]

ROUNDS = 3
SECONDS = 1.5
"""Of one trial of a long call."""


def anywhere(device: torch.device) -> bool:
    return True


def on_gpu(device: torch.device) -> bool:
    return device.type == "cuda"


def on_cpu(device: torch.device) -> bool:
    return device.type == "cpu"


def with_compiler(device: torch.device) -> bool:
    """Whether torch.compile finds the compiler that it needs, of C for a GPU and of C++ for a CPU."""
    names = ("gcc", "clang", "cc") if on_gpu(device) else ("g++", "clang++", "c++")
    return any(shutil.which(name) for name in names)


@dataclass(frozen=True)
class Technique:
    """A technique and the option of a run that makes the difference.

    Attributes
    ----------
    switch: turns the technique off; or on, where it is off by default.
    method, classes, images: what it is measured with; classes per image; images per call, None for the bench's number.
    model: what it is measured on, None for the bench's.
    possible: whether the machine can do it.
    """

    name: str
    switch: str
    method: str = "rise"
    classes: int = 1
    images: int | None = None
    model: str | None = None
    default: bool = True
    possible: Callable[[torch.device], bool] = anywhere


@dataclass(frozen=True)
class Comparison:
    """A technique, switched off and on.

    Attributes
    ----------
    measured_with: what is done; maps: how many are made or measured.
    """

    technique: Technique
    measured_with: str
    maps: int
    without: Contender
    with_it: Contender

    @classmethod
    def of(cls, technique: Technique, measured_with: str, maps: int, make: Callable[..., Contender]) -> "Comparison":
        """`make()` beside `make(switch)`."""
        usual, switched = make(), make(technique.switch)
        without, with_it = (switched, usual) if technique.default else (usual, switched)
        return cls(technique, measured_with, maps, without, with_it)


def measure(comparison: Comparison, device: torch.device, rounds: int = ROUNDS, seconds: float = SECONDS) -> list[str]:
    """A line of the table: rounds of one trial without and one with the technique."""
    both = comparison.without, comparison.with_it
    for contender in both:
        rehearse(contender, device)
    trials = [[timed(contender, device, seconds) for contender in both] for _ in range(rounds)]
    return line(comparison.technique, comparison.measured_with, comparison.maps, trials)


def line(technique: Technique, measured_with: str, maps: int, trials: Sequence[Sequence[Trial]]) -> list[str]:
    """A line of the table, from (without, with) of each round."""
    without, with_it = (statistics.median(t.seconds for t in side) * 1000 / maps for side in zip(*trials, strict=True))
    ratios = [off.seconds / on.seconds for off, on in trials]
    guessed = " (extrapolated)" if any(trial.extrapolated for pair in trials for trial in pair) else ""
    spread = f"{min(ratios):.3g}-{max(ratios):.3g}"
    return [
        *(technique.name, technique.switch, f"{measured_with}{guessed}"),
        *(f"{without:.4g}", f"{with_it:.4g}", f"{statistics.median(ratios):.3g}", spread),
    ]
