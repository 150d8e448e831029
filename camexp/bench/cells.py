"""The table: which cells, how long each may take, and what is found in each."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median

import torch

from camexp.bench.floor import Rates
from camexp.bench.peers import PEERS
from camexp.bench.subject import Cell, Subject
from camexp.bench.watch import Contender, Trial, rehearse, timed
from camexp.bench.work import NEEDED, Shape, needed
from camexp.errors import CamexpError
from camexp.memory import hand_back_freed_memory
from camexp.methods import FAMILIES

METHODS = tuple(name for family, names in FAMILIES.items() if family != "control" for name in names)
"""All but the controls, which ask nothing of the network."""

MODELS = ("resnet50", "vgg16")

COLUMNS = (
    *("method", "model", "images", "classes", "seconds_per_map", "floor", "fastest_peer", "peer_seconds", "peak_mb"),
    *("ours/floor", "peer/ours", "low", "high", "peer_low", "peer_high", "peer_peak_mb", "rounds", "extrapolated"),
    *("forward_seconds", "peers"),
)
"""Of the CSV. Seconds are per map, medians over rounds; low and high are the fastest and the slowest round."""

FAR = 2
"""A library that takes so many times as long as the fastest one is not measured again."""

Row = dict[str, str]


def all_cells(
    methods: Sequence[str], models: Sequence[str], images: Sequence[int], classes: Sequence[int]
) -> list[Cell]:
    """Cells in the order in which they are measured: few images first, because they cost least.

    Raises
    ------
    CamexpError: for an unknown method.
    """
    unknown = [name for name in methods if name not in NEEDED]
    if unknown:
        raise CamexpError(f"--methods {', '.join(unknown)}: no such method to measure; there are {', '.join(METHODS)}")
    return [Cell(m, model, b, c) for b in sorted(images) for c in classes for model in models for m in methods]


def weight(cell: Cell, forward: Mapping[str, float]) -> float:
    """Share of the time: for every contender alike, more where a pass takes many images or the network is slow.

    Parameters
    ----------
    forward: seconds of a plain pass, by model; one that is not known yet is taken to be like the slowest.
    """
    contenders = 1 + len(PEERS.get(cell.method, ()))
    return contenders * min(16, cell.images) ** 0.65 * forward.get(cell.model, max(forward.values(), default=1.0))


@dataclass
class Budget:
    """The time that is left.

    Attributes
    ----------
    seconds: altogether, from when the budget is made.
    """

    seconds: float
    now: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.started = self.now()

    @property
    def left(self) -> float:
        return self.seconds - (self.now() - self.started)

    def share(self, cell: Cell, remaining: Iterable[Cell], forward: Mapping[str, float]) -> float:
        """Seconds for a cell: its part, by weight, of what is left for it and the remaining ones."""
        total = weight(cell, forward) + sum(weight(other, forward) for other in remaining)
        return max(0.0, self.left * weight(cell, forward) / total)


def least_seconds(contenders: int, shape: Shape, forward: float, batch: int) -> float:
    """What rehearsals and a round take at least: two passes forward and backward per contender, and one for camexp."""
    return (1 + 2 * contenders) * min(shape.pairs, batch) * 3 * forward


@dataclass
class Found:
    """What is found of a contender: its trials, and its peak memory in MiB beyond what was there before."""

    trials: list[Trial] = field(default_factory=list)
    peak: float = float("nan")


def compete(
    contenders: Sequence[Contender],
    device: torch.device,
    seconds: float,
    rounds: int,
    say: Callable[[str], None],
    beat: Callable[[], object],
) -> dict[str, Found]:
    """Trials of each contender, one of each per round, after a rehearsal in which their memory is watched.

    There are at most `rounds` rounds, fewer when the seconds, which begin after the rehearsal, are over, and always
    one. `beat` is called right before and right after each trial of the first contender, camexp, which is rehearsed
    twice, because it keeps something of its first call. Libraries that are far behind the fastest one take part in the
    first round alone. One that fails is left out, and why is said; an error of camexp is raised.
    """
    ours, found = contenders[0], {contender.name: Found() for contender in contenders}
    took: dict[str, float] = {}
    limit = seconds / (rounds * len(contenders))

    def watch(contender: Contender) -> None:
        found[contender.name].peak = rehearse(contender, device)

    def time_one(contender: Contender) -> None:
        beats = beat if contender is ours else lambda: None
        beats()
        found[contender.name].trials.append(timed(contender, device, limit))
        beats()

    def succeeds(contender: Contender, act: Callable[[Contender], None]) -> bool:
        began = time.monotonic()
        try:
            act(contender)
        except Exception as error:
            if contender is ours:
                raise
            del found[contender.name]
            say(f"{contender.name} left out: {type(error).__name__}: {error}")
            return False
        took[contender.name] = time.monotonic() - began
        return True

    rehearse(ours, device)
    running = [contender for contender in contenders if succeeds(contender, watch)]
    started = time.monotonic()
    for number in range(rounds):
        running = [contender for contender in running if succeeds(contender, time_one)]
        if number == 0:
            running = running[:1] + _near_the_fastest(running[1:], found)
        if time.monotonic() - started + sum(took[contender.name] for contender in running) > seconds:
            break
    return found


def _near_the_fastest(peers: Sequence[Contender], found: Mapping[str, Found]) -> list[Contender]:
    """Without those that took more than `FAR` times as long as the fastest in the first round."""
    first = {peer.name: found[peer.name].trials[0].seconds for peer in peers}
    return [peer for peer in peers if first[peer.name] <= FAR * min(first.values())]


def cell_row(cell: Cell, found: Mapping[str, Found], floors: Sequence[float], forward: float) -> Row:
    """A line of the CSV.

    Parameters
    ----------
    found: camexp's first.
    floors: seconds of the whole call, of the machine as it was in each of camexp's trials.
    forward: seconds per image of the best plain forward.
    """
    pairs = cell.images * cell.classes
    ours, *theirs = ((name, [t.seconds / pairs for t in one.trials], one) for name, one in found.items())
    seconds = median(ours[1])
    row = {
        "method": cell.method,
        "model": cell.model,
        "images": str(cell.images),
        "classes": str(cell.classes),
        "seconds_per_map": _number(seconds),
        "floor": _number(median(floors) / pairs),
        "ours/floor": _number(median(pairs * s / floor for s, floor in zip(ours[1], floors, strict=True))),
        "low": _number(min(ours[1])),
        "high": _number(max(ours[1])),
        "peak_mb": _number(ours[2].peak),
        "rounds": str(len(ours[1])),
        "forward_seconds": _number(forward),
        "peers": " ".join(f"{name}={_number(median(times))}" for name, times, _ in theirs),
    }
    guessed = ["ours"] if any(t.extrapolated for t in ours[2].trials) else []
    if theirs:
        name, times, best = min(theirs, key=lambda peer: median(peer[1]))
        row |= {
            "fastest_peer": name,
            "peer_seconds": _number(median(times)),
            "peer/ours": _number(median(times) / seconds),
            "peer_low": _number(min(times)),
            "peer_high": _number(max(times)),
            "peer_peak_mb": _number(best.peak),
        }
        guessed += ["peer"] if any(t.extrapolated for t in best.trials) else []
    return {column: row.get(column, "") for column in COLUMNS} | {"extrapolated": " ".join(guessed)}


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4g}"


def measure_cell(
    cell: Cell, subject: Subject, rates: Rates, seconds: float, rounds: int, say: Callable[[str], None]
) -> Row:
    """Measure one cell in about so many seconds; the floor is that of the machine right before and after each trial.

    Raises
    ------
    CamexpError: when camexp's method does not work with the network.
    """
    method = subject.method(cell.method)
    shape = subject.shape(cell, method)
    pulses: list[float] = []
    contenders = subject.contenders(cell, method, shape)
    beat = partial(_keep, pulses, subject.stopwatch.pulse)
    hand_back_freed_memory()  # what is left of other cells fits this one's tensors badly, and adds up
    found = compete(contenders, subject.device, seconds, rounds, say, beat)
    work = needed(cell.method, method, shape)
    around = [(before + after) / 2 for before, after in zip(pulses[::2], pulses[1::2], strict=True)]
    floors = [rates.scaled(pulse).floor(work) for pulse in around]
    return cell_row(cell, found, floors, rates.forward * median(pulses))


def _keep(values: list[float], value: Callable[[], float]) -> None:
    values.append(value())
