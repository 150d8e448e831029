"""The row store: one CSV row per pair, appended and flushed per batch, resumable to the byte.

A run folder holds `records.csv`, `failures.csv`, `timing.csv`, `config.yaml` and `run.json`. Rows are the only
truth: a batch counts as done when each of its pairs is a row or a listed failure. On opening, a torn last line
and the rows of unfinished batches are dropped, so that batches are always computed whole and the finished file
is the same however often the run was interrupted.
"""

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from camexp.datasets.base import Failure
from camexp.errors import CamexpError
from camexp.files import saying_why, write_atomically

PAIR_COLUMNS = ("image_id", "class_id", "class_name", "prob", "argmax", "difficult", "area", "degenerate")
"""The columns before the metrics'; README.md says what each means."""

FAILURE_COLUMNS = ("image_id", "class_id", "reason")
TIMING_COLUMNS = ("kind", "batch", "image_id", "images", "pairs", "load_s", "explain_s", "metrics_s")

Row = dict[str, str]
Key = tuple[str, str]


def number(value: float) -> str:
    """A value as records write it: six significant digits."""
    return f"{value:.6g}"


def timing(kind: str, **values: float | str) -> Row:
    """A row of timing.csv; columns that are not given stay empty."""
    row = {name: number(value) if isinstance(value, float) else str(value) for name, value in values.items()}
    return dict.fromkeys(TIMING_COLUMNS, "") | {"kind": kind} | row


def to_csv(rows: Iterable[Mapping[str, str]], columns: Sequence[str], header: bool = False) -> str:
    """Rows as CSV lines that end in a line feed."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def read_csv(path: Path, columns: Sequence[str]) -> list[Row]:
    """The complete rows of a file; a torn last line is left out, a missing file has none.

    Raises
    ------
    CamexpError: when the header differs or a line in the middle has another number of fields.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    complete = content[: content.rfind(b"\n") + 1].decode("utf-8")  # a cut may fall inside a character
    if not complete:
        return []
    lines = list(csv.reader(io.StringIO(complete)))
    if tuple(lines[0]) != tuple(columns):
        raise CamexpError(f"{path} has the columns {lines[0]}, expected {list(columns)}; overwrite=true starts anew")
    for position, line in enumerate(lines[1:], 2):
        if len(line) != len(columns):
            raise CamexpError(
                f"{path}, line {position}: {len(line)} fields, expected {len(columns)}; overwrite=true starts anew"
            )
    return [dict(zip(columns, line, strict=True)) for line in lines[1:]]


def read_info(folder: Path) -> dict[str, Any]:
    """The content of a run folder's run.json; empty when there is none.

    Raises
    ------
    CamexpError: when it is not JSON.
    """
    path = folder / "run.json"
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:  # no JSON, or no UTF-8
        raise CamexpError(f"{path} is not JSON ({error}); overwrite=true starts anew") from error


def keys_in(folder: Path) -> set[Key]:
    """The pairs that a run's folder has rows or listed failures of, the last batch's perhaps not whole."""
    found: set[Key] = set()
    for name in ("records.csv", "failures.csv"):
        path = folder / name
        if path.exists():
            with path.open(encoding="utf-8", errors="replace", newline="") as file:
                found |= {(line[0], line[1]) for line in csv.reader(file) if len(line) > 1}
    return found


def differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The fields in which two identities differ, as "field: old -> new"; hashes of code count where both have them."""
    names = [*old, *(name for name in new if name not in old)]
    known = [n for n in names if not _is_source(n) or (n in old and n in new)]
    return [f"{n}: {old.get(n)!r} -> {new.get(n)!r}" for n in known if old.get(n) != new.get(n)]


def _is_source(field: str) -> bool:
    """Whether a field of an identity hashes code: versions differ in which there are."""
    return field in ("method_source", "metrics_source", "method_code") or (
        field.startswith("metrics.") and field.endswith(".source")
    )


def something_computed(folder: Path) -> bool:
    """Whether a batch was finished or a time taken; a run may end before its first."""
    tables = [folder / name for name in ("records.csv", "timing.csv")]
    return any(table.exists() and table.read_bytes().count(b"\n") > 1 for table in tables)


def conflict(folder: Path, identity: Mapping[str, Any]) -> str:
    """Why the run of an identity cannot go on in a folder; empty if it can."""
    stored = read_info(folder).get("identity")
    if not stored:
        return f"{folder} holds rows without a run.json that says what made them"
    fields = differing(stored, identity)
    return "\n  ".join([f"{folder} holds another run; it differs in", *fields]) if fields else ""


FILES = ("records.csv", "failures.csv", "timing.csv", "run.json")


class RunFolder:
    """The files of one run, locked against a second writer while it is open.

    Parameters
    ----------
    path: the folder; made when missing.
    metrics: names of the metrics' columns.
    identity: everything that the numbers depend on.
    overwrite: start anew, whatever is there.

    Raises
    ------
    CamexpError: when another run holds the folder, its rows were made under another identity, or it cannot be written.
    """

    def __init__(self, path: Path, metrics: Sequence[str], identity: Mapping[str, Any], overwrite: bool = False):
        self.path = path
        self.columns = (*PAIR_COLUMNS, *metrics)
        self._lock = FileLock(path / ".lock")
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise CamexpError(f"another run is writing to {path}; wait for it or choose another output=") from None
        except OSError as error:
            raise CamexpError(f"cannot write to {path}: {error.strerror or error}; choose another output=") from error
        try:
            if overwrite:
                self._clear()
            self._check(identity)
            self.rows = read_csv(path / "records.csv", self.columns)
            self.failures = read_csv(path / "failures.csv", FAILURE_COLUMNS)
            self.timing = read_csv(path / "timing.csv", TIMING_COLUMNS)
        except BaseException:
            self.close()
            raise

    def _clear(self) -> None:
        with saying_why(self.path):
            for name in FILES:
                (self.path / name).unlink(missing_ok=True)

    def _check(self, identity: Mapping[str, Any]) -> None:
        said = conflict(self.path, identity)
        if said and something_computed(self.path):
            raise CamexpError(f"{said}\nChoose another output= or pass overwrite=true (which deletes its rows).")
        if said:
            self._clear()

    def close(self) -> None:
        """Release the lock."""
        self._lock.release()

    def read_info(self) -> dict[str, Any]:
        """The content of run.json; empty when there is none."""
        return read_info(self.path)

    def write_info(self, info: Mapping[str, Any]) -> None:
        """Replace run.json."""
        write_atomically(self.path / "run.json", json.dumps(info, indent=2) + "\n")

    def prepare(self, batches: Sequence[Sequence[Key]], known: Sequence[Failure], retry: bool = False) -> list[int]:
        """Drop what is unfinished and return the numbers of the batches that remain to be computed.

        Parameters
        ----------
        batches: the (image id, class id) keys of every batch's pairs, in order.
        known: failures that the annotations alone tell; listed first.
        retry: compute batches with other failures again.
        """
        batch_of = {key: number for number, batch in enumerate(batches) for key in batch}
        listed = [failure_row(failure) for failure in known]
        known_keys = {(row["image_id"], row["class_id"]) for row in listed}
        later = [f for f in self.failures if (f["image_id"], f["class_id"]) not in known_keys]
        failed = {key_of(row) for row in later} if not retry else set()
        done = {key_of(row) for row in self.rows} | failed
        todo = [n for n, batch in enumerate(batches) if not all(key in done for key in batch)]
        unfinished = set(todo)

        def keep(row: Row) -> bool:
            return key_of(row) in batch_of and batch_of[key_of(row)] not in unfinished

        self.rows = [row for row in self.rows if keep(row)]
        self.failures = listed + [row for row in later if keep(row)]
        self.timing = [row for row in self.timing if row["kind"] != "batch" or int(row["batch"]) not in unfinished]
        self._batch_of = batch_of
        self._write_all()
        return todo

    def _write_all(self) -> None:
        for name, rows, columns in (
            ("records.csv", self.rows, self.columns),
            ("failures.csv", self.failures, FAILURE_COLUMNS),
            ("timing.csv", self.timing, TIMING_COLUMNS),
        ):
            text = to_csv(rows, columns, header=True)
            path = self.path / name
            if not path.exists() or path.read_bytes() != text.encode("utf-8"):
                write_atomically(path, text)

    def append(self, rows: list[Row], failures: Sequence[Failure], timing: Row) -> None:
        """Add one batch: failures first, then the rows that make it count as done.

        Raises
        ------
        CamexpError: when the disk is full; what was appended before is safe.
        """
        failed = [failure_row(failure) for failure in failures]
        self._append("failures.csv", failed, FAILURE_COLUMNS)
        self._append("records.csv", rows, self.columns)
        self._append("timing.csv", [timing], TIMING_COLUMNS)
        self.failures += failed
        self.rows += rows
        self.timing.append(timing)

    def append_timing(self, timing: Row) -> None:
        """Add one row to timing.csv."""
        self._append("timing.csv", [timing], TIMING_COLUMNS)
        self.timing.append(timing)

    def forget_trials(self) -> None:
        """Drop the trials of the run time."""
        self.timing = [row for row in self.timing if row["kind"] != "trial"]
        self._write_all()

    def _append(self, name: str, rows: list[Row], columns: Sequence[str]) -> None:
        if not rows:
            return
        path = self.path / name
        with saying_why(path), path.open("a", encoding="utf-8", newline="") as file:
            file.write(to_csv(rows, columns))
            file.flush()
            os.fsync(file.fileno())

    def finish(self) -> None:
        """Bring the rows into the order of the batches (it differs only after a retry)."""
        ordered = sorted(self.rows, key=lambda row: self._batch_of[key_of(row)])
        if ordered != self.rows:
            self.rows = ordered
            self._write_all()


def key_of(row: Mapping[str, str]) -> Key:
    """(image id, class id) of a row."""
    return row["image_id"], row["class_id"]


def failure_row(failure: Failure) -> Row:
    """A failure as a row; the class is empty when the whole image failed."""
    class_id = "" if failure.class_id is None else str(failure.class_id)
    reason = " ".join(failure.reason.split())
    return {"image_id": failure.image_id, "class_id": class_id, "reason": reason}
