"""What stands under a table: what its numbers rest on, and what the reader must not overlook."""

from collections.abc import Callable
from typing import Any

import pandas as pd

from camexp.command import counted
from camexp.experiment import Column, Experiment
from camexp.files import read_yaml
from camexp.places import CONFIGS
from camexp.report.layout import CONFLICT, DOUBTFUL, SIGNS, UNFINISHED, model_name
from camexp.report.table import quantity
from camexp.report.verdicts import Tolerance

COUNTS = ("masks", "steps", "iterations", "samples", "m", "areas")
"""Parameters of which fewer cost less and explain worse."""


def notes(experiment: Experiment, cells: pd.DataFrame, tolerance: Tolerance | None = None) -> list[str]:
    """One sentence or two per note, plain text."""
    run = cells.dropna(subset=["value"])
    found = [
        *_data(experiment, run),
        *_bases(run),
        *_verdicts(run, tolerance or Tolerance()),
        *_variants(experiment, run),
        *_repeats(run),
        *_per_run(run, "degenerate", "Constant maps (degenerate): {}.", lambda value: f"{value:g}"),
        *_per_run(run, "failures", "Failed and not counted: {}.", lambda value: f"{value:g}"),
        *_per_run(run[~run["complete"].astype(bool)], "pairs", f"{UNFINISHED} Unfinished: {{}}.", _pairs_so_far),
        *_per_run(run, "conflict", f"{CONFLICT} Unlike most runs of this table, not to be compared: {{}}.", str),
        *_suspicious(cells),
        *_not_run(experiment, cells),
    ]
    return [*found, experiment.note] if experiment.note else found


def _data(experiment: Experiment, run: pd.DataFrame) -> list[str]:
    if not experiment.dataset.startswith("mini"):
        return []
    published = f"; the published values ({experiment.published}) stand there for orientation and are not compared"
    shown = published if run["published"].notna().any() else ""
    return [f"{experiment.dataset} is procedural and its networks are small: the numbers are not the papers'{shown}."]


def _bases(run: pd.DataFrame) -> list[str]:
    """Counts of pairs, images and trials, and how intervals come about."""
    found = []
    measured = run[run["metric"] != "runtime"]
    if len(measured):
        counts = sorted({(int(p), int(i)) for p, i in zip(measured["pairs"], measured["images"], strict=True)})
        text = " or ".join(f"{counted(pairs, 'pair')} of {counted(images, 'image')}" for pairs, images in counts)
        over = "Means over classes of the means over" if (measured["average"] == "macro").any() else "Means over"
        found.append(f"{over} {text}; intervals: bootstrap over images.")
    timed = run[run["metric"] == "runtime"]
    if len(timed):
        machines = ", ".join(sorted({machine for machine in timed["machine"] if machine})) or "an unnamed machine"
        trials = counted(int(timed["pairs"].min()), "single-image trial")
        found.append(
            f"Run time: seconds per map, batch 1, mean of {trials} on {machines}; intervals: bootstrap over trials. "
            "The papers used a Tesla T4."
        )
    return found


def _verdicts(run: pd.DataFrame, tolerance: Tolerance) -> list[str]:
    found = []
    if run["verdict"].isin(list(SIGNS)).any():
        found.append(
            f"Difference: {SIGNS['inside']} the published value lies in our interval, {SIGNS['within']} outside "
            f"of it but within {tolerance.points:g} points (run time: a factor of {tolerance.factor:g}), "
            f"{SIGNS['outside']} neither."
        )
    uncompared = run[(run["verdict"] == "other data") & ~run["dataset"].str.startswith("mini")]
    if len(uncompared):
        names = ", ".join(sorted(set(_names(uncompared))))
        found.append(f"Other data than the papers' (another or partial split, or untrained), not compared: {names}.")
    return found


def _names(cells: pd.DataFrame) -> pd.Series:
    return cells["model"].map(model_name) + " " + cells["column"]


def _variants(experiment: Experiment, run: pd.DataFrame) -> list[str]:
    """Parameters other than the default ones, and those that make a method cheaper than the papers' settings."""
    untold = run.loc[[not _says(column, v) for v, column in zip(run["variant"], run["column"], strict=True)]]
    found = _per_run(untold, "variant", "Other than the default parameters: {}.", "({})".format)
    present = set(run["column"])
    fewer = [f"{c.label} {text}" for c in experiment.columns if c.label in present and (text := _fewer(c))]
    return found + ([f"Fewer than in the papers: {'; '.join(dict.fromkeys(fewer))}."] if fewer else [])


def _says(label: str, variant: Any) -> bool:
    """Whether a column's label has the parameters in it, as in "Integrated Grad-CAM, m = 50"."""
    return str(variant) in label.replace(" = ", "=")


def _fewer(column: Column) -> str:
    """The counts that a column sets below its method's defaults, "masks 100 of 8000"."""
    path = CONFIGS / "method" / f"{column.method}.yaml"
    if not path.is_file():
        return ""
    defaults = read_yaml(path)
    sizes = [(name, _size(value), _size(defaults.get(name))) for name, value in column.overrides if name in COUNTS]
    return ", ".join(f"{name} {ours:g} of {whole:g}" for name, ours, whole in sizes if 0 < ours < whole)


def _size(value: Any) -> float:
    if isinstance(value, list | tuple):
        return len(value)
    return float(value) if isinstance(value, int | float) else 0.0


def _repeats(run: pd.DataFrame) -> list[str]:
    repeated = run[run["se_runs"].notna()]
    if not len(repeated):
        return []
    told = zip(_names(repeated), repeated["metric"], repeated["se_runs"], strict=True)
    errors = ", ".join(f"{name} {quantity(metric).label} {error:.2f}" for name, metric, error in told)
    return [f"Means over runs with other seeds; standard errors over runs: {errors}."]


def _pairs_so_far(pairs: float) -> str:
    return f"({pairs:g} pairs so far)"


def _suspicious(cells: pd.DataFrame) -> list[str]:
    doubtful = cells[cells["suspicious"] != ""]
    found: dict[str, list[str]] = {}
    for name, metric, text in zip(_names(doubtful), doubtful["metric"], doubtful["suspicious"], strict=True):
        found.setdefault(text, []).append(f"{name} {quantity(metric).label}")
    return [f"{DOUBTFUL} Doubtful as published ({', '.join(where)}): {text}" for text, where in found.items()]


def _not_run(experiment: Experiment, cells: pd.DataFrame) -> list[str]:
    offered = [column.label for column in experiment.columns if column.offered]
    absent = cells[cells["value"].isna() & cells["column"].isin(offered)]
    missing: dict[str, list[str]] = {}  # metrics by run
    for name, metric in zip(_names(absent), absent["metric"], strict=True):
        missing.setdefault(name, []).append(quantity(metric).label)
    names = [n if len(m) == len(experiment.metrics) else f"{n} ({', '.join(m)})" for n, m in sorted(missing.items())]
    return [f"Empty cells were not run: {'; '.join(names)}."] if names else []


def _per_run(run: pd.DataFrame, field: str, text: str, show: Callable[[Any], str]) -> list[str]:
    """One note that lists a field's value for the runs where it is not empty or zero."""
    told = run.dropna(subset=[field])
    told = told[told[field].astype(bool)].drop_duplicates(["model", "column"])
    listed = "; ".join(f"{name} {show(value)}" for name, value in zip(_names(told), told[field], strict=True))
    return [text.format(listed)] if listed else []
