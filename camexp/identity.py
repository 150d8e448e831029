"""What the numbers of a run depend on: runs of one identity may be continued and compared, others may not."""

import ast
import hashlib
import inspect
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from camexp.datasets.base import Dataset

NOT_IDENTITY = ("root", "hint", "checkpoint", "name", "cache")
"""Keys of `dataset` and `model` that name places, not numbers; content is identified by hashes."""


def identify(cfg: DictConfig, dataset: Dataset, weights: str) -> dict[str, Any]:
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
    return fields | {
        "method_code": code_hash(plain["method"]["_target_"]),
        "weights_sha256": weights,
        "pairs_sha256": pairs_hash(dataset),
        "annotations_sha256": dataset.annotations_sha256,
    }


def code_hash(target: str) -> str:
    """Beginning of the SHA-256 of the module that `target`, a dotted name, is in; comments and docstrings do not count.

    Empty for what has no source. What the module imports does not count either.
    """
    try:
        tree = ast.parse(inspect.getsource(inspect.getmodule(get_object(target)) or target))  # type: ignore[arg-type]
    except (TypeError, OSError, SyntaxError):
        return ""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [part for part in node.body if not _is_text(part)] or [ast.Pass()]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:16]


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


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
