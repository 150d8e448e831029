"""Runs as they lie on the disk: what they are, their rows and their single-image times."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from camexp.errors import CamexpError
from camexp.experiment import PAPER
from camexp.metrics import METRICS
from camexp.report.rows import read_rows

NOT_RUNS = ("published", "tables", "report")
"""Folders of `results` that hold no runs."""

NEEDED: dict[str, type] = {
    "dataset": str,
    "model": str,
    "method": str,
    "variant": dict,
    "metrics": list,
    "complete": bool,
}
"""What the report takes from run.json."""


@dataclass(frozen=True)
class Run:
    """One run folder with rows.

    Attributes
    ----------
    info: content of run.json.
    rows: one row per pair, metrics as fractions; `image_id` and `class_name` are categories of strings.
    trials: (T,) seconds of the single-image trials.
    failures: number of pairs and images that failed.
    remarks: what the reader should know about the files, e.g. columns that were left out.
    known: what was computed from the rows before, for the tables that share a run.
    """

    path: Path
    info: dict[str, Any]
    rows: pd.DataFrame
    trials: np.ndarray
    failures: int
    remarks: tuple[str, ...] = ()
    known: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def variant(self) -> str:
        """Parameters other than the default ones, "mu=0.3"."""
        return ", ".join(f"{name}={value}" for name, value in self.info["variant"].items())

    @property
    def unfinished(self) -> bool:
        """Whether rows are missing; a run that was made for its times alone lacks none."""
        return len(self.rows) > 0 and not self.info.get("complete")

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that the numbers depend on; empty for a run that does not say."""
        return self.info.get("identity") or {}

    @property
    def protocol(self) -> str:
        """Name of the file of `configs/protocol/`."""
        return str(self.identity.get("protocol.name", PAPER))

    @property
    def metrics(self) -> list[str]:
        """The metrics in its rows that this version knows."""
        return [name for name in self.info["metrics"] if name in self.rows]


def find_runs(results: Path) -> tuple[list[Run], list[str]]:
    """Every run below `results` with rows or times, sorted by path, and what is wrong with the others."""
    folders = sorted({path.parent for name in ("run.json", "records.csv") for path in results.glob(f"**/{name}")})
    folders = [folder for folder in folders if folder.relative_to(results).parts[:1] not in [(n,) for n in NOT_RUNS]]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # the CSV parser releases the interpreter's lock
        found = list(pool.map(_try_read, folders))
    runs = [run for run in found if isinstance(run, Run)]
    problems = [f"not shown: {error}" for error in found if isinstance(error, CamexpError)]
    problems += [f"{run.path}: {remark}" for run in runs for remark in run.remarks]
    return [run for run in runs if len(run.rows) or len(run.trials)], problems


def _try_read(folder: Path) -> Run | CamexpError:
    try:
        return read_run(folder)
    except CamexpError as error:
        return error


def read_run(folder: Path) -> Run:
    """The run in a folder.

    Raises
    ------
    CamexpError: when run.json or records.csv cannot be trusted; which, where and why.
    """
    info = _read_info(folder / "run.json")
    known = [name for name in info["metrics"] if name in METRICS]
    rows, remarks = read_rows(folder / "records.csv", known, info["metrics"])
    unknown = [name for name in info["metrics"] if name not in METRICS]
    if unknown:
        remarks.append(f"the metrics {', '.join(unknown)} are not known to this version and are left out")
    if info["complete"] and info.get("rows", len(rows)) != len(rows):
        remarks.append(f"run.json counts {info['rows']} rows, records.csv has {len(rows)}: shown as unfinished")
        info = info | {"complete": False}
    trials, said = _read_trials(folder / "timing.csv")
    failures, told = _count_failures(folder / "failures.csv")
    return Run(folder, info, rows, trials, failures, (*remarks, *said, *told))


def _read_info(path: Path) -> dict[str, Any]:
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CamexpError(f"{path} is missing: nothing says what made the records beside it") from None
    except (OSError, ValueError) as error:  # no JSON, or no UTF-8
        raise CamexpError(
            f"cannot read {path}: {error}; the run's command with overwrite=true computes it anew"
        ) from error
    wrong = [
        name for name, kind in NEEDED.items() if not isinstance(info, dict) or not isinstance(info.get(name), kind)
    ]
    if wrong:
        raise CamexpError(f"{path} lacks or has of the wrong kind: {', '.join(wrong)}")
    return info


def _read_trials(path: Path) -> tuple[np.ndarray, list[str]]:
    try:
        timing = pd.read_csv(path, usecols=["kind", "explain_s"], dtype={"kind": str}, na_filter=True)
        seconds = pd.to_numeric(timing.loc[timing["kind"] == "trial", "explain_s"]).to_numpy(float)
    except (OSError, ValueError) as error:
        return np.empty(0), [f"run time left out, cannot read {path.name}: {error}"]
    sound = np.isfinite(seconds) & (seconds > 0)
    if not sound.all():
        return np.empty(0), [f"run time left out, {path.name} holds trials without a positive number of seconds"]
    return seconds, []


def _count_failures(path: Path) -> tuple[int, list[str]]:
    try:
        return len(pd.read_csv(path, dtype=str)), []
    except (OSError, ValueError) as error:
        return 0, [f"failures are not counted, cannot read {path.name}: {error}"]


def combine(runs: list[Run]) -> Run:
    """Runs that differ in their seed as one; the column `run` of its rows tells them apart."""
    if len(runs) == 1:
        return replace(runs[0], rows=runs[0].rows.assign(run=0), known={})
    rows = pd.concat([run.rows.assign(run=number) for number, run in enumerate(runs)], ignore_index=True)
    return Run(
        path=runs[0].path,
        info=runs[0].info | {"complete": all(run.info["complete"] for run in runs)},
        rows=rows.astype({"image_id": "category", "class_name": "category"}),
        trials=np.concatenate([run.trials for run in runs]),
        failures=sum(run.failures for run in runs),
    )
