"""Ablation-CAM (Desai and Ramaswamy, WACV 2020, section 3)."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from camexp.errors import CamexpError
from camexp.methods.base import upsample
from camexp.models.classifier import Classifier
from camexp.pairs import Pairs

VARIANTS: dict[str, Callable[[Tensor], Tensor]] = {"paper": lambda y: y, "magnitude": torch.abs}
"""The denominator of the weights as a function of the logit."""

SMALLEST = 1e-6
"""A denominator nearer to 0 is moved to this distance, on its side."""


@dataclass(frozen=True)
class AblationCAM:
    """Channels of the CAM layer, weighted by the share of the logit that is lost without them.

        M = ReLU( sum_k w_k A^k ),   w_k = (y_c - y_c^k) / y_c

    y_c^k is the class's logit with channel k of the layer's activations set to 0. The formula is made for classes
    that the network sees: with y_c < 0 the weights, and with them the map, change sign. The variant "magnitude"
    divides by |y_c|, so that what lowers the logit always speaks for the class. Channels without activation have
    no weight and need no pass.

    Cost: one forward per image, and one pass through the tail behind the layer per (image, channel); no backward.
    All classes of an image share them.

    Parameters
    ----------
    variant: "paper", or "magnitude" (see above).
    layer: module path; None for the model's CAM layer.

    Raises
    ------
    CamexpError: for another variant.
    """

    variant: str = "paper"
    layer: str | None = None

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise CamexpError(
                f"method.variant of ablationcam must be one of {', '.join(VARIANTS)}, not {self.variant!r}"
            )

    @torch.no_grad()
    def __call__(self, classifier: Classifier, images: Tensor, pairs: Pairs) -> Tensor:
        layer = self.layer or classifier.cam_layer
        order = pairs.image.argsort(stable=True)
        by_image = [
            self.explain(classifier, image[None], pairs.target[pairs.image == i], layer)
            for i, image in enumerate(images)
        ]
        cam = torch.cat(by_image)[order.argsort()]  # (P, h, w), in the order of the pairs
        return upsample(cam, images.shape[2:])

    def explain(self, classifier: Classifier, image: Tensor, target: Tensor, layer: str) -> Tensor:
        """Maps (p,h,w) of one image (1,3,H,W) for its classes (p,)."""
        with tail_behind(classifier, image, layer) as (activation, logits, tail):
            channel = torch.nonzero(activation[0].flatten(1).any(1))[:, 0]  # (R,)

            def work(rows: slice) -> Tensor:
                k = channel[rows]
                ablated = activation.repeat(len(k), 1, 1, 1)
                ablated[torch.arange(len(k), device=k.device), k] = 0
                return tail(ablated)[:, target]

            without = torch.cat([logits[:0, target], *classifier.in_chunks(work, len(channel))])  # (R, p)
        score = logits[0, target]  # (p,)
        denominator = VARIANTS[self.variant](score)
        sign = torch.where(denominator < 0, -1.0, 1.0)
        weight = (score - without) / (sign * denominator.abs().clamp(min=SMALLEST))  # (R, p)
        return torch.einsum("rp,rhw->phw", weight, activation[0, channel]).relu()


@contextmanager
def tail_behind(
    classifier: Classifier, image: Tensor, layer: str
) -> Iterator[tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]]:
    """Activations (1,K,h,w) and logits (1,C) of one image (1,3,H,W), and the tail: (n,K,h,w) -> logits (n,C).

    The tail runs what follows the layer, and nothing before it, while the context lasts: modules that were done
    before the layer return what they returned in the one pass through the whole network.
    """
    head, logits = _record(classifier, image, layer)
    activation = head.pop(layer)
    modules = {classifier.network.get_submodule(name): output.clone for name, output in head.items()}
    inserted = activation

    def tail(rows: Tensor) -> Tensor:
        nonlocal inserted
        inserted = rows
        return classifier.forward(image)

    with _answering({**modules, classifier.network.get_submodule(layer): lambda: inserted}):
        yield activation, logits, tail


def _record(classifier: Classifier, image: Tensor, layer: str) -> tuple[dict[str, Tensor], Tensor]:
    """Outputs of the layer and of the outermost modules that were done before it, by name, and the logits.

    Modules that are called more than once are left out: they have no one output. Outputs are copies: what follows
    a module may change its output in place.
    """
    calls: Counter[str] = Counter()
    outputs: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor) -> Tensor:
        calls[name] += 1
        if layer not in outputs and isinstance(output, Tensor):
            for inner in [n for n in outputs if n.startswith(f"{name}.")]:
                del outputs[inner]
            outputs[name] = output.clone()
        return output

    with classifier.hooks([name for name, _ in classifier.network.named_modules() if name], keep):
        logits = classifier.forward(image)
    return {name: output for name, output in outputs.items() if calls[name] == 1 or name == layer}, logits


@contextmanager
def _answering(answers: Mapping[nn.Module, Callable[[], Tensor]]) -> Iterator[None]:
    """While the context lasts, a call of each module gives its answer, and the module does no work."""
    before = {module: vars(module).get("forward") for module in answers}
    try:
        for module, answer in answers.items():
            vars(module)["forward"] = lambda *args, answer=answer, **kwargs: answer()
        yield
    finally:
        for module, forward in before.items():
            del vars(module)["forward"]
            if forward is not None:
                vars(module)["forward"] = forward
