"""Every table that the runs of a results folder fill."""

from dataclasses import dataclass

import pandas as pd

from camexp.experiment import PAPER, Column, Experiment, label_of, load_experiment
from camexp.places import CONFIGS, PUBLISHED
from camexp.report.collect import Results, RunKey
from camexp.report.runs import Run
from camexp.report.table import build_cells, read_published
from camexp.report.verdicts import Tolerance


@dataclass(frozen=True)
class Table:
    """One table with its cells; see `build_cells`."""

    experiment: Experiment
    cells: pd.DataFrame


def build_tables(
    found: Results, experiments: list[Experiment] | None = None, tolerance: Tolerance | None = None
) -> list[Table]:
    """The tables of `experiments`, or by default of all experiments that have a run, and of the other runs."""
    chosen = _with_runs(found.runs) if experiments is None else experiments
    return [Table(e, build_cells(e, found.runs, read_published(PUBLISHED, e.published), tolerance)) for e in chosen]


def _with_runs(runs: dict[RunKey, Run]) -> list[Experiment]:
    experiments = [load_experiment(path.stem) for path in sorted((CONFIGS / "experiment").glob("*.yaml"))]
    filled = [e for e in experiments if any((e.dataset, model, column.run_name) in runs for model, column in e.runs())]
    told = {(e.dataset, model, column.run_name) for e in filled for model, column in e.runs()}
    others = {key: run for key, run in runs.items() if key not in told}
    datasets = sorted({dataset for dataset, _, _ in others})
    return filled + [_overview(dataset, others, runs) for dataset in datasets]


YARDSTICK = "gradcam"
"""The method that stands beside those that no table of a paper lists."""


def _overview(dataset: str, others: dict[RunKey, Run], runs: dict[RunKey, Run]) -> Experiment:
    """A table of the runs that no experiment lists, as of a method of your own, with Grad-CAM's beside them."""
    mine = {key: run for key, run in others.items() if key[0] == dataset}
    alike = {(model, run.protocol) for (_, model, _), run in mine.items()}
    beside = {
        key: run
        for key, run in runs.items()
        if key[0] == dataset and run.info["method"] == YARDSTICK and not run.variant and (key[1], run.protocol) in alike
    }
    mine = beside | mine
    columns = {}
    for (_, _, name), run in mine.items():
        protocol = "" if run.protocol == PAPER else run.protocol
        label = ", ".join(filter(None, [label_of(run.info["method"]), run.variant, protocol]))
        overrides = tuple(run.info["variant"].items())
        columns[name] = Column(run.info["method"], label, overrides, protocol=run.protocol)
    metrics = dict.fromkeys(metric for run in mine.values() for metric in run.metrics)
    return Experiment(
        name=f"runs_{dataset}",
        title=f"Runs on {dataset} outside the papers' tables",
        published="",
        dataset=dataset,
        models=tuple(sorted({model for _, model, _ in mine})),
        metrics=(*metrics, "runtime"),
        columns=tuple(columns.values()),
    )
