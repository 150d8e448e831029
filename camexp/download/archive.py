"""The members of tar and zip archives, all checked before the first is unpacked.

Only plain files and folders with paths inside the archive are let through: no absolute paths, no "..", no drive
letters, no links, no devices. That is stricter than tarfile's "data" filter, which is applied too where Python has it.
"""

import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from camexp.download.disk import amount
from camexp.errors import CamexpError

DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
"""What the two libraries raise for broken archives, RuntimeError for those with a password."""

TAR_KINDS = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.CONTTYPE: "file",
    tarfile.DIRTYPE: "folder",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
}


class UnsafeArchive(CamexpError):
    """An archive that would write outside its folder, or fill the disk."""


@dataclass(frozen=True)
class Member:
    """One entry of an archive: `kind` is "file", "folder" or what else it is; `open` reads a file's bytes."""

    name: str
    size: int
    kind: str
    open: Callable[[], IO[bytes]]

    @property
    def path(self) -> PurePosixPath:
        """The name without "./"."""
        return PurePosixPath(self.name)

    def danger(self) -> str | None:
        """Why it must not be unpacked, or None."""
        if self.name.startswith("/") or "\\" in self.name or PureWindowsPath(self.name).drive:
            return "an absolute path, a backslash or a drive letter"
        if ".." in self.path.parts:
            return "a path with .."
        if not self.name.isprintable():
            return "a name with control characters"
        return None if self.kind in ("file", "folder") else self.kind


@contextmanager
def members(archive: Path) -> Iterator[list[Member]]:
    """The open archive's members in their order.

    Raises
    ------
    CamexpError: when it is no archive or is damaged, also while its members are read.
    """
    try:
        if tarfile.is_tarfile(archive):
            with tarfile.open(archive) as tar:
                yield [_tar_member(tar, info) for info in tar.getmembers()]
        elif zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                yield [_zip_member(packed, info) for info in packed.infolist()]
        else:
            raise CamexpError(f"{archive.absolute()} is neither a tar nor a zip archive; delete it and fetch it again")
    except DAMAGED as error:
        raise CamexpError(f"{archive.absolute()} is damaged ({error}); delete it and fetch it again") from error


def require_safe(archive: Path, found: list[Member], limit: int) -> None:
    """Raise `UnsafeArchive` for a dangerous member, or for more than `limit` bytes in all."""
    for member in found:
        if danger := member.danger():
            raise UnsafeArchive(
                f"{archive.absolute()} holds {member.name!r}, {danger}; nothing was unpacked. This is not the file "
                "that its publisher offers: delete it"
            )
    total = sum(member.size for member in found)
    if total > limit:
        raise UnsafeArchive(
            f"{archive.absolute()} would unpack to {amount(total)}, {amount(limit)} at most were expected; nothing was "
            "unpacked. Compare with `unpacked` in the manifest, or delete the file"
        )


def _tar_member(tar: tarfile.TarFile, info: tarfile.TarInfo) -> Member:
    kind = TAR_KINDS.get(info.type, "a device or other special file")
    if hasattr(tarfile, "data_filter") and kind in ("file", "folder"):
        try:
            tarfile.data_filter(info, ".")
        except tarfile.FilterError as error:
            kind = f"refused by Python's data filter ({error})"
    return Member(info.name, info.size, kind, partial(_open_tar, tar, info))


def _open_tar(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    stream = tar.extractfile(info)
    assert stream is not None  # members that are no files are never opened
    return stream


def _zip_member(packed: zipfile.ZipFile, info: zipfile.ZipInfo) -> Member:
    mode = stat.S_IFMT(info.external_attr >> 16)
    if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
        kind = "a symbolic link" if mode == stat.S_IFLNK else "a device or other special file"
    else:
        kind = "folder" if info.is_dir() else "file"
    # zipfile cuts names at a NUL and turns the system's separators; what stands in the archive is judged
    return Member(info.orig_filename, info.file_size, kind, partial(packed.open, info))
