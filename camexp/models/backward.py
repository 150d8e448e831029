"""Backward passes from the scores of classes."""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from camexp.models.linear import Recorded

Score = Callable[[Tensor, Tensor], Tensor]
"""Logits (n,C) and classes (n,) -> what is differentiated, (n,)."""


def chosen_logit(logits: Tensor, target: Tensor) -> Tensor:
    """y_c (n,) of logits (n,C) and classes (n,)."""
    return logits.gather(1, target[:, None])[:, 0]


def by_class(
    logits: Tensor, target: Tensor, inputs: Sequence[Tensor], score: Score = chosen_logit, keep: bool = False
) -> Iterator[Sequence[Tensor]]:
    """Gradients of the score of each image's first class, then of its second, and so on: a backward pass for each.

    Parameters
    ----------
    logits: (n,C), of one forward pass with a graph; target: (n,c).
    inputs: tensors (n,...) of the graph.
    score: what is differentiated.
    keep: the graph, for further backward passes.
    """
    last = target.shape[1] - 1
    for j, column in enumerate(target.T):
        with torch.enable_grad():
            total = score(logits, column).sum()
        yield torch.autograd.grad(total, inputs, materialize_grads=True, retain_graph=keep or j < last)


def at_once(
    logits: Tensor, target: Tensor, inputs: Sequence[Tensor], score: Score = chosen_logit, classes: int = 4
) -> Iterator[Sequence[Tensor]]:
    """As `by_class`, by one backward pass for several classes; for a graph that is light, which is freed.

    Linear layers, as behind the last convolution of VGG16, take as long for one row as for several, because most of
    it is reading their weights. Convolutions would gain nothing, and need the memory for all classes at a time. Hooks
    of the graph's tensors see the classes of a pass at once, within `torch.func.vmap`.

    Parameters
    ----------
    classes: of each image, per pass.
    """
    leaf = logits.detach().requires_grad_()
    with torch.enable_grad():
        scores = [score(leaf, column).sum() for column in target.T]
    upper = torch.stack([torch.autograd.grad(each, leaf)[0] for each in scores])  # (c, n, C)
    *others, last = upper.split(classes)

    def back(upper: Tensor, keep: bool) -> tuple[Tensor, ...]:
        return torch.autograd.grad(logits, inputs, upper, materialize_grads=True, retain_graph=keep)

    for some in others:
        yield from zip(*torch.func.vmap(partial(back, keep=True))(some), strict=True)
    yield from zip(*torch.func.vmap(partial(back, keep=False))(last), strict=True)


LIGHT = (
    *("AccumulateGrad", "Addmm", "Mm", "T", "Relu", "MaxPool2DWithIndices", "AvgPool2D", "AdaptiveAvgPool2D"),
    *("Mean", "Sum", "Add", "Mul", "Div", "View", "UnsafeView", "ReshapeAlias", "AsStrided", "Squeeze", "Clone"),
)
"""PyTorch's names of what a light graph may have, which `torch.func.vmap` knows how to do for several at once."""


def is_light(logits: Tensor) -> bool:
    """Whether the graph of logits (n,C) has nothing but linear layers, pooling, ReLU and sums: no convolutions."""
    nodes, seen = [logits.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            name = re.sub(r".*::|Backward\d*$", "", node.name())
            if name not in LIGHT and not isinstance(node, Recorded._backward_cls):
                return False
            seen.add(node)
            nodes += [below for below, _ in node.next_functions]
    return True


def carried_back(output: Tensor, inputs: Tensor) -> Tensor:
    """A copy of `output` whose gradient, once it is found, goes on back to `inputs`; autograd would stop there."""
    copy = output.clone()

    def go_on(gradient: Tensor) -> None:
        torch.autograd.grad(output, inputs, gradient, retain_graph=True)  # the caller may go back again

    copy.register_hook(go_on)
    return copy
