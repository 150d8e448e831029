"""Batches decoded ahead: in order, the same with any number of workers, and quiet when interrupted."""

import os
import pickle
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import pytest
import torch
from test_datasets import make_voc

from camexp.datasets.voc import VOC
from camexp.errors import CamexpError
from camexp.loading import count_workers, in_workers, load_batches
from camexp.models.preprocess import Preprocess

BATCHES = [[0, 1], [2], [3, 4], [5]]


@pytest.fixture
def root(tmp_path) -> Path:
    """Six images with a cat each, of which the third is broken."""
    root = make_voc(tmp_path / "VOCdevkit", {f"{i}": [("cat", (1, 1, 2 + i, 3), 0)] for i in range(6)})
    (root / "VOC2007" / "JPEGImages" / "2.jpg").write_bytes(b"")
    return root


def test_batches_do_not_depend_on_the_workers(root):
    dataset, preprocess = VOC(str(root)), Preprocess(size=16)
    alone, shared = (list(load_batches(dataset, preprocess, BATCHES, workers)) for workers in (0, 2))
    assert [[fed.sample.image_id for fed in batch] for batch in shared] == [["0", "1"], ["2"], ["3", "4"], ["5"]]
    for ours, theirs in zip(chain(*alone), chain(*shared), strict=True):
        assert ours.sample == theirs.sample
        assert torch.equal(ours.masks, theirs.masks)
        assert (ours.image is None) == (theirs.image is None) == (ours.sample.image_id == "2")
        assert ours.image is None or torch.equal(ours.image, theirs.image)


def test_starting_workers_draws_no_random_number(root):
    dataset, preprocess = VOC(str(root)), Preprocess(size=16)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(load_batches(dataset, preprocess, BATCHES, 0))
    assert torch.equal(torch.rand(3), expected)


def test_data_sets_reach_workers_that_share_no_memory(root):
    """Where workers are not forked, the data set is pickled once for each."""
    dataset = VOC(str(root))
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.targets == dataset.targets
    assert (copy.load(1).masks[0] == dataset.load(1).masks[0]).all()


@pytest.mark.parametrize(
    ("workers", "batches", "count"), [(0, 100, 0), (3, 100, 3), (9, 2, 2), (2, 0, 0), ("auto", 7, 0)]
)
def test_no_more_workers_than_batches(workers, batches, count):
    assert count_workers(workers, batches) == count


@pytest.mark.parametrize("gpu", [False, True])
def test_auto_leaves_a_core_to_the_run(monkeypatch, gpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    for cores, count in ((1, 0), (2, int(gpu)), (3, 2), (64, 4)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, cores=cores: set(range(cores)), raising=False)
        assert count_workers("auto", 100) == count


@pytest.mark.parametrize("workers", [-1, "many", 1.5, None])
def test_workers_that_are_no_count_are_refused(workers):
    with pytest.raises(CamexpError, match="workers must be auto or a count"):
        count_workers(workers, 100)


LOOP = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests themselves run in the background
from camexp.datasets.voc import VOC
from camexp.loading import load_batches
from camexp.models.preprocess import Preprocess
batches = load_batches(VOC(sys.argv[1]), Preprocess(size=16), [[0], [1], [3], [4]] * 250_000, 2)
for _ in range(int(sys.argv[2])):
    next(batches)
try:
    print("started", flush=True)
    for batch in batches:
        pass
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


class Held:
    """Whether interrupts are held back where an item is read."""

    def __len__(self):
        return 4

    def __getitem__(self, number):
        return torch.tensor(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="Windows has no signal masks")
def test_interrupts_are_held_back_in_workers_from_their_start_and_nowhere_else():
    def held() -> bool:
        return signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])

    assert all(in_workers(Held(), 4, 2))
    assert not held()
    assert not any(in_workers(Held(), 4, 0))
    assert not held()


@pytest.mark.parametrize("batches", [0, 1])  # 0: the workers are just starting
def test_interrupt_of_the_whole_group_is_quiet(root, batches):
    """As Ctrl-C in a terminal does, the signal goes to the workers too; none is left, and none says anything."""
    process = subprocess.Popen(
        [sys.executable, "-c", LOOP, str(root), str(batches)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    os.killpg(process.pid, signal.SIGINT)
    try:
        out, err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert (out, err, process.returncode) == ("interrupted\n", "", 0)
    for _ in range(100):
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("workers are left")
