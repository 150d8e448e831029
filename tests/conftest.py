"""Small networks and batches that the tests share."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from camexp.models.classifier import Classifier
from camexp.pairs import Pairs

torch.set_num_threads(1)


class Operations(TorchDispatchMode):
    """Names of the operations that are done while the context lasts."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))

    def count(self, part: str) -> int:
        return sum(part in name for name in self.names)


def tiny_network(num_classes: int = 4, seed: int = 0) -> nn.Sequential:
    """Two convolutions with ReLU and a pooling between, global average pooling, a linear layer."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, num_classes),
    )
    with torch.no_grad():  # confident enough that gradients of the probability differ from the logit's
        network[7].weight.mul_(8)
    return network


def make_classifier(network: nn.Module | None = None, **kwargs) -> Classifier:
    """A classifier around a tiny network; its CAM layer is the second ReLU."""
    return Classifier(network or tiny_network(), kwargs.pop("layers", {"cam": "4", "sise": ("1", "4")}), **kwargs)


def make_batch(
    images: int = 3, height: int = 16, width: int = 16, classes: int = 4, seed: int = 1
) -> tuple[Tensor, Pairs]:
    """Random images (B,3,H,W) with one to three pairs each and random box masks."""
    generator = torch.Generator().manual_seed(seed)
    batch = torch.randn(images, 3, height, width, generator=generator)
    image, target, masks = [], [], []
    for i in range(images):
        for c in torch.randperm(classes, generator=generator)[: i % 3 + 1].tolist():
            mask = torch.zeros(height, width, dtype=torch.bool)
            mask[2 + c : height // 2 + c, 1 + i : width // 2 + i] = True
            image.append(i)
            target.append(c)
            masks.append(mask)
    ids = tuple(f"image{i}" for i in range(images))
    return batch, Pairs(torch.tensor(image), torch.tensor(target), ids, torch.stack(masks))


@pytest.fixture
def classifier() -> Classifier:
    return make_classifier()


@pytest.fixture
def batch() -> tuple[Tensor, Pairs]:
    return make_batch()
