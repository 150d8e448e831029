"""Large linear layers by oneDNN: the same numbers, whatever they are given."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from conftest import Operations, make_batch, make_classifier
from torch import Tensor, nn
from torch.autograd import forward_ad

from camexp.models import linear
from camexp.models.classifier import Classifier
from camexp.models.linear import LinearProduct, speed_up_linear

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def pair(inputs: int = 1024, outputs: int = 1024, bias: bool = True) -> tuple[nn.Linear, nn.Linear]:
    """A large layer, and a copy that oneDNN computes."""
    torch.manual_seed(0)
    plain = nn.Linear(inputs, outputs, bias).requires_grad_(False)
    fast = copy.deepcopy(plain)
    assert speed_up_linear(fast) == 1
    return plain, fast


def rows(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(1))


def by_onednn(layer: nn.Module, input: Tensor) -> tuple[Tensor, int]:
    """What the layer puts out, and how many products of oneDNN that took."""
    with Operations() as operations:
        found = layer(input)
    return found, operations.count("_linear_pointwise")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("count", [1, 3, 40])
def test_products_and_gradients_are_the_same(count: int, bias: bool) -> None:
    plain, fast = pair(bias=bias)
    found, products = by_onednn(fast, rows(count, 1024))
    assert products == 1
    torch.testing.assert_close(found, plain(rows(count, 1024)), **CLOSE)
    inputs = [rows(count, 1024).requires_grad_() for _ in range(2)]
    for layer, input, times in zip((plain, fast), inputs, (0, 1 + (count > 1)), strict=True):
        with Operations() as operations:
            layer(input).square().sum().backward()
        assert operations.count("_linear_pointwise") == times
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad, **CLOSE)


def test_values_that_are_not_side_by_side() -> None:
    plain, fast = pair()
    for input in (rows(1024, 5).t(), rows(5, 2048)[:, ::2], rows(1, 1024).expand(4, -1)):
        found, products = by_onednn(fast, input)
        assert products == 1
        torch.testing.assert_close(found, plain(input), **CLOSE)
    input = rows(2, 1024).requires_grad_()
    fast(input).sum().backward()  # of which the upper gradient is one number, expanded
    torch.testing.assert_close(input.grad, plain.weight.sum(0).expand(2, -1), **CLOSE)


def test_weights_are_read_anew_in_every_pass() -> None:
    plain, fast = pair()
    for layer in (plain, fast):
        layer.weight.data.mul_(2)
    torch.testing.assert_close(fast(rows(2, 1024)), plain(rows(2, 1024)), **CLOSE)
    for layer in (plain, fast):
        layer.weight = nn.Parameter(torch.randn(8, 1024, generator=torch.manual_seed(2)), requires_grad=False)
        layer.bias = None
    torch.testing.assert_close(fast(rows(2, 1024)), plain(rows(2, 1024)), **CLOSE)


@pytest.mark.parametrize("change", [torch.zeros_like, lambda weight: weight.bfloat16(), lambda weight: weight.double()])
def test_the_way_back_is_through_the_weights_of_the_way_forth(change: Callable[[Tensor], Tensor]) -> None:
    plain, fast = pair()
    inputs = [rows(2, 1024).requires_grad_() for _ in range(2)]
    outputs = [layer(input).sum() for layer, input in zip((plain, fast), inputs, strict=True)]
    for layer in (plain, fast):
        layer.weight.data = change(layer.weight)
    found = [torch.autograd.grad(output, input)[0] for output, input in zip(outputs, inputs, strict=True)]
    torch.testing.assert_close(found[1], found[0], **CLOSE)


@pytest.mark.parametrize("kind", ["whole", "column", "expanded", "one number", "of one", "a part"])
def test_biases_of_any_strides_and_shapes(kind: str) -> None:
    whole = rows(1024, 2)
    biases = {"whole": whole[:, 0].clone(), "column": whole[:, 0], "expanded": whole[0, 0].expand(1024)}
    biases |= {"one number": whole[0, 0], "of one": whole[0, :1], "a part": whole.t().contiguous()[1]}
    plain, fast = pair()
    for layer in (plain, fast):
        layer.bias = nn.Parameter(biases[kind], requires_grad=False)
    found, products = by_onednn(fast, rows(2, 1024))
    assert products == (kind in ("whole", "a part"))
    torch.testing.assert_close(found, plain(rows(2, 1024)), **CLOSE)


def test_weights_and_rows_in_other_layouts() -> None:
    plain, fast = pair(bias=False)
    expected = plain(rows(2, 1024))
    torch.testing.assert_close(fast(rows(2, 1024).to_sparse_csr()), expected, **CLOSE)
    fast.weight = nn.Parameter(fast.weight.to_sparse_csr(), requires_grad=False)
    torch.testing.assert_close(fast(rows(2, 1024)), expected, **CLOSE)


def test_weights_that_changed_are_not_gone_back_through() -> None:
    _, fast = pair()
    found = fast(rows(1, 1024).requires_grad_())
    fast.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found.sum().backward()


def test_what_is_not_a_number_stays_so() -> None:
    _, fast = pair()
    input = rows(2, 1024)
    input[0, 3] = torch.nan
    found = fast(input)
    assert found[0].isnan().all()
    assert found[1].isfinite().all()


def test_a_graph_can_be_gone_back_through_again_and_further() -> None:
    results = []
    for layer in pair():
        input = rows(2, 1024).requires_grad_()
        output = layer(input)
        first = torch.autograd.grad(output[:, 0].sum(), input, retain_graph=True)[0]
        (gradient,) = torch.autograd.grad(output.square().sum(), input, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), input)
        results.append([first, gradient, second])
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("weights", ["whole", "transposed", "sliced"])
@pytest.mark.parametrize(("units", "picked"), [(0, 1), (1, 1), (7, 1), (300, 1), (768, 1), (769, 0), (1024, 0)])
def test_weights_of_units_to_which_nothing_comes_back_are_not_read(units: int, picked: int, weights: str) -> None:
    upper = rows(1, 1024)
    upper[:, torch.randperm(1024, generator=torch.Generator().manual_seed(2))[units:]] = 0
    found = []
    for layer in pair():
        wide = rows(1024, 2048)
        others = {"transposed": layer.weight.t(), "sliced": wide[:, ::2]}
        layer.weight = nn.Parameter(others.get(weights, layer.weight), requires_grad=False)
        input = rows(1, 1024).requires_grad_()
        output = layer(input)
        with Operations() as operations:
            found.append(torch.autograd.grad(output, input, upper)[0])
    assert operations.count("embedding_bag") == (picked if weights == "whole" else 0)
    torch.testing.assert_close(found[1], found[0], **CLOSE)


def test_what_comes_back_and_is_not_a_number_stays_so() -> None:
    _, fast = pair()
    upper = torch.zeros(1, 1024)
    upper[0, 5] = torch.nan
    input = rows(1, 1024).requires_grad_()
    assert torch.autograd.grad(fast(input), input, upper)[0].isnan().all()


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # told whenever the library is switched off
def test_what_onednn_does_not_take_is_left_to_pytorch() -> None:
    plain, fast = pair()
    inputs = [rows(2, 3, 1024), rows(1024), rows(0, 1024)]
    for input in inputs:
        found, products = by_onednn(fast, input)
        assert products == 0
        torch.testing.assert_close(found, plain(input))
    with torch.backends.mkldnn.flags(enabled=False):
        assert by_onednn(fast, rows(2, 1024))[1] == 0
    with torch.autocast("cpu", torch.bfloat16):
        found, products = by_onednn(fast, rows(2, 1024))
    assert (products, found.dtype) == (0, torch.bfloat16)
    assert fast.double()(rows(2, 1024).double()).dtype == torch.float64
    fast.float()
    for parameter in (fast.weight, fast.bias):
        parameter.requires_grad_()
        found, products = by_onednn(fast, rows(2, 1024))
        assert products == 0
        assert found.requires_grad
        with torch.no_grad():
            assert by_onednn(fast, rows(2, 1024))[1] == 1
        parameter.requires_grad_(False)
    with torch.inference_mode():
        fast.weight = nn.Parameter(fast.weight.clone(), requires_grad=False)
    found, products = by_onednn(fast, rows(2, 1024))
    assert products == 0
    torch.testing.assert_close(found, plain(rows(2, 1024)))


def test_networks_can_be_traced() -> None:
    plain, fast = pair()
    traced = torch.jit.trace(fast, rows(2, 1024))
    torch.testing.assert_close(traced(rows(3, 1024)), plain(rows(3, 1024)), **CLOSE)


def test_transforms_are_left_to_pytorch() -> None:
    plain, fast = pair()
    input, direction = rows(2, 1024), rows(2, 1024) + 1
    for transform in (torch.vmap, lambda layer: torch.vmap(torch.vmap(layer))):
        assert torch.equal(transform(fast)(rows(3, 2, 2, 1024)), transform(plain)(rows(3, 2, 2, 1024)))
    firsts = [lambda x, layer=layer: layer(x)[:, :3] for layer in (fast, plain)]
    jacobians = [torch.func.jacrev(first)(input) for first in firsts]
    assert torch.equal(*jacobians)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(input, direction)
        tangents = [forward_ad.unpack_dual(layer(dual)).tangent for layer in (fast, plain)]
    assert torch.equal(*tangents)
    batch = [rows(2, 1024).requires_grad_() for _ in range(2)]
    uppers = rows(3, 2, 1024)
    found = [
        torch.autograd.grad(layer(x), x, uppers, is_grads_batched=True)[0]
        for layer, x in zip((plain, fast), batch, strict=True)
    ]
    torch.testing.assert_close(found[1], found[0], **CLOSE)


def test_what_only_behaves_like_a_tensor_meets_the_usual_function() -> None:
    class Seen:
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            return function

    _, fast = pair()
    assert fast(Seen()) is nn.functional.linear


def test_wrong_widths_are_told_by_pytorch() -> None:
    _, fast = pair()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fast(rows(2, 1000))


def test_layers_stay_what_they_are() -> None:
    plain, fast = pair()
    seen: list[Tensor] = []
    with fast.register_forward_hook(lambda module, args, output: seen.append(output)):
        fast(rows(1, 1024))
    assert type(fast) is nn.Linear
    assert len(seen) == 1
    assert fast.state_dict().keys() == plain.state_dict().keys()
    other = pickle.loads(pickle.dumps(fast))
    other.weight.zero_()
    assert torch.equal(other(rows(1, 1024))[0], plain.bias)  # of its own weights
    torch.testing.assert_close(fast(rows(1, 1024)), plain(rows(1, 1024)), **CLOSE)


def test_small_and_other_layers_are_left_alone() -> None:
    class Own(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) + 1

    assert speed_up_linear(nn.ModuleList([nn.Linear(8, 8), Own(1024, 1024), nn.Bilinear(64, 64, 64)])) == 0


def test_what_has_its_own_forward_keeps_it() -> None:
    layer = nn.Linear(1024, 1024)
    layer.forward = torch.relu  # type: ignore[method-assign, assignment]
    assert speed_up_linear(layer) == 0
    assert torch.equal(layer(torch.tensor([-1.0, 2.0])), torch.tensor([0.0, 2.0]))


def test_an_operation_that_is_missing_or_does_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*given: object) -> Tensor:
        raise AttributeError("no such operation")

    assert linear._works()  # in this PyTorch it is there
    product = linear.product
    for wrong in (missing, lambda *given: product(*given) + 1, lambda x, w, b: product(x, w, None)):
        monkeypatch.setattr(linear, "product", wrong)
        assert speed_up_linear(nn.Linear(1024, 1024)) == 0
    monkeypatch.setattr(linear, "product", product)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert speed_up_linear(nn.Linear(1024, 1024)) == 0


def test_classifiers_take_it_on_the_cpu_unless_told_otherwise() -> None:
    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 10 * 18, 2048), nn.Linear(2048, 4))

    images, _ = make_batch(height=12, width=20)
    results = []
    for options, used in (({}, True), ({"onednn_linear": False}, False), ({"precision": "bf16"}, False)):
        classifier = Classifier(network(), {"cam": "0"}, **options)
        classifier.logits(images[:1])  # the first look at a network is exact
        logits, products = by_onednn(classifier.logits, images)  # type: ignore[arg-type]
        assert (products > 0) == used
        results.append(logits)
    torch.testing.assert_close(results[0], results[1], **CLOSE)
    assert not isinstance(vars(make_classifier().network[-1]).get("forward"), LinearProduct)  # it is small
