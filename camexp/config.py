"""From a composed Hydra config to the parts of a run: data set, classifier, method, metrics, identity."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

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

NOT_IDENTITY = ("root", "hint", "checkpoint", "name", "cache")
"""Keys of `dataset` and `model` that name places, not numbers; content is identified by hashes."""


def compose_config(overrides: list[str]) -> DictConfig:
    """The config that `python -m camexp.run <overrides>` composes."""
    if GlobalHydra.instance().is_initialized():
        return compose("config", overrides)
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("config", overrides)


def _make(node: DictConfig) -> Any:
    """Instantiate a config node; its `name` is for people and folders, not an argument."""
    plain = OmegaConf.to_container(node, resolve=True)
    assert isinstance(plain, dict)
    plain.pop("name", None)
    try:
        return instantiate(plain)
    except Exception as error:
        # Hydra wraps what a constructor raises; the user needs the message inside
        inner = error.__cause__ or error
        if isinstance(inner, CamexpError):
            raise inner from None
        if isinstance(inner, TypeError):
            raise CamexpError(f"{node.get('_target_')}: {inner}") from error
        raise


def make_dataset(cfg: DictConfig) -> Dataset:
    """The data set, cut to its first `limit` images."""
    dataset: Dataset = _make(cfg.dataset)
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


def make_classifier(cfg: DictConfig, num_classes: int) -> tuple[Classifier, str]:
    """The classifier and the SHA-256 of its weights ("random:<seed>" for untrained ones)."""
    path = checkpoint_path(cfg)
    torch.manual_seed(cfg.seed)
    network = build(cfg.model.architecture, num_classes, cfg.model.width, cfg.model.head)
    if path is not None:
        checkpoint.load(network, path)
    if cfg.fold_batch_norms:
        fold_batch_norms(network)
    for key, allowed in (("fill", ("fed_zero", "black_pixel")), ("average", ("micro", "macro"))):
        if cfg.protocol[key] not in allowed:
            raise CamexpError(f"protocol.{key} must be {' or '.join(allowed)}, not {cfg.protocol[key]!r}")
    device = make_device(cfg.device)
    automatic = cfg.forward_batch == "auto"
    classifier = Classifier(
        network,
        OmegaConf.to_container(cfg.model.layers),  # type: ignore[arg-type]
        confidence=cfg.protocol.score,
        fill=make_preprocess(cfg).black() if cfg.protocol.fill == "black_pixel" else None,
        forward_batch=ON_CPU if automatic else cfg.forward_batch,
        device=device,
        precision=cfg.precision,
        compiled=cfg.compile,
        channels_last=cfg.channels_last,
        inference_mode=cfg.inference_mode,
        tail_backward=cfg.tail_backward,
        packed_weights=cfg.packed_weights,
        fused_activations=cfg.fused_activations,
        onednn_linear=cfg.onednn_linear,
    )
    if automatic:
        classifier.forward_batch = largest_batch(classifier.network, device, cfg.protocol.size)
    return classifier, checkpoint.sha256(path) if path is not None else f"random:{cfg.seed}"


def make_method(cfg: DictConfig) -> Method:
    """The explanation method."""
    return _make(cfg.method)


def make_metrics(cfg: DictConfig) -> dict[str, Metric]:
    """The metrics by name, in the order of the columns."""
    return {str(name): _make(node) for name, node in cfg.metrics.items()}


def variant(method: Method) -> dict[str, Any]:
    """The parameters in which a method differs from its defaults, the seed left out."""
    if not dataclasses.is_dataclass(method):
        return {}
    return {
        field.name: getattr(method, field.name)
        for field in dataclasses.fields(method)
        if field.name != "seed" and getattr(method, field.name) != field.default
    }


def identity(cfg: DictConfig, dataset: Dataset, weights: str) -> dict[str, Any]:
    """Everything that the numbers of a run depend on, flat: config fields, weights, and the list of pairs."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    fields: dict[str, Any] = {}
    for group in ("dataset", "model", "method", "protocol", "metrics"):
        ignored = NOT_IDENTITY if group in ("dataset", "model") else ()
        fields |= {k: v for k, v in _flat(plain[group], group).items() if k.rpartition(".")[2] not in ignored}
    for key in ("seed", "limit", "batch_size", "precision"):
        fields[key] = plain[key]
    fields["model.name"], fields["dataset.name"] = plain["model"]["name"], plain["dataset"]["name"]
    del fields["protocol.average"]  # only the report averages
    return fields | {
        "weights_sha256": weights,
        "pairs_sha256": pairs_hash(dataset),
        "annotations_sha256": dataset.annotations_sha256,
    }


def pairs_hash(dataset: Dataset) -> str:
    """SHA-256 over the image ids, in order, with the classes to explain in each."""
    digest = hashlib.sha256()
    for image_id, targets in zip(dataset.image_ids, dataset.targets, strict=True):
        digest.update(f"{image_id}:{','.join(str(t.class_id) for t in targets)}\n".encode())
    return digest.hexdigest()


def _flat(node: Any, prefix: str) -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix: node}
    return {k: v for name, child in node.items() for k, v in _flat(child, f"{prefix}.{name}").items()}
