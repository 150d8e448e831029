"""The embedded data sets: deterministic, in the real formats, and never half made."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pycocotools.coco import COCO as Annotations

from camexp.datasets import mini
from camexp.datasets.base import Dataset
from camexp.datasets.coco import COCO
from camexp.datasets.mini.scenes import LARGEST, SMALLEST, compose
from camexp.datasets.mini.things import THINGS
from camexp.datasets.severstal import Severstal
from camexp.datasets.voc import VOC
from camexp.errors import CamexpError
from camexp.seeding import numpy_generator

IMAGES = 6
SETS = {"minivoc": mini.minivoc, "minicoco": mini.minicoco, "ministeel": mini.ministeel}


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> SimpleNamespace:
    """Each embedded set, made once; `folders` holds where."""
    root = tmp_path_factory.mktemp("mini")
    splits = {"minivoc": f"test-{IMAGES}", "minicoco": f"val2014-{IMAGES}", "ministeel": f"test-{IMAGES}"}
    sets = {name: SETS[name](str(root / name), images=IMAGES) for name in SETS}
    return SimpleNamespace(**sets, folders={name: root / name / split for name, split in splits.items()})


def files_of(folder: Path) -> dict[str, bytes]:
    """Content of every file by its path inside the folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def annotations_of(made: SimpleNamespace) -> Annotations:
    return Annotations(str(made.folders["minicoco"] / "annotations" / "instances_val2014.json"))


def pixels_of(dataset: Dataset) -> list[np.ndarray]:
    return [np.asarray(dataset.read_image(index)) for index in range(len(dataset))]


def visible_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """xmin, ymin, xmax, ymax of a mask, 1-based and inclusive."""
    rows, columns = np.nonzero(mask)
    return columns.min() + 1, rows.min() + 1, columns.max() + 1, rows.max() + 1


def voc_objects(folder: Path) -> list[tuple[str, list[dict[str, Any]], tuple[int, int]]]:
    """(image id, objects, (width, height)) of every XML file, read without the loader."""
    read = []
    for path in sorted((folder / "VOC2007" / "Annotations").glob("*.xml")):
        root = ElementTree.parse(path).getroot()
        objects = [
            {
                "name": element.findtext("name"),
                "truncated": element.findtext("truncated") == "1",
                "difficult": element.findtext("difficult") == "1",
                "box": tuple(int(element.findtext(f"bndbox/{c}") or "") for c in ("xmin", "ymin", "xmax", "ymax")),
            }
            for element in root.iter("object")
        ]
        size = int(root.findtext("size/width") or ""), int(root.findtext("size/height") or "")
        read.append((path.stem, objects, size))
    return read


# --------------------------------------------------------------------------------------- determinism


@pytest.mark.parametrize("name", SETS)
def test_same_seed_makes_the_same_bytes(made, tmp_path, name):
    dataset = SETS[name](str(tmp_path), images=IMAGES)
    assert files_of(tmp_path / made.folders[name].name) == files_of(made.folders[name])
    for ours, theirs in zip(pixels_of(dataset), pixels_of(getattr(made, name)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", SETS)
def test_another_seed_makes_other_scenes_and_annotations(made, tmp_path, name):
    SETS[name](str(tmp_path), images=4, seed=1)
    (folder,) = tmp_path.glob("*-4-seed1")
    ours, theirs = files_of(folder), files_of(made.folders[name])
    per_scene = [path for path in ours if path.endswith((".jpg", ".xml", ".json", ".csv")) and path in theirs]
    assert per_scene
    assert all(ours[path] != theirs[path] for path in per_scene)


def test_scenes_do_not_depend_on_how_many_are_made(made, tmp_path):
    few = mini.minivoc(str(tmp_path), images=2)
    ours, theirs = files_of(tmp_path / "test-2"), files_of(made.folders["minivoc"])
    assert few.image_ids == made.minivoc.image_ids[:2]
    assert [p for p in ours if ours[p] != theirs[p]] == ["VOC2007/ImageSets/Main/test.txt", "recipe.json"]


def test_splits_share_no_scene(made, tmp_path):
    train = mini.minivoc(str(tmp_path), split="train", images=2)
    assert not set(train.image_ids) & set(made.minivoc.image_ids)
    ours = {content for path, content in files_of(tmp_path / "train-2").items() if path.endswith(".jpg")}
    theirs = {content for path, content in files_of(made.folders["minivoc"]).items() if path.endswith(".jpg")}
    assert len(ours) == 2
    assert not ours & theirs


# ---------------------------------------------------------------------------------- what is on the disk


@pytest.mark.parametrize("name", SETS)
def test_read_by_the_real_loader_without_failures(made, name):
    dataset = getattr(made, name)
    assert type(dataset) is {"minivoc": VOC, "minicoco": COCO, "ministeel": Severstal}[name]
    assert not dataset.failures
    assert any(dataset.targets)
    for index in range(len(dataset)):
        sample = dataset.load(index)
        assert sample.image is not None
        assert not sample.failures
        assert sample.targets == dataset.targets[index]
        assert len(sample.masks) == len(sample.targets)


@pytest.mark.parametrize(("name", "count"), [("minivoc", 8), ("minicoco", 12), ("ministeel", 4)])
def test_classes(made, name, count):
    classes = getattr(made, name).classes
    assert len(set(classes)) == len(classes) >= count


def test_voc_layout(made):
    folder = made.folders["minivoc"] / "VOC2007"
    ids = (folder / "ImageSets" / "Main" / "test.txt").read_text().split()
    assert len(ids) == IMAGES
    for place, suffix in (("JPEGImages", "jpg"), ("Annotations", "xml"), ("SegmentationClass", "png")):
        assert sorted(path.name for path in (folder / place).iterdir()) == [f"{i}.{suffix}" for i in ids]
    for image_id, _, size in voc_objects(made.folders["minivoc"]):
        for place in (f"JPEGImages/{image_id}.jpg", f"SegmentationClass/{image_id}.png"):
            with Image.open(folder / place) as image:
                assert image.size == size


def test_voc_boxes_fit_the_class_masks_to_the_pixel(made):
    checked = 0
    for image_id, objects, _ in voc_objects(made.folders["minivoc"]):
        with Image.open(made.folders["minivoc"] / "VOC2007" / "SegmentationClass" / f"{image_id}.png") as image:
            labels = np.asarray(image)
        names = [o["name"] for o in objects]
        assert set(np.unique(labels)) - {0} == {made.minivoc.classes.index(name) + 1 for name in names}
        for single in (o for o in objects if names.count(o["name"]) == 1):
            mask = labels == made.minivoc.classes.index(single["name"]) + 1
            assert visible_box(mask) == single["box"]
            checked += 1
    assert checked >= IMAGES


def test_voc_scenes_have_one_to_five_things_of_a_fair_size(made):
    scenes = voc_objects(made.folders["minivoc"])
    assert all(1 <= len(objects) <= 5 for _, objects, _ in scenes)
    shares = []
    for _, objects, (width, height) in scenes:
        for thing in (o for o in objects if not o["truncated"]):
            xmin, ymin, xmax, ymax = thing["box"]
            shares.append((xmax - xmin + 1) * (ymax - ymin + 1) / (width * height))
    assert len(shares) >= IMAGES
    assert 0.02 < min(shares) < max(shares) < 0.65


def test_scenes_over_many_seeds():
    """Ten scenes: counts and sizes in their ranges, masks disjoint, unoccluded things of 3 % to 60 %."""
    counts, shares = set(), []
    for seed in range(10):
        scene = compose(numpy_generator("test", seed), tuple(THINGS))
        counts.add(len(scene.instances))
        assert np.sum([instance.mask for instance in scene.instances], axis=0).max() == 1
        for instance in scene.instances:
            assert 0.45 <= instance.visible <= 1
            assert instance.mask.shape == scene.image.shape[:2]
            x0, y0, x1, y1 = instance.box
            if instance.visible == 1 and min(o.min() for o in instance.outlines) >= 0:
                shares.append((x1 - x0) * (y1 - y0) / instance.mask.size)
    assert counts <= {1, 2, 3, 4, 5}
    assert len(counts) >= 3
    assert len(shares) >= 8
    assert 0.8 * SMALLEST < min(shares) < max(shares) < 1.1 * LARGEST


def test_things_are_polygons_of_the_unit_square_that_differ():
    silhouettes = []
    for name, draw in THINGS.items():
        parts = draw(numpy_generator("test", name))
        assert parts
        for part in parts:
            assert part.points.shape[0] >= 3
            assert part.points.shape[1] == 2
            assert np.abs(part.points).max() <= 1.1
            assert part.colour in range(4)
        silhouettes.append(np.vstack([part.points for part in parts]).tobytes())
    assert len(set(silhouettes)) == len(THINGS) >= 12


def test_coco_file_holds_polygons_run_lengths_and_crowds(tmp_path):
    dataset = mini.minicoco(str(tmp_path), images=20, seed=0)
    folder = tmp_path / "val2014-20"
    document = json.loads((folder / "annotations" / "instances_val2014.json").read_text())
    segmentations = [a["segmentation"] for a in document["annotations"]]
    assert any(isinstance(s, list) for s in segmentations)
    assert any(isinstance(s, dict) and isinstance(s["counts"], str) for s in segmentations)
    crowds = [a for a in document["annotations"] if a["iscrowd"]]
    assert crowds
    assert all(isinstance(a["segmentation"]["counts"], list) for a in crowds)
    assert len({a["id"] for a in document["annotations"]}) == len(document["annotations"])
    ids = sorted(category["id"] for category in document["categories"])
    assert ids != list(range(1, len(ids) + 1))  # with gaps, as COCO's
    assert dataset.targets[19] == ()
    assert all(dataset.targets[:19])
    for image in document["images"]:
        with Image.open(folder / "val2014" / image["file_name"]) as opened:
            assert opened.size == (image["width"], image["height"])


def test_coco_segmentations_agree_with_their_areas_and_boxes(made):
    annotations = annotations_of(made)
    for annotation in annotations.dataset["annotations"]:
        mask = annotations.annToMask(annotation).astype(bool)
        x, y, width, height = annotation["bbox"]
        tolerance = 0 if isinstance(annotation["segmentation"], dict) else 2  # polygons are not antialiased
        box = np.array([x + 1, y + 1, x + width, y + height])
        assert np.abs(np.array(visible_box(mask)) - box).max() <= tolerance
        assert abs(int(mask.sum()) - annotation["area"]) <= tolerance * 0.03 * annotation["area"]


def test_coco_annotations_of_a_class_have_one_object_each(made):
    per_image = annotations_of(made).imgToAnns
    assert all(1 <= len(annotations) <= 5 for annotations in per_image.values())


def test_steel_sheets_and_run_lengths(made):
    folder = made.folders["ministeel"]
    table = pd.read_csv(folder / "train.csv")
    assert list(table.columns) == ["ImageId", "ClassId", "EncodedPixels"]
    assert set(table.ClassId) <= {1, 2, 3, 4}
    assert not table.duplicated(["ImageId", "ClassId"]).any()
    names = sorted(path.name for path in (folder / "train_images").iterdir())
    assert len(names) == IMAGES
    assert set(table.ImageId) <= set(names)
    for name in names:
        with Image.open(folder / "train_images" / name) as image:
            assert image.size == (1600, 256)
            assert image.mode == "RGB"


def test_steel_crops_show_at_least_the_least_defect(made):
    for index in range(len(made.ministeel)):
        sample = made.ministeel.load(index)
        assert sample.image is not None
        assert sample.image.size == (256, 256)
        assert sample.masks[0].sum() >= mini.MIN_DEFECT_PIXELS


# --------------------------------------------------------------------------------------------- ensure


def test_made_once(made, monkeypatch):
    monkeypatch.setattr(mini, "write_voc", lambda *arguments: pytest.fail("made again"))
    again = mini.minivoc(str(made.folders["minivoc"].parent), images=IMAGES)
    assert again.image_ids == made.minivoc.image_ids


def test_changed_recipe_is_made_anew(tmp_path, monkeypatch):
    mini.minivoc(str(tmp_path), images=1)
    (tmp_path / "test-1" / "stale").touch()
    monkeypatch.setattr(mini, "RECIPE", mini.RECIPE + 1)
    mini.minivoc(str(tmp_path), images=1)
    assert not (tmp_path / "test-1" / "stale").exists()


def test_other_scenes_leave_those_that_a_run_may_be_reading(tmp_path):
    one = mini.minivoc(str(tmp_path), images=2)
    before = files_of(tmp_path / "test-2")
    assert len(mini.minivoc(str(tmp_path), images=1)) == 1
    mini.minivoc(str(tmp_path), images=2, seed=1)
    assert files_of(tmp_path / "test-2") == before
    assert one.read_image(1).size


def test_scenes_that_are_there_need_nothing_to_be_written(tmp_path, monkeypatch):
    def refuse(*arguments: object, **more: object) -> None:
        raise PermissionError(13, "Permission denied")

    mini.minivoc(str(tmp_path), images=1)
    monkeypatch.setattr(mini, "FileLock", refuse)
    assert len(mini.minivoc(str(tmp_path), images=1)) == 1
    with pytest.raises(CamexpError, match=f"cannot write {tmp_path}/test-2: Permission denied; allow it"):
        mini.minivoc(str(tmp_path), images=2)
    (tmp_path / "file").touch()
    with pytest.raises(CamexpError, match=f"cannot write {tmp_path}/file"):
        mini.minivoc(str(tmp_path / "file"), images=1)


def test_no_images_are_refused_before_anything_is_made(tmp_path):
    with pytest.raises(CamexpError, match=r"dataset\.images of minicoco must be at least 1, not 0"):
        mini.minicoco(str(tmp_path / "data"), images=0)
    assert not (tmp_path / "data").exists()


def fail_half_way(folder: Path, *arguments: object) -> None:
    (folder / "VOC2007").mkdir()
    (folder / "VOC2007" / "half").write_text("half")
    raise KeyboardInterrupt


def test_interrupted_making_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(mini, "write_voc", fail_half_way)
    with pytest.raises(KeyboardInterrupt):
        mini.minivoc(str(tmp_path / "root"), images=2)
    assert [path.name for path in (tmp_path / "root").iterdir()] == [".test-2.lock"]
    monkeypatch.undo()
    assert len(mini.minivoc(str(tmp_path / "root"), images=1)) == 1


def test_interrupted_remaking_leaves_what_was_there(tmp_path, monkeypatch):
    mini.minivoc(str(tmp_path), images=1)
    before = files_of(tmp_path)
    monkeypatch.setattr(mini, "write_voc", fail_half_way)
    monkeypatch.setattr(mini, "RECIPE", mini.RECIPE + 1)
    with pytest.raises(KeyboardInterrupt):
        mini.minivoc(str(tmp_path), images=1)
    assert files_of(tmp_path) == before


def test_folder_of_someone_else_is_not_deleted(tmp_path):
    (tmp_path / "test-1").mkdir()
    (tmp_path / "test-1" / "thesis.tex").write_text("years of work")
    with pytest.raises(CamexpError, match=r"recipe\.json"):
        mini.minivoc(str(tmp_path), images=1)
    assert (tmp_path / "test-1" / "thesis.tex").read_text() == "years of work"
