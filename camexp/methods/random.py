"""Control: independent noise. What a method scores beyond this, it owes to the image or to a prior."""

from dataclasses import dataclass

import torch
from torch import Tensor

from camexp.models.classifier import Classifier
from camexp.pairs import Pairs
from camexp.seeding import torch_generator


@dataclass(frozen=True)
class Random:
    """M ~ U(0,1) at every pixel, (P,H,W), seeded by (seed, "random", image id, class).

    Cost: none.

    Parameters
    ----------
    seed: seed of the run.
    """

    seed: int = 0

    def __call__(self, classifier: Classifier, images: Tensor, pairs: Pairs) -> Tensor:
        size = images.shape[2:]
        maps = [torch.rand(size, generator=torch_generator(self.seed, "random", i, c)) for _, i, c in pairs]
        return torch.stack(maps).to(images.device)
