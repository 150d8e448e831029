"""Control: the ground truth itself. It is the upper bound of every metric of localisation."""

from dataclasses import dataclass

from torch import Tensor

from camexp.errors import CamexpError
from camexp.models.classifier import Classifier
from camexp.pairs import Pairs


@dataclass(frozen=True)
class Oracle:
    """M = G, the pair's ground-truth mask as float32, (P,H,W).

    Cost: none.

    Raises
    ------
    CamexpError: when called with pairs that have no masks.
    """

    def __call__(self, classifier: Classifier, images: Tensor, pairs: Pairs) -> Tensor:
        if pairs.masks is None:
            raise CamexpError("method oracle shows the ground truth: it needs pairs.masks (P,H,W), not None")
        return pairs.masks.float()
