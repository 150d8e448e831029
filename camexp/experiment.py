"""Experiments: one YAML per published table, which says what to run and how the table is laid out."""

from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf

from camexp.config import CONFIGS
from camexp.errors import CamexpError
from camexp.methods import FAMILIES

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


@dataclass(frozen=True)
class Column:
    """One method, with parameters other than the default ones, in a table.

    Attributes
    ----------
    published: the `variant` of the published cells that belong to the column.
    seeds: one run for each; the table shows their mean.
    """

    method: str
    label: str
    overrides: tuple[tuple[str, Any], ...] = ()
    published: str = ""
    seeds: tuple[int, ...] = (0,)

    @property
    def control(self) -> bool:
        return self.method in FAMILIES["control"]

    @property
    def run_name(self) -> str:
        """Name of the run's folder: the method's, followed by what differs from its defaults."""
        return run_name(self.method, dict(self.overrides))


@dataclass(frozen=True)
class Experiment:
    """The table that an experiment fills: models and metrics against methods, on one data set."""

    name: str
    title: str
    published: str
    dataset: str
    models: tuple[str, ...]
    metrics: tuple[str, ...]
    columns: tuple[Column, ...]

    def runs(self) -> list[tuple[str, Column]]:
        """(model, column) of every run that the table needs."""
        return [(model, column) for model in self.models for column in self.columns]


def run_name(method: str, parameters: dict[str, Any]) -> str:
    """Name of a run's folder: "sise", or with parameters other than the default ones "sise-mu0.3"."""

    def text(value: Any) -> str:
        return "_".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

    return "-".join([method, *(f"{name}{text(value)}" for name, value in sorted(parameters.items()))])


def label_of(method: str) -> str:
    """A method's name as the papers write it."""
    return NAMES.get(method, method)


def load_experiment(name: str) -> Experiment:
    """Read `configs/experiment/<name>.yaml`.

    Raises
    ------
    CamexpError: when there is none, or a key is missing.
    """
    path = CONFIGS / "experiment" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
        raise CamexpError(f"no experiment {name!r} in {path.parent}; there are {known}")
    content: Any = OmegaConf.to_container(OmegaConf.load(path))
    try:
        columns = [_column(entry) for entry in content["columns"]]
        columns += [Column(control, control) for control in content.get("controls", [])]
        return Experiment(
            name=name,
            title=content["title"],
            published=content["published"],
            dataset=content["dataset"],
            models=tuple(content["models"]),
            metrics=tuple(content["metrics"]),
            columns=tuple(columns),
        )
    except (KeyError, TypeError) as error:
        raise CamexpError(f"{path}: {error!r} is missing or of the wrong kind") from error


def _column(entry: dict[str, Any]) -> Column:
    overrides = tuple((entry.get("overrides") or {}).items())
    default = ", ".join(f"{name}={value}" for name, value in overrides)
    # a published cell names the parameters that the table varies; others (a smaller N) are ours
    varies = "label" in entry
    return Column(
        method=entry["method"],
        label=entry.get("label", label_of(entry["method"])),
        overrides=overrides,
        published=entry.get("published", default if varies else ""),
        seeds=tuple(entry.get("seeds", (0,))),
    )


def load_suite(name: str) -> list[Experiment]:
    """The experiments of a suite `configs/suite/<name>.yaml`, or the one experiment of that name.

    Raises
    ------
    CamexpError: when there is neither.
    """
    path = CONFIGS / "suite" / f"{name}.yaml"
    if not path.is_file():
        if (CONFIGS / "experiment" / f"{name}.yaml").is_file():
            return [load_experiment(name)]
        suites = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
        experiments = ", ".join(sorted(p.stem for p in (CONFIGS / "experiment").glob("*.yaml")))
        raise CamexpError(f"no suite or experiment {name!r}; suites: {suites}; experiments: {experiments}")
    content: Any = OmegaConf.to_container(OmegaConf.load(path))
    return [load_experiment(experiment) for experiment in content["experiments"]]
