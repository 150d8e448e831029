"""Batches of fed images, decoded ahead by worker processes.

A worker gets the data set once, when it starts, and from then on only numbers of batches; what comes back are the
fed images and masks.
"""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from camexp.datasets.base import Dataset
from camexp.errors import CamexpError
from camexp.models.preprocess import Fed, Preprocess, feed

MOST_WORKERS = 4
"""Decoding is the lesser part of a run; more processes would only take memory and cores."""


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
    workers: processes that decode; "auto" is none for a few batches, or on two cores without a GPU, else up to four.

    Raises
    ------
    CamexpError: when `workers` is neither "auto" nor a count.
    """
    return iter(in_workers(_Batches(dataset, preprocess, batches), len(batches), workers))


def in_workers(items: TorchDataset, count: int, workers: int | str = "auto", pin_memory: bool = False) -> DataLoader:
    """The `count` items, each a batch, in order, read by processes; see `load_batches`."""
    return _QuietLoader(
        items,
        batch_size=None,
        num_workers=count_workers(workers, count),
        worker_init_fn=_leave_interrupts_to_the_parent,
        generator=torch.Generator(),  # starting workers draws a number, which must not be the run's
        pin_memory=pin_memory,
    )


class _QuietLoader(DataLoader):
    """Starts its workers with interrupts held back: one that is just starting has nobody yet to be quiet for it."""

    def __iter__(self) -> Any:
        if not hasattr(signal, "pthread_sigmask"):  # Windows
            return super().__iter__()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            return super().__iter__()  # workers inherit what is held back
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def count_workers(workers: int | str, batches: int) -> int:
    """How many processes decode so many batches."""
    if workers == "auto":
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if batches < 8 or (usable <= 2 and not torch.cuda.is_available()):
            return 0  # of two cores that compute none is left for decoding
        return min(MOST_WORKERS, usable - 1)
    if not isinstance(workers, int) or workers < 0:
        raise CamexpError(f"workers must be auto or a count from 0 on, not {workers!r}")
    return min(workers, batches)


def _leave_interrupts_to_the_parent(worker: int) -> None:
    """Ctrl-C reaches every process of the terminal; the parent ends the workers, silently.

    A tensor that the parent was about to take when it was interrupted must not end in a traceback either.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = _excepthook


def _excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)
