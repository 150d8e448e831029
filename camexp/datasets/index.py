"""What the annotations of a data set say, as plain arrays, built once and kept in a cache file.

An index is a dictionary of numpy arrays without objects: worker processes share its pages, and it is read back in
a fraction of the time that the annotations take. The file is an `.npz` that is read without pickle.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock

from camexp.datasets.base import Failure

FORMAT = 2
"""Version of the arrays; raised when what a loader stores changes, so that every index is built anew."""

Index = dict[str, np.ndarray]


def cached(
    cache: str | None, name: str, sources: Sequence[Path], arguments: Sequence[object], build: Callable[[], Index]
) -> Index:
    """`build()`, or what it returned when the sources were as they are now.

    Parameters
    ----------
    cache: folder of the cache files; None builds every time.
    name: begins the file's name.
    sources: files that the index is made of, identified by path, size and time of change.
    arguments: whatever else the index depends on; their `repr` counts.

    A file that is damaged, or was made of other sources, is replaced. Of several processes that ask at once, one
    builds and the others wait. A folder that cannot be written costs a warning, nothing else.
    """
    if cache is None:
        return build()
    place = hashlib.sha256(repr((str(sources[0].absolute()), list(arguments))).encode()).hexdigest()
    path, key = Path(cache) / f"{name}-{place[:12]}.npz", _key(sources, arguments)
    index = _read(path, key)
    if index is not None:
        return index
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_suffix(".lock")).acquire()
    except OSError as error:
        _warn(path, error)
        return build()
    with lock:
        index = _read(path, key)
        if index is None:
            index = build()
            _write(path, key, index)
    return index


def _key(sources: Sequence[Path], arguments: Sequence[object]) -> str:
    digest = hashlib.sha256(repr((FORMAT, list(arguments))).encode())
    for source in sources:
        try:
            status = os.stat(source)
            digest.update(f"{source.absolute()} {status.st_size} {status.st_mtime_ns}\n".encode())
        except OSError:
            digest.update(f"{source.absolute()} missing\n".encode())
    return digest.hexdigest()


def _read(path: Path, key: str) -> Index | None:
    """The index in `path`; None when there is none, it is damaged, or it belongs to another key."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["key"]) != key:
                return None
            return {name: file[name] for name in file.files if name != "key"}
    except Exception:  # a damaged file raises almost anything, and building anew is always right
        return None


def _write(path: Path, key: str, index: Index) -> None:
    """Replace the cache file, all or nothing; the caller holds its lock."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as file:
            np.savez(file, key=np.array(key), **index)  # type: ignore[arg-type]
        os.replace(temporary, path)
    except OSError as error:
        _warn(path, error)
    finally:
        temporary.unlink(missing_ok=True)


def _warn(path: Path, error: OSError) -> None:
    print(f"warning: the index cannot be kept in {path}: {error}; it is built anew for every run", file=sys.stderr)


def pack_json(values: object) -> np.ndarray:
    """Anything that JSON can hold, as an array without objects."""
    return np.frombuffer(json.dumps(values).encode(), np.uint8)


def unpack_json(array: np.ndarray) -> list:
    """The inverse of `pack_json` for a list."""
    return json.loads(array.tobytes())


def pack_failures(failures: Iterable[Failure]) -> np.ndarray:
    """Failures as an array without objects."""
    return pack_json([[f.image_id, f.class_id, f.reason] for f in failures])


def unpack_failures(array: np.ndarray) -> tuple[Failure, ...]:
    """The inverse of `pack_failures`."""
    return tuple(Failure(*fields) for fields in unpack_json(array))


def offsets(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """(N+1,) where each of N groups begins in a flat array, from the groups' lengths."""
    return np.concatenate([[0], np.cumsum(np.asarray(counts, np.int64))]).astype(np.int64)
