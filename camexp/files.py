"""Files that are replaced as a whole or not at all, YAML, free space, and why nothing can be written."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from camexp.errors import CamexpError


def free_bytes(path: Path) -> int:
    """Free space on the disk on which `path` is, or will be."""
    existing = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    return shutil.disk_usage(existing).free


@contextmanager
def saying_why(path: Path) -> Iterator[None]:
    """Turn the system's errors for a full disk, and for what may not be written, into ones that say what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise CamexpError(f"cannot write {path}: {error.strerror}; allow it, or choose another folder") from error
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CamexpError(
            f"the disk is full: cannot write {path}. Everything up to the batch before is safe; "
            "free some space and give the same command again."
        ) from error


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, unless it is there.

    Raises
    ------
    CamexpError: where that is not possible.
    """
    with saying_why(path.absolute()):
        path.mkdir(parents=True, exist_ok=True)


def read_yaml(path: Path) -> Any:
    """Content of a YAML file as dicts, lists and values; variables stay as they are written.

    Raises
    ------
    CamexpError: when it cannot be read; where, and what is wrong there.
    """
    try:
        return OmegaConf.to_container(OmegaConf.load(path))
    except (OSError, UnicodeDecodeError, OmegaConfBaseException, YAMLError) as error:
        raise CamexpError(f"cannot read {path.absolute()}: {error}") from error


def write_atomically(path: Path, content: str | bytes | memoryview) -> None:
    """Replace a file's content (text as UTF-8), all or nothing.

    Raises
    ------
    CamexpError: when the disk is full or the file may not be written; the old content stays.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        with saying_why(path):
            with temporary.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
