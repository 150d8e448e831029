"""The cached index: the same data set from it, renewed when it should be, harmless when it cannot be kept."""

import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from test_bad_data import SETS
from test_datasets import SQUARE, block, make_coco, make_steel, make_voc, person, steel

from camexp.datasets import coco, index, severstal, voc
from camexp.datasets.base import Dataset
from camexp.datasets.coco import COCO
from camexp.datasets.index import cached
from camexp.datasets.severstal_index import encode_runs
from camexp.datasets.voc import VOC

READERS = {"voc": (voc, "read_annotation"), "coco": (coco, "read_coco"), "steel": (severstal, "read_severstal")}
"""What reads the annotations of each set: not to be called when the index is there."""


def make_broken(root: Path) -> dict[str, Path]:
    """Each set with a pair, a failure of the annotations and a pair that fails when it is loaded."""
    box = (1, 1, 2, 2)
    objects = [("cat", box, 0), ("dog", (20, 1, 22, 2), 0), ("cow", box, 1), ("unicorn", box, 0)]
    annotations = [person(SQUARE), {"category_id": 7, "segmentation": []}, {"category_id": 55}]
    rows = [("s.jpg", 1, encode_runs(block(6, 11, 1, 3))), ("t.jpg", 2, "1 2 3")]
    return {
        "voc": make_voc(root / "voc", {"a": objects, "b": []}),
        "coco": make_coco(root / "coco", annotations, images=(1, 2)),
        "steel": make_steel(root / "steel", ["s.jpg", "t.jpg"], rows),
    }


def content(dataset: Dataset) -> list[object]:
    """Everything that a run sees of a data set, images left out."""
    samples = [dataset.load(i) for i in range(len(dataset))]
    loaded = [(s.targets, [m.tolist() for m in s.masks], s.failures) for s in samples]
    return [dataset.classes, dataset.image_ids, dataset.targets, dataset.annotations_sha256, dataset.failures, loaded]


def forbid(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    module, function = READERS[name]
    monkeypatch.setattr(module, function, lambda *arguments: pytest.fail("the annotations were read again"))


@pytest.mark.parametrize("name", SETS)
def test_data_set_from_its_index_is_the_same(tmp_path, monkeypatch, name):
    root, read = str(make_broken(tmp_path)[name]), SETS[name][1]
    plain = content(read(root))
    assert content(read(root, cache=str(tmp_path / "index"))) == plain
    assert plain[4]
    forbid(monkeypatch, name)
    assert content(read(root, cache=str(tmp_path / "index"))) == plain


@pytest.mark.parametrize("name", SETS)
def test_no_cache_writes_nothing(tmp_path, name):
    root = make_broken(tmp_path)[name]
    before = sorted(tmp_path.rglob("*"))
    SETS[name][1](str(root))
    assert sorted(tmp_path.rglob("*")) == before


def test_sha256_is_of_the_annotations_not_of_their_dates(tmp_path):
    for name, root in make_broken(tmp_path).items():
        read, cache = SETS[name][1], str(tmp_path / "index")
        first = read(str(root), cache=cache).annotations_sha256
        for path in root.rglob("*.*"):
            os.utime(path, (1, 1))
        assert read(str(root), cache=cache).annotations_sha256 == first == read(str(root)).annotations_sha256


def test_changed_annotations_are_read_again(tmp_path):
    root, cache = make_coco(tmp_path, [person(SQUARE)]), str(tmp_path / "index")
    assert [len(t) for t in COCO(str(root), cache=cache).targets] == [1]
    path = root / "annotations" / "instances_val2014.json"
    document = json.loads(path.read_text())
    document["annotations"].append(person(SQUARE, id=2, image_id=1) | {"category_id": 7})
    path.write_text(json.dumps(document))
    assert [len(t) for t in COCO(str(root), cache=cache).targets] == [2]
    assert len(list((tmp_path / "index").glob("*.npz"))) == 1


def test_a_change_of_one_xml_is_noticed(tmp_path):
    root, cache = make_voc(tmp_path, {"a": [], "b": []}), str(tmp_path / "index")
    assert not VOC(str(root), cache=cache).failures
    (root / "VOC2007" / "Annotations" / "b.xml").unlink()
    assert [f.image_id for f in VOC(str(root), cache=cache).failures] == ["b"]


def test_other_arguments_have_an_index_of_their_own(tmp_path, monkeypatch):
    root, cache = make_broken(tmp_path)["steel"], str(tmp_path / "index")
    wide, narrow = steel(root, cache=cache), steel(root, cache=cache, stride=4)
    assert len(list((tmp_path / "index").glob("*.npz"))) == 2
    forbid(monkeypatch, "steel")
    assert steel(root, cache=cache).image_ids == wide.image_ids
    assert steel(root, cache=cache, stride=4).image_ids == narrow.image_ids
    # rules that need no other arrays share one
    assert not steel(root, cache=cache, min_pixels=50, multi="all", selection="balanced").image_ids


@pytest.mark.parametrize("damage", ["empty", "cut", "bytes", "text", "array", "other format", "other key", "folder"])
def test_damaged_file_is_replaced_silently(tmp_path, monkeypatch, capfd, damage):
    root, cache = str(make_broken(tmp_path)["coco"]), tmp_path / "index"
    expected = content(COCO(root, cache=str(cache)))
    (path,) = cache.glob("*.npz")
    whole = path.read_bytes()
    if damage in ("other format", "other key"):
        stored = dict(np.load(path))
        stored["key"] = np.array("x") if damage == "other key" else np.zeros(3)
        np.savez(path, **stored)
    elif damage == "array":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    else:
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes(b ^ 255 for b in whole[middle : middle + 40]) + whole[middle + 40 :]
        path.write_bytes({"empty": b"", "cut": whole[:middle], "bytes": flipped, "text": b"not a zip"}.get(damage, b""))
    if damage == "folder":
        path.unlink()
        path.mkdir()
    assert content(COCO(root, cache=str(cache))) == expected
    if damage == "folder":
        assert "cannot be kept" in capfd.readouterr().err
    else:
        assert capfd.readouterr() == ("", "")
        forbid(monkeypatch, "coco")
        assert content(COCO(root, cache=str(cache))) == expected


def test_objects_are_never_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("unpickled",)

    arguments = (str(tmp_path), "x", [tmp_path / "source"], (), lambda: {"a": np.arange(3)})
    cached(*arguments)
    (path,) = tmp_path.glob("*.npz")
    key = np.load(path)["key"]
    np.savez(path, key=key, a=np.array([Trap()], object))
    np.testing.assert_array_equal(cached(*arguments)["a"], [0, 1, 2])


def test_folder_that_cannot_be_written_costs_a_warning(tmp_path, capfd):
    roots = make_broken(tmp_path)
    (tmp_path / "file").touch()
    for name, root in roots.items():
        read = SETS[name][1]
        expected = content(read(str(root)))
        capfd.readouterr()
        assert content(read(str(root), cache=str(tmp_path / "file" / "index"))) == expected
        out, err = capfd.readouterr()
        assert not out
        assert err.startswith("warning: the index cannot be kept in ")
        assert err.count("\n") == 1


def test_full_disk_leaves_no_torn_file(tmp_path, monkeypatch, capfd):
    def fail(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(index.np, "savez", fail)
    assert cached(str(tmp_path), "x", [tmp_path / "source"], (), lambda: {"a": np.arange(3)})["a"].tolist() == [0, 1, 2]
    assert "No space left" in capfd.readouterr().err
    assert [p.suffix for p in tmp_path.iterdir() if p.suffix != ".lock"] == []


def test_error_of_the_reader_comes_through_and_frees_the_lock(tmp_path):
    arguments = (str(tmp_path), "x", [tmp_path / "source"], ())
    with pytest.raises(ZeroDivisionError):
        cached(*arguments, lambda: {"a": np.array(1 // 0)})
    assert cached(*arguments, lambda: {"a": np.array(7)})["a"] == 7


def test_of_several_that_ask_at_once_one_builds(tmp_path):
    built = []

    def build():
        built.append(1)
        threading.Event().wait(0.2)
        return {"a": np.arange(3)}

    def ask():
        cached(str(tmp_path), "x", [tmp_path / "source"], (), build)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert built == [1]
