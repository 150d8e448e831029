"""Batches of fed images, decoded ahead by worker processes."""

import os
from collections.abc import Iterator, Sequence

from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from camexp.datasets.base import Dataset
from camexp.models.preprocess import Fed, Preprocess, feed


class _Batches(TorchDataset):
    """One item per batch, so that a worker decodes a whole batch."""

    def __init__(self, dataset: Dataset, preprocess: Preprocess, batches: Sequence[Sequence[int]]):
        self.dataset, self.preprocess, self.batches = dataset, preprocess, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> list[Fed]:
        return [feed(self.dataset.load(index), self.preprocess) for index in self.batches[number]]


def load_batches(
    dataset: Dataset, preprocess: Preprocess, batches: Sequence[Sequence[int]], workers: int | str = "auto"
) -> Iterator[list[Fed]]:
    """The images of each batch, in order.

    Parameters
    ----------
    batches: indices into the data set.
    workers: processes that decode; "auto" is none for a few batches, else up to four.
    """
    if workers == "auto":
        workers = 0 if len(batches) < 8 else min(4, (os.cpu_count() or 2) - 1)
    return iter(DataLoader(_Batches(dataset, preprocess, batches), batch_size=None, num_workers=int(workers)))
