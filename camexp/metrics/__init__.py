"""Metrics as components: a name, a unit, a direction, parameters, and a pure function of what was explained."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from camexp.errors import CamexpError
from camexp.metrics import faithfulness, localization
from camexp.metrics import pointing as game
from camexp.models.classifier import Classifier
from camexp.pairs import Pairs


@dataclass
class Explained:
    """One batch of explained pairs, as metrics see it.

    Attributes
    ----------
    images: (B,3,H,W) as fed; pairs: P pairs over them, with masks; maps: (P,H,W) float32.
    confidence: (P,) Psi of the pair's class in the unmasked image.
    sizes: (B,2), width and height of the original images in pixels; None: those of the fed images.
    """

    classifier: Classifier
    images: Tensor
    pairs: Pairs
    maps: Tensor
    confidence: Tensor
    sizes: Tensor | None = None
    _after: dict[tuple[float, str], Tensor] = field(default_factory=dict)

    @property
    def masks(self) -> Tensor:
        """Ground truth G (P,H,W) bool."""
        if self.pairs.masks is None:
            raise ValueError("metrics against ground truth need pairs with masks")
        return self.pairs.masks

    @property
    def pixel(self) -> Tensor:
        """Width and height of each pair's fed pixels in pixels of the original image, (P,2) float64."""
        height, width = self.images.shape[2:]
        fed = torch.tensor([width, height], dtype=torch.float64, device=self.images.device)
        sizes = fed.expand(len(self.images), 2) if self.sizes is None else self.sizes.to(fed)
        return (sizes / fed)[self.pairs.image]

    def confidence_after(self, share: float, rule: str) -> Tensor:
        """Psi (P,) of the pair's class when only the top pixels are kept; computed once for all metrics."""
        key = (share, rule)
        if key not in self._after:
            kept = faithfulness.top_pixels(self.maps, share, rule)
            images = torch.where(kept[:, None], self.images[self.pairs.image], self.classifier.fill)
            self._after[key] = self.classifier.scores(images).gather(1, self.pairs.target[:, None])[:, 0]
        return self._after[key]


class Metric(Protocol):
    """A frozen dataclass of parameters that gives one value per pair, a fraction in [0,1].

    Its constructor raises a CamexpError for parameters out of range.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    higher_is_better: ClassVar[bool]

    def __call__(self, explained: Explained) -> Tensor: ...


def _check(metric: Any, parameter: str, valid: bool, expected: str) -> None:
    """Raise a CamexpError unless the metric's parameter is valid."""
    if not valid:
        given = getattr(metric, parameter)
        raise CamexpError(f"metrics.{metric.name}.{parameter} must be {expected}, not {given!r}")


@dataclass(frozen=True)
class EBPG:
    """Energy-based pointing game; see `localization.ebpg`."""

    name: ClassVar[str] = "ebpg"
    unit: ClassVar[str] = "%"
    higher_is_better: ClassVar[bool] = True
    scaling: str = "minmax"

    def __post_init__(self) -> None:
        _check(self, "scaling", self.scaling in ("minmax", "clip"), "minmax or clip")

    def __call__(self, explained: Explained) -> Tensor:
        return localization.ebpg(explained.maps, explained.masks, self.scaling)


@dataclass(frozen=True)
class Bbox:
    """Share of the top pixels inside the object; see `localization.bbox`."""

    name: ClassVar[str] = "bbox"
    unit: ClassVar[str] = "%"
    higher_is_better: ClassVar[bool] = True
    ties: str = "expected"

    def __post_init__(self) -> None:
        _check(self, "ties", self.ties in ("expected", "stable"), "expected or stable")

    def __call__(self, explained: Explained) -> Tensor:
        return localization.bbox(explained.maps, explained.masks, self.ties)


@dataclass(frozen=True)
class MIoU:
    """Intersection over union of the top pixels; see `localization.miou`."""

    name: ClassVar[str] = "miou"
    unit: ClassVar[str] = "%"
    higher_is_better: ClassVar[bool] = True
    share: float = 0.2
    ties: str = "expected"

    def __post_init__(self) -> None:
        _check(self, "share", 0 < self.share < 1, "in (0, 1)")
        _check(self, "ties", self.ties in ("expected", "stable"), "expected or stable")

    def __call__(self, explained: Explained) -> Tensor:
        return localization.miou(explained.maps, explained.masks, self.share, self.ties)


@dataclass(frozen=True)
class Pointing:
    """Pointing game: whether the map's maximum lies on the object or near it; see `pointing.pointing`."""

    name: ClassVar[str] = "pointing"
    unit: ClassVar[str] = "%"
    higher_is_better: ClassVar[bool] = True
    tolerance: float = 15.0
    ties: str = "expected"

    def __post_init__(self) -> None:
        _check(self, "tolerance", 0 <= self.tolerance < float("inf"), "a number of pixels, 0 or more")
        _check(self, "ties", self.ties in ("expected", "first"), "expected or first")

    def __call__(self, explained: Explained) -> Tensor:
        return game.pointing(explained.maps, explained.masks, explained.pixel, self.tolerance, self.ties)


@dataclass(frozen=True)
class _OfTopPixels:
    """What metrics share that compare the confidence with that when only the top pixels are kept."""

    unit: ClassVar[str] = "%"
    share: float = 0.15
    rule: str = "strict"

    def __post_init__(self) -> None:
        _check(self, "share", 0 < self.share < 1, "in (0, 1)")
        _check(self, "rule", self.rule in ("strict", "exact"), "strict or exact")


@dataclass(frozen=True)
class Drop(_OfTopPixels):
    """Relative drop of the confidence when only the top pixels are kept; see `faithfulness.drop`."""

    name: ClassVar[str] = "drop"
    higher_is_better: ClassVar[bool] = False

    def __call__(self, explained: Explained) -> Tensor:
        return faithfulness.drop(explained.confidence, explained.confidence_after(self.share, self.rule))


@dataclass(frozen=True)
class Increase(_OfTopPixels):
    """Whether the confidence rises when only the top pixels are kept; see `faithfulness.increase`."""

    name: ClassVar[str] = "increase"
    higher_is_better: ClassVar[bool] = True

    def __call__(self, explained: Explained) -> Tensor:
        return faithfulness.increase(explained.confidence, explained.confidence_after(self.share, self.rule))


@dataclass(frozen=True)
class AverageGain(_OfTopPixels):
    """Rise of the confidence as a share of the possible rise; see `faithfulness.average_gain`."""

    name: ClassVar[str] = "average_gain"
    higher_is_better: ClassVar[bool] = True

    def __call__(self, explained: Explained) -> Tensor:
        return faithfulness.average_gain(explained.confidence, explained.confidence_after(self.share, self.rule))


METRICS: dict[str, type[Metric]] = {
    metric.name: metric for metric in (EBPG, Bbox, MIoU, Pointing, Drop, Increase, AverageGain)
}
"""Every metric by its name: the column of the records and the file in `configs/metric/`."""
