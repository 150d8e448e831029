"""Whether a config has the options that there are, with values of the types that they must be."""

import dataclasses
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf

from camexp.errors import CamexpError
from camexp.files import read_yaml
from camexp.places import CONFIGS

KINDS: dict[Any, tuple[tuple[type, ...], str]] = {
    int: ((int,), "an integer"),
    float: ((int, float), "a number"),
    bool: ((bool,), "true or false"),
    str: ((str,), "a string"),
}
"""By annotation: the types of values that a config may give, and what they are called."""


def check_types(kind: Any, given: Mapping[Any, Any], where: str) -> None:
    """Compare values of a config with the annotations of a dataclass; parameters of other types are let through.

    Raises
    ------
    CamexpError: for a value of another type, or a parameter that the dataclass lacks.
    """
    if not dataclasses.is_dataclass(kind):
        return
    hints, names = get_type_hints(kind), [field.name for field in dataclasses.fields(kind) if field.init]
    for name in given:
        if not str(name).startswith("_") and name not in names:  # _target_ and its like are Hydra's
            raise CamexpError(f"{where} has no parameter {name!r}; it has {', '.join(names) or 'none'}")
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


@cache
def known_options() -> frozenset[str]:
    """Names of the options of a run, but for those of its data set, method and metrics."""
    config = read_yaml(CONFIGS / "config.yaml")
    known = {"dataset", "method", "metrics", *config} - {"defaults", "hydra"}
    known |= {f"runtime.{name}" for name in config["runtime"]}
    for group, folders in {"protocol": ["protocol"], "model": ["model", "dataset_model"]}.items():
        files = [file for folder in folders for file in (CONFIGS / folder).glob("*.yaml")]
        known |= {f"{group}.{name}" for file in files for name in read_yaml(file)}
    return frozenset(known)


def _check_names(cfg: DictConfig) -> None:
    """Raise CamexpError for an option that a run does not have: `+` adds any name to a config."""
    nested = {group: cfg[group] for group in ("runtime", "protocol", "model")}
    given = [str(name) for name in cfg if name not in nested]
    given += [f"{group}.{name}" for group, options in nested.items() for name in options]
    for name in given:
        if name not in known_options():
            near = get_close_matches(name, known_options() | nested.keys(), 1)
            raise CamexpError(f"there is no option {name}{f'; did you mean {near[0]}?' if near else ''}")


def check_options(cfg: DictConfig) -> None:
    """Raise CamexpError for an unknown option, and one that is not the whole number, switch or name that it must be."""
    _check_names(cfg)
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
