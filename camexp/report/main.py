"""Print and write every table that runs fill, and the page."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from camexp.experiment import Experiment
from camexp.files import make_folder, write_atomically
from camexp.report import details, latex, markdown, terminal
from camexp.report.build import Table, build_tables
from camexp.report.collect import RunKey, read_results
from camexp.report.comparisons import average_ranks, orderings
from camexp.report.page.write import write_page
from camexp.report.runs import Run
from camexp.report.verdicts import Tolerance


def to_csv(experiment: Experiment, cells: pd.DataFrame, tolerance: Tolerance | None = None) -> str:
    """The cells as CSV, one line each."""
    return cells.to_csv(index=False, float_format="%.6g")


FORMATS: dict[str, Callable[[Experiment, pd.DataFrame, Tolerance | None], str]] = {
    "terminal": terminal.render,
    "markdown": markdown.render,
    "latex": latex.render,
    "csv": to_csv,
}

WRITTEN = {"md": "markdown", "tex": "latex", "csv": "csv"}
"""Endings of the files in `results/tables/` and their formats."""


def print_report(
    results: Path,
    experiments: list[Experiment] | None = None,
    form: str = "terminal",
    with_details: bool = False,
    tolerance: Tolerance | None = None,
    with_figures: bool = False,
) -> None:
    """Print the tables, write each to `results/tables/` as `<name>.md`, `.tex` and `.csv`, and the page.

    Parameters
    ----------
    experiments: the tables; by default those of `configs/experiment/` that have a run, and for each data set
        one with the runs that are in none of them.
    form: what is printed, one of FORMATS.
    with_details: print and write what lies behind the tables too.
    with_figures: write the figures for papers beside the page.
    """
    found = read_results(results)
    tables = build_tables(found, experiments, tolerance)
    problems = "".join(f"! {problem}\n" for problem in found.problems)
    if not found.runs or not tables:
        print(f"{problems}no runs in {results.absolute()}; make reproduce or python -m camexp.run makes some")
        return
    for table in tables:
        print(FORMATS[form](table.experiment, table.cells, tolerance))
    write_tables(results / "tables", tables, tolerance)
    if with_details:
        _print_details(results / "tables", tables, found.runs)
    page = write_page(found, tables, results / "report", tolerance, with_figures)
    if form == "terminal":
        print(f"{problems}tables: {results / 'tables'}\npage: {page}")


def write_tables(folder: Path, tables: list[Table], tolerance: Tolerance | None = None) -> None:
    """Write every table in the formats of WRITTEN."""
    make_folder(folder)
    for table in tables:
        for ending, form in WRITTEN.items():
            text = FORMATS[form](table.experiment, table.cells, tolerance)
            write_atomically(folder / f"{table.experiment.name}.{ending}", text)


def _print_details(folder: Path, tables: list[Table], runs: dict[RunKey, Run]) -> None:
    for table in tables:
        found = details.details_of(table.experiment, runs)
        name = table.experiment.name
        if shown := details.render(table.experiment, table.cells, found, by_class=False):
            print(shown)
        write_atomically(folder / f"{name}_details.md", details.render(table.experiment, table.cells, found))
        _write_csv(folder / f"{name}_comparisons.csv", found.comparisons)
        _write_csv(folder / f"{name}_breakdowns.csv", found.breakdowns)
    cells = pd.concat([table.cells for table in tables], ignore_index=True)
    text = details.render_overall(cells)
    if text:
        print(text)
    write_atomically(folder / "overall.md", text)
    _write_csv(folder / "ranks.csv", average_ranks(cells))
    _write_csv(folder / "orderings.csv", orderings(cells))


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    write_atomically(path, table.to_csv(index=False, float_format="%.6g"))
