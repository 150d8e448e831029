"""Backward passes from the scores of classes."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from camexp.models.linear import Recorded

AT_ONCE = 64
"""Rows, as many as images times classes, that a backward pass for several classes takes at most."""

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
    keep: the graph, for further backward passes.
    """
    last = target.shape[1] - 1
    for j, column in enumerate(target.T):
        with torch.enable_grad():
            total = score(logits, column).sum()
        yield torch.autograd.grad(total, inputs, materialize_grads=True, retain_graph=keep or j < last)


def at_once(
    logits: Tensor, target: Tensor, inputs: Sequence[Tensor], score: Score = chosen_logit
) -> Iterator[Sequence[Tensor]]:
    """As `by_class`, by one backward pass for all classes; parameters as there. For graphs that are light.

    Linear layers, as behind the last convolution of VGG16, take as long for one row as for several, because most of
    it is reading their weights. Convolutions would gain nothing, and need the memory for all classes at a time.
    """
    leaf = logits.detach().requires_grad_()
    with torch.enable_grad():
        scores = [score(leaf, column).sum() for column in target.T]
    upper = torch.stack([torch.autograd.grad(each, leaf)[0] for each in scores])  # (c, n, C)

    def back(upper: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(logits, inputs, upper, materialize_grads=True, retain_graph=True)

    for some in upper.split(max(1, AT_ONCE // len(logits))):
        yield from zip(*torch.func.vmap(back)(some), strict=True)


def is_light(logits: Tensor) -> bool:
    """Whether the graph of logits (n,C) has no convolutions, and no functions but PyTorch's and of linear layers."""
    nodes, seen = [logits.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            own = isinstance(node, BackwardCFunction) and not isinstance(node, Recorded._backward_cls)
            if own or "Conv" in node.name():
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
