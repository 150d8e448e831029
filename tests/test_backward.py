"""One backward pass for all classes: the gradients of one pass per class, where a graph is light."""

from collections.abc import Callable

import pytest
import torch
from conftest import Operations, make_batch, make_classifier
from torch import Tensor, nn

from camexp.models.backward import at_once, chosen_logit, is_light
from camexp.models.classifier import Classifier
from camexp.pairs import Pairs

CAM = {"cam": "1"}
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


class Twice(torch.autograd.Function):
    """Somebody's own function, of which nobody knows what several at once would be."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        return 2 * x

    @staticmethod
    def backward(ctx, upper: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        return 2 * upper


class Applied(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Around(nn.Module):
    """A linear head whose input is the last maps and, past them, what they are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.first(x).relu()
        return self.head((maps + self.second(maps)).relu().mean((2, 3)))


def like_vgg() -> nn.Sequential:
    """The last convolution is followed by a pooling and by linear layers that are large, and a small one."""
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(16), nn.Flatten()),
        *(nn.Linear(1024, 1024), nn.ReLU(), nn.Dropout(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 4)),
    )


def followed_by(*modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), *modules),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)),
    )


def ways(network: Callable[[], nn.Module], layer: str) -> list[Classifier]:
    """Classifiers of equal networks: all classes in one backward pass, and one pass for each."""
    made = []
    for together in (True, False):
        torch.manual_seed(0)
        made.append(Classifier(network(), {"cam": layer}, batched_backward=together))
    return made


def uniform(images: int, classes: int) -> tuple[Tensor, Pairs]:
    batch, _ = make_batch(images, 32, 32)
    target = torch.stack([torch.randperm(4, generator=torch.manual_seed(i))[:classes] for i in range(images)])
    pairs = Pairs(torch.arange(images).repeat_interleave(classes), target.flatten(), tuple(map(str, range(images))))
    return batch, pairs


@pytest.mark.parametrize("scored", ["chosen_logit", "log_odds"])
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize(
    ("network", "layer"), [(like_vgg, "1"), (followed_by, "1"), (Around, "second")], ids=["vgg", "pooling", "around"]
)
def test_gradients_are_those_of_one_pass_per_class(
    network: Callable[[], nn.Module], layer: str, images: int, scored: str
) -> None:
    batch, pairs = uniform(images, 3)
    found = []
    for classifier in ways(network, layer):
        score = chosen_logit if scored == "chosen_logit" else classifier.log_odds
        features, gradients = classifier.features_and_gradients(
            batch, pairs, [layer], score, reduce=lambda gradient: gradient.square()
        )
        assert gradients[0].shape == (len(pairs), *features[0].shape[1:])
        assert gradients[0].any()
        found.append([*features, *gradients])
    torch.testing.assert_close(found[0], found[1], **CLOSE)


def test_each_pair_has_the_gradient_of_its_own_image_and_class() -> None:
    (classifier, _), (batch, pairs) = ways(like_vgg, "1"), make_batch(height=32, width=32)  # one, two, three classes
    order = torch.tensor([5, 0, 3, 1, 4, 2])
    pairs = Pairs(pairs.image[order], pairs.target[order], pairs.image_ids)
    _, gradients = classifier.activations_and_gradients(batch, pairs, "1")
    for pair, (image, _, target) in enumerate(pairs):
        (activation,), logits = classifier.capture(batch[image : image + 1], ["1"])
        (expected,) = torch.autograd.grad(logits[0, target], activation)
        torch.testing.assert_close(gradients[pair], expected[0], **CLOSE)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")
def test_large_layers_are_gone_back_through_once_for_all_classes() -> None:
    batch, pairs = uniform(2, 3)
    counts = []
    for classifier in ways(like_vgg, "1"):
        with Operations() as operations:
            classifier.activations_and_gradients(batch, pairs, "1")
        counts.append(operations.count("_linear_pointwise"))
    assert counts == [2 + 2, 2 + 2 * 3]


def test_some_classes_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    (classifier, one_by_one), (batch, pairs) = ways(like_vgg, "1"), uniform(2, 3)
    made: list[int] = []
    vmap = torch.func.vmap
    monkeypatch.setattr(classifier, "copies_at_once", lambda images: 2)
    monkeypatch.setattr(torch.func, "vmap", lambda back: lambda upper: made.append(len(upper)) or vmap(back)(upper))
    _, found = classifier.activations_and_gradients(batch, pairs, "1")
    assert made == [2, 1]
    torch.testing.assert_close(found, one_by_one.activations_and_gradients(batch, pairs, "1")[1], **CLOSE)


def test_inputs_that_a_score_does_not_depend_on_have_gradients_of_zero() -> None:
    maps, other = torch.ones(2, 3, requires_grad=True), torch.ones(2, 5, requires_grad=True)
    logits = maps @ torch.arange(12.0).view(3, 4)
    found = list(at_once(logits, torch.tensor([[1, 3], [0, 2]]), [maps, other], chosen_logit))
    assert [len(gradients) for gradients in found] == [2, 2]
    assert found[0][0].tolist() == [[1, 5, 9], [0, 4, 8]]
    assert found[1][0].tolist() == [[3, 7, 11], [2, 6, 10]]
    assert torch.equal(found[1][1], torch.zeros(2, 5))


@pytest.mark.parametrize(
    ("network", "options", "light"),
    [
        (followed_by(nn.MaxPool2d(2)), {}, True),
        (like_vgg(), {}, True),
        (like_vgg(), {"tail_backward": False}, False),  # goes on back to the image
        (followed_by(nn.Conv2d(4, 4, 1)), {}, False),
        (followed_by(nn.Conv2d(4, 4, 1)), {"packed_weights": False}, False),
        (followed_by(nn.ConvTranspose2d(4, 4, 1)), {}, False),
        (followed_by(Applied(Twice.apply)), {}, False),
        (followed_by(Applied(torch.sigmoid)), {}, False),  # vmap knows it, but who knows what else there may be
    ],
    ids=[
        "pooling",
        "vgg",
        "to the image",
        "packed convolution",
        "convolution",
        "transposed",
        "own function",
        "another",
    ],
)
def test_graphs_that_are_light(network: nn.Module, options: dict[str, bool], light: bool) -> None:
    _, logits = Classifier(network, CAM, **options).capture(make_batch(height=32, width=32)[0], ["1"])  # type: ignore[arg-type]
    assert is_light(logits) == light


def test_the_tail_of_the_tiny_network_is_light_behind_its_last_maps_alone() -> None:
    for layer, light in (("4", True), ("1", False)):
        _, logits = make_classifier().capture(make_batch()[0], [layer])
        assert is_light(logits) == light
