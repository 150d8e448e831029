"""Control: Fake-CAM (Poppi et al., CVPR Workshops 2021, arXiv 2104.10252), which deceives soft-masked Drop."""

import math
from dataclasses import dataclass

from torch import Tensor

from camexp.errors import CamexpError
from camexp.models.classifier import Classifier
from camexp.pairs import Pairs


@dataclass(frozen=True)
class FakeCAM:
    """M = 1 everywhere but in the top left cell of a grid of cells x cells, where M = 0, (P,H,W).

    Multiplied by such a map the image stays almost as it was, and so does its score, though the map explains
    nothing. The cell has ceil(H / cells) x ceil(W / cells) pixels.

    Cost: none.

    Parameters
    ----------
    cells: cells per side; 7, as a CAM layer of stride 32 has at 224 x 224.

    Raises
    ------
    CamexpError: unless cells >= 2.
    """

    cells: int = 7

    def __post_init__(self) -> None:
        if self.cells < 2:
            raise CamexpError(f"method.cells of fake_cam must be at least 2, not {self.cells}")

    def __call__(self, classifier: Classifier, images: Tensor, pairs: Pairs) -> Tensor:
        height, width = images.shape[2:]
        maps = images.new_ones(len(pairs), height, width)
        maps[:, : math.ceil(height / self.cells), : math.ceil(width / self.cells)] = 0
        return maps
