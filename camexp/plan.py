"""The runs that tables need: each once, with its command line."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache

from camexp.config import compose_config
from camexp.errors import CamexpError
from camexp.experiment import PAPER, Column, Experiment

CHOSEN = ("dataset", "model", "method", "protocol", "seed", "output")
"""What the tables choose for each run themselves."""


@dataclass(frozen=True)
class PlannedRun:
    """One run: its name "dataset/model/folder" and command line.

    Attributes
    ----------
    timed: its single-image times are shown, so trials are made of it.
    rows: some table shows more of it than times.
    """

    name: str
    overrides: tuple[str, ...]
    timed: bool = False
    rows: bool = True


def plan(experiments: Iterable[Experiment], options: Iterable[str] = ()) -> list[PlannedRun]:
    """Every run of the tables, each once, in their order; `options` are added to each command line.

    Raises
    ------
    CamexpError: for an option that the tables choose for each run themselves.
    """
    options = [*options]
    for option in options:
        if (name := option.lstrip("+~").partition("=")[0]) in CHOSEN:
            raise CamexpError(
                f"{option}: tables choose the {name} of each run themselves; `python -m camexp.run {option}` makes one "
                "run, and a file in configs/experiment a table of other runs"
            )
    runs: dict[str, PlannedRun] = {}
    for experiment in experiments:
        timed = "runtime" in experiment.metrics
        rows = experiment.metrics != ("runtime",)
        for model, column in experiment.runs():
            for seed in column.seeds:
                name = f"{experiment.dataset}/{model}/{folder_name(column, seed)}"
                run = runs.get(name) or PlannedRun(name, overrides_of(experiment, model, column, seed), rows=False)
                added = tuple(option for option in experiment.options if option not in run.overrides)
                runs[name] = replace(
                    run, overrides=run.overrides + added, timed=run.timed or timed, rows=run.rows or rows
                )
    return [replace(run, overrides=(*run.overrides, *options)) for run in runs.values()]


def folder_name(column: Column, seed: int = 0) -> str:
    """Name of a run's folder; seeds other than 0 are told apart."""
    return column.run_name if seed == 0 else f"{column.run_name}-seed{seed}"


def overrides_of(experiment: Experiment, model: str, column: Column, seed: int = 0) -> tuple[str, ...]:
    """The command line of one run."""
    choices = [f"dataset={experiment.dataset}", f"model={model}", f"method={column.method}", f"seed={seed}"]
    protocol = [f"protocol={experiment.protocol}"] if experiment.protocol != PAPER else []
    metrics = [f"+metric@metrics.{m}={m}" for m in experiment.metrics if m not in (*default_metrics(), "runtime")]
    parameters = [f"method.{name}={value}" for name, value in column.overrides]
    output = f"output=${{results_dir}}/{experiment.dataset}/{model}/{folder_name(column, seed)}"
    return (*choices, *protocol, *metrics, *parameters, output)


@cache
def default_metrics() -> tuple[str, ...]:
    """The metrics of a run unless told otherwise."""
    return tuple(str(name) for name in compose_config([]).metrics)
