"""Control: the same value everywhere. Its EBPG and Bbox are the share of the image that the object covers."""

from dataclasses import dataclass

from torch import Tensor

from camexp.models.classifier import Classifier
from camexp.pairs import Pairs


@dataclass(frozen=True)
class Uniform:
    """M = 1 everywhere, (P,H,W). A constant map is marked degenerate in its records; here that is the point.

    Cost: none.
    """

    def __call__(self, classifier: Classifier, images: Tensor, pairs: Pairs) -> Tensor:
        return images.new_ones(len(pairs), *images.shape[2:])
