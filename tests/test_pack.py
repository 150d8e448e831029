"""Convolutions with their weights in order: the same numbers, whatever they are given."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import Operations, make_batch, make_classifier, tiny_network
from torch import Tensor, nn
from torch.autograd import forward_ad

from camexp.models import pack
from camexp.models.pack import PackedProduct, pack_convolutions

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")

SHAPES = {
    "plain": {"kernel_size": 3},
    "padded": {"kernel_size": (3, 5), "padding": (1, 2)},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1},
    "dilated": {"kernel_size": 3, "dilation": (2, 1)},
    "grouped": {"kernel_size": 3, "groups": 4},
    "depthwise": {"out_channels": 8, "kernel_size": 3, "groups": 8},
    "two per depth": {"out_channels": 16, "kernel_size": 3, "groups": 8, "stride": 2},
    "pointwise": {"kernel_size": 1, "bias": False},
}


class Packed(Operations):
    """Counts how often weights are brought into order and used in it."""

    @property
    def made(self) -> int:
        return self.count("_reorder_convolution_weight")

    @property
    def used(self) -> int:
        return self.count("_convolution_pointwise")


def pair(in_channels: int = 8, out_channels: int = 12, **shape) -> tuple[nn.Conv2d, nn.Conv2d]:  # type: ignore[no-untyped-def]
    """A convolution, and a copy that keeps its weights in order."""
    torch.manual_seed(0)
    plain = nn.Conv2d(in_channels, out_channels, **shape).requires_grad_(False)
    packed = copy.deepcopy(plain)
    assert pack_convolutions(packed) == 1
    return plain, packed


def images(*size: int) -> Tensor:
    batch = torch.randn(*size, generator=torch.Generator().manual_seed(1))
    return batch.contiguous(memory_format=torch.channels_last) if batch.ndim == 4 else batch


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_products_are_the_same(shape: dict[str, int]) -> None:
    plain, packed = (each.to(memory_format=torch.channels_last) for each in pair(**shape))
    for size in ((2, 8, 11, 14), (1, 8, 11, 14), (1, 8, 20, 9)):
        batch = images(*size)
        with Packed() as counted, torch.inference_mode():
            found = packed(batch)
        assert counted.used == 1
        expected = plain(batch)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert found.is_contiguous(memory_format=torch.channels_last)


def test_order_serves_any_number_of_several_images() -> None:
    plain, packed = pair(kernel_size=3)
    with Packed() as counted:
        for count, made in ((5, 1), (2, 1), (7, 1), (1, 2), (3, 2), (1, 2)):
            torch.testing.assert_close(packed(images(count, 8, 6, 6)), plain(images(count, 8, 6, 6)))
            assert counted.made == made


def test_orders_for_one_image_and_for_several_are_kept_side_by_side() -> None:
    plain, packed = pair(kernel_size=3)
    with Packed() as counted:
        for _ in range(2):
            for each, count in ((plain, 1), (packed, 1), (plain, 3), (packed, 3)):
                batch = images(count, 8, 6, 6).requires_grad_()
                each(batch).square().sum().backward()
                if each is plain:
                    expected = batch.grad
                else:
                    torch.testing.assert_close(batch.grad, expected, rtol=1e-5, atol=1e-5)
    assert (counted.made, counted.count("_reorder_convolution_transpose_weight")) == (2, 2)


def test_order_is_made_once_for_a_shape_and_again_for_other_weights() -> None:
    plain, packed = pair(kernel_size=3)
    with Packed() as counted:
        for _ in range(3):
            packed(images(1, 8, 6, 6))
        assert (counted.made, counted.used) == (1, 3)
        packed(images(2, 8, 6, 6))
        assert counted.made == 2
        for each in (plain, packed):
            each.weight.mul_(2)
        torch.testing.assert_close(packed(images(2, 8, 6, 6)), plain(images(2, 8, 6, 6)))
        assert counted.made == 3
        plain.weight = packed.weight = nn.Parameter(torch.ones_like(plain.weight), requires_grad=False)
        torch.testing.assert_close(packed(images(2, 8, 6, 6)), plain(images(2, 8, 6, 6)))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("size", [(2, 8, 11, 14), (1, 8, 12, 9)])
def test_gradients_are_the_same(shape: dict[str, int], size: tuple[int, ...]) -> None:
    plain, packed = (each.to(memory_format=torch.channels_last) for each in pair(**shape))
    gradients = []
    back = "groups" not in shape  # those are left to PyTorch
    for each, orders in ((plain, 0), (packed, 1), (packed, 0)):
        batch = images(*size).requires_grad_()
        with Packed() as counted:
            each(batch).square().sum().backward()
        assert counted.used == (each is packed)
        assert counted.count("_convolution_transpose_pointwise") == (each is packed and back)
        assert counted.made == orders
        assert counted.count("_reorder_convolution_transpose_weight") == orders * back
        gradients.append(batch.grad)
    for found in gradients[1:]:
        torch.testing.assert_close(found, gradients[0], rtol=1e-5, atol=1e-5)


def test_gradients_of_images_with_few_channels_are_the_same() -> None:
    """As of the first convolution of a ResNet."""
    plain, packed = pair(3, 8, kernel_size=7, stride=2, padding=3)
    for size in ((2, 3, 20, 21), (1, 3, 9, 8), (2, 3, 20, 21)):
        batches = [images(*size).requires_grad_() for _ in range(2)]
        for each, batch in zip((plain, packed), batches, strict=True):
            each.weight.mul_(2)
            with Packed() as counted:
                each(batch).square().sum().backward()
        assert counted.count("pixel_shuffle") == 1
        scale = float(batches[0].grad.abs().max())  # type: ignore[union-attr]
        torch.testing.assert_close(batches[1].grad, batches[0].grad, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("needed", [(True, True), (True, False), (False, True)], ids=str)
def test_gradients_of_what_is_added(needed: tuple[bool, bool]) -> None:
    """Also when the memory of it is free to be used."""
    plain, _ = pair(kernel_size=3, padding=1)
    plain.to(memory_format=torch.channels_last)
    product = PackedProduct(plain)
    results = []
    for packed in (False, True):
        batch, plus = images(2, 8, 6, 6), images(2, 12, 6, 6)
        before = plus.clone()
        for tensor, need in zip((batch, plus), needed, strict=True):
            tensor.requires_grad_(need)
        if packed:
            found = product.product(batch, plain.weight, plain.bias, "relu", plus, over=True)
            assert found is not None
        else:
            found = (plain(batch) + plus).relu()
        found.square().sum().backward()
        assert torch.equal(plus, before)
        assert [tensor.grad is not None for tensor in (batch, plus)] == list(needed)
        results.append([found, batch.grad, plus.grad])
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)


def test_a_graph_can_be_gone_back_through_again() -> None:
    plain, packed = pair(kernel_size=3)
    batches = [images(1, 8, 6, 6).requires_grad_() for _ in range(2)]
    outputs = [each(batch) for each, batch in zip((plain, packed), batches, strict=True)]
    for channel in (0, 5):
        found = [
            torch.autograd.grad(output[:, channel].sum(), batch, retain_graph=True)[0]
            for output, batch in zip(outputs, batches, strict=True)
        ]
        torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)


def test_orders_of_inference_mode_serve_graphs_too() -> None:
    plain, packed = pair(kernel_size=3)
    gradients = []
    for each in (plain, packed):
        with torch.inference_mode():
            each(images(1, 8, 6, 6))
        batch = images(1, 8, 6, 6).requires_grad_()
        each(batch).square().sum().backward()
        gradients.append(batch.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [8, 3])
def test_second_derivatives_are_the_same(channels: int) -> None:
    plain, packed = pair(channels, kernel_size=3, stride=2, padding=1)
    found = []
    for each in (plain, packed):
        batch = images(2, channels, 9, 8).requires_grad_()
        (first,) = torch.autograd.grad(each(batch).relu().pow(3).sum(), batch, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), batch)[0])
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4 * float(found[0].abs().max()))


def test_weights_that_were_changed_since_are_noticed() -> None:
    _, packed = pair(kernel_size=3)
    batch = images(1, 8, 6, 6).requires_grad_()
    total = packed(batch).sum()
    packed.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()
    packed(batch).sum().backward()
    assert batch.grad is not None
    before = batch.grad.clone()
    packed.weight.mul_(2)
    batch.grad = None
    packed(batch).sum().backward()
    torch.testing.assert_close(batch.grad, 2 * before)


def test_weights_written_past_the_count_of_changes_are_noticed() -> None:
    """As many write a check of randomised weights; see `Kept`."""
    plain, packed = pair(kernel_size=3)
    batch = images(1, 8, 6, 6)
    packed(batch)
    changes: list[Callable[[Tensor], Any]] = [
        lambda weight: weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))),
        lambda weight: weight[3].zero_(),  # a filter
        lambda weight: weight[:, 5].zero_(),  # a channel
    ]
    for change in changes:
        before = packed(batch)
        for each in (plain, packed):
            change(each.weight.data)
        torch.testing.assert_close(packed(batch), plain(batch), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(packed(batch), before)


def test_weights_in_other_memory_are_noticed() -> None:
    """As after a conversion to another type and back, which leaves the parameter and its count of changes."""
    plain, packed = pair(kernel_size=3)
    batch = images(1, 8, 6, 6)
    packed(batch)
    for each in (plain, packed):
        each.bfloat16().float()
    assert torch.equal(plain.weight, packed.weight)
    torch.testing.assert_close(packed(batch), plain(batch), rtol=1e-5, atol=1e-5)


def test_another_geometry_is_noticed() -> None:
    plain, packed = pair(3, kernel_size=5, stride=2, padding=2)
    for stride, padding in ((2, 2), (1, 2), (2, 1)):
        gradients = []
        for each in (plain, packed):
            each.stride, each.padding = (stride, stride), (padding, padding)
            batch = images(1, 3, 9, 9).requires_grad_()
            each(batch).square().sum().backward()
            gradients.append(batch.grad)
        torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-5)


def test_graphs_of_weights_are_recorded_as_ever() -> None:
    plain, packed = pair(kernel_size=3)
    for each in (plain, packed):
        each.requires_grad_(True)
        with Packed() as counted:
            each(images(1, 8, 6, 6).requires_grad_()).sum().backward()
        assert counted.used == 0
    assert plain.weight.grad is not None
    torch.testing.assert_close(packed.weight.grad, plain.weight.grad)


def test_other_ways_to_differentiate_are_as_ever() -> None:
    plain, packed = pair(kernel_size=3)

    def total(convolution: nn.Conv2d, batch: Tensor) -> Tensor:
        return convolution(batch).square().sum()

    batch = images(1, 8, 6, 6)
    expected = torch.func.grad(lambda batch: total(plain, batch))(batch)
    torch.testing.assert_close(torch.func.grad(lambda batch: total(packed, batch))(batch), expected)
    _, along = torch.func.jvp(lambda batch: total(packed, batch), (batch,), (batch,))
    torch.testing.assert_close(along, (expected * batch).sum())
    with forward_ad.dual_level():
        along = forward_ad.unpack_dual(total(packed, forward_ad.make_dual(batch, batch))).tangent
    torch.testing.assert_close(along, (expected * batch).sum())
    torch.testing.assert_close(torch.vmap(packed)(batch[None]), plain(batch)[None])


def test_directions_of_weights_are_as_ever() -> None:
    plain, packed = pair(kernel_size=3)
    batch, found = images(1, 8, 6, 6), []
    for each in (plain, packed):
        each(batch)
        with forward_ad.dual_level():
            weights = {name: forward_ad.make_dual(value, value) for name, value in each.named_parameters()}
            output = torch.func.functional_call(each, weights, batch)
            found.append(forward_ad.unpack_dual(output).tangent)
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("shape", [{"kernel_size": 3}, {"in_channels": 3, "kernel_size": 7, "stride": 2}], ids=str)
def test_gradients_of_other_kinds_are_as_ever(shape: dict[str, int]) -> None:
    """Many at once, along a direction, and within another precision."""
    found: list[list[Tensor]] = []
    for each in pair(**shape):
        batch = images(1, shape.get("in_channels", 8), 12, 12).requires_grad_()
        output = each(batch)
        many = torch.stack([torch.ones_like(output), torch.arange(output.numel()).view_as(output) / output.numel()])
        (together,) = torch.autograd.grad(output, batch, many, is_grads_batched=True, retain_graph=True)
        with forward_ad.dual_level():
            (dual,) = torch.autograd.grad(output, batch, forward_ad.make_dual(many[0], many[1]), retain_graph=True)
            tangent = forward_ad.unpack_dual(dual).tangent
        with torch.autocast("cpu", torch.bfloat16):
            (rounded,) = torch.autograd.grad(output, batch, many[1])
        found.append([together, tangent, rounded])
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)


def test_what_cannot_be_packed_is_computed_as_ever() -> None:
    plain, packed = pair(kernel_size=3)
    with Packed() as counted:
        for batch in (images(8, 6, 6), images(0, 8, 6, 6), images(1, 8, 6, 6).contiguous()):
            assert torch.equal(packed(batch), plain(batch))
        with torch.autocast("cpu", torch.bfloat16):
            assert packed(images(1, 8, 6, 6)).dtype == torch.bfloat16
        assert packed.double()(images(1, 8, 6, 6).double()).dtype == torch.float64
    assert counted.used == 0


@pytest.mark.parametrize("size", [(1, 3, 6, 6), (1, 8, 2, 2)], ids=["channels", "too small"])
def test_wrong_images_are_refused_in_the_usual_words(size: tuple[int, ...]) -> None:
    plain, packed = pair(kernel_size=3)
    with pytest.raises(RuntimeError) as usual:
        plain(images(*size))
    with pytest.raises(RuntimeError) as found:
        packed(images(*size))
    assert str(found.value) == str(usual.value)


def test_copies_make_an_order_of_their_own() -> None:
    _, packed = pair(kernel_size=3)
    expected = packed(images(1, 8, 6, 6))
    for other in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert not any(kept.last for kept in other._conv_forward.forth)
        assert torch.equal(other(images(1, 8, 6, 6)), expected)
        assert other._conv_forward.forth[0].last[2] is not packed._conv_forward.forth[0].last[2]
        other.weight.zero_()
        other.bias.zero_()
        assert not other(images(1, 8, 6, 6)).any()
    assert torch.equal(packed(images(1, 8, 6, 6)), expected)


def test_layers_stay_what_they_are() -> None:
    """Other libraries look for layers by their type, and torch.fx takes those of torch.nn as they are."""
    network = tiny_network()
    before = {name: type(module) for name, module in network.named_modules()}
    keys = list(network.state_dict())
    assert pack_convolutions(network) == 2
    assert {name: type(module) for name, module in network.named_modules()} == before
    assert list(network.state_dict()) == keys
    traced = torch.fx.symbolic_trace(network)
    assert next(node.target for node in traced.graph.nodes if node.op == "call_module") == "0"


def test_only_convolutions_whose_weights_can_be_watched_are_taken() -> None:
    class Own(nn.Conv2d):
        pass

    with torch.inference_mode():
        unwatched = nn.Conv2d(3, 4, 3)
    others = [Own(3, 4, 3), unwatched, nn.Conv2d(3, 4, 3, padding="same"), nn.ConvTranspose2d(3, 4, 3)]
    others += [nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.Conv1d(3, 4, 3)]
    assert pack_convolutions(nn.ModuleList(others)) == 0


def test_without_the_operations_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_works", lambda: False), ("_packable", lambda module: True)):
        with monkeypatch.context() as patched:
            patched.setattr(pack, name, value)
            assert (pack_convolutions(tiny_network()) == 0) == (name == "_works")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    network = tiny_network()
    assert pack_convolutions(network) == 0
    assert "_conv_forward" not in vars(network[0])


@pytest.mark.parametrize("kind", ["column", "expanded"])
def test_biases_that_are_not_side_by_side(kind: str) -> None:
    plain, packed = pair(kernel_size=3)
    bias = torch.randn(12, 2, generator=torch.Generator().manual_seed(2))[:, 0]
    for each in (plain, packed):
        each.bias = nn.Parameter(bias if kind == "column" else bias[:1].expand(12), requires_grad=False)
    torch.testing.assert_close(packed(images(2, 8, 6, 6)), plain(images(2, 8, 6, 6)), rtol=1e-5, atol=1e-5)


def test_operations_that_do_something_else_are_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pack._works()  # in this PyTorch they do
    product = PackedProduct.product
    for kind in ("then", "plus", "over"):

        def wrong(*given: Any, kind: str = kind, **asked: Any) -> Tensor | None:
            found = product(*given, **asked)
            return found + 1 if found is not None and asked.get(kind) not in (None, "relu") else found

        monkeypatch.setattr(PackedProduct, "product", wrong)
        assert pack_convolutions(tiny_network()) == 0

    with monkeypatch.context() as patched:
        patched.setattr(PackedProduct, "product", product)
        gradient = PackedProduct.gradient
        patched.setattr(PackedProduct, "gradient", lambda *given: gradient(*given) + 1)
        assert pack_convolutions(tiny_network()) == 0

    def missing(*given: object) -> Tensor:
        raise AttributeError("no such operation")

    monkeypatch.setattr(PackedProduct, "product", missing)
    assert pack_convolutions(tiny_network()) == 0


def test_operations_that_always_fail_are_not_tried_in_every_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*given: object) -> Tensor:
        raise RuntimeError("not on this machine")

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_convolution_weight", fails)
    assert pack_convolutions(tiny_network()) == 0


def test_classifiers_pack_on_the_cpu_unless_told_otherwise() -> None:
    batch, _ = make_batch()
    for options, used in (({}, True), ({"packed_weights": False}, False), ({"precision": "bf16"}, False)):
        classifier = make_classifier(**options)
        classifier.logits(batch)  # it begins with a look at the network, in float32
        with Packed() as counted:
            classifier.logits(batch)
        assert (counted.used > 0) == used
