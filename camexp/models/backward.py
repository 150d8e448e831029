"""Backward passes from the scores of classes."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

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


def carried_back(output: Tensor, inputs: Tensor) -> Tensor:
    """A copy of `output` whose gradient, once it is found, goes on back to `inputs`; autograd would stop there."""
    copy = output.clone()

    def go_on(gradient: Tensor) -> None:
        torch.autograd.grad(output, inputs, gradient, retain_graph=True)  # the caller may go back again

    copy.register_hook(go_on)
    return copy
