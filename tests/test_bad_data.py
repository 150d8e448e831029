"""What users put in place of good data: each a message that says what to do, or a listed failure."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from test_datasets import (
    CAT,
    DOG,
    HEIGHT,
    SQUARE,
    WIDTH,
    block,
    compressed,
    load_by_id,
    make_coco,
    make_steel,
    make_voc,
    mask_of,
    person,
    reasons,
    save_jpeg,
    steel,
    uncompressed,
)

from camexp.datasets.base import Dataset, Target, open_rgb
from camexp.datasets.coco import COCO
from camexp.datasets.coco_index import decompress
from camexp.datasets.severstal import Severstal
from camexp.datasets.severstal_index import encode_runs
from camexp.datasets.voc import VOC
from camexp.errors import CamexpError

# ---------------------------------------------------------------------------------------- folder layout


def make_voc_devkit(root: Path) -> Path:
    return make_voc(root, {"a": [("cat", (1, 1, 2, 2), 0)]})


def make_coco_root(root: Path) -> Path:
    return make_coco(root, [person(SQUARE)])


def make_steel_root(root: Path) -> Path:
    return make_steel(root, ["s.jpg"], [("s.jpg", 1, encode_runs(block(0, 8)))])


SETS = {"voc": (make_voc_devkit, VOC), "coco": (make_coco_root, COCO), "steel": (make_steel_root, steel)}
DEEPER = {"voc": ["VOC2007", "VOC2007/JPEGImages"], "coco": ["annotations", "val2014"], "steel": ["train_images"]}


@pytest.mark.parametrize(("name", "below"), [(name, below) for name in DEEPER for below in DEEPER[name]])
def test_root_a_level_too_deep_is_told_the_right_one(tmp_path, name, below):
    make, read = SETS[name]
    root = make(tmp_path / "right")
    with pytest.raises(CamexpError, match=r"not found: looked for ") as caught:
        read(str(root / below))
    assert f"pass dataset.root={root}\n" in str(caught.value)


@pytest.mark.parametrize("name", SETS)
def test_root_a_level_too_shallow_is_told_the_right_one(tmp_path, name):
    make, read = SETS[name]
    root = make(tmp_path / "data" / "right")
    with pytest.raises(CamexpError) as caught:
        read(str(tmp_path / "data"))
    assert f"pass dataset.root={root}\n" in str(caught.value)


def test_relative_roots_are_told_in_full(tmp_path, monkeypatch):
    root = make_voc_devkit(tmp_path / "VOCdevkit")
    monkeypatch.chdir(root / "VOC2007")
    with pytest.raises(CamexpError) as caught:
        VOC(".")
    assert f"pass dataset.root={root}\n" in str(caught.value)


def test_what_is_there_instead_is_shown(tmp_path):
    root = make_voc_devkit(tmp_path)
    with pytest.raises(CamexpError, match=r"VOC2012 not found") as caught:
        VOC(str(root), year=2012)
    assert f"{root} holds VOC2007\n" in str(caught.value)
    with pytest.raises(CamexpError, match=r"image list of split 'val' not found") as caught:
        VOC(str(root), split="val")
    assert "Main holds test.txt\n" in str(caught.value)


@pytest.mark.parametrize("missing", ["ImageSets", "JPEGImages", "Annotations"])
def test_voc_without_one_of_its_folders(tmp_path, missing):
    root = make_voc_devkit(tmp_path)
    shutil.rmtree(root / "VOC2007" / missing)
    with pytest.raises(CamexpError) as caught:
        VOC(str(root), hint="Fetch it.")
    assert f"looked for {root / 'VOC2007' / missing}" in str(caught.value)
    assert str(caught.value).endswith("\nFetch it.")


@pytest.mark.parametrize("missing", ["annotations", "val2014"])
def test_coco_without_one_of_its_folders(tmp_path, missing):
    root = make_coco_root(tmp_path)
    shutil.rmtree(root / missing)
    with pytest.raises(CamexpError) as caught:
        COCO(str(root), hint="Fetch it.")
    assert f"looked for {root / missing}" in str(caught.value)
    assert f"{root} holds {'val2014' if missing == 'annotations' else 'annotations'}\n" in str(caught.value)


@pytest.mark.parametrize(("name", "images"), [("voc", "VOC2007/JPEGImages"), ("coco", "val2014")])
def test_folder_with_none_of_the_images(tmp_path, name, images):
    make, read = SETS[name]
    folder = make(tmp_path) / images
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(
        CamexpError, match=r"holds none of the 1 images that are listed, for instance .*\.jpg\nit holds"
    ):
        read(str(tmp_path))


def test_images_a_level_too_deep(tmp_path):
    folder = make_coco_root(tmp_path) / "val2014"
    (folder / "val2014").mkdir()
    for path in folder.glob("*.jpg"):
        path.rename(folder / "val2014" / path.name)
    with pytest.raises(CamexpError) as caught:
        COCO(str(tmp_path))
    assert f"they are in {folder / 'val2014'}: move them up" in str(caught.value)


def test_severstal_images_of_another_set(tmp_path):
    root = make_steel(tmp_path, ["other.jpg"], [("s.jpg", 1, "1 2"), ("t.jpg", 1, "1 2")])
    with pytest.raises(CamexpError, match=r"holds none of the 2 sheets of train\.csv, for instance s\.jpg"):
        steel(root)


@pytest.mark.parametrize("name", ["annotations/instances_val2014.json", "VOC2007/ImageSets/Main/test.txt", "train.csv"])
def test_a_folder_in_place_of_a_file(tmp_path, name):
    make, read = SETS[{"a": "coco", "V": "voc", "t": "steel"}[name[0]]]
    path = make(tmp_path) / name
    path.unlink()
    path.mkdir()
    with pytest.raises(CamexpError, match=path.name):
        read(str(tmp_path))


# ------------------------------------------------------------------------------------------------ images


def stored(path: Path) -> np.ndarray:
    image = open_rgb(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_sixteen_bits_become_eight(tmp_path):
    deep = np.array([[0, 256, 257, 30000], [32896, 65000, 65534, 65535]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray(deep).save(tmp_path / "deep.tif")
    expected = np.array([[0, 0, 1, 116], [128, 252, 254, 255]])
    for name in ("deep.png", "deep.tif"):
        np.testing.assert_array_equal(stored(tmp_path / name), np.repeat(expected[..., None], 3, 2))


@pytest.mark.parametrize("pixels", [np.full((2, 2), 0.5, np.float32), np.full((2, 2), 70000, np.int32)])
def test_pixels_of_unknown_range_are_refused(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "odd.tif")
    with pytest.raises(ValueError, match="no known range"):
        open_rgb(tmp_path / "odd.tif")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_images_of_every_kind_become_rgb(tmp_path, mode):
    path = tmp_path / ("image.jpg" if mode in ("CMYK", "YCbCr") else "image.png")
    grey = Image.fromarray(np.repeat(np.array([[0], [255]], np.uint8), 8, 0).repeat(16, 1))
    grey.convert("RGB").convert(mode).save(path)
    with Image.open(path) as image:
        assert image.mode == mode or path.suffix == ".jpg"
    pixels = stored(path).astype(int)
    assert pixels.shape == (16, 16, 3)
    assert np.abs(pixels[:8]).max() <= 2
    assert np.abs(pixels[8:] - 255).max() <= 2


def test_transparency_is_dropped_without_a_warning(tmp_path, recwarn):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "clear.png", transparency=b"\x00\x80")
    np.testing.assert_array_equal(stored(tmp_path / "clear.png"), [[[10, 20, 30], [40, 50, 60]]])
    assert not recwarn.list


def test_exif_orientation_is_not_applied(tmp_path):
    root = make_voc(tmp_path, {"a": [("cat", (1, 1, 4, 2), 0)]})
    path = root / "VOC2007" / "JPEGImages" / "a.jpg"
    pixels = np.zeros((8, 10, 3), np.uint8)
    pixels[:2, :4] = 255  # where the box is, in the pixels as they are stored
    exif = Image.Exif()
    exif[0x0112] = 6  # show it turned by 90 degrees
    Image.fromarray(pixels).save(path, quality=100, subsampling=0, exif=exif)
    with Image.open(path) as image:
        assert image.getexif()[0x0112] == 6
    sample = VOC(str(root)).load(0)
    assert sample.image is not None
    assert sample.image.size == (10, 8)
    np.testing.assert_array_equal(np.asarray(sample.image)[..., 0] > 127, sample.masks[0])


@pytest.mark.parametrize("damage", ["zero bytes", "folder", "text"])
def test_files_that_are_no_images_are_listed(tmp_path, damage):
    objects = [("cat", (1, 1, 2, 2), 0)]
    root = make_voc(tmp_path, {"a": objects, "b": objects})
    path = root / "VOC2007" / "JPEGImages" / "a.jpg"
    path.unlink()
    {"zero bytes": path.touch, "folder": path.mkdir, "text": lambda: path.write_text("<html>not found</html>")}[
        damage
    ]()
    dataset = VOC(str(root))
    sample = load_by_id(dataset, "a")
    assert sample.image is None
    assert [(f.image_id, f.class_id) for f in sample.failures] == [("a", CAT)]
    assert "a.jpg" in sample.failures[0].reason
    assert load_by_id(dataset, "b").targets == (Target(CAT),)


# ------------------------------------------------------------------------------------------------ VOC


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((4, 4, 3, 6), "xmax < xmin"),
        ((4, 6, 5, 4), "ymax < ymin"),
        (("nan", 1, 2, 2), "not finite"),
        ((1, 1, "inf", 2), "not finite"),
        (("left", 1, 2, 2), "left"),
        ((1, "", 2, 2), "without a box"),
        ((1, " ", 2, 2), "without a box"),
    ],
)
def test_voc_broken_box_fails_its_class_only(tmp_path, box, reason):
    objects = [("cat", (1, 1, 3, 3), 0), ("cat", box, 0), ("dog", (1, 1, 2, 2), 0)]
    dataset = VOC(str(make_voc(tmp_path, {"a": objects})))
    assert [(f.image_id, f.class_id) for f in dataset.failures] == [("a", CAT)]
    assert reason in dataset.failures[0].reason
    assert "a.xml" in dataset.failures[0].reason
    assert dataset.load(0).targets == (Target(DOG),)


def test_voc_box_of_one_pixel_is_no_empty_box(tmp_path):
    sample = VOC(str(make_voc(tmp_path, {"a": [("cat", (3, 2, 3, 2), 0)]}))).load(0)
    assert not sample.failures
    assert np.argwhere(sample.masks[0]).tolist() == [[1, 2]]


@pytest.mark.parametrize(
    "content",
    [
        b"<annotation><object><name>caf\xe9</name></object></annotation>",
        b'<?xml version="1.0" encoding="klingon"?><annotation/>',
        b"<html><body>404</body></html>",
        b"\x00\x01",
        b"",
    ],
)
def test_voc_xml_that_cannot_be_read_is_listed(tmp_path, content):
    objects = [("cat", (1, 1, 2, 2), 0)]
    root = make_voc(tmp_path, {"a": objects, "b": objects})
    (root / "VOC2007" / "Annotations" / "a.xml").write_bytes(content)
    dataset = VOC(str(root))
    assert [(f.image_id, f.class_id) for f in dataset.failures] == [("a", None)]
    assert "a.xml" in dataset.failures[0].reason
    assert dataset.targets == ((), (Target(CAT),))


def test_voc_size_that_the_xml_states_may_be_wrong(tmp_path):
    """The boxes are in pixels of the image file."""
    objects = [("cat", (9, 7, 10, 8), 0)]
    root = make_voc(tmp_path, {"a": objects, "b": objects, "c": objects, "d": objects})
    for image_id, width, height in (("a", 8, 10), ("b", 10, 8), ("c", 0, 0), ("d", "", "wide")):
        path = root / "VOC2007" / "Annotations" / f"{image_id}.xml"
        size = f"<size><width>{width}</width><height>{height}</height></size></annotation>"
        path.write_text(path.read_text().replace("</annotation>", size))
    dataset = VOC(str(root))
    expected = np.zeros((8, 10), bool)
    expected[6:, 8:] = True
    for sample in map(dataset.load, range(4)):
        assert not sample.failures
        np.testing.assert_array_equal(sample.masks[0], expected)


def test_voc_boxes_of_a_larger_image_fail(tmp_path):
    root = make_voc(tmp_path, {"a": [("cat", (12, 4, 30, 16), 0)]})
    assert "reaches outside the image file of 10x8 pixels" in VOC(str(root)).load(0).failures[0].reason


def test_voc_list_that_is_not_utf8(tmp_path):
    root = make_voc_devkit(tmp_path)
    (root / "VOC2007" / "ImageSets" / "Main" / "test.txt").write_bytes(b"a\n\xff\xfe\n")
    with pytest.raises(CamexpError, match=r"test\.txt cannot be read"):
        VOC(str(root))


def test_voc_list_of_windows(tmp_path):
    root = make_voc_devkit(tmp_path)
    (root / "VOC2007" / "ImageSets" / "Main" / "test.txt").write_bytes(b"\xef\xbb\xbfa\r\n")
    assert VOC(str(root)).image_ids == ("a",)


# ----------------------------------------------------------------------------------------------- COCO


def edit(root: Path, change) -> str:
    """Apply `change` to the JSON of a COCO folder; returns the folder."""
    path = root / "annotations" / "instances_val2014.json"
    document = json.loads(path.read_text())
    changed = change(document)
    path.write_text(json.dumps(document if changed is None else changed))
    return str(root)


NOT_COCO = {
    "a list": (lambda d: [d], "it holds a list"),
    "no images": (lambda d: d.pop("images") and None, "the list 'images' is missing"),
    "no annotations": (lambda d: d.pop("annotations") and None, "the list 'annotations' is missing"),
    "no categories": (lambda d: d.pop("categories") and None, "the list 'categories' is missing"),
    "images by id": (lambda d: d.update(images={"1": d["images"][0]}), "'images' is not a list"),
    "empty images": (lambda d: d.update(images=[]), "no images or no categories"),
    "image without a height": (lambda d: d["images"][0].pop("height") and None, r"images\[0\] has no 'height'"),
    "width as text": (lambda d: d["images"][0].update(width="6"), r"images\[0\] has no 'width', or one of the wrong"),
    "annotation without a category": (lambda d: d["annotations"][1].pop("category_id") and None, r"annotations\[1\]"),
    "annotation that is a list": (lambda d: d["annotations"].__setitem__(0, []), r"annotations\[0\] has no 'id'"),
    "category without a name": (lambda d: d["categories"][2].pop("name") and None, r"categories\[2\] has no 'name'"),
}


@pytest.mark.parametrize("name", NOT_COCO)
def test_coco_json_without_what_it_needs(tmp_path, name):
    change, message = NOT_COCO[name]
    root = edit(make_coco(tmp_path, [person(SQUARE), person(SQUARE)]), change)
    with pytest.raises(CamexpError, match=message) as caught:
        COCO(root)
    assert "instances_val2014.json is not a COCO annotation file" in str(caught.value)


@pytest.mark.parametrize("name", ["images", "annotations", "categories"])
def test_coco_id_that_stands_twice_is_refused(tmp_path, name):
    root = edit(make_coco(tmp_path, [person(SQUARE)]), lambda d: d[name].append(dict(d[name][0])))
    with pytest.raises(CamexpError, match=rf"{name}: id \d+ stands twice in .*instances_val2014\.json"):
        COCO(root)


def test_coco_unlisted_categories_and_images_are_listed_once(tmp_path):
    annotations = [
        person(SQUARE),
        *[{"category_id": 55, "segmentation": SQUARE}] * 3,
        *[person(SQUARE, image_id=9)] * 2,
    ]
    dataset = COCO(str(make_coco(tmp_path, annotations)))
    assert [(f.image_id, f.class_id) for f in dataset.failures] == [("1", None), ("9", None)]
    assert "category id 55" in reasons(dataset.failures)
    assert dataset.targets == ((Target(0),),)


def test_coco_image_with_empty_segmentations_only_is_listed(tmp_path):
    dataset = COCO(str(make_coco(tmp_path, [person([]), person([])])))
    sample = dataset.load(0)
    assert sample.targets == ()
    assert [(f.image_id, f.class_id) for f in sample.failures] == [("1", 0)]
    assert "empty segmentation" in sample.failures[0].reason


def run_lengths(*counts: int) -> dict:
    return {"size": [HEIGHT, WIDTH], "counts": list(counts)}


BROKEN = {
    "polygon of two corners": [[1, 1, 3, 3]],
    "polygon of an odd count": [[1, 1, 3, 1, 3, 3, 1]],
    "polygon with NaN": [[1, 1, 3, float("nan"), 3, 3]],
    "polygon with infinity": [[1, 1, 3, float("inf"), 3, 3]],
    "polygon with text": [[1, 1, 3, "1", 3, 3]],
    "polygon far outside": [[1, 1, 1e12, 1, 3, 3]],
    "polygon without brackets": [1, 1, 3, 1, 3, 3],
    "second polygon broken": [*SQUARE, [1, 1]],
    "run lengths beyond the image": run_lengths(3, 40),
    "run lengths that end early": run_lengths(3, 4),
    "negative run length": run_lengths(3, -1, 28),
    "fractional run length": run_lengths(3, 4, 23) | {"counts": [3.0, 4.0, 23.0]},
    "compressed beyond the image": {
        "size": [HEIGHT, WIDTH],
        "counts": rle.encode(np.ones((9, 9), np.uint8, "F"))["counts"].decode(),
    },
    "compressed nonsense": {"size": [HEIGHT, WIDTH], "counts": "\x7f!"},
    "compressed and cut": {"size": [HEIGHT, WIDTH], "counts": "a"},
    "no size": {"counts": [3, 4, 23]},
    "no counts": {"size": [HEIGHT, WIDTH]},
    "text": "polygon",
    "number": 5,
}


@pytest.mark.parametrize("name", BROKEN)
def test_coco_broken_segmentation_is_listed(tmp_path, name):
    broken = {"category_id": 7, "segmentation": BROKEN[name]}
    dataset = COCO(str(make_coco(tmp_path, [broken, person(SQUARE)])))
    sample = dataset.load(0)
    assert [t.class_id for t in sample.targets] == [0]
    assert [(f.image_id, f.class_id) for f in sample.failures] == [("1", 1)]
    assert "annotation 1: " in sample.failures[0].reason


def test_coco_polygon_partly_outside_is_clipped(tmp_path):
    sample = COCO(str(make_coco(tmp_path, [person([[-3, -3, 2, -3, 2, 1, -3, 1]])]))).load(0)
    np.testing.assert_array_equal(sample.masks[0], mask_of((0, 0), (0, 1)))


def test_decompressed_run_lengths_are_those_of_the_mask():
    rng = np.random.default_rng(0)
    for _ in range(200):
        mask = rng.random(rng.integers(1, 40, 2)) < rng.random()
        assert decompress(compressed(mask)["counts"]) == uncompressed(mask)["counts"]
    tall = np.zeros((5000, 30), bool)
    tall[:, 3], tall[7, 20] = True, True
    assert decompress(compressed(tall)["counts"]) == uncompressed(tall)["counts"]


# -------------------------------------------------------------------------------------------- Severstal


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as a table"),
        (b"\xff\xfe\x00", "cannot be read as a table"),
        (b"ImageId,ClassId,EncodedPixels\n", "a header and no rows"),
        (b"ImageId,EncodedPixels\ns.jpg,1 2\n", r"lacks the columns \['ClassId'\]"),
    ],
)
def test_severstal_table_that_is_none(tmp_path, content, message):
    root = make_steel_root(tmp_path)
    (root / "train.csv").write_bytes(content)
    with pytest.raises(CamexpError, match=message):
        steel(root)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([("1", "1 300")], "leaves the image of 28x8"),
        ([("1", "225 1")], "leaves the image of 28x8"),
        ([("1", "1 5 3 2")], "overlap"),
        ([("1", "1 99999999999999999999")], "too large"),
        ([("1", "1 9223372036854775807")], "leaves the image"),
        ([("1", "")], "class 1 has none"),
        ([("1", "1 2"), ("1", "5 2")], "class 1 stands twice"),
        ([("one", "1 2")], "class one is not one of 1..4"),
        ([("5", "1 2")], "class 5 is not one of 1..4"),
        ([("1.5", "1 2")], "class 1.5"),
        ([("", "1 2")], "class  is not one of"),
    ],
)
def test_severstal_broken_row_is_listed_and_its_sheet_left_out(tmp_path, rows, reason):
    fine = ("fine.jpg", 1, encode_runs(block(0, 8)))
    root = make_steel(tmp_path, ["fine.jpg", "s.jpg"], [fine, *(("s.jpg", *row) for row in rows)])
    dataset = steel(root, with_normal=True)
    assert [(f.image_id, f.class_id) for f in dataset.failures] == [("s.jpg", None)]
    assert reason in dataset.failures[0].reason
    assert {image_id.partition("@")[0] for image_id in dataset.image_ids} == {"fine"}


@pytest.mark.parametrize(
    ("option", "value"),
    [("multi", "both"), ("sheets", "some"), ("selection", "half"), ("split", "val"), ("crop", 29), ("stride", 0)],
)
def test_severstal_unknown_options_are_named(tmp_path, option, value):
    with pytest.raises(CamexpError, match=rf"dataset\.({option}|crop)") as caught:
        steel(make_steel_root(tmp_path), **{option: value})
    assert str(value) in str(caught.value)


def test_broken_data_cost_no_good_pair(tmp_path):
    """Images of all kinds beside each other: the data set is read to its end."""
    objects = [("cat", (1, 1, 2, 2), 0)]
    root = make_voc(tmp_path, dict.fromkeys(("a", "b", "c", "d"), objects))
    folder = root / "VOC2007"
    (folder / "JPEGImages" / "b.jpg").write_bytes(b"")
    (folder / "Annotations" / "c.xml").write_text("<annotation>")
    save_jpeg(folder / "JPEGImages" / "d.jpg", 10, 8)
    dataset: Dataset = VOC(str(root))
    samples = [dataset.load(i) for i in range(len(dataset))]
    assert [len(sample.targets) for sample in samples] == [1, 0, 0, 1]
    assert isinstance(steel(make_steel_root(tmp_path / "steel")), Severstal)
