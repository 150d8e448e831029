"""What the numbers of a run depend on: runs of one identity may be continued and compared, others may not."""

import ast
import hashlib
import inspect
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib import import_module
from importlib.util import resolve_name
from types import ModuleType
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from camexp.datasets.base import Dataset
from camexp.models.preprocess import RESAMPLING

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
        "resampling": RESAMPLING,
        "method_source": source_hash([plain["method"]["_target_"]]),
        **{f"metrics.{name}.source": source_hash([node["_target_"]]) for name, node in plain["metrics"].items()},
        "weights_sha256": weights,
        "pairs_sha256": pairs_hash(dataset),
        "annotations_sha256": dataset.annotations_sha256,
    }


def source_hash(targets: Iterable[str]) -> str:
    """Beginning of the SHA-256 of the modules that `targets`, dotted names, are in, and of those that they import from
    their own package or find beside it (packages beside it do not count); nor do comments, docstrings and layout.

    Empty for what has no source. It is the same for every version of Python that runs the code.
    """
    found: dict[str, str] = {}
    for target in targets:
        module = inspect.getmodule(get_object(target))
        if module is not None:
            _add_sources(module, module.__package__ or module.__name__, found)
    return hashlib.sha256("\n".join(found[name] for name in sorted(found)).encode()).hexdigest()[:16] if found else ""


def _add_sources(module: ModuleType, home: str, found: dict[str, str]) -> None:
    """Add by name the source of a module, and those of what it imports from a package or modules beside that."""
    try:
        tree = ast.parse(inspect.getsource(module))
    except (TypeError, OSError, SyntaxError):
        return
    found[module.__name__] = _told(tree)
    for name in _imported(tree, module.__package__ or module.__name__):
        inside, beside = name.startswith(f"{home}."), "." in name and _parent(name) == _parent(home)
        if name not in found and (inside or beside):
            with suppress(ImportError):  # what is imported from a module is no module itself
                imported = import_module(name)
                if inside or not hasattr(imported, "__path__"):
                    _add_sources(imported, home, found)


def _imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Whole names of what a source in a package imports, and of the modules that hold it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            with suppress(ImportError):  # beyond the top; the source may not mind
                origin = resolve_name("." * node.level + (node.module or ""), package)
                yield from (origin, *(f"{origin}.{alias.name}" for alias in node.names))


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _told(node: Any) -> str:
    """What a syntax tree says: `ast.dump` without docstrings and fields that some versions of Python leave empty."""
    if isinstance(node, list):
        return f"[{', '.join(map(_told, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = {name: value for name, value in ast.iter_fields(node) if value not in (None, [])}
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        fields["body"] = [part for part in node.body if not _is_text(part)]
    if isinstance(node, ast.JoinedStr):
        fields["values"] = [part for part in node.values if getattr(part, "value", None) != ""]
    return f"{type(node).__name__}({', '.join(f'{name}={_told(value)}' for name, value in fields.items())})"


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
