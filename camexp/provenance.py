"""What a run was made with: versions, device and commit."""

import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy
import torch
import torchvision

import camexp
from camexp.places import CONFIGS


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, device and commit that a run was made with."""
    return {
        "camexp": camexp.__version__,
        "commit": commit(Path(camexp.__file__).resolve().parent, CONFIGS),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": numpy.__version__,
        **machine(device),
    }


def machine(device: torch.device) -> dict[str, Any]:
    """What, of an environment, makes the time that something takes."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "device_type": device.type,
        "threads": torch.get_num_threads(),
    }


def processor(described: Path = Path("/proc/cpuinfo")) -> str:
    """Name of the CPU and the instructions that PyTorch uses on it: "AMD EPYC (AVX512)".

    Parameters
    ----------
    described: where Linux tells; elsewhere, or where the name is missing, it is what Python knows.
    """
    try:
        facts = [line.partition(":") for line in described.read_text(errors="replace").splitlines()]
    except OSError:
        facts = []
    names = [value.strip() for key, _, value in facts if key.strip() == "model name" and value.strip()]
    name = next(iter(names), "") or platform.processor() or platform.machine() or "unknown processor"
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def commit(code: Path, configs: Path) -> str | None:
    """The commit of a checkout, with "+changes" when files of these two folders differ from it.

    What else differs, like tables that were measured anew, makes no difference to what is computed. None outside of a
    checkout, and for an installed package, which has its configs within: a repository around it is not its own.
    """
    if configs.is_relative_to(code):
        return None

    def git(*asked: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(code), *asked]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        changes = git("status", "--porcelain", "--untracked-files=no", "--", str(code), str(configs))
        return git("rev-parse", "HEAD") + "+changes" * bool(changes)
    except (OSError, subprocess.SubprocessError):
        return None
