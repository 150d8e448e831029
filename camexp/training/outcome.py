"""What lies beside the weights that a training wrote, and what the user is told of it."""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from camexp.errors import CamexpError
from camexp.models.checkpoint import EMBEDDED


def output_path(cfg: DictConfig) -> Path:
    """The file that `output=` means; "embedded" is the one of the package for the data set and model.

    Raises
    ------
    CamexpError: when it is not named .safetensors.
    """
    if cfg.output == "embedded":
        return EMBEDDED / f"{cfg.dataset.name}_{cfg.model.name}.safetensors"
    path = Path(cfg.output)
    if path.suffix != ".safetensors":
        raise CamexpError(f"output must be a file *.safetensors or embedded, not {cfg.output!r}")
    return path


def read_record(weights: Path) -> dict[str, Any]:
    """The content of the JSON beside the weights; empty when there is none that can be read."""
    path = weights.with_suffix(".json")
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except ValueError:
        return {}


def summary(record: dict[str, Any]) -> str:
    """The test quality in percent, beside the target where there is one."""
    lines = [f"{record['test_images']} test images, {record['train_images']} training images"]
    for name, value in record["test"].items():
        line, goal = f"  {name:16} {100 * value:6.2f} %", record["target"].get(name)
        if goal is not None:
            line += f"   target {100 * goal:.2f} %: {'reached' if value >= goal else 'missed'}"
        lines.append(line)
    return "\n".join(lines)


def usage(cfg: DictConfig, weights: Path) -> str:
    """How to explain the trained network."""
    names = ("architecture", "width", "head", "preprocess")
    options = [f"model.{name}={cfg.model[name]}" for name in names if cfg.model.get(name) is not None]
    choice = f"dataset={cfg.dataset.name} model={cfg.model.name} model.checkpoint={weights} {' '.join(options)}"
    return f"Explain it with: python -m camexp.run {choice}"
