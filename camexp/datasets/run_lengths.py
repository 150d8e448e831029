"""Many masks as COCO's compressed run lengths, kept in two plain arrays."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as rle

from camexp.datasets.index import Index, offsets


@dataclass(frozen=True)
class RunLengths:
    """P masks; an empty entry stands for a mask that could not be made.

    Attributes
    ----------
    start: (P+1,) int64, where each mask's bytes begin in `counts`.
    counts: uint8, the compressed run lengths of all masks one after the other.
    """

    start: np.ndarray
    counts: np.ndarray

    @classmethod
    def pack(cls, compressed: Sequence[bytes]) -> "RunLengths":
        """From pycocotools' `counts` of each mask."""
        return cls(offsets([len(c) for c in compressed]), np.frombuffer(b"".join(compressed), np.uint8))

    @classmethod
    def from_index(cls, index: Index) -> "RunLengths":
        """The inverse of `to_index`."""
        return cls(index["run_start"], index["run_counts"])

    def to_index(self) -> Index:
        """The two arrays as part of an index."""
        return {"run_start": self.start, "run_counts": self.counts}

    def mask(self, number: int, height: int, width: int) -> np.ndarray:
        """Mask `number` as (height,width) bool."""
        counts = self.counts[self.start[number] : self.start[number + 1]].tobytes()
        return rle.decode({"size": [height, width], "counts": counts}).view(bool)  # zeros and ones


def compress(counts: Sequence[int], height: int, width: int) -> dict:
    """pycocotools' form of uncompressed run lengths: column by column, zeros and ones in turn, zeros first.

    Raises
    ------
    ValueError: when a length is negative or no integer, or they do not add up to the pixels of the image.
    """
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError("a run length that is negative or no integer")
    if sum(counts) != height * width:
        raise ValueError(f"run lengths of {sum(counts)} pixels, the image of {width}x{height} has {height * width}")
    return rle.frPyObjects({"size": [height, width], "counts": list(counts)}, height, width)
