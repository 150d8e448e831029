"""What the mathematics of each method asks of the network: the passes without which its formula has no value.

Rows are images that run through the network. Everything else that a method does (masks, reductions, enlarging) is not
in the floor; it is what the floor is meant to show.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from camexp.methods.expected_gradcam import REFERENCES
from camexp.models.classifier import Classifier
from camexp.pairs import Pairs


@dataclass(frozen=True)
class Shape:
    """What a call is asked for: images of one size with as many classes each.

    Attributes
    ----------
    masks: masked or ablated rows that the images' own activations ask for (`MASKS`), over all images.
    """

    images: int
    classes: int
    height: int = 224
    width: int = 224
    masks: int = 0

    @property
    def pairs(self) -> int:
        return self.images * self.classes


@dataclass(frozen=True)
class Work:
    """Rows of each kind of pass.

    Attributes
    ----------
    forward: through the whole network.
    backward: from the logits back to the input.
    layers_backward: from the logits back to the first of SISE's layers.
    tail: through what follows the CAM layer, beyond the rows of `forward`.
    tail_backward: from the logits back to the CAM layer.
    """

    forward: float = 0
    backward: float = 0
    layers_backward: float = 0
    tail: float = 0
    tail_backward: float = 0


# one forward serves all classes of an image: only what goes back from a class's logit is done once per pair
def _one_layer(method: Any, shape: Shape) -> Work:
    return Work(forward=shape.images, tail_backward=shape.pairs)


def _input_gradient(method: Any, shape: Shape) -> Work:
    return Work(forward=shape.images, backward=shape.pairs)


def _masked(method: Any, shape: Shape) -> Work:
    """The masks come from the activations: one pass more."""
    return Work(forward=shape.images + shape.masks)


def _sise(method: Any, shape: Shape) -> Work:
    """One pass gives the feature maps and the graph for their scores."""
    return Work(forward=shape.images + shape.masks, layers_backward=shape.pairs)


def _igcam(method: Any, shape: Shape) -> Work:
    black = int(method.variant == "paper")  # A(I') is the same for all images
    return Work(forward=method.m * shape.images + black, tail_backward=method.m * shape.pairs)


def _expected_gradcam(method: Any, shape: Shape) -> Work:
    n = method.samples
    random = REFERENCES[method.reference].offset is not None
    references = 0 if method.variant == "plain" else n if random else 1
    return Work(forward=(1 + n + references) * shape.images, tail_backward=n * shape.pairs)


def _smooth_gradcam_pp(method: Any, shape: Shape) -> Work:
    return Work(forward=(1 + method.samples) * shape.images, tail_backward=method.samples * shape.pairs)


def _path(points: int, shape: Shape) -> Work:
    return Work(forward=points * shape.images, backward=points * shape.pairs)


def _extremal_perturbation(method: Any, shape: Shape) -> Work:
    rows = len(method.areas) * method.iterations * shape.pairs  # a mask of its own for every pair and area
    return Work(forward=rows, backward=rows)


def windows(method: Any, shape: Shape) -> int:
    """Positions of Occlusion's window."""

    def along(side: int) -> int:
        return math.ceil(max(0, side - method.size) / method.stride) + 1

    return along(shape.height) * along(shape.width)


NEEDED: dict[str, Callable[[Any, Shape], Work]] = {
    "cam": lambda method, shape: Work(forward=shape.images),
    "gradcam": _one_layer,
    "gradcam_pp": _one_layer,
    "xgradcam": _one_layer,
    "layercam": _one_layer,
    "hirescam": _one_layer,
    "counterfactual_gradcam": _one_layer,
    "igcam": _igcam,
    "expected_gradcam": _expected_gradcam,
    "smooth_gradcam_pp": _smooth_gradcam_pp,
    "ablationcam": lambda method, shape: Work(forward=shape.images, tail=shape.masks),
    "scorecam": _masked,
    "sise": _sise,
    "ada_sise": _sise,
    "fullgrad": _input_gradient,
    "gradient": _input_gradient,
    "smoothgrad": lambda method, shape: _path(method.samples, shape),
    "integrated_gradients": lambda method, shape: _path(method.steps, shape),
    # every nonlinearity of every layer for the reference too, which all pairs share
    "deeplift": lambda method, shape: Work(forward=shape.images + 1, backward=shape.pairs),
    "guided_backprop": _input_gradient,
    # the guided and the plain backward pass start from one forward
    "guided_gradcam": lambda m, shape: Work(shape.images, backward=shape.pairs, tail_backward=shape.pairs),
    "rise": lambda method, shape: Work(forward=method.masks * shape.images),
    "occlusion": lambda method, shape: Work(forward=(1 + windows(method, shape)) * shape.images),
    "extremal_perturbation": _extremal_perturbation,
}
"""Work of one call by method. Controls ask nothing of the network."""


# --------------------------------------------------------------------------------- what the data ask for


def _varying(feature: Tensor) -> Tensor:
    """Which channels (B,K) of (B,K,h,w) are not constant."""
    return feature.amax((2, 3)) > feature.amin((2, 3))


def _channels(method: Any, classifier: Classifier, images: Tensor, pairs: Pairs) -> int:
    feature = classifier.activations(images, [method.layer or classifier.cam_layer])[0]
    return int(_varying(feature).sum())


def _active(method: Any, classifier: Classifier, images: Tensor, pairs: Pairs) -> int:
    feature = classifier.activations(images, [method.layer or classifier.cam_layer])[0]
    return int(feature.flatten(2).any(2).sum())


def _kept(method: Any, classifier: Classifier, images: Tensor, pairs: Pairs) -> int:
    """Feature maps that a class of their image keeps, in all layers."""
    layers = classifier.layer_names(method.layers)
    total = 0
    for feature, alpha in zip(*method.features_and_alphas(classifier, images, pairs, layers), strict=True):
        used = torch.zeros(feature.shape[:2], device=feature.device)
        used.index_add_(0, pairs.image, method.keep(alpha).float())
        total += int(((used > 0) & _varying(feature)).sum())
    return total


MASKS: dict[str, Callable[[Any, Classifier, Tensor, Pairs], int]] = {
    "scorecam": _channels,
    "ablationcam": _active,
    "sise": _kept,
    "ada_sise": _kept,
}
"""Methods whose number of masks depends on the images, and how many the images at hand ask for."""


def needed(name: str, method: Any, shape: Shape) -> Work:
    """Work of one call."""
    return NEEDED[name](method, shape)
