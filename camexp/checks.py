"""Whether the values of a config are of the types that they must be."""

import dataclasses
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf

from camexp.errors import CamexpError

KINDS: dict[Any, tuple[tuple[type, ...], str]] = {
    int: ((int,), "an integer"),
    float: ((int, float), "a number"),
    bool: ((bool,), "true or false"),
    str: ((str,), "a text"),
}
"""By annotation: the types of values that a config may give, and what they are called."""


def check_types(kind: Any, given: Mapping[Any, Any], where: str) -> None:
    """Compare values of a config with the annotations of a dataclass; parameters of other types are let through.

    Raises
    ------
    CamexpError: for a value of another type.
    """
    hints = get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
    for name, value in given.items():
        hint = hints.get(name)
        options = get_args(hint) if get_origin(hint) is UnionType else (hint,)
        if not all(option in KINDS or option is NoneType for option in options):
            continue
        if value is None and NoneType in options:
            continue
        known = [KINDS[option] for option in options if option in KINDS]
        if not any(type(value) in types for types, _ in known):
            raise CamexpError(f"{where}.{name} must be {' or '.join(text for _, text in known)}, not {value!r}")


SMALLEST = {
    "limit": 1,
    "seed": None,
    "batch_size": 1,
    "forward_batch": 1,
    "workers": 0,
    "save_maps": 0,
    "runtime.trials": 0,
    "runtime.warmup": 0,
}
"""Options of a run that are whole numbers, with the smallest that is allowed."""


SWITCHES = (
    *("overwrite", "retry", "runtime.only", "compile"),
    *("fold_batch_norms", "channels_last", "packed_weights", "winograd", "fused_activations", "onednn_linear"),
    *("inference_mode", "tail_backward", "share_classes", "keep_freed_memory"),
)
"""Options of a run that are true or false."""


def check_options(cfg: DictConfig) -> None:
    """Raise CamexpError where a run's option is not the whole number, the switch or the name that it must be."""
    allowed = {"limit": (None,), "forward_batch": ("auto",), "workers": ("auto",)}
    for name, smallest in SMALLEST.items():
        value = OmegaConf.select(cfg, name)
        if value in allowed.get(name, ()):
            continue
        if type(value) is not int:
            raise CamexpError(f"{name} must be an integer, not {value!r}")
        if smallest is not None and value < smallest:
            raise CamexpError(f"{name} must be at least {smallest}, not {value}")
    for name in SWITCHES:
        value = OmegaConf.select(cfg, name)
        if type(value) is not bool:
            raise CamexpError(f"{name} must be true or false, not {value!r}")
    width = cfg.model.width
    if type(width) not in (int, float) or width <= 0:
        raise CamexpError(f"model.width must be a positive number, not {width!r}")
    for group in ("dataset", "model", "method"):
        if not cfg[group].get("name"):
            raise CamexpError(f"the config of {group} lacks name: what its folder and its row are called")
    if not cfg.output:
        raise CamexpError("output must name a folder")
