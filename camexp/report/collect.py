"""All runs of a results folder by name, and everything about them that the reader should know."""

from dataclasses import dataclass
from pathlib import Path

from camexp.experiment import run_name
from camexp.report.agreement import without_repeats
from camexp.report.runs import Run, combine, find_runs

RunKey = tuple[str, str, str]


@dataclass(frozen=True)
class Results:
    """What a results folder holds.

    Attributes
    ----------
    runs: by (dataset, model, name of the run); those that differ only in their seed are one.
    problems: runs that are not shown and what is odd about others, one sentence each.
    """

    runs: dict[RunKey, Run]
    problems: tuple[str, ...]


def read_results(folder: Path) -> Results:
    """Read every run below a folder; one that cannot be read is a problem and does not stop the others."""
    found, problems = find_runs(folder)
    grouped: dict[RunKey, list[Run]] = {}
    for run in found:
        name = run_name(run.info["method"], run.info["variant"], run.protocol)
        grouped.setdefault((run.info["dataset"], run.info["model"], name), []).append(run)
    runs = {}
    for key, group in grouped.items():
        kept, said = without_repeats(group)
        problems += said
        runs[key] = combine(kept)
    return Results(runs, tuple(problems))
