"""From a composed Hydra config to the parts of a run: data set, classifier, method, metrics."""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from camexp.checks import check_types
from camexp.datasets.base import Dataset
from camexp.errors import CamexpError
from camexp.methods.base import Method
from camexp.metrics import Metric
from camexp.models import checkpoint
from camexp.models.build import build
from camexp.models.classifier import Classifier
from camexp.models.fold import fold_batch_norms
from camexp.models.forward_batch import ON_CPU, largest_batch
from camexp.models.preprocess import Preprocess
from camexp.places import CONFIGS


def compose_config(overrides: list[str]) -> DictConfig:
    """The config that `python -m camexp.run <overrides>` composes."""
    if GlobalHydra.instance().is_initialized():
        return compose("config", overrides)
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("config", overrides)


def _make(node: DictConfig, where: str) -> Any:
    """Instantiate a config node, `where` in the config; its `name` is for people and folders, not an argument."""
    plain = OmegaConf.to_container(node, resolve=True)
    assert isinstance(plain, dict)
    plain.pop("name", None)
    if os.getcwd() not in sys.path:  # where a user's own module is, whichever script was started
        sys.path.append(os.getcwd())
    if not plain.get("_target_"):
        raise CamexpError(f"the config of {where} lacks _target_: the dotted name of its class")
    target = str(plain["_target_"])
    try:
        kind = get_object(target)
    except Exception as error:  # importing runs the user's code
        module, _, name = target.rpartition(".")
        why = f"module {module} has no {name}" if module in sys.modules else error.__cause__ or error
        raise CamexpError(f"{where}: cannot import {target}: {why}") from error
    check_types(kind, plain, where)
    try:
        return instantiate(plain)
    except Exception as error:
        # Hydra wraps what a constructor raises; the user needs the message inside
        inner = error.__cause__ or error
        if isinstance(inner, CamexpError):
            raise inner from None
        if isinstance(inner, OSError):
            raise CamexpError(f"{where}: {inner}") from error
        if isinstance(inner, TypeError):
            raise CamexpError(f"{node.get('_target_')}: {inner}") from error
        raise


def make_dataset(cfg: DictConfig) -> Dataset:
    """The data set, cut to its first `limit` images."""
    dataset: Dataset = _make(cfg.dataset, "dataset")
    if cfg.limit is not None:
        if cfg.limit < 1:
            raise CamexpError(f"limit must be at least 1, not {cfg.limit}")
        dataset.limit(cfg.limit)
    return dataset


def make_preprocess(cfg: DictConfig) -> Preprocess:
    """What turns decoded images into the network's input."""
    return Preprocess(cfg.model.preprocess, cfg.protocol.size, cfg.protocol.resize, cfg.protocol.centring)


def make_device(name: str) -> torch.device:
    """`device=`: "auto" is the GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise CamexpError(f"device={name} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def checkpoint_path(cfg: DictConfig) -> Path | None:
    """The file with the model's weights, None for untrained ones; raises CamexpError when it is missing."""
    return checkpoint.resolve(cfg.model.checkpoint, cfg.model.name, cfg.dataset.name, cfg.model.get("hint") or "")


def weights_of(cfg: DictConfig) -> str:
    """The SHA-256 of the model's weights, "random:<seed>" for untrained ones."""
    path = checkpoint_path(cfg)
    return checkpoint.sha256(path) if path is not None else f"random:{cfg.seed}"


def make_classifier(cfg: DictConfig, num_classes: int) -> tuple[Classifier, str]:
    """The classifier and its `weights_of`."""
    path, preprocess = checkpoint_path(cfg), make_preprocess(cfg)
    torch.manual_seed(cfg.seed)
    network = build(cfg.model.architecture, num_classes, cfg.model.width, cfg.model.head)
    if path is not None:
        checkpoint.load(network, path)
    if cfg.fold_batch_norms:
        fold_batch_norms(network)
    if cfg.protocol.fill not in ("fed_zero", "black_pixel"):
        raise CamexpError(f"protocol.fill must be fed_zero or black_pixel, not {cfg.protocol.fill!r}")
    device = make_device(cfg.device)
    automatic = cfg.forward_batch == "auto"
    classifier = Classifier(
        network,
        OmegaConf.to_container(cfg.model.layers),  # type: ignore[arg-type]
        confidence=cfg.protocol.score,
        fill=preprocess.black() if cfg.protocol.fill == "black_pixel" else None,
        forward_batch=ON_CPU if automatic else cfg.forward_batch,
        device=device,
        precision=cfg.precision,
        compiled=cfg.compile,
        channels_last=cfg.channels_last,
        inference_mode=cfg.inference_mode,
        tail_backward=cfg.tail_backward,
        packed_weights=cfg.packed_weights,
        winograd=cfg.winograd,
        fused_activations=cfg.fused_activations,
        onednn_linear=cfg.onednn_linear,
    )
    if automatic:
        classifier.forward_batch = largest_batch(classifier.network, device, preprocess.size)
    return classifier, weights_of(cfg)


def make_method(cfg: DictConfig) -> Method:
    """The explanation method."""
    return _make(cfg.method, "method")


def make_metrics(cfg: DictConfig) -> dict[str, Metric]:
    """The metrics by name, in the order of the columns."""
    for name, node in cfg.metrics.items():
        if not isinstance(node, DictConfig):
            raise CamexpError(f"metrics.{name} must be a config, not {node!r}: +metric@metrics.{name}={node} adds one")
    return {str(name): _make(node, f"metrics.{name}") for name, node in cfg.metrics.items()}


def variant(method: Method) -> dict[str, Any]:
    """The parameters in which a method differs from its defaults, the seed left out."""
    if not dataclasses.is_dataclass(method):
        return {}
    return {
        field.name: getattr(method, field.name)
        for field in dataclasses.fields(method)
        if field.name != "seed" and getattr(method, field.name) != field.default
    }
