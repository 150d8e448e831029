"""The unit of evaluation: pairs of an image and a class to explain in it."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pairs:
    """P pairs over a batch of B images.

    Attributes
    ----------
    image: (P,) int64, index of the pair's image in the batch.
    target: (P,) int64, the class to explain.
    image_ids: B names of the images; they seed what is random.
    masks: (P,H,W) bool, the ground truth; only the oracle control looks at it.
    """

    image: Tensor
    target: Tensor
    image_ids: tuple[str, ...]
    masks: Tensor | None = None

    def __post_init__(self) -> None:
        if self.image.shape != self.target.shape or self.image.dim() != 1:
            raise ValueError(
                f"pairs.image and pairs.target must both be (P,), "
                f"got {tuple(self.image.shape)} and {tuple(self.target.shape)}"
            )
        if len(self.image) and not 0 <= int(self.image.min()) <= int(self.image.max()) < len(self.image_ids):
            raise ValueError(f"pairs.image must index the {len(self.image_ids)} images of the batch")

    def __len__(self) -> int:
        return len(self.image)

    def __iter__(self) -> Iterator[tuple[int, str, int]]:
        """(index of the image, its name, class) of every pair."""
        for image, target in zip(self.image.tolist(), self.target.tolist(), strict=True):
            yield image, self.image_ids[image], target

    def to(self, device: torch.device) -> "Pairs":
        masks = None if self.masks is None else self.masks.to(device)
        return Pairs(self.image.to(device), self.target.to(device), self.image_ids, masks)

    def chunk(self, rows: slice | Tensor) -> tuple[Tensor, "Pairs"]:
        """Some of the pairs with the images (b,) that they need, re-indexed to these."""
        images, inverse = torch.unique(self.image[rows], return_inverse=True)
        ids = tuple(self.image_ids[i] for i in images.tolist())
        masks = None if self.masks is None else self.masks[rows]
        return images, Pairs(inverse, self.target[rows], ids, masks)

    def tile(self, times: int) -> "Pairs":
        """The pairs of `times` copies of the batch laid one after the other, (times * P,); without masks."""
        offsets = torch.arange(times, device=self.image.device).repeat_interleave(len(self)) * len(self.image_ids)
        return Pairs(self.image.repeat(times) + offsets, self.target.repeat(times), self.image_ids * times)

    def by_count(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Images with equally many pairs, together: indices of the images (n,) and of their pairs (n,c)."""
        order = self.image.argsort(stable=True)
        images, counts = torch.unique(self.image, return_counts=True)
        first = counts.cumsum(0) - counts
        for count in counts.unique().tolist():
            chosen = counts == count
            places = first[chosen, None] + torch.arange(count, device=order.device)
            yield images[chosen], order[places]
