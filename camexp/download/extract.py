"""Unpacking: into a temporary folder beside the target, then moved in, then stamped with the archive's checksum."""

import filecmp
import json
import os
import shutil
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from camexp.download.archive import Member, members, require_safe
from camexp.download.checksum import Checksum
from camexp.download.disk import writing
from camexp.download.manifest import File
from camexp.errors import CamexpError

SLACK = 2
"""An archive may unpack to this many times the manifest's approximate size."""


def stamp_path(folder: Path, name: str) -> Path:
    """The file that says from which archive (or checkpoint) something in `folder` was made."""
    return folder / f".{name}.stamp.json"


def read_stamp(folder: Path, name: str) -> Checksum | None:
    """The checksum in the stamp, or None."""
    try:
        return Checksum.parse(json.loads(stamp_path(folder, name).read_text())["checksum"])
    except (OSError, ValueError, KeyError, TypeError, CamexpError):
        return None


def write_stamp(folder: Path, name: str, checksum: Checksum) -> None:
    """Say that what `name` gives is complete in `folder`."""
    with writing(folder):
        stamp_path(folder, name).write_text(json.dumps({"file": name, "checksum": str(checksum)}) + "\n")


def unpack(archive: Path, file: File, folder: Path, overwrite: bool = False) -> int:
    """Unpack what `file.unpack` names into `folder`; the number of files.

    An interrupted call leaves at most files that are right: the next one begins anew and keeps those that are the same.

    Raises
    ------
    UnsafeArchive: for a dangerous member or size.
    CamexpError: when the archive is damaged, lacks a path, or would change a file that is there (without `overwrite`).
    DiskFull: when it does not fit.
    """
    temporary = folder / f".unpacking-{file.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    with writing(folder):
        temporary.mkdir(parents=True)
    try:
        with members(archive) as found:
            require_safe(archive, found, SLACK * file.unpacked)
            written = _write(_chosen(archive, file, found), temporary)
        _move_in(temporary, written, folder, overwrite)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return len(written)


def _chosen(archive: Path, file: File, found: list[Member]) -> dict[PurePosixPath, Member]:
    """The members to unpack by their paths in the folder."""
    chosen: dict[PurePosixPath, Member] = {}
    plain = [member for member in found if member.kind == "file"]
    for inside, outside in file.unpack.items():
        root = PurePosixPath(inside)
        below = {PurePosixPath(outside, m.path.relative_to(root)): m for m in plain if m.path.is_relative_to(root)}
        if not below:
            top = ", ".join(sorted({member.path.parts[0] for member in found if member.path.parts})[:8])
            raise CamexpError(
                f"{archive.absolute()} holds no {inside!r}; at its top are: {top or 'nothing'}. Is it {file.name}? "
                "If its layout is another one, unpack it by hand into the folder that --list shows"
            )
        chosen |= below
    return chosen


def _write(chosen: dict[PurePosixPath, Member], folder: Path) -> list[PurePosixPath]:
    """Write the members below `folder`, which is new: their paths."""
    for path, member in tqdm(chosen.items(), desc="unpacking", unit="file", dynamic_ncols=True):
        target = folder / path
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with member.open() as source, target.open("xb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
    return list(chosen)


def _move_in(source: Path, paths: list[PurePosixPath], folder: Path, overwrite: bool) -> None:
    """Move the files into `folder`, none over a file of other content unless `overwrite`."""
    there = [path for path in paths if os.path.lexists(folder / path)]
    changed = [path for path in there if not _same(source / path, folder / path)]
    blocked = [path for path in changed if not overwrite or (folder / path).is_dir()]
    if blocked:
        shown = ", ".join(str(path) for path in blocked[:5]) + (" ..." if len(blocked) > 5 else "")
        raise CamexpError(
            f"{len(blocked)} files in {folder.absolute()} differ from those in the archive: {shown}; nothing was "
            "changed. Move them away, or pass --overwrite"
        )
    kept = set(there) - set(changed)
    for path in paths:
        if path not in kept:
            with writing(folder / path):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.move(source / path, folder / path)


def _same(new: Path, old: Path) -> bool:
    return old.is_file() and filecmp.cmp(new, old, shallow=False)
