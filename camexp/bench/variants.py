"""Classifiers that do without one of the techniques, to measure it and to check it."""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from camexp.models.classifier import Classifier
from camexp.pairs import Pairs


class Variant(Classifier):
    """A classifier made from another one, whose network it shares."""

    @classmethod
    def of(cls, classifier: Classifier) -> Self:
        made = cls.__new__(cls)
        vars(made).update(vars(classifier))
        return made


class ChannelsFirst(Variant):
    """Images and weights in PyTorch's default memory format. It takes the network over."""

    @classmethod
    def of(cls, classifier: Classifier) -> Self:
        made = super().of(classifier)
        made.network.to(memory_format=torch.contiguous_format)
        return made

    def forward(self, images: Tensor) -> Tensor:
        self.on_forward(len(images))
        return self.network(images.to(self.device).contiguous())


class WholeGraph(Variant):
    """A graph from the image on, and a backward pass through the whole network, for one layer's gradients."""

    def activations_and_gradients(self, images: Tensor, pairs: Pairs, layer: str) -> tuple[Tensor, Tensor]:
        def work(rows: slice) -> tuple[Tensor, Tensor]:
            found: list[Tensor] = []

            def keep(name: str, output: Tensor) -> Tensor:
                found.append(output)
                return output.clone()

            inputs = images[pairs.image[rows]].detach().requires_grad_()
            with self.hooks([layer], keep), torch.enable_grad():
                score = self.forward(inputs).gather(1, pairs.target[rows][:, None]).sum()
            gradient, _ = torch.autograd.grad(score, [found[0], inputs])
            return found[0].detach(), gradient

        activations, gradients = zip(*self.in_chunks(work, len(pairs)), strict=True)
        return torch.cat(activations), torch.cat(gradients)


class InferenceMode(Variant):
    """Passes without a graph in inference mode instead of without gradients."""

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        return super().logits(images)


class Rebatched(Variant):
    """Another number of images per pass."""

    @classmethod
    def with_batch(cls, classifier: Classifier, forward_batch: int) -> Self:
        made = cls.of(classifier)
        made.forward_batch = forward_batch
        return made


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine (P,) of maps (P,H,W), in float64; 1 where both are zero."""
    a, b = a.double().flatten(1), b.double().flatten(1)
    both_zero = ~(a.any(1) | b.any(1))
    found = torch.nn.functional.cosine_similarity(a, b, dim=1)
    return torch.where(both_zero, 1.0, found)


def classes_apart(pairs: Pairs) -> Sequence[Pairs]:
    """The pairs in calls that have at most one class of each image."""
    rank = [int((pairs.image[:p] == pairs.image[p]).sum()) for p in range(len(pairs))]
    order = torch.tensor(rank, device=pairs.image.device)
    return [
        Pairs(pairs.image[order == r], pairs.target[order == r], pairs.image_ids)
        for r in range(max(rank, default=-1) + 1)
    ]
