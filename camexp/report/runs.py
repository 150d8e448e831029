"""Runs as they lie on the disk: what they are, their rows and their single-image times."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from camexp.errors import CamexpError
from camexp.records import PAIR_COLUMNS


@dataclass(frozen=True)
class Run:
    """One run folder with rows.

    Attributes
    ----------
    info: content of run.json.
    rows: one row per pair, metrics as fractions.
    trials: (T,) seconds of the single-image trials.
    failures: number of pairs and images that failed.
    """

    path: Path
    info: dict[str, Any]
    rows: pd.DataFrame
    trials: np.ndarray
    failures: int

    @property
    def variant(self) -> str:
        """Parameters other than the default ones, "mu=0.3"."""
        return ", ".join(f"{name}={value}" for name, value in self.info["variant"].items())


def find_runs(results: Path) -> list[Run]:
    """Every run below `results` that has rows, sorted by path.

    Raises
    ------
    CamexpError: when a run's files cannot be read; which, and why.
    """
    runs = (_read(path.parent) for path in sorted(results.glob("**/run.json")))
    return [run for run in runs if len(run.rows)]


def _read(path: Path) -> Run:
    try:
        info = json.loads((path / "run.json").read_text())
        rows = pd.read_csv(path / "records.csv", dtype={"image_id": str, "class_name": str})
        timing = pd.read_csv(path / "timing.csv", dtype={"image_id": str})
        failures = pd.read_csv(path / "failures.csv", dtype=str)
    except (OSError, ValueError) as error:
        raise CamexpError(f"cannot read the run in {path}: {error}") from error
    missing = [name for name in (*PAIR_COLUMNS, *info["metrics"]) if name not in rows.columns]
    if missing:
        raise CamexpError(f"{path / 'records.csv'} lacks the columns {missing}")
    broken = rows[info["metrics"]].isna().any(axis=1)
    if broken.any():
        line = int(np.flatnonzero(broken)[0]) + 2
        raise CamexpError(f"{path / 'records.csv'}, line {line}: a metric is empty or not a number")
    trials = timing.loc[timing["kind"] == "trial", "explain_s"].to_numpy(float)
    return Run(path, info, rows, trials, len(failures))


def combine(runs: list[Run]) -> Run:
    """Runs that differ in their seed as one; the column `run` of its rows tells them apart."""
    if len(runs) == 1:
        return replace(runs[0], rows=runs[0].rows.assign(run=0))
    rows = pd.concat([run.rows.assign(run=number) for number, run in enumerate(runs)], ignore_index=True)
    return Run(
        path=runs[0].path,
        info=runs[0].info | {"complete": all(run.info["complete"] for run in runs)},
        rows=rows,
        trials=np.concatenate([run.trials for run in runs]),
        failures=sum(run.failures for run in runs),
    )
