"""Where the configs and the papers' numbers are: beside the package in a checkout, inside it when it is installed."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _place(installed: str, checkout: str) -> Path:
    """The folder in the package, where pyproject.toml's `package-dir` puts it, or the one of the checkout."""
    inside = _PACKAGE / installed
    return inside if inside.is_dir() else _PACKAGE.parent / checkout


CONFIGS = _place("configs", "configs")

PUBLISHED = _place("published", "results/published")
