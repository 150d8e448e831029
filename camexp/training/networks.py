"""The network at the start of training and at its end."""

from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from omegaconf import DictConfig
from torch import nn

from camexp.errors import CamexpError
from camexp.models import checkpoint
from camexp.models.build import build, fold_vgg_batch_norm

TRAINED_AS = {"vgg16": "vgg16_bn"}
"""Architectures that are trained as another one; with batch norms VGG16 learns faster and from any start."""

FINISH: dict[str, Callable[[nn.Module], nn.Module]] = {"vgg16": fold_vgg_batch_norm}
"""What makes of the trained network the architecture that is written."""


def starting_network(
    model: DictConfig, num_classes: int, initial: Path | None, dropout: float | None = None
) -> nn.Module:
    """The network to train: the architecture with random weights, or with those of a file and a new last layer.

    Raises
    ------
    CamexpError: when the architecture is unknown or the file does not fit it.
    """
    architecture = TRAINED_AS.get(model.architecture, model.architecture)
    if initial is None:
        network = build(architecture, num_classes, model.width, model.get("head"))
    else:
        network = build(architecture, _outputs(initial), model.width, model.get("head"))
        checkpoint.load(network, initial)
        name, last = _last_linear(network)
        network.set_submodule(name, nn.Linear(last.in_features, num_classes))
    for module in network.modules():
        if isinstance(module, nn.Dropout) and dropout is not None:
            module.p = dropout
    return network


def finished(network: nn.Module, architecture: str) -> nn.Module:
    """The trained network in evaluation mode, as the architecture that is explained."""
    return FINISH.get(architecture, lambda trained: trained)(network.eval())


def find_initial(initial: str, architecture: str) -> Path | None:
    """The file that `recipe.initial` means, or None for "random"; nothing is downloaded.

    "imagenet" is the first of torchvision's weights for the architecture that lies in torch's cache folder.

    Raises
    ------
    CamexpError: when there is none, with the command that fetches it.
    """
    if initial == "random":
        return None
    if initial != "imagenet":
        if not Path(initial).is_file():
            raise CamexpError(f"recipe.initial={initial}: no such file; expected imagenet, random, or a state dict")
        return Path(initial)
    name = TRAINED_AS.get(architecture, architecture)
    try:
        known = list(torchvision.models.get_model_weights(name))
    except ValueError:
        raise CamexpError(
            f"torchvision has no weights for model.architecture={architecture}; pass recipe.initial=FILE or random"
        ) from None
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    candidates = [folder / Path(weights.url).name for weights in known]
    for path in candidates:
        if path.is_file():
            return path
    raise CamexpError(
        f"ImageNet weights of {name} not found: looked for {' or '.join(p.name for p in candidates)} in {folder}\n"
        f"Fetch them with: python -c \"from torchvision.models import {name}; {name}(weights='{known[0].name}')\"\n"
        f"or download {known[0].url} elsewhere and pass recipe.initial=FILE,\n"
        "or pass recipe.initial=random to start from untrained weights."
    )


def _last_linear(network: nn.Module) -> tuple[str, nn.Linear]:
    name, layer = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Linear)][-1]
    return name, layer


def _outputs(path: Path) -> int:
    """Number of outputs of the classifier whose state dict lies in a file: rows of its last matrix."""
    matrices = [value for value in checkpoint.read_state(path).values() if value.ndim == 2]
    if not matrices:
        raise CamexpError(f"{path.absolute()} holds no classifier: no matrix of a linear layer is in it")
    return len(matrices[-1])
