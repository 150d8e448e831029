"""What one item needs: find out, fetch or take a given file, check, unpack, convert, stamp."""

import fnmatch
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from camexp.download.checksum import Checksum, Recorded, WrongChecksum, digest, verify
from camexp.download.disk import DiskFull, writing
from camexp.download.extract import read_stamp, unpack, write_stamp
from camexp.download.fetch import Network, fetch
from camexp.download.http import size_of
from camexp.download.manifest import File, Item
from camexp.errors import CamexpError


@dataclass(frozen=True)
class Store:
    """The folder of all data, and where things are in it."""

    data_dir: Path

    @property
    def archives(self) -> Path:
        """Where archives are kept."""
        return self.data_dir / "archives"

    @property
    def recorded(self) -> Recorded:
        """The checksums of files that have no published one."""
        return Recorded(self.archives / "checksums.yaml")

    def folder(self, item: Item) -> Path:
        """Where the item's files go."""
        return self.data_dir / item.folder

    def path(self, item: Item, file: File) -> Path:
        """Where the fetched file itself goes."""
        return (self.archives if file.unpack else self.folder(item)) / file.name

    def expected(self, file: File) -> Checksum | None:
        """The published or else the recorded checksum."""
        return file.checksum or self.recorded.get(file.name)

    def remaining(self, item: Item, file: File) -> int | None:
        """Bytes that are still to come over the network; None when the manifest does not know the size."""
        path = self.path(item, file)
        if path.is_file() or not file.urls:
            return 0
        return None if file.size is None else max(0, file.size - size_of(path.with_name(path.name + ".part")))


def is_done(store: Store, item: Item, file: File) -> bool:
    """True when nothing is to be done for a file: what it gives is complete, and was made of this very file.

    Data that the user has put there without this package (so without stamp) are taken as they are when complete.
    """
    folder, expected = store.folder(item), store.expected(file)
    if not file.unpack:
        return _is_stored(folder / file.name, expected) and is_converted(folder, file)
    stamp = read_stamp(folder, file.name)
    stamped = stamp is None or expected is None or expected.accepts(stamp)
    return stamped and all(count.complete(folder) for count in file.counts)


def _is_stored(path: Path, expected: Checksum | None) -> bool:
    return path.is_file() and (expected is None or expected.accepts(digest(path, expected.algorithm)))


def is_converted(folder: Path, file: File) -> bool:
    """True when the file is not to be converted, or was, from the published checkpoint."""
    if file.convert is None:
        return True
    stamp = read_stamp(folder, file.convert)
    return (
        (folder / file.convert).is_file() and stamp is not None and (not file.checksum or file.checksum.accepts(stamp))
    )


def bring(store: Store, item: Item, given: dict[str, Path], network: Network, overwrite: bool, delete: bool) -> None:
    """Make every file of `item` complete; with `given`, only those files, from the paths there.

    Parameters
    ----------
    given: paths of files that the user has fetched, by the file's name in the manifest.
    overwrite: replace files of other content that are in the item's folder.
    delete: delete archives in `store.archives` that have been unpacked.

    Raises
    ------
    CamexpError: what could not be done; the item's other files are tried nevertheless, unless the disk is full.
    """
    with writing(store.archives):
        store.archives.mkdir(parents=True, exist_ok=True)
    failed = []
    with _alone(store, item):
        for file in item.files if not given else (f for f in item.files if f.name in given):
            try:
                _bring_file(store, item, file, given.get(file.name), network, overwrite)
            except DiskFull:
                raise
            except CamexpError as error:
                failed.append(str(error))
            else:
                _delete_archive(store, item, file, delete)
    if failed:
        raise CamexpError("\n".join(failed))


@contextmanager
def _alone(store: Store, item: Item) -> Iterator[None]:
    """Only one process at a time brings an item; a second one is told, not queued."""
    try:
        with FileLock(store.archives / f".{item.name}.lock", timeout=0):
            yield
    except Timeout:
        raise CamexpError(f"{item.name} is being fetched by another process; wait for it, or end it") from None


def _bring_file(store: Store, item: Item, file: File, given: Path | None, network: Network, overwrite: bool) -> None:
    folder, path = store.folder(item), store.path(item, file)
    if is_done(store, item, file):
        print(f"{file.name}: complete in {folder}, nothing to do")
        return
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    source = given or path
    found = _checked(store, file, source, given is not None)
    if found is None and not file.urls:
        raise CamexpError(item.steps or f"{file.name} cannot be fetched; pass --from FILE")
    if found is None:
        found = fetch(file, path, lambda part: verify(part, file.name, file.checksum, store.recorded), network)
    _install(store, item, file, source, found, overwrite)


def _checked(store: Store, file: File, source: Path, given: bool) -> Checksum | None:
    """The checksum of a file that is here; None when it has to be fetched. A wrong one of our own is set aside."""
    if not source.is_file():
        return None
    print(f"{file.name}: here, at {source}", flush=True)
    try:
        return verify(source, file.name, file.checksum, store.recorded)
    except WrongChecksum as error:
        if given or not file.urls:
            raise CamexpError(f"{error}\n  It may be incomplete: fetch it again") from None
        os.replace(source, source.with_name(source.name + ".old"))
        print(f"{error}\n  it is kept as {source.name}.old, and fetched anew")
        return None


def _install(store: Store, item: Item, file: File, source: Path, found: Checksum, overwrite: bool) -> None:
    """Unpack or copy a checked file, convert it, and record its checksum when nothing else knows it."""
    folder, path = store.folder(item), store.path(item, file)
    if file.unpack:
        print(f"{file.name}: {unpack(source, file, folder, overwrite)} files unpacked in {folder}", flush=True)
        write_stamp(folder, file.name, found)
    elif source != path:
        copy = path.with_name(path.name + ".part")
        with writing(path):
            shutil.copyfile(source, copy)
            os.replace(copy, path)
    if store.expected(file) is None:
        store.recorded.add(file.name, found)
        print(f"{file.name}: its publisher gives no checksum; recorded {found} in {store.recorded.path}")
    if file.convert and not is_converted(folder, file):
        _convert(path, folder / file.convert)
        write_stamp(folder, file.convert, found)


def _convert(source: Path, target: Path) -> None:
    """Make `target` of a Caffe-style checkpoint, all or nothing."""
    from camexp.models.convert import convert_torchray  # noqa: PLC0415  (torch is slow to import; only this needs it)

    convert_torchray(source, target)
    print(f"{source.name}: converted to {target}", flush=True)


def _delete_archive(store: Store, item: Item, file: File, delete: bool) -> None:
    path = store.path(item, file)
    if delete and file.unpack and path.is_file():
        path.unlink()
        print(f"{file.name}: archive deleted")


def assign(item: Item, paths: Iterable[Path]) -> dict[str, Path]:
    """Which file of `item` each given path is: by its name, else by its checksum, else the only one there is.

    Raises
    ------
    CamexpError: when a path does not exist, or is none of the item's files.
    """
    given: dict[str, Path] = {}
    for path in paths:
        if not path.is_file():
            raise CamexpError(f"--from: no file {path.absolute()}")
        file = _recognise(item, path)
        if file is None or file.name in given:
            names = ", ".join(f.name for f in item.files if f.name not in given)
            raise CamexpError(f"--from: {path} is none of the files that {item.name} still lacks: {names}")
        given[file.name] = path
    return given


def _recognise(item: Item, path: Path) -> File | None:
    named = [file for file in item.files if file.name == path.name]
    known = [file for file in item.files if file.checksum]
    same = (file for file in known if file.checksum and file.checksum.accepts(digest(path, file.checksum.algorithm)))
    return named[0] if named else item.files[0] if len(item.files) == 1 else next(same, None)


def only(item: Item, patterns: list[str]) -> Item:
    """The item with only the files whose names match one of the patterns (all when there is none).

    Raises
    ------
    CamexpError: for a pattern that fits no file.
    """
    for pattern in patterns:
        if not fnmatch.filter([file.name for file in item.files], pattern):
            raise CamexpError(f"--only {pattern}: {item.name} has {', '.join(file.name for file in item.files)}")
    chosen = tuple(f for f in item.files if any(fnmatch.fnmatchcase(f.name, p) for p in patterns))
    return replace(item, files=chosen, counts=()) if patterns else item
