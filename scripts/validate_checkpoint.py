"""How good a network is on its data set, beside what the papers say of theirs, and whether it is fed as it expects.

    python scripts/validate_checkpoint.py dataset=voc2007 model=vgg16 [option=value ...] [--compare]

Options are those of camexp.run (limit=, device=, protocol=, model.checkpoint= ...). Printed are, in percent:

    top-1, top-5       share of images with a true class among the first one, the first five
    recall@5           share of (image, true class) pairs whose class is among the first five
    mAP                mean average precision over the classes, VOC2007's at 11 recalls and at all points; an image that
                       shows only difficult objects of a class does not count for that class, as in VOC's own devkit
    true p             mean confidence of the true classes

All images that show a class count, those whose objects are all difficult too. With --compare the network is also fed
in the ways that are common mistakes: the other normalisations, without the mean, with the channels in the order BGR.

Exit status: 0 done, 1 done but some images could not be read, 2 a mistake that the message explains, 130 interrupted.
"""

import argparse
import inspect
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from hydra.utils import get_object
from omegaconf import DictConfig, open_dict
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms
from tqdm import tqdm

from camexp.command import exit_status
from camexp.config import compose_config, make_classifier, make_dataset, make_preprocess
from camexp.datasets.base import Dataset, Failure
from camexp.errors import CamexpError
from camexp.evaluation import average_precision, average_precision_voc07, quality
from camexp.loading import load_batches
from camexp.models.classifier import Classifier
from camexp.models.preprocess import NORMALISATIONS, Fed, Preprocess
from camexp.training.labels import label_sets

COLUMNS = {
    "top1": "top-1",
    "top5": "top-5",
    "recall5": "recall@5",
    "map_voc07": "mAP 11 points",
    "map": "mAP all points",
    "true_probability": "true p",
}

PUBLISHED = {
    ("voc2007", "vgg16"): ("top5", 0.9329, "SISE paper, VOC2007 test"),
    ("voc2007", "resnet50"): ("top5", 0.9309, "SISE paper, VOC2007 test"),
    ("severstal", "resnet101"): ("top1", 0.8658, "SISE paper, its own split"),
}
"""What the papers say of their networks, by data set and model (not whether top-5 means our top-5 or our recall@5)."""

FAR_OFF = 0.03
"""A published value that is missed by more than this share is worth a warning."""

BETTER = 0.01
"""Another way of feeding is advised when its mean average precision is higher by more than this."""

ENOUGH = 100
"""Advice from fewer images says that it may be chance."""

WHOLE = {"difficult": "keep", "with_normal": True, "selection": "full"}
"""Settings of data sets with which no image is left out."""


@dataclass(frozen=True)
class Feeding:
    """One way to feed pixels to a network: normalisation and centring as in `Preprocess`, and the channels' order."""

    normalisation: str
    centring: str = "model"
    order: str = "RGB"

    def __call__(self, pixels: Tensor) -> Tensor:
        """RGB pixels (B,3,H,W) in [0,255] as they are fed; in the order BGR the mean is reversed with them."""
        norm = Preprocess(self.normalisation, centring=self.centring).applied
        fed = transforms.normalize(pixels * (norm.scale / 255), list(norm.mean), list(norm.std))
        return fed if self.order == "RGB" else fed.flip(1)

    def __str__(self) -> str:
        return f"{self.normalisation}{'' if self.centring == 'model' else ' without mean'}, {self.order}"


def feedings(preprocess: Preprocess, compare: bool) -> list[Feeding]:
    """The configured way first; with `compare` all the others after it."""
    configured = Feeding(preprocess.normalisation, preprocess.centring)
    ways = itertools.product(NORMALISATIONS, ("model", "none"), ("RGB", "BGR")) if compare else ()
    return list(dict.fromkeys([configured, *(Feeding(*way) for way in ways)]))


def whole(cfg: DictConfig) -> DictConfig:
    """The config with every image of the data set's split, in place."""
    accepted = inspect.signature(get_object(cfg.dataset._target_)).parameters
    with open_dict(cfg):
        cfg.dataset.update({key: value for key, value in WHOLE.items() if key in accepted})
    return cfg


def labels(dataset: Dataset) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Indices (N) of the images of which it is known what they show; the classes (N,C); which are only difficult."""
    indices, truth = label_sets(dataset)
    difficult = np.zeros(truth.shape, bool)
    for row, index in enumerate(indices):
        for target in dataset.targets[index]:
            difficult[row, target.class_id] = target.difficult
    return indices, truth.numpy() > 0, difficult


def predict(
    cfg: DictConfig, dataset: Dataset, indices: list[int], classifier: Classifier, ways: list[Feeding]
) -> tuple[np.ndarray, np.ndarray, list[Failure]]:
    """Confidences (F,N,C) for each way of feeding, which images (N,) could be read, and why the others could not."""
    pixels_of = replace(make_preprocess(cfg), normalisation="caffe", centring="none")  # 255 x: the pixels themselves
    rows_of = np.split(np.arange(len(indices)), range(cfg.batch_size, len(indices), cfg.batch_size))
    loaded = load_batches(dataset, pixels_of, [[indices[row] for row in rows] for rows in rows_of], cfg.workers)
    confidences = np.zeros((len(ways), len(indices), len(dataset.classes)), np.float32)
    read, failures = np.zeros(len(indices), bool), []
    label = f"{cfg.dataset.name} {cfg.model.name}"
    with tqdm(total=len(indices), desc=label, unit="img", dynamic_ncols=True) as progress:
        for rows, fed in zip(rows_of, loaded, strict=True):
            failures += [failure for f in fed if f.image is None for failure in f.sample.failures[:1]]
            for members, pixels in _of_one_size(fed):
                read[rows[members]] = True
                for number, way in enumerate(ways):
                    confidences[number, rows[members]] = classifier.scores(way(pixels)).cpu().numpy()
            progress.update(len(rows))
    return confidences, read, failures


def _of_one_size(fed: list[Fed]) -> Iterator[tuple[list[int], Tensor]]:
    """The readable images in groups of one size: their places and their pixels (B,3,H,W)."""
    for shape in sorted({tuple(f.image.shape) for f in fed if f.image is not None}):
        members = [place for place, f in enumerate(fed) if f.image is not None and f.image.shape == shape]
        yield members, torch.stack([image for place in members if (image := fed[place].image) is not None])


def measure(confidences: np.ndarray, truth: np.ndarray, difficult: np.ndarray) -> dict[str, float]:
    """`quality` of confidences (N,C), the average precisions without difficult ones, as VOC's devkit takes them."""

    def mean(precision_of: Callable[[np.ndarray, np.ndarray], float]) -> float:
        values = [
            precision_of(confidences[clear, c], truth[clear, c])
            for c in range(truth.shape[1])
            if (truth[:, c] & (clear := ~difficult[:, c])).any()
        ]
        return float(np.mean(values)) if values else float("nan")

    precisions = {"map": mean(average_precision), "map_voc07": mean(average_precision_voc07)}
    return quality(confidences, truth) | precisions


def table(ways: list[Feeding], measured: list[dict[str, float]]) -> str:
    """One line per way of feeding, in percent."""
    names = [f"{way}{' (configured)' if n == 0 else ''}" for n, way in enumerate(ways)]
    width = max(len("fed as"), *map(len, names))
    lines = ["  ".join([f"{'fed as':{width}}", *COLUMNS.values()])]
    for name, values in zip(names, measured, strict=True):
        cells = [f"{100 * values[key]:{len(title)}.2f}" for key, title in COLUMNS.items()]
        lines.append("  ".join([f"{name:{width}}", *cells]))
    return "\n".join(lines)


def advice(
    cfg: DictConfig, ways: list[Feeding], measured: list[dict[str, float]], images: int = ENOUGH
) -> Iterator[str]:
    """What the user should know: the published value, and a way of feeding that suits the network better."""
    doubt = "" if images >= ENOUGH else f" (With only {images} images it may be chance.)"
    key, published, source = PUBLISHED.get((cfg.dataset.name, cfg.model.name), ("", 0.0, ""))
    short = bool(key) and measured[0][key] < published - FAR_OFF
    if key:
        part = "" if cfg.limit is None else f"; here only the first {cfg.limit} images"
        yield f"published {COLUMNS[key]}: {100 * published:.2f} ({source}{part})"
    best = max(range(len(ways)), key=lambda number: measured[number]["map"])
    if measured[best]["map"] > measured[0]["map"] + BETTER:
        yield f"The network is better when it is fed as {ways[best]}: {remedy(ways[0], ways[best])}.{doubt}"
    elif short and len(ways) == 1:
        yield "Far below the published value: is the network fed as it was in training? --compare tells." + doubt
    elif short:
        yield (
            "Far below the published value, and no other way of feeding is better: is it the right checkpoint?" + doubt
        )


def remedy(configured: Feeding, best: Feeding) -> str:
    """What to change so that the network is fed in the best way."""
    changes = [f"pass model.preprocess={best.normalisation}"] * (best.normalisation != configured.normalisation)
    changes += [f"pass protocol.centring={best.centring}"] * (best.centring != configured.centring)
    if best.order != configured.order:
        changes.append(
            "its first convolution expects BGR, which scripts/convert_checkpoint.py turns for TorchRay's files"
        )
    return "; ".join(changes)


def validate(cfg: DictConfig, compare: bool) -> int:
    """Measure and print; the exit status."""
    dataset = make_dataset(whole(cfg))
    classifier, weights = make_classifier(cfg, len(dataset.classes))
    ways = feedings(make_preprocess(cfg), compare)
    indices, truth, difficult = labels(dataset)
    confidences, read, failures = predict(cfg, dataset, indices, classifier, ways)
    failures += dataset.failures
    if not read.any():
        raise CamexpError(f"none of the {len(dataset)} images could be read; the first: {failures[0].reason}")
    measured = [measure(values[read], truth[read], difficult[read]) for values in confidences]
    print(f"{cfg.dataset.name}, {cfg.model.name}: {cfg.model.checkpoint} (SHA-256 {weights[:12]})")
    counts = f"{read.sum()} of {len(dataset)} images, {truth[read].sum()} (image, class) pairs"
    fed = f"{cfg.protocol.score}, {cfg.protocol.resize} {cfg.protocol.size}"
    print(f"{counts}, {difficult[read].sum()} of them difficult; {fed}\n")
    print(table(ways, measured), *advice(cfg, ways, measured, int(read.sum())), sep="\n")
    tell(failures)
    return int(bool(failures))


def tell(failures: list[Failure]) -> None:
    """List the images that are not counted because they, or what they show, could not be read."""
    reasons = {failure.image_id: failure.reason for failure in failures}
    for image_id, reason in list(reasons.items())[:5]:
        print(f"not read: {image_id}: {reason}", file=sys.stderr)
    if reasons:
        print(f"{len(reasons)} images could not be read and are not counted", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("options", nargs="*", help="options of camexp.run, e.g. dataset=voc2007 model=vgg16 limit=500")
    parser.add_argument("--compare", action="store_true", help="also feed the network in the wrong ways")
    args = parser.parse_intermixed_args(argv)
    return exit_status(lambda: validate(compose_config(args.options), args.compare))


if __name__ == "__main__":
    sys.exit(main())
