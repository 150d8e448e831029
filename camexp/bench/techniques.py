"""What each technique buys: with it against without it, all else as it is."""

import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from camexp.bench.subject import Cell, Subject, telling
from camexp.bench.variants import ChannelsFirst, InferenceMode, Rebatched, WholeGraph, classes_apart
from camexp.bench.watch import Contender, Course, Trial, rehearse, timed
from camexp.errors import CamexpError
from camexp.models.classifier import Classifier
from camexp.pairs import Pairs

COLUMNS = ["technique", "measured with", "without, ms per map", "with, ms per map", "without/with", "of each round"]

ROUNDS = 3
SECONDS = 3.0
"""Of one trial of a long call."""


@dataclass(frozen=True)
class Comparison:
    """A technique, switched off and on.

    Attributes
    ----------
    cell: what it is measured with.
    """

    technique: str
    cell: Cell
    without: Contender
    with_it: Contender


class Workbench:
    """Makes the comparisons of one network.

    Parameters
    ----------
    make: a subject with further options, as of `python -m camexp.run`.
    images: of a call.
    """

    def __init__(self, make: Callable[..., Subject], images: int = 16):
        self.make, self.images = make, images
        self.subject = make()

    def comparisons(self) -> Iterator[Comparison]:
        """One after the other, because some of them need a network of their own."""
        rise = Cell("rise", self.subject.model, self.images, 1)
        mine = self.subject.classifier
        unfolded = self.make("fold_batch_norms=false").classifier
        yield self._compare("batch norms folded", rise, unfolded, mine)
        del unfolded
        yield self._compare("channels last", rise, ChannelsFirst.of(self.make().classifier), mine)
        yield self._compare("inference mode instead of no_grad", rise, mine, InferenceMode.of(mine))
        gradcam = Cell("gradcam", self.subject.model, self.images, 1)
        yield self._compare("backward through the tail alone", gradcam, WholeGraph.of(mine), mine)
        yield self._shared(Cell("rise", self.subject.model, self.images, 3))
        yield self._together(Cell("occlusion", self.subject.model, self.images, 1))
        for batch in (8, 16, 64):
            name = f"{mine.forward_batch} images per pass instead of {batch}"
            yield self._compare(name, rise, Rebatched.with_batch(mine, batch), mine)
        yield self._compare("precision=bf16", rise, mine, self.make("precision=bf16").classifier)
        if mine.device.type == "cuda":
            yield self._compare("precision=tf32", rise, mine, self.make("precision=tf32").classifier)
        if has_compiler():
            yield self._compare("compile=true", rise, mine, self.make("compile=true").classifier)

    def _compare(self, technique: str, cell: Cell, without: Classifier, with_it: Classifier) -> Comparison:
        return Comparison(technique, cell, self.way(cell, without), self.way(cell, with_it))

    def way(
        self, cell: Cell, classifier: Classifier, split: Callable[[Tensor, Pairs], Sequence[Any]] | None = None
    ) -> Contender:
        """A call of the cell's method; `split` makes several calls of it."""
        method = self.subject.method(cell.method)
        images, pairs = self.subject.batch_of(cell.images, cell.classes)
        calls = split(images, pairs) if split else [(images, pairs)]
        one = self.subject.batch_of(1, 1)
        course = self.subject.course(cell.method, method, self.subject.shape(cell, method))
        if split is classes_one_by_one:
            course = Course(course.rows, course.before, len(calls))
        return Contender(
            cell.method,
            lambda: [method(classifier, *call) for call in calls],
            lambda: method(classifier, *one),
            lambda tell: telling(classifier, tell),
            course,
        )

    def _shared(self, cell: Cell) -> Comparison:
        mine = self.subject.classifier
        apart = self.way(cell, mine, classes_one_by_one)
        return Comparison("one pass for all classes of an image", cell, apart, self.way(cell, mine))

    def _together(self, cell: Cell) -> Comparison:
        mine = self.subject.classifier
        apart = self.way(cell, mine, images_one_by_one)
        return Comparison("a batch filled with the next image's masks", cell, apart, self.way(cell, mine))


def classes_one_by_one(images: Tensor, pairs: Pairs) -> list[tuple[Tensor, Pairs]]:
    return [(images, some) for some in classes_apart(pairs)]


def images_one_by_one(images: Tensor, pairs: Pairs) -> list[tuple[Tensor, Pairs]]:
    found = []
    for i, image_id in enumerate(pairs.image_ids):
        own = pairs.image == i
        found.append((images[i : i + 1], Pairs(pairs.image[own] - i, pairs.target[own], (image_id,))))
    return found


def has_compiler() -> bool:
    """Whether torch.compile can find a C++ compiler."""
    return any(shutil.which(name) for name in ("g++", "clang++", "c++"))


def measure(comparison: Comparison, subject: Subject, rounds: int = ROUNDS, seconds: float = SECONDS) -> list[str]:
    """A line of the table: rounds of one trial without and one with the technique."""
    both = comparison.without, comparison.with_it
    for contender in both:
        rehearse(contender, subject.device)
    trials = [[timed(contender, subject.device, seconds) for contender in both] for _ in range(rounds)]
    return line(comparison.technique, comparison.cell, trials)


def line(technique: str, cell: Cell, trials: Sequence[Sequence[Trial]]) -> list[str]:
    """A line of the table, from (without, with) of each round."""
    pairs = cell.images * cell.classes
    without, with_it = (statistics.median(t.seconds for t in side) * 1000 / pairs for side in zip(*trials, strict=True))
    ratios = [off.seconds / on.seconds for off, on in trials]
    guessed = " (extrapolated)" if any(trial.extrapolated for pair in trials for trial in pair) else ""
    spread = f"{min(ratios):.3g}-{max(ratios):.3g}"
    return [
        technique,
        f"{cell}{guessed}",
        f"{without:.4g}",
        f"{with_it:.4g}",
        f"{statistics.median(ratios):.3g}",
        spread,
    ]


MEMORY = """
import sys, time
from camexp.bench.subject import Subject
from camexp.memory import keep_freed_memory
keep, model, images, *options = sys.argv[1:]
if keep == "True":
    keep_freed_memory()
subject = Subject(model, tuple(options))
batch, _ = subject.batch_of(int(images), 1)
subject.classifier.logits(batch)
started = time.perf_counter()
for _ in range(3):
    subject.classifier.logits(batch)
print((time.perf_counter() - started) / 3)
"""
"""Seconds of a forward pass in a process of its own: the C library cannot be told to forget it."""


def kept_memory(model: str, images: int, options: Sequence[str], rounds: int = ROUNDS) -> list[str]:
    """A line of the table for `camexp.memory`."""
    cell = Cell("forward pass", model, images, 1)
    trials = []
    for _ in range(rounds):
        trials.append([Trial(_in_process(keep, model, images, options), False, 0.0) for keep in (False, True)])
    return line("freed memory kept", cell, trials)


def _in_process(keep: bool, model: str, images: int, options: Sequence[str]) -> float:
    command = [sys.executable, "-c", MEMORY, str(keep), model, str(images), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CamexpError(f"the measurement of kept memory failed:\n{done.stderr[-2000:]}")
    return float(done.stdout)
