"""A recipe: how a network is trained for a data set (`configs/recipe/<name>.yaml`)."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from camexp.errors import CamexpError
from camexp.evaluation import QUALITIES
from camexp.training.labels import BALANCES

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Recipe:
    """The settings of one training run.

    Parameters
    ----------
    train, test: options of the data set for the images to learn from, and for those that measure the result.
    initial: "imagenet" (torchvision's weights, found on disk), "random", or a file; see `camexp.training.networks`.
    dropout: probability of the network's dropout layers; None keeps theirs.
    size: side in pixels of the fed images; the first `half_epochs` take half of it.
    half_epochs, full_epochs: passes over the images at either side.
    steps: end after so many steps, however many epochs that is; None for all.
    batch: images per step.
    optimiser: `_target_` of a torch optimiser and its arguments; its lr is the highest of the schedule.
    warmup: share of the steps in which the learning rate rises; then it falls by a cosine.
    cycle_momentum: let the momentum fall and rise against the learning rate (Smith's one cycle).
    clip: highest norm of the gradient.
    ema: decay per step of the averaged weights, which are what is kept; 0 keeps the last weights.
    balance: "none", "sampler" (rare classes are drawn more often) or "weights" (their loss counts more).
    balance_power: 1 makes all classes count alike, 0 none of it.
    source: `_target_` of what makes batches and its augmentation; see `camexp.training.data`.
    precision: float32, or float16 or bfloat16 for mixed precision on a GPU (a CPU computes in float32).
    validation: share of the training images held out; the epoch that is best on them is kept.
    best: which quality decides; a key of `camexp.evaluation.quality`.
    target: qualities of the test images to reach, by name.
    store: floating-point type of the weights' file.

    Raises
    ------
    CamexpError: for a value that is out of range or unknown.
    """

    train: dict[str, Any]
    test: dict[str, Any]
    initial: str
    dropout: float | None
    size: int
    half_epochs: int
    full_epochs: int
    steps: int | None
    batch: int
    optimiser: dict[str, Any]
    warmup: float
    cycle_momentum: bool
    clip: float
    ema: float
    balance: str
    balance_power: float
    source: dict[str, Any]
    precision: str
    validation: float
    best: str
    target: dict[str, float]
    store: str

    def __post_init__(self) -> None:
        for name, known in (
            ("precision", PRECISIONS),
            ("store", PRECISIONS),
            ("balance", BALANCES),
            ("best", QUALITIES),
        ):
            if getattr(self, name) not in known:
                raise CamexpError(f"recipe.{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")
        for name, low, high in (
            ("validation", 0, 0.9),
            ("warmup", 0, 0.9),
            ("ema", 0, 1),
            ("dropout", 0, 1),
            ("balance_power", 0, 1),
            ("batch", 1, 1 << 20),
            ("size", 2, 1 << 16),
            ("steps", 1, 1 << 40),
            ("half_epochs", 0, 1 << 20),
            ("full_epochs", 0, 1 << 20),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise CamexpError(f"recipe.{name} must lie between {low} and {high}, not {value}")
        if not self.epochs:
            raise CamexpError("recipe.half_epochs and recipe.full_epochs are both 0, so there is nothing to train")
        unknown = set(self.target) - set(QUALITIES)
        if unknown:
            raise CamexpError(f"recipe.target names {sorted(unknown)}; qualities are {', '.join(QUALITIES)}")

    @property
    def epochs(self) -> int:
        return self.half_epochs + self.full_epochs

    def side(self, epoch: int) -> int:
        """Side in pixels of the images of an epoch."""
        return self.size // 2 if epoch < self.half_epochs else self.size


def read_recipe(node: DictConfig) -> Recipe:
    """The recipe of a composed config.

    Raises
    ------
    CamexpError: when a key is missing, unknown, or has a wrong value.
    """
    plain: Any = OmegaConf.to_container(node, resolve=True)
    names = {field.name for field in fields(Recipe)}
    wrong = [f"{key} is unknown" for key in plain if key not in names]
    wrong += [f"{key} is missing" for key in sorted(names - set(plain))]
    if wrong:
        raise CamexpError(f"the recipe does not fit: {'; '.join(wrong)} (camexp/training/recipe.py lists the keys)")
    try:
        return Recipe(**plain)
    except TypeError as error:  # a text where a number is expected
        raise CamexpError(f"a value of the recipe is of the wrong kind: {error}") from error


def make(node: dict[str, Any], *arguments: Any) -> Any:
    """Call what `_target_` names with `arguments` and the node's other keys.

    Raises
    ------
    CamexpError: when there is no such thing, or it refuses the arguments.
    """
    try:
        return instantiate(node, _partial_=True)(*arguments)
    except (TypeError, ValueError, InstantiationException) as error:
        raise CamexpError(f"{node.get('_target_')}: {error}") from error
