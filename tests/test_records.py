"""The row store: reading, writing, identity, locking and resuming."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from camexp import records
from camexp.datasets.base import Failure
from camexp.errors import CamexpError
from camexp.records import (
    FAILURE_COLUMNS,
    PAIR_COLUMNS,
    Key,
    Row,
    RunFolder,
    differing,
    number,
    read_csv,
    to_csv,
    write_atomically,
)

METRICS = ("ebpg", "drop")
COLUMNS = (*PAIR_COLUMNS, *METRICS)
IDENTITY = {"method.m": 20, "seed": 0, "model.layers.sise": ["relu", "layer1"]}
BATCHES: list[list[Key]] = [[("a", "0"), ("a", "1")], [("b", "3")], [("c", "0"), ("d", "2")]]


def row(key: Key, value: str = "0.5") -> Row:
    return dict.fromkeys(COLUMNS, value) | {"image_id": key[0], "class_id": key[1], "class_name": "cat"}


def timing(batch: int | str, kind: str = "batch") -> Row:
    return dict.fromkeys(records.TIMING_COLUMNS, "1") | {"kind": kind, "batch": str(batch)}


def failure(key: Key, reason: str = "image: truncated") -> Failure:
    return Failure(key[0], int(key[1]), reason)


def open_folder(path: Path, **kwargs) -> RunFolder:
    """A run folder with its identity written, as the runner leaves it."""
    folder = RunFolder(path, METRICS, IDENTITY, **kwargs)
    folder.write_info({"identity": IDENTITY})
    return folder


def compute(folder: RunFolder, batch: int, failed: tuple[Key, ...] = ()) -> None:
    """Append batch number `batch` with one row per pair, or a failure."""
    done = [row(key) for key in BATCHES[batch] if key not in failed]
    folder.append(done, [failure(key) for key in failed], timing(batch))


def finished(path: Path, **kwargs) -> bytes:
    """records.csv of a run that was never interrupted."""
    folder = open_folder(path, **kwargs)
    for batch in folder.prepare(BATCHES, []):
        compute(folder, batch)
    folder.finish()
    folder.close()
    return (path / "records.csv").read_bytes()


def keys_in(path: Path) -> list[Key]:
    return [(r["image_id"], r["class_id"]) for r in read_csv(path / "records.csv", COLUMNS)]


def no_space(*arguments: object, **kwargs: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


# --------------------------------------------------------------------------------------------- CSV files


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123456789, "0.123457"),
        (1 / 3, "0.333333"),
        (1.0, "1"),
        (0.0, "0"),
        (0.1, "0.1"),
        (1.23456789e-12, "1.23457e-12"),
        (123456.7, "123457"),
    ],
)
def test_number_has_six_significant_digits(value, text):
    assert number(value) == text


def test_write_and_read_again(tmp_path):
    rows = [row(("a", "0")), row(("b", "1")) | {"class_name": 'traffic "light", old'}]
    write_atomically(tmp_path / "records.csv", to_csv(rows, COLUMNS, header=True))
    text = (tmp_path / "records.csv").read_bytes().decode()
    assert text.startswith("image_id,class_id,class_name,prob,argmax,difficult,area,degenerate,ebpg,drop\n")
    assert "\r" not in text
    assert read_csv(tmp_path / "records.csv", COLUMNS) == rows


def test_missing_and_empty_files_have_no_rows(tmp_path):
    assert read_csv(tmp_path / "records.csv", COLUMNS) == []
    (tmp_path / "records.csv").touch()
    assert read_csv(tmp_path / "records.csv", COLUMNS) == []


def test_every_torn_end_loses_the_last_line_only(tmp_path):
    """Cut after each byte, in the middle of a character of several bytes too."""
    rows = [row((image_id, "0")) | {"class_name": "mésange 🐦"} for image_id in ("a", "b", "c")]
    whole = to_csv(rows, COLUMNS, header=True).encode()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    path = tmp_path / "records.csv"
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        complete = sum(end <= cut for end in ends)
        assert read_csv(path, COLUMNS) == rows[: max(0, complete - 1)], cut


def test_other_header_is_refused(tmp_path):
    path = tmp_path / "records.csv"
    path.write_text(to_csv([row(("a", "0"))], COLUMNS, header=True))
    with pytest.raises(CamexpError, match=r"records\.csv has the columns .*'drop'\], expected .*'increase'\]"):
        read_csv(path, (*COLUMNS, "increase"))


@pytest.mark.parametrize("change", [lambda line: line.rpartition(",")[0], lambda line: line + ",1"])
def test_wrong_number_of_fields_names_the_line(tmp_path, change):
    lines = to_csv([row((i, "0")) for i in "abc"], COLUMNS, header=True).splitlines()
    lines[2] = change(lines[2])
    path = tmp_path / "records.csv"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(CamexpError, match=rf"records\.csv, line 3: {lines[2].count(',') + 1} fields, expected 10"):
        read_csv(path, COLUMNS)


def test_write_atomically_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "run.json"
    write_atomically(path, "old\n")
    write_atomically(path, "new\n")
    assert path.read_bytes() == b"new\n"
    assert os.listdir(tmp_path) == ["run.json"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_failed_write_keeps_the_old_file_and_leaves_no_partial_one(tmp_path, monkeypatch, step):
    path = tmp_path / "run.json"
    write_atomically(path, "old\n")
    monkeypatch.setattr(records.os, step, no_space)
    with pytest.raises((OSError, CamexpError)):
        write_atomically(path, "new\n" * 1000)
    assert path.read_bytes() == b"old\n"
    assert os.listdir(tmp_path) == ["run.json"]


# -------------------------------------------------------------------------------------------- identity


def test_differing_lists_changed_new_and_lost_fields():
    old = {"seed": 0, "method.m": 20, "gone": "x", "same": [1, 2]}
    new = {"seed": 1, "method.m": 20, "same": [1, 2], "came": None, "more": 2}
    assert differing(old, new) == ["seed: 0 -> 1", "gone: 'x' -> None", "more: None -> 2"]


def test_same_identity_goes_on(tmp_path):
    open_folder(tmp_path).close()
    RunFolder(tmp_path, METRICS, IDENTITY).close()


def test_other_identity_is_refused_and_names_the_fields(tmp_path):
    before = finished(tmp_path)
    other = IDENTITY | {"method.m": 50, "model.layers.sise": ["relu"]}
    with pytest.raises(CamexpError) as caught:
        RunFolder(tmp_path, METRICS, other)
    message = str(caught.value)
    assert str(tmp_path) in message
    assert "method.m: 20 -> 50" in message
    assert "model.layers.sise" in message
    assert "seed" not in message
    assert "overwrite=true" in message
    assert (tmp_path / "records.csv").read_bytes() == before
    RunFolder(tmp_path, METRICS, IDENTITY).close()  # the refused one let the lock go


def test_a_run_that_computed_nothing_does_not_keep_its_folder(tmp_path):
    """As after a mistyped option, which may have left its failures that the annotations alone tell."""
    folder = open_folder(tmp_path)
    folder.prepare(BATCHES, [failure(BATCHES[0][0])])
    folder.close()
    other = RunFolder(tmp_path, METRICS, IDENTITY | {"seed": 1})
    assert other.read_info() == {}
    assert other.prepare(BATCHES, []) == [0, 1, 2]
    other.close()
    folder = open_folder(tmp_path, overwrite=True)
    folder.prepare(BATCHES, [])
    folder.append_timing(timing(0))
    folder.close()
    with pytest.raises(CamexpError, match="holds another run"):
        RunFolder(tmp_path, METRICS, IDENTITY | {"seed": 1})


def test_hashes_of_code_differ_only_where_both_have_them():
    old = {"seed": 0, "metrics.drop.source": "a", "method_source": "b"}
    assert differing(old, {"seed": 0}) == differing({"seed": 0}, old) == []
    assert differing(old, old | {"metrics.drop.source": "c"}) == ["metrics.drop.source: 'a' -> 'c'"]
    assert differing({"method.source": 1}, {}) == ["method.source: 1 -> None"]  # a parameter of that name


def test_rows_of_other_code_are_refused(tmp_path):
    finished(tmp_path)
    RunFolder(tmp_path, METRICS, IDENTITY | {"method_source": "new"}).close()  # rows of before this field go on
    folder = RunFolder(tmp_path, METRICS, IDENTITY)
    folder.write_info({"identity": IDENTITY | {"method_code": "hashed otherwise"}})
    folder.close()
    RunFolder(tmp_path, METRICS, IDENTITY | {"method_source": "new"}).close()
    folder = RunFolder(tmp_path, METRICS, IDENTITY)
    folder.write_info({"identity": IDENTITY | {"method_source": "old"}})
    folder.close()
    with pytest.raises(CamexpError, match="method_source: 'old' -> 'new'"):
        RunFolder(tmp_path, METRICS, IDENTITY | {"method_source": "new"})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(CamexpError, match=f"cannot write to {tmp_path / 'run'}: Permission denied"):
        RunFolder(tmp_path / "run", METRICS, IDENTITY)


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(CamexpError, match=f"cannot write to {tmp_path / 'run'}: File exists"):
        RunFolder(tmp_path / "run", METRICS, IDENTITY)
    assert (tmp_path / "run").is_file()


def test_overwrite_starts_anew(tmp_path):
    finished(tmp_path)
    folder = RunFolder(tmp_path, METRICS, IDENTITY | {"seed": 1}, overwrite=True)
    assert folder.rows == folder.failures == folder.timing == []
    assert folder.read_info() == {}
    assert folder.prepare(BATCHES, []) == [0, 1, 2]
    folder.close()
    assert keys_in(tmp_path) == []


def test_records_without_run_json_are_refused(tmp_path):
    finished(tmp_path)
    (tmp_path / "run.json").unlink()
    with pytest.raises(CamexpError, match=r"rows without a run\.json"):
        RunFolder(tmp_path, METRICS, IDENTITY)
    RunFolder(tmp_path, METRICS, IDENTITY, overwrite=True).close()


@pytest.mark.parametrize("content", [b'{"identity": {', b"", b"\xff\xfe{"])
def test_corrupt_run_json_is_refused_until_overwritten(tmp_path, content):
    finished(tmp_path)
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(CamexpError, match=r"run\.json is not JSON .*overwrite=true"):
        RunFolder(tmp_path, METRICS, IDENTITY)
    RunFolder(tmp_path, METRICS, IDENTITY, overwrite=True).close()


def test_info_survives_as_written(tmp_path):
    folder = RunFolder(tmp_path, METRICS, IDENTITY)
    assert folder.read_info() == {}
    info = {"identity": IDENTITY, "rows": 3, "commit": None}
    folder.write_info(info)
    assert folder.read_info() == json.loads((tmp_path / "run.json").read_text()) == info
    folder.close()


# --------------------------------------------------------------------------------------------- locking


def test_second_writer_is_refused(tmp_path):
    first = open_folder(tmp_path)
    with pytest.raises(CamexpError, match=r"another run is writing to .*choose another output="):
        RunFolder(tmp_path, METRICS, IDENTITY)
    first.close()
    RunFolder(tmp_path, METRICS, IDENTITY).close()


def test_second_process_is_refused(tmp_path):
    script = (
        "import sys\nfrom pathlib import Path\nfrom camexp.records import RunFolder\n"
        f"RunFolder(Path(sys.argv[1]), {METRICS!r}, {IDENTITY!r}).close()"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    first = open_folder(tmp_path)
    refused = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert refused.returncode == 1
    assert f"CamexpError: another run is writing to {tmp_path}" in refused.stderr
    first.close()
    subprocess.run(command, check=True, timeout=120)


def test_refused_overwrite_deletes_nothing(tmp_path):
    before = finished(tmp_path)
    first = open_folder(tmp_path)
    with pytest.raises(CamexpError, match="another run"):
        RunFolder(tmp_path, METRICS, IDENTITY, overwrite=True)
    first.close()
    assert (tmp_path / "records.csv").read_bytes() == before


# -------------------------------------------------------------------------------------------- resuming


def test_fresh_folder_has_every_batch_to_do(tmp_path):
    folder = open_folder(tmp_path)
    assert folder.prepare(BATCHES, []) == [0, 1, 2]
    folder.close()
    assert (tmp_path / "records.csv").read_text() == ",".join(COLUMNS) + "\n"
    assert (tmp_path / "failures.csv").read_text() == "image_id,class_id,reason\n"
    assert (tmp_path / "timing.csv").read_text().startswith("kind,batch,")


def test_finished_folder_has_nothing_to_do_and_is_not_written(tmp_path):
    finished(tmp_path)
    stamps = {name: (tmp_path / name).stat().st_mtime_ns for name in ("records.csv", "failures.csv", "timing.csv")}
    folder = open_folder(tmp_path)
    assert folder.prepare(BATCHES, []) == []
    folder.finish()
    folder.close()
    assert stamps == {name: (tmp_path / name).stat().st_mtime_ns for name in stamps}


def test_batches_without_pairs_are_never_to_do(tmp_path):
    folder = open_folder(tmp_path)
    assert folder.prepare([[], BATCHES[0], []], []) == [1]
    folder.close()


def test_rows_of_unfinished_batches_are_dropped(tmp_path):
    folder = open_folder(tmp_path)
    folder.prepare(BATCHES, [])
    compute(folder, 0)
    folder.append([row(("c", "0"))], [], timing(2))
    folder.append_timing(timing("", kind="trial"))
    folder.close()
    folder = open_folder(tmp_path)
    assert folder.prepare(BATCHES, []) == [1, 2]
    assert keys_in(tmp_path) == BATCHES[0]
    assert [(r["kind"], r["batch"]) for r in folder.timing] == [("batch", "0"), ("trial", "")]
    folder.close()


def test_any_torn_file_resumes_to_the_same_bytes(tmp_path):
    whole = finished(tmp_path)
    for cut in range(0, len(whole), 7):
        (tmp_path / "records.csv").write_bytes(whole[:cut])
        assert finished(tmp_path) == whole, cut


def test_known_failures_are_listed_first_and_once(tmp_path):
    known = [Failure("x", None, "annotation x.xml:\n  no element found"), Failure("b", 5, "no box")]
    for _ in range(2):
        folder = open_folder(tmp_path)
        for batch in folder.prepare(BATCHES, known):
            compute(folder, batch, failed=(("b", "3"),) if batch == 1 else ())
        folder.close()
        assert read_csv(tmp_path / "failures.csv", FAILURE_COLUMNS) == [
            {"image_id": "x", "class_id": "", "reason": "annotation x.xml: no element found"},
            {"image_id": "b", "class_id": "5", "reason": "no box"},
            {"image_id": "b", "class_id": "3", "reason": "image: truncated"},
        ]
    assert keys_in(tmp_path) == BATCHES[0] + BATCHES[2]


def test_failures_count_as_done(tmp_path):
    folder = open_folder(tmp_path)
    folder.prepare(BATCHES, [])
    compute(folder, 0, failed=(("a", "1"),))
    compute(folder, 1, failed=(("b", "3"),))
    folder.close()
    folder = open_folder(tmp_path)
    assert folder.prepare(BATCHES, []) == [2]
    assert keys_in(tmp_path) == [("a", "0")]
    assert [f["image_id"] for f in folder.failures] == ["a", "b"]
    folder.close()


def test_failures_of_a_batch_without_its_rows_are_dropped(tmp_path):
    """Killed between the batch's failures and its rows: it is done again, and the failure listed once."""
    folder = open_folder(tmp_path)
    folder.prepare(BATCHES, [])
    folder.append([], [failure(("a", "1"))], timing(0))
    folder.close()
    folder = open_folder(tmp_path)
    assert folder.prepare(BATCHES, []) == [0, 1, 2]
    assert folder.failures == []
    compute(folder, 0, failed=(("a", "1"),))
    folder.close()
    assert len(read_csv(tmp_path / "failures.csv", FAILURE_COLUMNS)) == 1


def test_retry_computes_failed_batches_again_and_ends_in_order(tmp_path):
    whole = finished(tmp_path / "clean")
    folder = open_folder(tmp_path / "run")
    folder.prepare(BATCHES, [])
    compute(folder, 0, failed=(("a", "1"),))
    compute(folder, 1)
    compute(folder, 2, failed=(("c", "0"), ("d", "2")))
    folder.finish()
    folder.close()
    folder = open_folder(tmp_path / "run")
    assert folder.prepare(BATCHES, [], retry=True) == [0, 2]
    assert keys_in(tmp_path / "run") == BATCHES[1]
    assert folder.failures == []
    compute(folder, 0)
    folder.close()  # interrupted: the rows are not in order, and one batch is missing
    folder = open_folder(tmp_path / "run")
    assert folder.prepare(BATCHES, []) == [2]
    compute(folder, 2)
    folder.finish()
    folder.close()
    assert (tmp_path / "run" / "records.csv").read_bytes() == whole
    assert (tmp_path / "run" / "failures.csv").read_text() == "image_id,class_id,reason\n"


def test_retry_leaves_known_failures_alone(tmp_path):
    known = [Failure("x", None, "no annotation")]
    folder = open_folder(tmp_path)
    for batch in folder.prepare(BATCHES, known):
        compute(folder, batch)
    assert folder.prepare(BATCHES, known, retry=True) == []
    assert [f["image_id"] for f in folder.failures] == ["x"]
    folder.close()


# ------------------------------------------------------------------------------------------- disk full


def test_full_disk_says_that_the_rows_are_safe(tmp_path, monkeypatch):
    def fill_up(descriptor: int) -> None:
        os.ftruncate(descriptor, os.fstat(descriptor).st_size - 5)  # the line's end did not fit
        no_space()

    folder = open_folder(tmp_path)
    folder.prepare(BATCHES, [])
    compute(folder, 0)
    monkeypatch.setattr(records.os, "fsync", fill_up)
    with pytest.raises(CamexpError, match=r"disk is full: cannot write .*records\.csv.* batch before is safe"):
        compute(folder, 1)
    monkeypatch.undo()
    folder.close()
    folder = open_folder(tmp_path)
    assert folder.prepare(BATCHES, []) == [1, 2]
    assert keys_in(tmp_path) == BATCHES[0]
    for batch in (1, 2):
        compute(folder, batch)
    folder.close()
    assert (tmp_path / "records.csv").read_bytes() == finished(tmp_path / "clean")


@pytest.mark.parametrize("work", ["write_info", "prepare"])
def test_full_disk_while_a_file_is_replaced_says_so_too(tmp_path, monkeypatch, work):
    before = finished(tmp_path)
    folder = open_folder(tmp_path)
    monkeypatch.setattr(records.os, "fsync", no_space)
    with pytest.raises(CamexpError, match="disk is full"):
        folder.write_info({"identity": IDENTITY}) if work == "write_info" else folder.prepare(BATCHES[:2], [])
    monkeypatch.undo()
    folder.close()
    assert (tmp_path / "records.csv").read_bytes() == before


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_what_may_not_be_written_is_named(tmp_path, monkeypatch, code):
    def refuse(*arguments: object, **more: object) -> None:
        raise OSError(code, os.strerror(code))

    before = finished(tmp_path)
    folder = open_folder(tmp_path)
    folder.prepare(BATCHES, [])
    monkeypatch.setattr(records.os, "fsync", refuse)
    for work in (lambda: folder.write_info({}), lambda: folder.append_timing(timing(0))):
        with pytest.raises(CamexpError, match=rf"cannot write {tmp_path}/\w+\.\w+: {os.strerror(code)}; allow it, or"):
            work()
    folder.close()
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(CamexpError, match=f"cannot write {tmp_path}: "):
        open_folder(tmp_path, overwrite=True)
    assert (tmp_path / "records.csv").read_bytes() == before


def test_other_errors_of_the_disk_are_not_called_full(tmp_path, monkeypatch):
    def refuse(*arguments: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    folder = open_folder(tmp_path)
    folder.prepare(BATCHES, [])
    monkeypatch.setattr(records.os, "fsync", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        compute(folder, 0)
    folder.close()
