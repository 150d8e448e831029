"""Metrics as components: a name, a unit, a direction, parameters, and a pure function of what was explained."""

from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from camexp.metrics import faithfulness, localization
from camexp.models.classifier import Classifier
from camexp.pairs import Pairs


@dataclass
class Explained:
    """One batch of explained pairs, as metrics see it.

    Attributes
    ----------
    images: (B,3,H,W) as fed; pairs: P pairs over them, with masks; maps: (P,H,W) float32.
    confidence: (P,) Psi of the pair's class in the unmasked image.
    """

    classifier: Classifier
    images: Tensor
    pairs: Pairs
    maps: Tensor
    confidence: Tensor
    _after: dict[tuple[float, str], Tensor] = field(default_factory=dict)

    @property
    def masks(self) -> Tensor:
        """Ground truth G (P,H,W) bool."""
        if self.pairs.masks is None:
            raise ValueError("metrics against ground truth need pairs with masks")
        return self.pairs.masks

    def confidence_after(self, share: float, rule: str) -> Tensor:
        """Psi (P,) of the pair's class when only the top pixels are kept; computed once for all metrics."""
        key = (share, rule)
        if key not in self._after:
            kept = faithfulness.top_pixels(self.maps, share, rule)
            fill = self.classifier.fill

            def work(rows: slice) -> Tensor:
                images = self.images[self.pairs.image[rows]]
                return self.classifier.scores(torch.where(kept[rows, None], images, fill))

            scores = torch.cat(self.classifier.in_chunks(work, len(self.maps)))
            self._after[key] = scores.gather(1, self.pairs.target[:, None])[:, 0]
        return self._after[key]


class Metric(Protocol):
    """A frozen dataclass of parameters that gives one value per pair, a fraction in [0,1]."""

    name: ClassVar[str]
    unit: ClassVar[str]
    higher_is_better: ClassVar[bool]

    def __call__(self, explained: Explained) -> Tensor: ...


@dataclass(frozen=True)
class EBPG:
    """Energy-based pointing game; see `localization.ebpg`."""

    name: ClassVar[str] = "ebpg"
    unit: ClassVar[str] = "%"
    higher_is_better: ClassVar[bool] = True
    scaling: str = "minmax"

    def __call__(self, explained: Explained) -> Tensor:
        return localization.ebpg(explained.maps, explained.masks, self.scaling)


@dataclass(frozen=True)
class Bbox:
    """Share of the top pixels inside the object; see `localization.bbox`."""

    name: ClassVar[str] = "bbox"
    unit: ClassVar[str] = "%"
    higher_is_better: ClassVar[bool] = True
    ties: str = "expected"

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

    def __call__(self, explained: Explained) -> Tensor:
        return localization.miou(explained.maps, explained.masks, self.share, self.ties)


@dataclass(frozen=True)
class Drop:
    """Relative drop of the confidence when only the top pixels are kept; see `faithfulness.drop`."""

    name: ClassVar[str] = "drop"
    unit: ClassVar[str] = "%"
    higher_is_better: ClassVar[bool] = False
    share: float = 0.15
    rule: str = "strict"

    def __call__(self, explained: Explained) -> Tensor:
        return faithfulness.drop(explained.confidence, explained.confidence_after(self.share, self.rule))


@dataclass(frozen=True)
class Increase:
    """Whether the confidence rises when only the top pixels are kept; see `faithfulness.increase`."""

    name: ClassVar[str] = "increase"
    unit: ClassVar[str] = "%"
    higher_is_better: ClassVar[bool] = True
    share: float = 0.15
    rule: str = "strict"

    def __call__(self, explained: Explained) -> Tensor:
        return faithfulness.increase(explained.confidence, explained.confidence_after(self.share, self.rule))


METRICS: dict[str, type[Metric]] = {metric.name: metric for metric in (EBPG, Bbox, MIoU, Drop, Increase)}
"""Every metric by its name: the column of the records and the file in `configs/metric/`."""
