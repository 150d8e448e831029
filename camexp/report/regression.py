"""Reference scores: means of small runs on the embedded scenes, with tolerances from repeated runs.

A change of the code that moves a mean by more than its tolerance has changed what the harness measures. The repeats
differ in what must not matter: threads, images per batch, images per forward pass, folded batch norms.
"""

import json
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from camexp.config import compose_config
from camexp.errors import CamexpError
from camexp.files import make_folder, write_atomically
from camexp.report.runs import read_run
from camexp.runner import execute

METHODS = ("gradcam", "gradcam_pp", "gradient", "oracle")
"""Cheap ones that between them need every part: the CAM layer, the input's gradient, the masks."""

NETWORKS = (
    ("minivoc", "vgg16"),
    ("minivoc", "resnet50"),
    ("minicoco", "vgg16"),
    ("minicoco", "resnet50"),
    ("ministeel", "resnet101"),
)

SMALL = ("dataset.images=8", "limit=8", "runtime.trials=0", "runtime.warmup=0", "device=cpu", "seed=0")

WIDENING = 5.0
"""The tolerance is this many times the largest deviation of a repeat: other machines differ more than two settings."""

BINARY = ("increase",)
"""Metrics of zeros and ones, which rounding can turn over."""

LEAST = 0.002
"""No tolerance is smaller: two tenths of a percentage point."""


@dataclass(frozen=True)
class Setting:
    """What must not change the scores."""

    threads: int
    options: tuple[str, ...]


SETTINGS = (
    Setting(1, ("batch_size=8", "forward_batch=32", "fold_batch_norms=true")),
    Setting(2, ("batch_size=8", "forward_batch=32", "fold_batch_norms=true")),
    Setting(1, ("batch_size=3", "forward_batch=32", "fold_batch_norms=true")),
    Setting(1, ("batch_size=8", "forward_batch=5", "fold_batch_norms=true")),
    Setting(1, ("batch_size=8", "forward_batch=32", "fold_batch_norms=false")),
)
"""The settings of the repeated runs; the first one gives the reference."""

HOW = (
    "Means of each metric (fractions) over the pairs of the first 8 images of the embedded scenes. `spread` is the "
    "largest deviation from the first of the settings in `settings` when a run is repeated under the others; "
    f"`tolerance` is {WIDENING:g} times the spread, at least {LEAST:g}, and for a metric of zeros and ones at least "
    "one and a half pairs. Made by: python scripts/reference.py"
)


def run_names() -> list[str]:
    """Every run with reference scores, "minivoc/resnet50/gradcam"."""
    return [f"{dataset}/{model}/{method}" for dataset, model in NETWORKS for method in METHODS]


def measure(name: str, folder: Path, setting: Setting = SETTINGS[0]) -> pd.DataFrame:
    """Rows of one small run, made below `folder`, where the scenes are kept for the next run."""
    dataset, model, method = name.split("/")
    output = folder / "runs" / name
    choices = [f"dataset={dataset}", f"model={model}", f"method={method}", *SMALL, *setting.options]
    places = [f"data_dir={folder / 'data'}", f"output={output}", "overwrite=true"]
    with _threads(setting.threads):
        execute(compose_config([*choices, *places]))
    run = read_run(output)
    return run.rows[run.metrics]


@contextmanager
def _threads(count: int) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def score(repeats: list[pd.DataFrame]) -> dict[str, dict[str, float]]:
    """Mean, spread and tolerance of each metric from the rows of repeated runs, the first one the reference."""
    means = np.stack([rows.mean().to_numpy() for rows in repeats])
    spread = np.abs(means - means[0]).max(0)
    found = {}
    for metric, mean, deviation in zip(repeats[0].columns, means[0], spread, strict=True):
        least = max(LEAST, 1.5 / len(repeats[0])) if metric in BINARY else LEAST
        tolerance = max(least, WIDENING * deviation)
        found[metric] = {"mean": _six(mean), "spread": _six(deviation), "tolerance": _six(tolerance)}
    return found


def _six(value: float) -> float:
    return float(f"{value:.6g}")


def make_reference(folder: Path, names: Iterable[str] | None = None) -> dict[str, Any]:
    """Run everything under every setting; the content of the reference file."""
    runs = {}
    for name in names or run_names():
        repeats = [measure(name, folder, setting) for setting in SETTINGS]
        runs[name] = {"pairs": len(repeats[0]), "metrics": score(repeats)}
    settings = [f"threads={setting.threads} {' '.join(setting.options)}" for setting in SETTINGS]
    return {"how": HOW, "options": list(SMALL), "settings": settings, "runs": runs}


def write_reference(path: Path, content: Mapping[str, Any]) -> None:
    """Write the reference file."""
    make_folder(path.parent)
    write_atomically(path, json.dumps(content, indent=1) + "\n")


def read_reference(path: Path) -> dict[str, Any]:
    """The reference file.

    Raises
    ------
    CamexpError: when it is missing or damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        assert isinstance(content["runs"], dict)
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise CamexpError(f"cannot read {path}: {error!r}; python scripts/reference.py makes it") from error
    return content


def deviations(reference: Mapping[str, Any], rows: pd.DataFrame) -> list[str]:
    """What differs from the reference of a run by more than the tolerance, one sentence each; empty if all is well."""
    expected = reference["metrics"]
    found = [] if len(rows) == reference["pairs"] else [f"{len(rows)} pairs, expected {reference['pairs']}"]
    found += [f"{metric} is missing" for metric in expected if metric not in rows]
    for metric, one in expected.items():
        if metric in rows and not abs(rows[metric].mean() - one["mean"]) <= one["tolerance"]:
            found.append(f"{metric} is {rows[metric].mean():.6g}, expected {one['mean']:g} ± {one['tolerance']:g}")
    return found
