"""Whether a published value may be compared with ours, and what the comparison says."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from camexp.errors import CamexpError
from camexp.files import read_yaml
from camexp.identity import NOT_IDENTITY
from camexp.places import CONFIGS
from camexp.report.runs import Run

VERDICTS = ("inside", "within", "outside", "not run", "not published", "other data")
"""inside: the published value lies in our interval; within: outside of it but within the tolerance; outside: neither;
other data: embedded scenes, another split, a part of the data, an untrained network or settings unlike the table's."""


@dataclass(frozen=True)
class Tolerance:
    """How far from the published value ours may lie.

    Attributes
    ----------
    points: percentage points, for metrics in percent.
    factor: ours over published or the other way round, for run times and other units.
    """

    points: float = 2.0
    factor: float = 2.0

    def holds(self, ours: float, published: float, unit: str) -> bool:
        if unit == "%":
            return abs(ours - published) <= self.points + 1e-9
        return bool(ours > 0 and published > 0 and max(ours / published, published / ours) <= self.factor)


def verdict(
    value: float, low: float, high: float, published: float, unit: str, same_data: bool, tolerance: Tolerance
) -> str:
    """One of VERDICTS for a cell with our value and interval (NaN without a run) and the published value (or NaN)."""
    if np.isnan(value):
        return "not run"
    if np.isnan(published):
        return "not published"
    if not same_data:
        return "other data"
    if low <= published <= high:
        return "inside"
    return "within" if tolerance.holds(value, published, unit) else "outside"


def same_data(run: Run, dataset: str) -> bool:
    """Whether a run has the images and objects of a published table's data set, all of them, and a trained network."""
    identity = run.identity
    whole = run.info["complete"] and identity.get("limit") is None
    trained = not str(identity.get("weights_sha256", "")).startswith("random:")
    return run.info["dataset"] == dataset and whole and trained and not _other_split(dataset, identity)


def _other_split(dataset: str, identity: dict[str, Any]) -> bool:
    """Whether fields of the data set differ from `configs/dataset/<name>.yaml`."""
    path = CONFIGS / "dataset" / f"{dataset}.yaml"
    if not path.is_file():
        return False
    content = read_yaml(path)
    plain = {n: v for n, v in content.items() if n not in (*NOT_IDENTITY, "defaults")}
    return any(f"dataset.{n}" in identity and identity[f"dataset.{n}"] != v for n, v in plain.items())


def read_suspicious(path: Path, table: str) -> list[dict[str, Any]]:
    """The doubtful cells of a published table: dicts of model, method, metric (any may be missing) and `note`.

    Raises
    ------
    CamexpError: when the file is not a list of such entries.
    """
    if not path.is_file():
        return []
    content = read_yaml(path)
    if not isinstance(content, list) or not all(isinstance(entry, dict) and "note" in entry for entry in content):
        raise CamexpError(f"{path} must be a list of entries with table, model, method, metric and note")
    return [entry for entry in content if entry.get("table") == table]


def doubt(entries: list[dict[str, Any]], cell: pd.Series) -> str:
    """The note on a published cell; empty when there is none or nothing was published."""
    if np.isnan(cell["published"]):
        return ""
    fitting = [e["note"] for e in entries if all(e.get(f, cell[f]) == cell[f] for f in ("model", "method", "metric"))]
    return " ".join(fitting)
