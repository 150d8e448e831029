"""The part of a network behind a layer, run by itself."""

from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from camexp.models.classifier import Classifier, of_layers, require_maps

IMAGE = ""
"""The name, among those of modules, of what the network as a whole is given."""

MANY = 16
"""More than so many times `forward_batch` rows in one pass through a tail gain nothing."""


@dataclass(frozen=True)
class Tail:
    """What follows a layer.

    Attributes
    ----------
    run: rows (n,K,h,w), i -> logits (n,C) with the rows in the place of image i's activations, which it leaves as
        they are.
    activations: of the layer, (B,K,h,w), and logits (B,C), in the images' passes through the whole network.
    times: how many times `forward_batch` rows a pass may take, because they are small beside what comes before.
    """

    run: Callable[[Tensor, int], Tensor]
    activations: Tensor
    logits: Tensor
    times: int


@contextmanager
def tail_behind(classifier: Classifier, images: Tensor, layer: str) -> Iterator[Tail]:
    """The tail behind a layer for images (B,3,H,W), to be run while the context lasts.

    It runs what follows the layer, and nothing before it: modules that were done before the layer return what they
    returned in the image's pass through the whole network. What it reads is found out beforehand with a single row.
    """
    images = images.to(classifier.device, memory_format=classifier.memory_format)
    head, logits = _record(classifier, images, layer, {layer})
    largest, own = max(output.shape[1:].numel() for output in head.values()), head[layer].shape[1:].numel()
    answers = {name: output.new_zeros(()).expand(1, *output.shape[1:]) for name, output in head.items()}
    answers |= {layer: head[layer][:1], IMAGE: images[:1]}
    read, changed = _used(classifier, answers)
    read -= {layer, IMAGE}
    if read:  # most outputs are only handed on to modules that are left out: their values do not matter
        head, logits = _record(classifier, images, layer, {layer, *read})

    def run(rows: Tensor, i: int) -> Tensor:
        given = {IMAGE: images[i : i + 1], **{name: head[name][i : i + 1] for name in read}}
        for name, value in (answers | given).items():
            repeated = rows if name == layer else value[:1].expand(len(rows), *value.shape[1:])
            answers[name] = repeated.clone() if name in changed else repeated
        classifier.on_forward(len(rows))
        return classifier.network(answers[IMAGE])

    with _answering(classifier.network, answers):
        yield Tail(run, head[layer], logits, min(MANY, largest // own))


def _outermost(network: nn.Module, layer: str) -> list[str]:
    """The layer, and the outermost modules that do not contain it."""
    found: list[str] = []
    for name, module in network.named_modules():
        around = not name or layer.startswith(f"{name}.") or type(module).forward is nn.Module.forward  # a mere list
        if not around and not name.startswith(tuple(f"{outer}." for outer in found)):
            found.append(name)
    return found


def _record(
    classifier: Classifier, images: Tensor, layer: str, kept: Container[str]
) -> tuple[dict[str, Tensor], Tensor]:
    """Outputs of the layer and of the outermost modules that are done before it, by name, and the logits (B,C).

    Outputs are (B,...) of the modules to be kept, and (0,...) of the others. Modules that are called more than once,
    or whose output is not one row per image, are left out. What is kept is copied: what follows may change it in place.
    Raises CamexpError for a layer that runs more than once, or not at all.
    """
    names = _outermost(classifier.network, layer)

    def work(rows: slice) -> tuple[dict[str, Tensor], Tensor]:
        calls: Counter[str] = Counter()
        outputs: dict[str, Tensor] = {}
        inputs = images[rows].clone()

        def look(name: str, output: Tensor) -> Tensor:
            calls[name] += 1
            if name == layer:
                require_maps(name, output, outputs)
            if layer not in outputs and isinstance(output, Tensor) and output.shape[:1] == inputs.shape[:1]:
                outputs[name] = (output if name in kept else output[:0]).clone()
            return output

        with classifier.hooks(names, look):
            logits = classifier.forward(inputs)
        of_layers([layer], outputs)
        return {name: output for name, output in outputs.items() if calls[name] == 1 or name == layer}, logits

    parts, logits = zip(*classifier.in_chunks(work, len(images)), strict=True)
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}, torch.cat(logits)


@torch.inference_mode(False)  # in which no tensor knows whether it was changed
@torch.no_grad()
def _used(classifier: Classifier, answers: Mapping[str, Tensor]) -> tuple[set[str], set[str]]:
    """Names of the answers, the image among them, that are computed with in a pass, and of those changed in place."""
    copies = {name: answer.clone() for name, answer in answers.items()}
    with _answering(classifier.network, copies), _Seen() as seen:
        classifier.forward(copies[IMAGE])
    read = {name for name, copy in copies.items() if id(copy) in seen.tensors}
    return read, {name for name, copy in copies.items() if copy._version}


class _Seen(TorchDispatchMode):
    """Ids of the tensors that are computed with while the context lasts."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.tensors |= {id(value) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
        return function(*args, **(kwargs or {}))


@contextmanager
def _answering(network: nn.Module, answers: Mapping[str, Tensor]) -> Iterator[None]:
    """While the context lasts, a call of each module gives its answer, and the module does no work."""
    modules = {name: network.get_submodule(name) for name in answers if name != IMAGE}
    before = {module: vars(module).get("forward") for module in modules.values()}
    try:
        for name, module in modules.items():
            vars(module)["forward"] = lambda *args, name=name, **kwargs: answers[name]
        yield
    finally:
        for module, forward in before.items():
            del vars(module)["forward"]
            if forward is not None:
                vars(module)["forward"] = forward
