"""What each technique buys: with it against without it, all else as it is."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from torch import Tensor

from camexp import config
from camexp.bench.comparison import ROUNDS, Comparison, Technique, line, measure, on_cpu, on_gpu, with_compiler
from camexp.bench.scenes import Scenes
from camexp.bench.subject import Cell, Subject, telling
from camexp.bench.watch import Contender, Trial
from camexp.errors import CamexpError
from camexp.explain import Explainer
from camexp.pairs import Pairs

TECHNIQUES = (
    Technique("batch norms folded into convolutions", "fold_batch_norms=false"),
    Technique("channels last", "channels_last=false"),
    Technique("weights kept in order", "packed_weights=false", possible=on_cpu),
    Technique("weights kept in order, a single image", "packed_weights=false", "gradcam", images=1, possible=on_cpu),
    Technique("weights kept in order, both ways", "packed_weights=false", "gradient", images=1, possible=on_cpu),
    Technique("a quarter of the multiplications", "winograd=false", possible=on_cpu),
    Technique("a quarter of the multiplications, VGG16", "winograd=false", model="vgg16", possible=on_cpu),
    Technique("a quarter of them, both ways", "winograd=false", "gradient", model="vgg16", possible=on_cpu),
    Technique("convolutions add and rectify", "fused_activations=false", possible=on_cpu),
    Technique("linear layers by oneDNN", "onednn_linear=false", "gradcam", images=1, model="vgg16", possible=on_cpu),
    Technique("inference mode", "inference_mode=false"),
    Technique("forth without graph to the layer, back through the tail alone", "tail_backward=false", "gradcam"),
    Technique("one pass for all classes of an image", "share_classes=false", classes=3),
    Technique("masked inputs of several images in one batch", "batch_size=1"),
    Technique("a batch filled with the next image's masks", "batch_size=1", "occlusion"),
    Technique("several images per pass", "forward_batch=1"),
    Technique("no more images per pass than pay", "forward_batch=64", possible=on_cpu),
    Technique("passes in bfloat16", "precision=bf16", default=False),
    Technique("factors in TensorFloat-32", "precision=tf32", default=False, possible=on_gpu),
    Technique("passes compiled", "compile=true", default=False, possible=with_compiler),
)
"""Those that show in a call of a method on random images."""

MEMORY = Technique("freed memory kept", "keep_freed_memory=false")


def lines(model: str, options: Sequence[str], images: int) -> Iterator[list[str]]:
    """The lines of the table, as they are found.

    Parameters
    ----------
    model: a file of `configs/model/`; options: as of `python -m camexp.run`.
    images: of a call of a method.
    """
    bench = Workbench(model, options, images)
    device = bench.subject.device
    for comparison in bench.comparisons():
        yield measure(comparison, device)
    for comparison in Scenes(options).comparisons():
        yield measure(comparison, device)
    if device.type == "cpu":
        yield kept_memory(model, images, options)


class Workbench:
    """Makes the comparisons of one network on random images; parameters as those of `lines`."""

    def __init__(self, model: str, options: Sequence[str] = (), images: int = 16):
        self.options, self.images = tuple(options), images
        self.subject = Subject(model, self.options)

    def comparisons(self) -> Iterator[Comparison]:
        """One after the other, because each needs a network of its own."""
        for technique in TECHNIQUES:
            if technique.possible(self.subject.device):
                images = technique.images or self.images
                cell = Cell(technique.method, technique.model or self.subject.model, images, technique.classes)
                yield Comparison.of(technique, str(cell), cell.images * cell.classes, partial(self.way, cell))

    def way(self, cell: Cell, *more: str) -> Contender:
        """How a run with further options makes the cell's maps."""
        known = not more and cell.model == self.subject.model
        subject = self.subject if known else Subject(cell.model, (*self.options, *more))
        cfg = config.compose_config([*self.options, *more])
        classifier, method = subject.classifier, subject.method(cell.method)
        explainer = Explainer(classifier, method, cfg.share_classes)
        images, pairs = subject.batch_of(cell.images, cell.classes)
        calls = list(batches(images.contiguous(memory_format=classifier.memory_format), pairs, cfg.batch_size))
        course = subject.course(cell.method, method, subject.shape(cell, method))
        if not cfg.share_classes:
            course = replace(course, rows=course.rows * cell.classes)
        return Contender(
            cell.method,
            lambda: [explainer.maps(*call) for call in calls],
            lambda tell: telling(classifier, tell),
            course,
        )


def batches(images: Tensor, pairs: Pairs, size: int) -> Iterator[tuple[Tensor, Pairs]]:
    """Images (B,3,H,W) that all have pairs, `size` at a time."""
    for start in range(0, len(images), size):
        own = (pairs.image >= start) & (pairs.image < start + size)
        needed, some = pairs.chunk(own.nonzero()[:, 0])
        yield images[needed], some


PASSES = """
import sys, time
from camexp.bench.subject import Subject
from camexp.config import compose_config
from camexp.memory import keep_freed_memory
model, images, *options = sys.argv[1:]
if compose_config(options).keep_freed_memory:
    keep_freed_memory()
subject = Subject(model, tuple(options))
batch, _ = subject.batch_of(int(images), 1)
subject.classifier.logits(batch)
started = time.perf_counter()
for _ in range(3):
    subject.classifier.logits(batch)
print((time.perf_counter() - started) / 3)
"""
"""Seconds of a forward pass in a process of its own: the C library cannot be told to forget it."""


def kept_memory(model: str, images: int, options: Sequence[str], rounds: int = ROUNDS) -> list[str]:
    """A line of the table for `camexp.memory`."""
    trials = [[_passes(model, images, (*options, *more)) for more in ((MEMORY.switch,), ())] for _ in range(rounds)]
    return line(MEMORY, str(Cell("forward pass", model, images, 1)), images, trials)


def _passes(model: str, images: int, options: Sequence[str]) -> Trial:
    command = [sys.executable, "-c", PASSES, model, str(images), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CamexpError(f"the measurement of kept memory failed:\n{done.stderr[-2000:]}")
    return Trial(float(done.stdout), False)
