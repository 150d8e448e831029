"""What is said of items: the plan before anything is fetched, and what is complete afterwards."""

from collections.abc import Iterable

from camexp.download.bring import Store, is_converted, is_done
from camexp.download.checksum import digest
from camexp.download.disk import amount, require_free
from camexp.download.http import size_of
from camexp.download.manifest import Count, File, Item
from camexp.files import free_bytes

SHOWN = 5
"""Missing files that are named."""


def print_plan(store: Store, item: Item, given: Iterable[str] = ()) -> None:
    """Say what will be fetched, how much, under which licence, from where and to where.

    Parameters
    ----------
    given: names of the files that the user passes; when there are some, only those are handled.

    Raises
    ------
    DiskFull: when what is known of the sizes does not fit on the disk.
    """
    handed = set(given)
    folder = store.folder(item)
    print(f"{item.name}: {item.title}\n  licence  {item.licence}\n  to       {folder}")
    files = [file for file in item.files if not handed or file.name in handed]
    wanted = [file for file in files if not is_done(store, item, file)]
    for file in files:
        state = _state(store, item, file, file.name in handed) if file in wanted else "complete"
        print(f"  {file.name}  {amount(file.size)}, checksum {store.expected(file) or 'unknown'}: {state}")
    needed = sum(_needed(store, item, file, file.name in handed) for file in wanted)
    unknown = [file for file in wanted if file.name not in handed and store.remaining(item, file) is None]
    parts = [f"about {amount(needed)}"] if needed else []
    parts += ["files of unknown size"] if unknown else []
    taken = f"{' and '.join(parts) or 'nothing'} will be taken"
    print(f"  disk     {taken}, {amount(free_bytes(folder))} free", flush=True)
    require_free(needed, folder)


def _state(store: Store, item: Item, file: File, handed: bool) -> str:
    path = store.path(item, file)
    if handed or path.is_file():
        return "given" if handed else f"here, in {path.parent}"
    part = size_of(path.with_name(path.name + ".part"))
    begun = f" ({amount(part)} of it are here)" if part else ""
    return f"from {' or '.join(file.urls)}{begun}" if file.urls else "to be fetched by you"


def _needed(store: Store, item: Item, file: File, handed: bool) -> int:
    """Bytes of disk that a file will take, as far as the manifest knows."""
    copies = (file.size or 0) if file.convert else 0
    return file.unpacked + copies + (0 if handed else store.remaining(item, file) or 0)


def print_list(store: Store, items: Iterable[Item]) -> None:
    """Say what there is to fetch, and what of it is complete."""
    for item in items:
        print(f"{item.name}: {item.title}\n  licence  {item.licence}\n  to       {store.folder(item)}")
        for file in item.files:
            state = "complete" if is_done(store, item, file) else "missing"
            print(f"  {state:8} {file.name}  {amount(file.size)}, checksum {store.expected(file) or 'unknown'}")


def print_verified(store: Store, item: Item) -> bool:
    """Count the item's files and say what is missing; True when it is complete."""
    print(f"{item.name}: {store.folder(item)}")
    results = [_told(store, item, count) for file in item.files for count in file.counts]
    results += [_told(store, item, count) for count in item.counts]
    results += [_stored(store, item, file) for file in item.files if not file.unpack]
    return all(results)


def _told(store: Store, item: Item, count: Count) -> bool:
    found, missing = count.found(store.folder(item))
    complete = count.complete(store.folder(item))
    more = f"; {found - count.expected} more than published" if found > count.expected else ""
    print(f"  {_mark(complete)} {found} of {count.expected} {count.what}{more}{_names(missing)}")
    return complete


def _names(missing: list[str]) -> str:
    shown = ", ".join(missing[:SHOWN]) + (f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else "")
    return f"; not there: {shown}" if missing else ""


def _stored(store: Store, item: Item, file: File) -> bool:
    """Say whether a file that is used as it is, and what is made of it, are there and right."""
    folder, expected = store.folder(item), store.expected(file)
    path = folder / file.name
    if not path.is_file():
        print(f"  {_mark(False)} {file.name}: not there")
        return False
    found = digest(path, expected.algorithm if expected else "sha256")
    right = expected is None or expected.accepts(found)
    print(f"  {_mark(right)} {file.name}: {found}" + ("" if right else f", expected {expected}"))
    converted = is_converted(folder, file)
    if file.convert:
        print(f"  {_mark(converted)} {file.convert}" + ("" if converted else ": not made from this file"))
    return right and converted


def _mark(good: bool) -> str:
    return "ok        " if good else "incomplete"
