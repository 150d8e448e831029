"""The fast paths of a run: what is switched on, over what, and how near the plain path it must stay."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from camexp.bench.comparison import anywhere, on_gpu, with_compiler
from camexp.errors import CamexpError

EXACT, ROUNDED = 0.9999, 0.999
"""Smallest cosine of a map with the plain one, for paths that change the order of sums, and that round to bfloat16."""

PLAIN = (
    *("fold_batch_norms=false", "channels_last=false", "packed_weights=false", "winograd=false"),
    *("fused_activations=false", "onednn_linear=false", "inference_mode=false", "tail_backward=false"),
    *("share_classes=false", "batch_size=1", "forward_batch=1", "precision=fp32", "compile=false", "workers=0"),
)
"""Every technique off. (Decoding ahead and kept memory change no arithmetic.)"""


@dataclass(frozen=True)
class Path:
    """A fast path.

    Attributes
    ----------
    options: what is switched on; over: what it is switched on over, in place of the defaults.
    cosine: the smallest that passes.
    possible: whether the machine can take it.
    """

    name: str
    options: tuple[str, ...] = ()
    over: tuple[str, ...] = PLAIN
    cosine: float = EXACT
    possible: Callable[[torch.device], bool] = anywhere


def switched(switch: str, cosine: float = EXACT, possible: Callable[[torch.device], bool] = anywhere) -> Path:
    """One technique over the plain path."""
    return Path(switch, (switch,), cosine=cosine, possible=possible)


PATHS = (
    switched("fold_batch_norms=true"),
    switched("channels_last=true"),
    Path("packed_weights=true", ("packed_weights=true", "channels_last=true")),
    Path("winograd=true", ("winograd=true", "packed_weights=true", "channels_last=true")),
    Path("fused_activations=true", ("fused_activations=true", "packed_weights=true", "channels_last=true")),
    switched("onednn_linear=true"),
    switched("inference_mode=true"),
    switched("tail_backward=true"),
    switched("share_classes=true"),
    switched("batch_size=16"),
    switched("forward_batch=32"),
    Path("default", over=()),
    switched("precision=bf16", ROUNDED),
    switched("precision=tf32", ROUNDED, on_gpu),
    Path("compile=true", ("compile=true", "forward_batch=8"), possible=with_compiler),
)


def possible_paths(device: torch.device, say: Callable[[str], None], names: Sequence[str] = ()) -> list[Path]:
    """The paths of these names, or all, that the machine can take.

    Raises
    ------
    CamexpError: an unknown name, or when there is none.
    """
    known = {path.name: path for path in PATHS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise CamexpError(f"--paths {', '.join(unknown)}: no such path; there are {', '.join(known)}")
    asked = [known[name] for name in names] or [*PATHS]
    for path in asked:
        if not path.possible(device):
            say(f"{path.name}: left out: {device.type} has no such path")
    possible = [path for path in asked if path.possible(device)]
    if not possible:
        raise CamexpError(f"--paths {', '.join(names)}: {device.type} has none of them")
    return possible
