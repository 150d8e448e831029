"""What a method is, and the two steps that most of them share."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor
from torch.nn import functional as F

from camexp.models.classifier import Classifier
from camexp.pairs import Pairs


class Method(Protocol):
    """An explanation method: a frozen dataclass of its parameters, without state.

    `method(classifier, images, pairs)` takes images (B,3,H,W) as fed to the network and P pairs over them, and
    returns explanation maps (P,H,W), float32 and finite, larger where the image matters more for the class.
    A pair's map does not depend on the other pairs of the call. What is random is drawn from a generator seeded
    by (seed, method, image id, class).
    """

    def __call__(self, classifier: Classifier, images: Tensor, pairs: Pairs) -> Tensor: ...


def upsample(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps (N,h,w) enlarged bilinearly (`align_corners=False`) to (N,H,W)."""
    return F.interpolate(maps[:, None], tuple(size), mode="bilinear", align_corners=False)[:, 0]


def scale_to_unit(maps: Tensor) -> Tensor:
    """Each map (..., H, W) scaled to [0,1] by its minimum and maximum; a constant map becomes zeros."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    extent = high - low
    return (maps - low) / extent.where(extent > 0, 1.0)
