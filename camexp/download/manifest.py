"""The manifest of what can be fetched: configs/download.yaml, read into small classes and checked."""

import fnmatch
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from camexp.download.checksum import Checksum
from camexp.errors import CamexpError
from camexp.files import read_yaml
from camexp.places import CONFIGS

MANIFEST = CONFIGS / "download.yaml"


@dataclass(frozen=True)
class Count:
    """How many files must be in a folder.

    Attributes
    ----------
    what: name of the thing that is counted.
    files: patterns; with `listed_in`, {} stands for a name.
    expected: how many.
    listed_in: file with one name per line, of which each must have all `files`.
    """

    what: str
    files: tuple[str, ...]
    expected: int
    listed_in: str | None = None

    def found(self, folder: Path) -> tuple[int, list[str]]:
        """The number of complete things, and the paths that are known to be missing."""
        if self.listed_in is None:
            return sum(_matches(folder / pattern) for pattern in self.files), []
        if not (folder / self.listed_in).is_file():
            return 0, [self.listed_in]
        # the lists of single classes carry a second column
        names = [line.split()[0] for line in (folder / self.listed_in).read_text().splitlines() if line.strip()]
        paths = {name: [pattern.format(name) for pattern in self.files] for name in names}
        missing = {name: [p for p in wanted if not (folder / p).is_file()] for name, wanted in paths.items()}
        return sum(not gone for gone in missing.values()), [p for gone in missing.values() for p in gone]

    def complete(self, folder: Path) -> bool:
        """True when nothing is missing; files beside the expected ones do no harm."""
        count, missing = self.found(folder)
        return count >= self.expected and not missing


def _matches(pattern: Path) -> int:
    """Number of files whose name fits the last part of `pattern`; hidden ones are not counted."""
    if not pattern.parent.is_dir():
        return 0
    with os.scandir(pattern.parent) as entries:
        return sum(
            fnmatch.fnmatchcase(entry.name, pattern.name) and not entry.name.startswith(".") and entry.is_file()
            for entry in entries
        )


@dataclass(frozen=True)
class File:
    """One file to fetch; the attributes are described at the head of configs/download.yaml."""

    name: str
    url: str | None = None
    mirrors: tuple[str, ...] = ()
    size: int | None = None
    checksum: Checksum | None = None
    unpack: dict[str, str] = field(default_factory=dict)
    unpacked: int = 0
    convert: str | None = None
    counts: tuple[Count, ...] = ()

    @property
    def urls(self) -> tuple[str, ...]:
        """Where to fetch it, in order; empty when only the user can."""
        return (self.url, *self.mirrors) if self.url else ()


@dataclass(frozen=True)
class Item:
    """A data set or a set of checkpoints: what `scripts/download.py NAME` makes complete."""

    name: str
    title: str
    licence: str
    folder: str
    files: tuple[File, ...]
    counts: tuple[Count, ...] = ()
    steps: str | None = None


def load_manifest(path: Path = MANIFEST) -> dict[str, Item]:
    """All items by name.

    Raises
    ------
    CamexpError: when the file cannot be read, or naming the entry that is malformed.
    """
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise CamexpError(f"the manifest {path.absolute()} must map names of items to items")
    items = {}
    for name, node in content.items():
        try:
            items[str(name)] = _item(str(name), node)
        except (TypeError, ValueError, KeyError, AttributeError, CamexpError) as error:
            raise CamexpError(f"{path.absolute()}: the item {name!r} is malformed: {error}") from error
    return items


def _item(name: str, node: dict[str, Any]) -> Item:
    files = tuple(_file(child) for child in node["files"])
    item = Item(**node | {"name": name, "files": files, "counts": _counts(node.get("counts"))})
    if not item.licence or not files:
        raise CamexpError("a licence and files are needed")
    inner = (path for file in files for path in (*file.unpack.values(), file.convert or "."))
    _require_inside((item.folder, *(file.name for file in files), *inner))
    return item


def _file(node: dict[str, Any]) -> File:
    checksum = Checksum.parse(node["checksum"]) if node.get("checksum") else None
    mirrors = tuple(node.get("mirrors") or ())
    counts = _counts(node.get("counts"))
    file = File(**node | {"checksum": checksum, "mirrors": mirrors, "counts": counts, "unpack": node.get("unpack", {})})
    if file.unpack and not (file.unpacked and counts):
        raise CamexpError(f"{file.name} is unpacked, so it needs `unpacked` (bytes) and `counts`")
    return file


def _counts(nodes: list[dict[str, Any]] | None) -> tuple[Count, ...]:
    return tuple(Count(**node | {"files": tuple(node["files"])}) for node in nodes or ())


def _require_inside(paths: Iterable[str]) -> None:
    """Raise `CamexpError` for a path that would leave the folder of the data."""
    for path in paths:
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise CamexpError(f"{path!r} must be a relative path without ..")
