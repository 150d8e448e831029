"""What the images of a data set show, which of them are held out, and how often each is drawn."""

import torch
from torch import Tensor

from camexp.datasets.base import Dataset
from camexp.errors import CamexpError
from camexp.seeding import seed_from

NORMAL = "no defect"
"""First class of a data set whose images without targets are a class of their own."""


def label_sets(dataset: Dataset) -> tuple[list[int], Tensor]:
    """Indices (N) of the labelled images and their label sets (N,C) in {0,1}.

    Images without any class are left out, and so are those whose annotations are broken: what they show is unknown.

    Raises
    ------
    CamexpError: when no image is left.
    """
    broken = {failure.image_id for failure in dataset.failures}
    shown = [[t.class_id for t in targets] for targets in dataset.targets]
    if dataset.classes[0] == NORMAL:
        shown = [classes or [0] for classes in shown]
    indices = [i for i, classes in enumerate(shown) if classes and dataset.image_ids[i] not in broken]
    if not indices:
        raise CamexpError(f"none of the {len(dataset)} images of the split shows a class; check dataset.root and limit")
    labels = torch.zeros(len(indices), len(dataset.classes))
    for row, index in enumerate(indices):
        labels[row, shown[index]] = 1
    return indices, labels


def hold_out(image_ids: list[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Rows to train on and rows held out: `share` of the pictures, crops "<picture>@<place>" of one together."""
    pictures = [image_id.partition("@")[0] for image_id in image_ids]
    order = sorted(set(pictures), key=lambda picture: (seed_from(seed, "validation", picture), picture))
    held = set(order[: round(share * len(order))])
    rows = range(len(pictures))
    return [r for r in rows if pictures[r] not in held], [r for r in rows if pictures[r] in held]


def class_weights(labels: Tensor, power: float) -> Tensor:
    """Weights (C,) proportional to (1 / how often a class is shown)^power, with a mean of 1 over what is shown.

    A class that no image shows has weight 0.
    """
    count = labels.sum(0)
    weights = torch.where(count > 0, count.clamp(min=1) ** -power, 0)
    return weights * count.sum() / (weights * count).sum()


def image_weights(labels: Tensor, power: float) -> Tensor:
    """How often each image (N,) is to be drawn, relatively: the mean weight of its classes."""
    return (labels * class_weights(labels, power)).sum(1) / labels.sum(1)


BALANCES = {
    "none": lambda labels, power: (None, None),
    "sampler": lambda labels, power: (image_weights(labels, power), None),
    "weights": lambda labels, power: (None, class_weights(labels, power)),
}
"""By `recipe.balance`: weights (N,) of the images' drawing and (C,) of the classes' loss."""


def draw_order(weights: Tensor | None, count: int, generator: torch.Generator) -> Tensor:
    """The rows of one epoch (count,): each once in random order, or drawn with replacement by `weights` (N,)."""
    if weights is None:
        return torch.randperm(count, generator=generator)
    return torch.multinomial(weights, count, replacement=True, generator=generator)
