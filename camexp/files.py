"""Files that are replaced as a whole or not at all, YAML, free space, and what a full disk is called."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
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
def saying_when_full(path: Path) -> Iterator[None]:
    """Turn the system's error for a full disk into one that says what is safe."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CamexpError(
            f"the disk is full: cannot write {path}. Everything up to the batch before is safe; "
            "free some space and give the same command again."
        ) from error


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
    CamexpError: when the disk is full; the old content stays.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        with saying_when_full(path):
            with temporary.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
