"""Whether the folders of a data set are where they should be; what is missing is said in a way that can be mended."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from camexp.errors import CamexpError

SHOWN = 6
"""So many names of a folder's content stand in a message."""


def require(root: Path, inside: str, what: str, hint: str) -> Path:
    """The path `root/inside`.

    Raises
    ------
    CamexpError: when it does not exist. The message says what was looked for and where, what is there instead,
        and, when `inside` lies one level above or below `root`, which folder to pass.
    """
    path = root / inside
    if path.exists():
        return path
    lines = [f"{what} not found: looked for {path.absolute()}", *_what_is_there(root, inside), hint]
    raise CamexpError("\n".join(lines))


def _what_is_there(root: Path, inside: str) -> list[str]:
    root = Path(os.path.abspath(root))
    near = [*root.parents[:2], *sorted(p for p in _content(root) if p.is_dir())]
    for folder in near:
        if (folder / inside).exists():
            return [f"{folder / inside} exists: pass dataset.root={folder}"]
    present = next((p for p in (root / inside).parents if p.is_dir() and p.is_relative_to(root)), None)
    return [f"{present} holds {_names(present)}"] if present else []


def _content(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _names(folder: Path) -> str:
    names = sorted(p.name for p in _content(folder))
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more if names else "nothing"


def require_images(folder: Path, names: Sequence[str] | np.ndarray, hint: str) -> None:
    """Check that the images `names` belong to `folder`; single missing ones are failures for later.

    Raises
    ------
    CamexpError: when not one of them is there.
    """
    if len(names) == 0 or any((folder / name).is_file() for name in names):
        return
    lines = [f"{folder.absolute()} holds none of the {len(names)} images that are listed, for instance {names[0]}"]
    deeper = next((p for p in sorted(_content(folder)) if (p / names[0]).is_file()), None)
    lines.append(f"they are in {deeper.absolute()}: move them up" if deeper else f"it holds {_names(folder)}")
    raise CamexpError("\n".join([*lines, hint]))


def require_unique(ids: Sequence[str], where: Path, what: str = "image id") -> None:
    """Raise `CamexpError` when an id stands twice: rows could not be told apart."""
    if len(set(ids)) != len(ids):
        seen: set[str] = set()
        twice = next(i for i in ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
        raise CamexpError(f"{what} {twice!r} stands twice in {where}; remove one of the two")
