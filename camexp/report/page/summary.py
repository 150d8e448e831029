"""What was run, when, on what and with which outcome: the top of the page."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd

from camexp.errors import CamexpError
from camexp.experiment import label_of
from camexp.methods import FAMILIES
from camexp.report.collect import Results
from camexp.report.layout import model_name
from camexp.report.page.series import rows_of
from camexp.report.runs import Run

LISTED = 50
"""At most so many failures are listed one by one."""

VERSIONS = ("camexp", "torch", "torchvision", "numpy", "python", "commit")


@dataclass(frozen=True)
class Failed:
    """One line of a run's failures.csv."""

    run: str
    image_id: str
    class_id: str
    reason: str


@dataclass(frozen=True)
class Summary:
    """The facts of the page's top; `facts` are (name, text) in the order of reading."""

    facts: list[tuple[str, str]]
    versions: list[tuple[str, str]]
    embedded: list[str]
    unfinished: list[str]
    problems: tuple[str, ...]
    failures: list[Failed]
    failed: int


def summarise(results: Results, made: datetime) -> Summary:
    """The summary of all runs; `made` is when the page is written."""
    runs = results.runs
    every = list(runs.values())
    failed = sum(run.failures for run in every)
    pairs = sum(len(run.rows) for run in every)
    methods = _distinct(run.info["method"] for run in every)
    constant, of_controls = (_constant(every, controls) for controls in (False, True))
    facts = [
        ("Runs", f"{len(every)} ({len(methods)} methods)"),
        ("Data sets", ", ".join(_distinct(run.info["dataset"] for run in every))),
        ("Networks", ", ".join(_distinct(model_name(run.info["model"]) for run in every))),
        ("Maps measured", f"{pairs:,}".replace(",", " ")),
        ("Constant maps", f"{constant}, and {of_controls} of controls"),
        ("Failures", str(failed)),
        ("Device", _devices(every)),
        ("Records written", _period(_written(run) for run in every)),
        ("Page written", f"{made:%Y-%m-%d %H:%M} UTC"),
    ]
    return Summary(
        facts=[(name, text) for name, text in facts if text],
        versions=_versions(every),
        embedded=_distinct(run.info["dataset"] for run in every if run.info["dataset"].startswith("mini")),
        unfinished=sorted(_name(key, run) for key, run in runs.items() if run.unfinished),
        problems=results.problems,
        failures=[one for key, run in runs.items() for one in _failures(_name(key, run), run)][:LISTED],
        failed=failed,
    )


def _distinct(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(str(text) for text in texts))


def _constant(runs: list[Run], controls: bool) -> int:
    """How many maps of controls, or of methods, are constant."""
    chosen = [run for run in runs if (run.info["method"] in FAMILIES["control"]) == controls]
    return sum(int(run.rows["degenerate"].sum()) for run in chosen)


def _name(key: tuple[str, str, str], run: Run) -> str:
    dataset, model, _ = key
    method = ", ".join(filter(None, [label_of(run.info["method"]), run.variant]))
    return f"{method}, {model_name(model)} on {dataset}"


def _devices(runs: list[Run]) -> str:
    environments = [run.info.get("environment") or {} for run in runs]
    threads = sorted({e["threads"] for e in environments if e.get("device_type") == "cpu" and e.get("threads")})
    used = f"{' or '.join(map(str, threads))} {'thread' if threads == [1] else 'threads'}" if threads else ""
    return ", ".join(filter(None, [*_distinct(e.get("device", "not recorded") for e in environments), used]))


def _written(run: Run) -> datetime:
    return datetime.fromtimestamp((Path(run.path) / "records.csv").stat().st_mtime, UTC)


def _period(times: Iterable[datetime]) -> str:
    days = sorted({f"{time:%Y-%m-%d}" for time in times})
    return " to ".join(dict.fromkeys([*days[:1], *days[-1:]]))


def _versions(runs: list[Run]) -> list[tuple[str, str]]:
    environments = [run.info.get("environment", {}) for run in runs]
    found = [(name, _distinct(e[name] for e in environments if e.get(name))) for name in VERSIONS]
    return [(name, ", ".join(values)) for name, values in found if values]


def _failures(name: str, run: Run) -> list[Failed]:
    if not run.failures:
        return []
    path = Path(run.path) / "failures.csv"
    try:
        rows = pd.read_csv(path, dtype=str, keep_default_na=False)
        return [Failed(name, row.image_id, row.class_id, row.reason) for row in rows_of(rows)]
    except (OSError, ValueError, AttributeError) as error:
        raise CamexpError(f"cannot read the failures in {path}: {error}") from error
