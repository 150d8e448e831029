"""Checkpoints: read without executing code, matched key by key, identified by SHA-256."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from camexp.errors import CamexpError

EMBEDDED = Path(__file__).parent / "weights"

FOREIGN = ("classifier.4.weight", "bn1.1.weight")
"""Keys that only TorchRay's files of VGG16 and ResNet-50 have."""


def resolve(checkpoint: str | None, model: str, dataset: str, hint: str = "") -> Path | None:
    """The file that `model.checkpoint` means, or None for "random".

    "embedded" is the small checkpoint of (dataset, model) that ships with the package; `hint` is what the error for a
    missing file advises.

    Raises
    ------
    CamexpError: when none is given or the file is missing.
    """
    if checkpoint == "random":
        return None
    if not checkpoint:
        raise CamexpError(
            f"no checkpoint for model={model} on dataset={dataset}.\n"
            "Pass model.checkpoint=FILE (a state dict as .safetensors or .pth), or model.checkpoint=random for "
            f"untrained weights, or one of the embedded networks (DATASET_MODEL): {_embedded()}."
        )
    if checkpoint == "embedded":
        path = EMBEDDED / f"{dataset}_{model}.safetensors"
        if not path.is_file():
            raise CamexpError(f"no embedded checkpoint {path.stem}; those that ship are: {_embedded()}")
        return path
    path = Path(checkpoint)
    if not path.is_file():
        advice = f"\n{hint or 'Correct model.checkpoint=FILE (or embedded, random).'}"
        raise CamexpError(f"checkpoint not found: looked for {path.absolute()}{advice}")
    return path


def _embedded() -> str:
    return ", ".join(sorted(path.stem for path in EMBEDDED.glob("*.safetensors")))


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns)


@cache
def _sha256(path: Path, size: int, changed: int) -> str:
    """Computed once for a file of that size that was last changed then."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a .safetensors or torch file (also under "state_dict" or "model").

    Raises
    ------
    CamexpError: when the file is corrupt, or holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise many types for a corrupt file
        if isinstance(error, UnpicklingError):  # its text advises to run what is in the file
            raise CamexpError(
                f"cannot read the checkpoint {path.absolute()}: it is damaged, or holds more than tensors"
            ) from None
        reason = (str(error) or type(error).__name__).splitlines()[0]  # an empty file has no text
        raise CamexpError(
            f"cannot read the checkpoint {path.absolute()}: {type(error).__name__}: {reason}\n"
            "It is damaged, or neither a .safetensors nor a torch file; fetch or save it again."
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise CamexpError(f"{path.absolute()} is not a state dict (a mapping from names to tensors)")
    return {str(key).removeprefix("module."): value for key, value in content.items()}


def mismatches(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """In which keys and shapes a state differs from the expected one; the counters of batch norms may be missing."""
    problems = [
        f"{key}: shape {tuple(state[key].shape)} in the file, {tuple(value.shape)} in the network"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    missing = [key for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    problems += [f"{key}: missing in the file" for key in missing]
    return problems + [f"{key}: not in the network" for key in state if key not in expected]


def first_of(problems: Sequence[str]) -> str:
    """The first six problems and the count of the others, one per line."""
    more = [f"and {len(problems) - 6} more"] if len(problems) > 6 else []
    return "\n  ".join([*problems[:6], *more])


def load(network: nn.Module, path: Path) -> None:
    """Load a checkpoint (any float type) into `network` as float32.

    Raises
    ------
    CamexpError: with the first missing, unexpected and misshapen keys when it does not fit.
    """
    state = read_state(path)
    problems = mismatches(network.state_dict(), state)
    if problems:
        advice = (
            "\nIt is one of TorchRay's: scripts/convert_checkpoint.py converts it." if set(FOREIGN) & set(state) else ""
        )
        raise CamexpError(f"the checkpoint {path.absolute()} does not fit the network:\n  {first_of(problems)}{advice}")
    floats = {k: v.float() if v.is_floating_point() else v for k, v in state.items()}
    for key, value in floats.items():
        if not torch.isfinite(value).all():
            raise CamexpError(f"the checkpoint {path.absolute()} holds values that are not finite, first in {key}")
    network.load_state_dict(floats, strict=False)
