"""Occlusion (Zeiler and Fergus, ECCV 2014, arXiv 1311.2901, section 4.2)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from camexp.errors import CamexpError
from camexp.models.classifier import Classifier
from camexp.pairs import Pairs


@dataclass(frozen=True)
class Occlusion:
    """How far the class's score falls when a window of the image is painted over.

        M(p) = mean_{w : p in w} [ S_c(I) - S_c(I with window w filled) ]

    Square windows slide over the image; the last of a row or column ends with the image, also where the stride
    does not divide it, so that every pixel is covered. The filling is `classifier.fill`. M is signed: a
    window that hides a rival object raises the score.

    Cost: one forward per (image, window), none per class: 169 windows at 224 x 224 with the defaults.

    Parameters
    ----------
    size: side of the windows in pixels; 32 of 224 is about the share of the image that the paper covers. A
        smaller side of the image limits it.
    stride: pixels between windows; half the size lets neighbours overlap and four windows share a pixel.
    score: S: "confidence" (paper: the probability) or "logit".

    Raises
    ------
    CamexpError: for another score, or unless 1 <= stride <= size.
    """

    size: int = 32
    stride: int = 16
    score: str = "confidence"

    def __post_init__(self) -> None:
        if self.score not in ("confidence", "logit"):
            raise CamexpError(f"method.score of occlusion must be confidence or logit, not {self.score!r}")
        if not 1 <= self.stride <= self.size:
            raise CamexpError(
                "method.stride of occlusion must be at least 1 and at most method.size, or pixels stay uncovered; "
                f"got stride {self.stride} and size {self.size}"
            )

    def __call__(self, classifier: Classifier, images: Tensor, pairs: Pairs) -> Tensor:
        used, image = torch.unique(pairs.image, return_inverse=True)
        rows, columns = (self._windows(side, images.device) for side in images.shape[2:])  # (ny, H), (nx, W)
        score = self._scores(classifier, images[used])[image, pairs.target]  # (P,)
        occluded = self._occluded_scores(classifier, images[used], rows, columns)  # (b, ny, nx, C)
        drop = score[:, None, None] - occluded[image, :, :, pairs.target]  # (P, ny, nx)
        covering = rows.sum(0)[:, None] * columns.sum(0)  # windows on each pixel, (H, W)
        return rows.T @ drop @ columns / covering

    def _windows(self, side: int, device: torch.device) -> Tensor:
        """Which pixels of a side each window covers, (n, side) of 0 and 1."""
        size = min(self.size, side)
        starts = torch.arange(0, side - size + self.stride, self.stride, device=device).clamp(max=side - size)
        pixels = torch.arange(side, device=device)
        return ((pixels >= starts[:, None]) & (pixels < starts[:, None] + size)).float()

    def _scores(self, classifier: Classifier, images: Tensor) -> Tensor:
        """S (N,C) of images (N,3,H,W)."""
        return classifier.scores(images) if self.score == "confidence" else classifier.logits(images)

    def _occluded_scores(self, classifier: Classifier, images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """S (b,ny,nx,C) of the images with each window filled, `forward_batch` at a time over all of them."""
        grid = (len(images), len(rows), len(columns))
        image, y, x = torch.cartesian_prod(*(torch.arange(n, device=images.device) for n in grid)).T

        def work(part: slice) -> Tensor:
            window = (rows[y[part], :, None] * columns[x[part], None, :]).bool()[:, None]  # (r, 1, H, W)
            return self._scores(classifier, torch.where(window, classifier.fill, images[image[part]]))

        return torch.cat(classifier.in_chunks(work, len(image))).unflatten(0, grid)
