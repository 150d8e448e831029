"""How time grows with images and masks, and how long it takes to the first batch."""

import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from camexp.bench.subject import Cell, Subject
from camexp.bench.watch import rehearse, timed
from camexp.errors import CamexpError

IMAGES = (1, 2, 4, 8, 16, 32, 64)
MASKS = (16, 32, 64, 128)
TRIALS = 3
COLUMNS = ["what", "points", "slope", "intercept", "R2", "peak MiB"]


@dataclass(frozen=True)
class Line:
    """seconds = slope x + intercept, by least squares, and the share of the variance that it explains."""

    slope: float
    intercept: float
    r2: float


def fit(x: Sequence[float], seconds: Sequence[float]) -> Line:
    """The line through points; R2 is 1 where all seconds are equal."""
    slope, intercept = np.polyfit(x, seconds, 1)
    residual = np.square(np.asarray(seconds) - (slope * np.asarray(x) + intercept)).sum()
    total = np.square(np.asarray(seconds) - np.mean(seconds)).sum()
    return Line(float(slope), float(intercept), float(1 - residual / total) if total else 1.0)


def by_images(subject: Subject, method: str = "gradcam", images: Sequence[int] = IMAGES) -> list[str]:
    """Seconds of a call against its images."""
    cells = [Cell(method, subject.model, count, 1) for count in images]
    return _series(f"{method}: images", images, subject, cells, [subject.method(method)] * len(cells))


def by_masks(subject: Subject, masks: Sequence[int] = MASKS) -> list[str]:
    """Seconds of a call of RISE against its masks."""
    plain = subject.method("rise")
    methods = [replace(plain, masks=count) for count in masks]
    cells = [Cell("rise", subject.model, 1, 1)] * len(methods)
    return _series("rise: masks", masks, subject, cells, methods)


def _series(what: str, x: Sequence[int], subject: Subject, cells: Sequence[Cell], methods: Sequence[Any]) -> list[str]:
    """A line of the table; the points are measured in turn, several times."""
    contenders = [subject.ours(c, m, subject.shape(c, m)) for c, m in zip(cells, methods, strict=True)]
    whole = float("inf")
    rehearse(contenders[0], subject.device)  # something of a first call is kept
    peaks = [rehearse(contender, subject.device, whole) for contender in contenders]
    rounds = [[timed(contender, subject.device, whole) for contender in contenders] for _ in range(TRIALS)]
    seconds = [statistics.median(trial.seconds for trial in trials) for trials in zip(*rounds, strict=True)]
    line = fit(x, seconds)
    points = " ".join(f"{count}: {value:.4g} s" for count, value in zip(x, seconds, strict=True))
    told = [f"{line.slope:.4g} s each", f"{line.intercept:.4g} s", f"{line.r2:.4f}"]
    return [f"{what} ({subject.model})", points, *told, " ".join(f"{peak:.0f}" for peak in peaks)]


START = """
import sys, time
started = time.perf_counter()
import torch
torch_imported = time.perf_counter()
from camexp.config import compose_config
from camexp.models.classifier import Classifier
from camexp.runner import execute

class Reached(BaseException):
    pass

def stop(self, images):
    raise Reached

Classifier.forward = stop
try:
    execute(compose_config(sys.argv[1:]))
except Reached:
    print(time.perf_counter() - torch_imported, torch_imported - started)
"""
"""A run up to its first pass: seconds beyond torch's import, and of that."""


def start_up(folder: Path, options: Sequence[str] = (), trials: int = TRIALS) -> list[str]:
    """Seconds from the import of torch to the first pass of a run; the median of fresh processes.

    The first process makes the embedded scenes and is not counted.

    Parameters
    ----------
    options: of the run, as of `python -m camexp.run`.

    Raises
    ------
    CamexpError: when a run does not come so far.
    """
    found = [_first_batch(folder / f"run{trial}", folder / "data", *options) for trial in range(trials + 1)][1:]
    beyond, torch_import = (statistics.median(times) for times in zip(*found, strict=True))
    points = " ".join(f"{seconds:.2f} s" for seconds, _ in found)
    return [
        "start-up to the first batch, beyond torch's import",
        points,
        f"{beyond:.2f} s",
        f"torch {torch_import:.2f} s",
    ]


def _first_batch(output: Path, data: Path, *more: str) -> tuple[float, float]:
    options = [f"output={output}", f"data_dir={data}", "limit=16", "method=gradcam", "runtime.trials=0", *more]
    done = subprocess.run([sys.executable, "-c", START, *options], capture_output=True, text=True, check=False)
    try:
        beyond, torch_import = map(float, done.stdout.split()[-2:])
    except ValueError as error:
        raise CamexpError(f"a run did not come to its first batch:\n{done.stderr[-2000:]}") from error
    return beyond, torch_import
