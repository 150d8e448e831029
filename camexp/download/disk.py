"""The disk: sizes for people, whether there is room, and errors of writing that say what to do."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from camexp.errors import CamexpError
from camexp.files import free_bytes

FULL = (errno.ENOSPC, errno.EDQUOT)


class DiskFull(CamexpError):
    """There is no space left; what was fetched stays."""


def amount(size: int | None) -> str:
    """A number of bytes for people, e.g. "451 MB"."""
    if size is None:
        return "size unknown"
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if value >= 100 or unit == "B" else f"{value:.3g} {unit}"


def require_free(needed: int, path: Path) -> None:
    """Raise `DiskFull` when fewer than `needed` bytes are free where `path` is."""
    free = free_bytes(path)
    if needed > free:
        raise DiskFull(
            f"{amount(needed)} are needed and {amount(free)} are free at {path.absolute()}; "
            "make room, or name a folder on another disk with --data-dir"
        )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the operating system says about a failed write into a `CamexpError`."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise DiskFull(
                f"the disk is full: writing {path.absolute()} failed. What was fetched stays; make room (or name a "
                "folder on another disk with --data-dir), and the same command goes on"
            ) from error
        raise CamexpError(f"cannot write {path.absolute()}: {error.strerror or error}") from error
