"""RISE (Petsiuk, Das and Saenko, BMVC 2018, eq. 6; mask generation of section 3.2)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from camexp.errors import CamexpError
from camexp.models.classifier import Classifier
from camexp.pairs import Pairs
from camexp.seeding import torch_generator


@dataclass(frozen=True)
class RISE:
    """Mean of random masks, weighted by the confidence in the masked image.

        S(p) = 1 / (N p_1) sum_n Psi_c(I * m_n) m_n(p)

    A mask is a random binary grid of cells x cells (1 with probability p_1), enlarged bilinearly to
    (cells + 1) cells of ceil(H / cells) pixels and cropped to (H,W) at a random shift of up to one cell. The same
    N masks, seeded by (seed, "rise"), serve all images; one pass serves all classes of an image.

    Cost: N forwards per image, none per class. Memory does not grow with N.

    Parameters
    ----------
    masks: N; 8000 for ResNet-50 in the original paper, 4000 for VGG16.
    cells: cells per side.
    p1: probability that a cell is kept.
    seed: seed of the masks.

    Raises
    ------
    CamexpError: for parameters out of range.
    """

    masks: int = 8000
    cells: int = 7
    p1: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.masks < 1 or self.cells < 1 or not 0 < self.p1 <= 1:
            raise CamexpError("rise needs method.masks >= 1, method.cells >= 1 and 0 < method.p1 <= 1")

    def __call__(self, classifier: Classifier, images: Tensor, pairs: Pairs) -> Tensor:
        height, width = images.shape[2:]
        masks = RandomMasks(self, height, width, images.device)
        total = images.new_zeros(len(pairs), height * width)
        at_once = max(1, classifier.forward_batch // len(images))
        for start in range(0, self.masks, at_once):
            mask = masks[start : min(start + at_once, self.masks)][:, None, None]  # (n, 1, 1, H, W)
            masked = classifier.masked(images, mask)  # (n, B, 3, H, W)
            scores = classifier.scores(masked.flatten(0, 1)).unflatten(0, (len(mask), -1))  # (n, B, C)
            total += scores[:, pairs.image, pairs.target].T @ mask.flatten(1)  # (P, n) @ (n, H W)
        return (total / (self.masks * self.p1)).view(-1, height, width)


class RandomMasks:
    """RISE's masks as a sequence: `masks[i:j]` is (j-i,H,W) in [0,1]; only grids and shifts are stored.

    Enlarging and cropping are linear in the grid and separable: mask = R_y grid R_x^T with rows of the
    bilinear interpolation matrix R that the shift selects.
    """

    def __init__(self, rise: RISE, height: int, width: int, device: torch.device):
        generator = torch_generator(rise.seed, "rise")
        shape = (rise.masks, rise.cells, rise.cells)
        self.grids = (torch.rand(shape, generator=generator) < rise.p1).float().to(device)
        shifts = torch.rand(rise.masks, 2, generator=generator)
        self.rows, self.row_shifts = self._windows(rise.cells, height, shifts[:, 0], device)
        self.columns, self.column_shifts = self._windows(rise.cells, width, shifts[:, 1], device)

    @staticmethod
    def _windows(cells: int, side: int, shifts: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Interpolation matrices (cell, side, cells) for every shift in pixels, and each mask's shift (N,)."""
        cell = math.ceil(side / cells)
        enlarged = F.interpolate(torch.eye(cells)[None], (cells + 1) * cell, mode="linear", align_corners=False)[0].T
        windows = torch.stack([enlarged[s : s + side] for s in range(cell)])
        return windows.to(device), (shifts * cell).long().to(device)

    def __getitem__(self, index: slice) -> Tensor:
        rows, columns = self.rows[self.row_shifts[index]], self.columns[self.column_shifts[index]]
        return rows @ self.grids[index] @ columns.mT
