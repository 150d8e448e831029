"""Find runs, build every table they fill, print and write them."""

from pathlib import Path

import pandas as pd

from camexp.config import CONFIGS
from camexp.experiment import Column, Experiment, label_of, load_experiment, run_name
from camexp.records import write_atomically
from camexp.report.markdown import render
from camexp.report.runs import Run, combine, find_runs
from camexp.report.table import build_cells, read_published

PUBLISHED = CONFIGS.parent / "results" / "published"


def print_report(results: Path, experiments: list[Experiment] | None = None) -> None:
    """Print the tables and write `results/tables/<name>.md` and `.csv`.

    Parameters
    ----------
    experiments: the tables; by default those of `configs/experiment/` that have a run, and for each data set
        one with the runs that are in none of them.
    """
    runs = runs_by_name(results)
    chosen = _with_runs(runs) if experiments is None else experiments
    if not runs or not chosen:
        print(f"no runs in {results.absolute()}; make reproduce or python -m camexp.run makes some")
        return
    for experiment in chosen:
        cells = build_cells(experiment, runs, read_published(PUBLISHED, experiment.published))
        text = render(experiment, cells)
        print(text)
        _write(results / "tables", experiment.name, text, cells)
    print(f"tables: {results / 'tables'}")


def runs_by_name(results: Path) -> dict[tuple[str, str, str], Run]:
    """Every run by (dataset, model, name); those that differ only in their seed are one."""
    found: dict[tuple[str, str, str], list[Run]] = {}
    for run in find_runs(results):
        name = run_name(run.info["method"], run.info["variant"])
        found.setdefault((run.info["dataset"], run.info["model"], name), []).append(run)
    return {key: combine(runs) for key, runs in found.items()}


def _with_runs(runs: dict[tuple[str, str, str], Run]) -> list[Experiment]:
    experiments = [load_experiment(path.stem) for path in sorted((CONFIGS / "experiment").glob("*.yaml"))]
    filled = [e for e in experiments if any((e.dataset, model, column.run_name) in runs for model, column in e.runs())]
    told = {(e.dataset, model, column.run_name) for e in filled for model, column in e.runs()}
    others = {key: run for key, run in runs.items() if key not in told}
    datasets = sorted({dataset for dataset, _, _ in others})
    return filled + [_overview(dataset, others) for dataset in datasets]


def _overview(dataset: str, runs: dict[tuple[str, str, str], Run]) -> Experiment:
    """A table of runs that no experiment lists, as of a method of your own."""
    mine = {key: run for key, run in runs.items() if key[0] == dataset}
    columns = {}
    for (_, _, name), run in mine.items():
        label = ", ".join(filter(None, [label_of(run.info["method"]), run.variant]))
        columns[name] = Column(run.info["method"], label, tuple(run.info["variant"].items()))
    first = next(iter(mine.values()))
    return Experiment(
        name=f"runs_{dataset}",
        title=f"Runs on {dataset} outside the papers' tables",
        published="",
        dataset=dataset,
        models=tuple(sorted({model for _, model, _ in mine})),
        metrics=(*first.info["metrics"], "runtime"),
        columns=tuple(columns.values()),
    )


def _write(folder: Path, name: str, text: str, cells: pd.DataFrame) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{name}.md", text)
    write_atomically(folder / f"{name}.csv", cells.to_csv(index=False, float_format="%.6g"))
