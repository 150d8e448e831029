"""Experiments: one YAML per published table, which says what to run and how the table is laid out."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from camexp.errors import CamexpError
from camexp.files import read_yaml
from camexp.methods import FAMILIES
from camexp.places import CONFIGS

NAMES = {
    "cam": "CAM",
    "gradcam": "Grad-CAM",
    "gradcam_pp": "Grad-CAM++",
    "xgradcam": "XGrad-CAM",
    "layercam": "LayerCAM",
    "hirescam": "HiResCAM",
    "counterfactual_gradcam": "Counterfactual Grad-CAM",
    "igcam": "Integrated Grad-CAM",
    "expected_gradcam": "Expected Grad-CAM (reconstruction)",
    "smooth_gradcam_pp": "Smooth Grad-CAM++",
    "ablationcam": "Ablation-CAM",
    "scorecam": "Score-CAM",
    "sise": "SISE",
    "ada_sise": "Ada-SISE",
    "fullgrad": "FullGrad",
    "gradient": "Gradient",
    "smoothgrad": "SmoothGrad",
    "integrated_gradients": "Integrated Gradients",
    "deeplift": "DeepLIFT",
    "guided_backprop": "Guided Backprop",
    "guided_gradcam": "Guided Grad-CAM",
    "rise": "RISE",
    "occlusion": "Occlusion",
    "extremal_perturbation": "Extremal Perturbation",
}
"""How the papers write methods; others are shown by their config's name."""


PAPER = "paper"
"""The protocol that runs have unless told otherwise."""


@dataclass(frozen=True)
class Column:
    """One method, with parameters other than the default ones, in a table.

    Attributes
    ----------
    published: the `variant` of the published cells that belong to the column.
    seeds: one run for each; the table shows their mean.
    protocol: a file of `configs/protocol/`.
    offered: False for a method that only the paper has: its column shows the published values.
    """

    method: str
    label: str
    overrides: tuple[tuple[str, Any], ...] = ()
    published: str = ""
    seeds: tuple[int, ...] = (0,)
    protocol: str = PAPER
    offered: bool = True

    @property
    def control(self) -> bool:
        return self.method in FAMILIES["control"]

    @property
    def run_name(self) -> str:
        """Name of the run's folder: the method's, followed by what differs from its defaults."""
        return run_name(self.method, dict(self.overrides), self.protocol)


@dataclass(frozen=True)
class Experiment:
    """The table that an experiment fills: models and metrics against methods, on one data set.

    Attributes
    ----------
    published: the file of `results/published/` with the paper's cells.
    protocol: a file of `configs/protocol/`, for every run.
    options: further options of every run, "runtime.trials=100".
    average: "micro" over pairs, or "macro" over classes of their means.
    subset: "" for all pairs, or a name of `camexp.report.subsets`.
    note: what the reader should know, printed under the table.
    """

    name: str
    title: str
    published: str
    dataset: str
    models: tuple[str, ...]
    metrics: tuple[str, ...]
    columns: tuple[Column, ...]
    protocol: str = PAPER
    options: tuple[str, ...] = ()
    average: str = "micro"
    subset: str = ""
    note: str = ""

    def runs(self) -> list[tuple[str, Column]]:
        """(model, column) of every run that the table needs."""
        return [(model, column) for model in self.models for column in self.columns if column.offered]


def run_name(method: str, parameters: dict[str, Any], protocol: str = PAPER) -> str:
    """Name of a run's folder: "sise", with parameters other than the default ones "sise-mu0.3", and with another
    protocol than the papers' "sise-mu0.3-torchray".
    """

    def text(value: Any) -> str:
        return "_".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

    changed = [f"{name}{text(value)}" for name, value in sorted(parameters.items())]
    return "-".join([method, *changed, *([] if protocol == PAPER else [protocol])])


def label_of(method: str) -> str:
    """A method's name as the papers write it."""
    return NAMES.get(method, method)


def load_experiment(name: str) -> Experiment:
    """Read `configs/experiment/<name>.yaml`.

    Raises
    ------
    CamexpError: when there is none, a key is missing, or a value is of the wrong kind.
    """
    path = CONFIGS / "experiment" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
        raise CamexpError(f"no experiment {name!r} in {path.parent}; there are {known}")
    content = read_yaml(path)
    with _well_formed(path):
        common = {"protocol": content.get("protocol", PAPER), "published": content.get("published_variant", "")}
        controls = [{"method": control, "label": control, "published": ""} for control in content.get("controls", [])]
        return Experiment(
            name=name,
            title=content["title"],
            published=content["published"],
            dataset=content["dataset"],
            models=tuple(content["models"]),
            metrics=tuple(content["metrics"]),
            columns=tuple(_column(common | entry) for entry in [*content["columns"], *controls]),
            protocol=common["protocol"],
            options=tuple(content.get("options", ())),
            average=content.get("average", "micro"),
            subset=content.get("subset", ""),
            note=content.get("note", ""),
        )


@contextmanager
def _well_formed(path: Path) -> Iterator[None]:
    """Turn the errors of a file that lacks something into one that says where and what."""
    try:
        yield
    except KeyError as error:
        raise CamexpError(f"{path}: the key {error} is missing; the other files there are examples") from error
    except (TypeError, AttributeError, ValueError) as error:
        raise CamexpError(f"{path}: a value is of the wrong kind: {error}") from error


def _column(entry: dict[str, Any]) -> Column:
    overrides = tuple((entry.get("overrides") or {}).items())
    # a published cell names the parameters that the table varies; others (a smaller N) are ours
    varied = ", ".join(f"{name}={value}" for name, value in overrides) if "label" in entry else ""
    return Column(
        method=entry["method"],
        label=entry.get("label", label_of(entry["method"])),
        overrides=overrides,
        published=entry["published"] or varied,
        seeds=tuple(entry.get("seeds", (0,))),
        protocol=entry["protocol"],
        offered=entry.get("offered", True),
    )


def load_suite(name: str) -> list[Experiment]:
    """The experiments of a suite `configs/suite/<name>.yaml`, with its options added, or the one of that name.

    Raises
    ------
    CamexpError: when there is neither, or something in a file is missing or of the wrong kind.
    """
    path = CONFIGS / "suite" / f"{name}.yaml"
    if not path.is_file():
        if (CONFIGS / "experiment" / f"{name}.yaml").is_file():
            return [load_experiment(name)]
        suites = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
        experiments = ", ".join(sorted(p.stem for p in (CONFIGS / "experiment").glob("*.yaml")))
        raise CamexpError(f"no suite or experiment {name!r}; suites: {suites}; experiments: {experiments}")
    content = read_yaml(path)
    with _well_formed(path):
        options, names = tuple(content.get("options", ())), list(content["experiments"])
    found = [load_experiment(experiment) for experiment in names]
    return [replace(experiment, options=experiment.options + options) for experiment in found]


def probe_seconds(suite: str) -> float:
    """How long one run of a suite may be probed to estimate its time: the suite's `probe`, 20 by default."""
    path = CONFIGS / "suite" / f"{suite}.yaml"
    with _well_formed(path):
        return float(read_yaml(path).get("probe", 20) if path.is_file() else 20)
