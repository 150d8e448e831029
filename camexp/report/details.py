"""What lies behind a table: differences from the best method, EBPG beyond the area share, results by group."""

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from camexp.experiment import Experiment
from camexp.report.breakdowns import BREAKDOWN_COLUMNS, GROUPS, breakdowns_of, ebpg_minus_area
from camexp.report.comparisons import agreeing_runs, average_ranks, comparisons, orderings
from camexp.report.layout import model_name, ranks_of, row_of, text_of
from camexp.report.markdown import grid
from camexp.report.runs import Run
from camexp.report.table import quantity

LEVEL = 0.05

TITLES = {
    "class": "By class",
    "area": "By the share of the image that the object covers",
    "probability": "By the probability of the class",
    "argmax": "By whether the class is the network's first choice",
}


@dataclass(frozen=True)
class Details:
    """Everything behind one table, as data.

    Attributes
    ----------
    comparisons: see `comparisons.comparisons`.
    breakdowns: see `breakdowns.breakdowns_of`, with the columns table, dataset, model.
    excess: EBPG minus area share: table, dataset, model, column, value, low, high.
    """

    comparisons: pd.DataFrame
    breakdowns: pd.DataFrame
    excess: pd.DataFrame


def details_of(experiment: Experiment, runs: Mapping[tuple[str, str, str], Run]) -> Details:
    """Compute what lies behind a table, of the runs that may be compared and, where means are shown, are complete."""
    parts, excess = [], []
    for model in experiment.models:
        chosen = {n: r for n, r in agreeing_runs(experiment, runs, model).items() if r.info["complete"]}
        key = {"table": experiment.name, "dataset": experiment.dataset, "model": model}
        parts.append(breakdowns_of(chosen).assign(**key))
        excess += [
            key | {"column": label} | ebpg_minus_area(run) for label, run in chosen.items() if "ebpg" in run.metrics
        ]
    grouped = pd.concat(parts, ignore_index=True)[["table", "dataset", "model", "column", *BREAKDOWN_COLUMNS]]
    shown = [metric for metric in experiment.metrics if metric != "runtime"]
    return Details(comparisons(experiment, runs), grouped[grouped["metric"].isin(shown)], pd.DataFrame(excess))


def render(experiment: Experiment, cells: pd.DataFrame, details: Details, by_class: bool = True) -> str:
    """The details of a table in Markdown, empty if there are none; without the groups by class they fit a terminal."""
    parts: list[str] = []
    for model in experiment.models:
        parts += _against_best(experiment, cells, details.comparisons, model)
        parts += _excess(experiment, details.excess, model)
        for by in GROUPS:
            if by != "class" or by_class:
                parts += _groups(experiment, details.breakdowns, model, by)
    return _below(f"## {experiment.title}: details", parts)


def _below(heading: str, parts: list[str]) -> str:
    return "\n\n".join([heading, *parts]) + "\n" if parts else ""


def _against_best(experiment: Experiment, cells: pd.DataFrame, compared: pd.DataFrame, model: str) -> list[str]:
    """A line per method: by how much it differs from the row's best, and how sure that is."""
    labels = [column.label for column in experiment.columns]
    metrics = [metric for metric in experiment.metrics if metric in set(compared["metric"])]
    columns = []
    for metric in metrics:
        ranked = ranks_of(row_of(experiment, cells, model, metric), quantity(metric))
        best = next((label for label, rank in zip(labels, ranked, strict=True) if rank == 1), "")
        found = compared[(compared["model"] == model) & (compared["metric"] == metric)]
        columns.append(["best" if label == best else _difference(found, label, best) for label in labels])
    lines = [list(line) for line in zip(labels, *columns, strict=True) if any(line[1:])]
    if len(lines) < 2:
        return []
    return [
        f"### {model_name(model)}: difference from the best method",
        grid([["", *(quantity(metric).heading for metric in metrics)], *lines]),
        f"± half the width of the 95 % interval, paired by image; * differs (Holm over the row, level {LEVEL:g}).",
    ]


def _difference(found: pd.DataFrame, label: str, best: str) -> str:
    one = found[((found["a"] == label) & (found["b"] == best)) | ((found["a"] == best) & (found["b"] == label))]
    if not len(one):
        return ""
    cell = one.iloc[0]
    sign = 1 if cell["a"] == label else -1
    sure = "*" if cell["p_holm"] < LEVEL else ""
    return f"{sign * cell['difference']:+.1f} ±{(cell['high'] - cell['low']) / 2:.1f}{sure}"


def _excess(experiment: Experiment, excess: pd.DataFrame, model: str) -> list[str]:
    found = excess[excess["model"] == model] if len(excess) and "ebpg" in experiment.metrics else excess.iloc[:0]
    if not len(found):
        return []
    rows = [["", "EBPG − area %", "95 % interval"]]
    for c in found.to_dict("records"):
        rows.append([c["column"], f"{c['value']:+.1f}", f"{c['low']:+.1f} to {c['high']:+.1f}"])
    return [f"### {model_name(model)}: EBPG beyond the object's share of the image (a uniform map: 0)", grid(rows)]


def _groups(experiment: Experiment, found: pd.DataFrame, model: str, by: str) -> list[str]:
    """One table per metric of the means in each group."""
    chosen = found[(found["model"] == model) & (found["by"] == by)]
    labels = [column.label for column in experiment.columns if column.label in set(chosen["column"])]
    tables = [_group_table(chosen[chosen["metric"] == metric], labels, metric, by) for metric in experiment.metrics]
    told = [table for table in tables if table]
    title = TITLES[by]
    return [f"### {model_name(model)}: {title[0].lower()}{title[1:]} (pairs)", *told] if told else []


def _group_table(some: pd.DataFrame, labels: list[str], metric: str, by: str) -> str:
    """A line per method and a column per group; the other way round for classes, which are many."""
    if not len(some):
        return ""
    pairs = some.groupby("group")["pairs"].max()
    table = some.pivot(index="column", columns="group", values="value").loc[labels, list(dict.fromkeys(some["group"]))]
    table.columns = pd.Index([f"{group} ({pairs[group]})" for group in table.columns])
    shown = table.T if by == "class" else table
    lines = [
        [str(name), *(text_of(value, quantity(metric)) for value in row)]
        for name, row in zip(shown.index, shown.to_numpy(), strict=True)
    ]
    return grid([[quantity(metric).heading, *map(str, shown.columns)], *lines])


def render_overall(cells: pd.DataFrame) -> str:
    """Average ranks over all tables, and how far our orderings agree with the published ones."""
    return _below("## Over all tables", [*_ranks(average_ranks(cells)), *_taus(orderings(cells))])


def _ranks(ranked: pd.DataFrame) -> list[str]:
    rows = [
        [r["method"], _two(r["rank"]), f"{r['of']:.1f}", f"{r['rows']:g}", _two(r["published_rank"])]
        for r in ranked.to_dict("records")
    ]
    head = ["method", "mean rank", "of", "rows", "published"]
    return ["### Average rank (1 is the best)", grid([head, *rows])] if rows else []


def _taus(taus: pd.DataFrame) -> list[str]:
    rows = [
        [
            *(t["table"], model_name(t["model"]), quantity(t["metric"]).label, str(t["methods"]), _two(t["tau"])),
            "the papers'" if t["same_data"] else "other",
        ]
        for t in taus.to_dict("records")
    ]
    head = ["table", "model", "metric", "methods", "tau", "data"]
    return ["### Kendall's tau between our and the published ordering", grid([head, *rows])] if rows else []


def _two(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.2f}"
