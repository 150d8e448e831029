"""The papers' run time: single pairs of random images, batch 1, synchronised, after a warm-up."""

from collections.abc import Container, Iterator

from tqdm import tqdm

from camexp.datasets.base import Dataset
from camexp.explain import Explainer, stack
from camexp.loading import load_batches
from camexp.models.preprocess import Preprocess
from camexp.records import Key
from camexp.seeding import numpy_generator

Pair = tuple[int, int]
"""Index of an image in its data set, and class."""


def candidates(dataset: Dataset, known: Container[Key] | None = None) -> list[Pair]:
    """The pairs that a trial may take: those that have rows, or all of them."""
    return [
        (index, target.class_id)
        for index, (image_id, targets) in enumerate(zip(dataset.image_ids, dataset.targets, strict=True))
        for target in targets
        if known is None or (image_id, str(target.class_id)) in known
    ]


def choose(pairs: list[Pair], trials: int, missing: int, seed: int) -> list[Pair]:
    """The last `missing` of `trials` random pairs, the same whenever they are asked for."""
    order = numpy_generator(seed, "runtime").permutation(len(pairs))
    return [pairs[order[i % len(order)]] for i in range(trials if len(pairs) else 0)][trials - missing :]


def times(
    explainer: Explainer, dataset: Dataset, preprocess: Preprocess, pairs: list[Pair], warmup: int, label: str
) -> Iterator[tuple[str, float]]:
    """Image id and seconds per map of each pair that can be read; the first is explained `warmup` times before."""
    steps = pairs[:1] * warmup + pairs
    loaded = load_batches(dataset, preprocess, [[index] for index, _ in steps], workers=0)
    progress = tqdm(zip(loaded, steps, strict=True), total=len(steps), desc=f"{label} runtime", leave=False)
    for step, ((fed,), (_, class_id)) in enumerate(progress):
        readable = [target.class_id for target in fed.sample.targets]
        if fed.image is None or class_id not in readable:
            continue
        images, all_pairs = stack([fed], explainer.classifier)
        position = readable.index(class_id)
        _, pair = all_pairs.chunk(slice(position, position + 1))
        seconds = explainer.explain_stack([fed], images, pair).seconds
        if step >= warmup:
            yield fed.sample.image_id, seconds
