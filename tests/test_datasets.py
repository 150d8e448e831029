"""The loaders of VOC, COCO and Severstal on small folders in the real formats."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO as Annotations

from camexp.datasets.base import Dataset, Failure, Target
from camexp.datasets.coco import COCO
from camexp.datasets.crops import SELECTIONS, Crop, split_by_hash
from camexp.datasets.severstal import Severstal
from camexp.datasets.severstal_index import decode_runs, encode_runs
from camexp.datasets.voc import VOC, VOC_CLASSES
from camexp.errors import CamexpError

CAT, DOG, PERSON = (VOC_CLASSES.index(name) for name in ("cat", "dog", "person"))

VocObject = tuple[str, tuple[object, object, object, object], int]
"""Class name, corners (1-based, inclusive), difficult flag."""


def save_jpeg(path: Path, width: int, height: int, seed: int = 0) -> None:
    """Noise, which takes so many bytes that a file cut in half misses pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, quality=95)


def cut_in_half(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def reasons(failures: Sequence[Failure]) -> str:
    return "\n".join(f"{f.image_id} {f.class_id}: {f.reason}" for f in failures)


def load_by_id(dataset: Dataset, image_id: str):
    return dataset.load(dataset.image_ids.index(image_id))


# ------------------------------------------------------------------------------------------------ VOC


def voc_xml(objects: Sequence[VocObject]) -> str:
    corners = ("xmin", "ymin", "xmax", "ymax")
    return (
        "<annotation>"
        + "".join(
            f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>"
            + "".join(f"<{corner}>{value}</{corner}>" for corner, value in zip(corners, box, strict=True))
            + "</bndbox><part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>"
            for name, box, difficult in objects
        )
        + "</annotation>"
    )


def make_voc(root: Path, images: dict[str, Sequence[VocObject]], width: int = 10, height: int = 8) -> Path:
    """A VOCdevkit folder with one image of width x height per id."""
    folder = root / "VOC2007"
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for image_id, objects in images.items():
        save_jpeg(folder / "JPEGImages" / f"{image_id}.jpg", width, height)
        (folder / "Annotations" / f"{image_id}.xml").write_text(voc_xml(objects))
    (folder / "ImageSets" / "Main" / "test.txt").write_text("".join(f"{image_id}\n" for image_id in images))
    return root


def test_voc_box_is_one_based_and_inclusive(tmp_path):
    dataset = VOC(str(make_voc(tmp_path, {"a": [("cat", (2, 3, 4, 7), 0)]})))
    sample = dataset.load(0)
    expected = np.zeros((8, 10), bool)
    expected[2:7, 1:4] = True  # rows 3..7 and columns 2..4, counted from 1
    assert sample.targets == (Target(CAT),)
    assert sample.image is not None
    assert sample.image.size == (10, 8)
    assert sample.masks[0].sum() == 15
    np.testing.assert_array_equal(sample.masks[0], expected)
    assert not sample.failures
    assert not dataset.failures


def test_voc_box_over_the_whole_image_covers_every_pixel(tmp_path):
    dataset = VOC(str(make_voc(tmp_path, {"a": [("cat", (1, 1, 10, 8), 0)]})))
    assert dataset.load(0).masks[0].all()


def test_voc_mask_is_the_union_of_the_class_s_boxes_only(tmp_path):
    objects = [("dog", (1, 1, 3, 2), 0), ("cat", (9, 8, 10, 8), 0), ("dog", (3, 2, 5, 3), 0)]
    sample = VOC(str(make_voc(tmp_path, {"a": objects}))).load(0)
    assert [t.class_id for t in sample.targets] == [CAT, DOG]
    assert [int(mask.sum()) for mask in sample.masks] == [2, 6 + 6 - 1]


def test_voc_difficult_boxes(tmp_path):
    objects = [("cat", (1, 1, 2, 2), 1), ("dog", (1, 1, 2, 2), 0), ("dog", (5, 5, 6, 6), 1)]
    root = str(make_voc(tmp_path, {"a": objects}))
    skipped = VOC(root, difficult="skip").load(0)
    assert skipped.targets == (Target(DOG),)
    assert skipped.masks[0].sum() == 8  # the difficult dog is painted too
    kept = VOC(root, difficult="keep").load(0)
    assert kept.targets == (Target(CAT, difficult=True), Target(DOG, difficult=False))
    assert [int(mask.sum()) for mask in kept.masks] == [4, 8]


def test_voc_box_one_pixel_outside_is_clipped(tmp_path):
    objects = [("cat", (0, 0, 2, 3), 0), ("dog", (9, 7, 11, 9), 0)]
    sample = VOC(str(make_voc(tmp_path, {"a": objects}))).load(0)
    assert [int(mask.sum()) for mask in sample.masks] == [2 * 3, 2 * 2]
    assert sample.masks[0][:3, :2].all()
    assert sample.masks[1][6:, 8:].all()


@pytest.mark.parametrize(
    "box",
    [
        *((11, 1, 15, 4), (1, 9, 4, 12), (-5, 1, 0, 4), (11, 1, 11, 4), (1, 0, 4, 0)),  # without a pixel in the image
        *((-1, 1, 2, 3), (1, -1, 2, 3), (9, 7, 12, 8), (9, 7, 10, 10)),  # two pixels too far
    ],
)
def test_voc_box_outside_fails_its_pair_only(tmp_path, box):
    sample = VOC(str(make_voc(tmp_path, {"a": [("cat", box, 0), ("dog", (1, 1, 2, 2), 0)]}))).load(0)
    assert [t.class_id for t in sample.targets] == [DOG]
    assert len(sample.masks) == 1
    assert [(f.image_id, f.class_id) for f in sample.failures] == [("a", CAT)]
    written = ", ".join(map(str, box))
    assert f"box ({written}) reaches outside the image file of 10x8 pixels" in sample.failures[0].reason


def test_voc_object_without_a_box_fails_its_class_only(tmp_path):
    objects = [("cat", (1, 1, 2, 2), 0), ("cat", ("", 1, 2, 2), 0), ("dog", (1, 1, 2, 2), 0)]
    dataset = VOC(str(make_voc(tmp_path, {"a": objects})))
    assert dataset.targets == ((Target(DOG),),)
    assert [(f.image_id, f.class_id) for f in dataset.failures] == [("a", CAT)]
    assert "a.xml" in dataset.failures[0].reason


def test_voc_lists_what_is_broken_and_loads_the_rest(tmp_path):
    objects = [("cat", (1, 1, 2, 2), 0), ("person", (3, 3, 9, 8), 0)]
    names = ("fine", "unknown", "torn_xml", "no_xml", "torn_jpeg", "no_jpeg", "last")
    root = make_voc(tmp_path, dict.fromkeys(names, objects), width=64, height=48)
    folder = root / "VOC2007"
    (folder / "Annotations" / "unknown.xml").write_text(voc_xml([("unicorn", (1, 1, 2, 2), 0), *objects]))
    cut_in_half(folder / "Annotations" / "torn_xml.xml")
    (folder / "Annotations" / "no_xml.xml").unlink()
    cut_in_half(folder / "JPEGImages" / "torn_jpeg.jpg")
    (folder / "JPEGImages" / "no_jpeg.jpg").unlink()
    dataset = VOC(str(root))
    assert dataset.image_ids == names
    assert {f.image_id for f in dataset.failures} == {"unknown", "torn_xml", "no_xml"}
    assert all(f.class_id is None for f in dataset.failures)
    assert "'unicorn'" in reasons(dataset.failures)
    assert "torn_xml.xml" in reasons(dataset.failures)
    for name in ("fine", "unknown", "last"):
        sample = load_by_id(dataset, name)
        assert [t.class_id for t in sample.targets] == [CAT, PERSON]
        assert not sample.failures
    for name in ("torn_xml", "no_xml"):
        assert load_by_id(dataset, name).targets == ()
    for name in ("torn_jpeg", "no_jpeg"):
        sample = load_by_id(dataset, name)
        assert sample.image is None
        assert sample.targets == sample.masks == ()
        assert [(f.image_id, f.class_id) for f in sample.failures] == [(name, CAT), (name, PERSON)]
        assert all(f.reason.startswith("image: ") for f in sample.failures)


def test_voc_image_without_objects_has_no_pairs(tmp_path):
    dataset = VOC(str(make_voc(tmp_path, {"a": []})))
    sample = dataset.load(0)
    assert dataset.targets == ((),)
    assert sample.image is not None
    assert sample.masks == sample.failures == dataset.failures == ()


def test_voc_limit_keeps_the_first_images_and_their_failures(tmp_path):
    objects = [("cat", (1, 1, 2, 2), 0)]
    root = make_voc(tmp_path, {"a": [("unicorn", (1, 1, 2, 2), 0)], "b": objects, "c": objects})
    (root / "VOC2007" / "Annotations" / "c.xml").unlink()
    dataset = VOC(str(root))
    assert [f.image_id for f in dataset.failures] == ["a", "c"]
    dataset.limit(2)
    assert len(dataset) == 2
    assert dataset.image_ids == ("a", "b")
    assert [f.image_id for f in dataset.failures] == ["a"]


def test_voc_grey_image_is_read_as_rgb(tmp_path):
    root = make_voc(tmp_path, {"a": [("cat", (1, 1, 2, 2), 0)]})
    Image.new("L", (10, 8), 90).save(root / "VOC2007" / "JPEGImages" / "a.jpg")
    image = VOC(str(root)).load(0).image
    assert image is not None
    assert (image.mode, image.size) == ("RGB", (10, 8))


@pytest.mark.parametrize("missing", ["", "VOC2007", "VOC2007/ImageSets/Main/test.txt"])
def test_voc_missing_folder_or_list_says_what_where_and_how(tmp_path, missing):
    root = make_voc(tmp_path / "VOCdevkit", {"a": []})
    gone = root / missing
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises(CamexpError) as caught:
        VOC(str(root), hint="Fetch it from somewhere.")
    message = str(caught.value)
    assert message.startswith("image list of split 'test'" if missing.endswith("txt") else "VOC2007")
    assert str(root / (missing or "VOC2007")) in message
    assert message.endswith("Fetch it from somewhere.")


def test_voc_id_that_stands_twice_is_refused(tmp_path):
    root = make_voc(tmp_path, {"a": [], "b": []})
    listing = root / "VOC2007" / "ImageSets" / "Main" / "test.txt"
    listing.write_text("a\nb\na\n")
    with pytest.raises(CamexpError, match=r"'a' stands twice in .*test\.txt"):
        VOC(str(root))


@pytest.mark.parametrize("text", ["", "\n  \n"])
def test_voc_empty_list_is_refused(tmp_path, text):
    root = make_voc(tmp_path, {"a": []})
    (root / "VOC2007" / "ImageSets" / "Main" / "test.txt").write_text(text)
    with pytest.raises(CamexpError, match=r"test\.txt is empty"):
        VOC(str(root))


def test_voc_list_with_a_second_column(tmp_path):
    root = make_voc(tmp_path, {"a": [], "b": []})
    (root / "VOC2007" / "ImageSets" / "Main" / "test.txt").write_text("a -1\nb  1\n\n")
    assert VOC(str(root)).image_ids == ("a", "b")


def test_voc_unknown_difficult_rule_is_refused(tmp_path):
    root = make_voc(tmp_path, {"a": []})
    with pytest.raises(CamexpError, match=r"dataset\.difficult must be skip or keep, not 'drop'"):
        VOC(str(root), difficult="drop")


# ----------------------------------------------------------------------------------------------- COCO

WIDTH, HEIGHT = 6, 5
SQUARE = [[1, 1, 4, 1, 4, 3, 1, 3]]
"""A polygon over the pixels of rows 1..2 and columns 1..3."""

CATEGORIES = ((7, "truck"), (1, "person"), (90, "toothbrush"))
"""Listed out of order and with gaps: their indices are 1, 0 and 2."""


def mask_of(*pixels: tuple[int, int]) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    for row, column in pixels:
        mask[row, column] = True
    return mask


def compressed(mask: np.ndarray) -> dict:
    runs = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": runs["counts"].decode()}


def uncompressed(mask: np.ndarray) -> dict:
    """Run lengths column by column, zeros first, counted one pixel at a time."""
    counts, value = [0], False
    for pixel in mask.T.reshape(-1).tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"size": list(mask.shape), "counts": counts}


def make_coco(root: Path, annotations: Sequence[dict], images: Sequence[int] = (1,)) -> Path:
    """A COCO folder; an annotation gives image_id (1 by default), category_id and segmentation."""
    (root / "annotations").mkdir(parents=True)
    (root / "val2014").mkdir()
    for number in images:
        save_jpeg(root / "val2014" / f"{number:012d}.jpg", WIDTH, HEIGHT)
    document = {
        "images": [{"id": n, "file_name": f"{n:012d}.jpg", "width": WIDTH, "height": HEIGHT} for n in images],
        "annotations": [
            {"id": number, "image_id": 1, "iscrowd": 0, **annotation}
            for number, annotation in enumerate(annotations, 1)
        ],
        "categories": [{"id": number, "name": name} for number, name in CATEGORIES],
    }
    (root / "annotations" / "instances_val2014.json").write_text(json.dumps(document))
    return root


def person(segmentation: object, **fields: object) -> dict:
    return {"category_id": 1, "segmentation": segmentation, **fields}


def test_coco_polygon(tmp_path):
    sample = COCO(str(make_coco(tmp_path, [person(SQUARE)]))).load(0)
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[1:3, 1:4] = True
    assert sample.targets == (Target(0),)
    np.testing.assert_array_equal(sample.masks[0], expected)
    assert sample.masks[0].dtype == bool


@pytest.mark.parametrize("encode", [compressed, uncompressed])
@pytest.mark.parametrize("iscrowd", [0, 1])
def test_coco_run_lengths_and_crowds(tmp_path, encode, iscrowd):
    mask = mask_of((0, 0), (1, 0), (4, 0), (0, 1), (3, 4), (4, 5))
    sample = COCO(str(make_coco(tmp_path, [person(encode(mask), iscrowd=iscrowd)]))).load(0)
    np.testing.assert_array_equal(sample.masks[0], mask)


def test_coco_uncompressed_run_lengths_go_down_the_columns(tmp_path):
    runs = {"size": [HEIGHT, WIDTH], "counts": [3, 4, 23]}  # rows 3, 4 of column 0 and rows 0, 1 of column 1
    sample = COCO(str(make_coco(tmp_path, [person(runs)]))).load(0)
    np.testing.assert_array_equal(sample.masks[0], mask_of((3, 0), (4, 0), (0, 1), (1, 1)))


def test_coco_mask_is_the_union_of_the_class_s_annotations(tmp_path):
    annotations = [
        person(SQUARE),
        person([[0, 3, 2, 3, 0, 5], [4, 0, 6, 0, 6, 2]]),
        person(compressed(mask_of((4, 4), (2, 2)))),
        person(uncompressed(mask_of((0, 0), (4, 5))), iscrowd=1),
        {"category_id": 7, "segmentation": compressed(mask_of((2, 5)))},
    ]
    root = make_coco(tmp_path, annotations)
    sample = COCO(str(root)).load(0)
    read = Annotations(str(root / "annotations" / "instances_val2014.json"))
    own = [a for a in read.dataset["annotations"] if a["category_id"] == 1]
    expected = np.any([read.annToMask(a) for a in own], axis=0)
    assert [t.class_id for t in sample.targets] == [0, 1]
    np.testing.assert_array_equal(sample.masks[0], expected)
    assert not sample.masks[0][2, 5]
    np.testing.assert_array_equal(sample.masks[1], mask_of((2, 5)))


def test_coco_class_indices_follow_the_sorted_category_ids(tmp_path):
    annotations = [{"category_id": c, "segmentation": SQUARE} for c in (90, 7)]
    dataset = COCO(str(make_coco(tmp_path, annotations)))
    assert dataset.classes == ("person", "truck", "toothbrush")
    assert dataset.targets == ((Target(1), Target(2)),)


def test_coco_images_come_by_id_and_may_have_no_annotations(tmp_path):
    dataset = COCO(str(make_coco(tmp_path, [person(SQUARE)], images=(12, 1, 3))))
    assert dataset.image_ids == ("1", "3", "12")
    assert dataset.targets == ((Target(0),), (), ())
    sample = dataset.load(1)
    assert sample.image is not None
    assert sample.masks == sample.failures == ()


def test_coco_unknown_category_is_listed(tmp_path):
    dataset = COCO(str(make_coco(tmp_path, [person(SQUARE), {"category_id": 55, "segmentation": SQUARE}])))
    assert [(f.image_id, f.class_id) for f in dataset.failures] == [("1", None)]
    assert "55" in dataset.failures[0].reason
    assert dataset.load(0).targets == (Target(0),)


def test_coco_empty_segmentation_beside_a_full_one_is_passed_over(tmp_path):
    sample = COCO(str(make_coco(tmp_path, [person([]), person(SQUARE)]))).load(0)
    assert sample.masks[0].sum() == 6
    assert not sample.failures


BROKEN_SEGMENTATIONS = {
    "empty": {"segmentation": []},
    "absent": {},
    "no pixel": {"segmentation": compressed(mask_of())},
    "two numbers": {"segmentation": [[1, 1]]},
    "size of another image": {"segmentation": compressed(np.ones((9, 7), bool))},
}


@pytest.mark.parametrize("name", BROKEN_SEGMENTATIONS)
def test_coco_broken_segmentation_fails_its_pair_only(tmp_path, name):
    broken = {"category_id": 7, **BROKEN_SEGMENTATIONS[name]}
    sample = COCO(str(make_coco(tmp_path, [broken, person(SQUARE)]))).load(0)
    assert [t.class_id for t in sample.targets] == [0]
    assert [(f.image_id, f.class_id) for f in sample.failures] == [("1", 1)]
    assert sample.failures[0].reason.startswith("ground truth: ")


def test_coco_image_of_another_size_than_the_json_s_fails(tmp_path):
    root = make_coco(tmp_path, [person(SQUARE), {"category_id": 7, "segmentation": SQUARE}])
    save_jpeg(root / "val2014" / f"{1:012d}.jpg", HEIGHT, WIDTH)
    sample = COCO(str(root)).load(0)
    assert sample.targets == ()
    assert [f.class_id for f in sample.failures] == [0, 1]
    assert "5x6" in sample.failures[0].reason
    assert "6x5" in sample.failures[0].reason


def test_coco_missing_image_fails_its_pairs(tmp_path):
    root = make_coco(tmp_path, [person(SQUARE), person(SQUARE, image_id=2)], images=(1, 2))
    (root / "val2014" / f"{1:012d}.jpg").unlink()
    dataset = COCO(str(root))
    assert [(f.image_id, f.class_id) for f in dataset.load(0).failures] == [("1", 0)]
    assert dataset.load(1).targets == (Target(0),)


@pytest.mark.parametrize("content", [b'{"images": [', b"[]", b"{}", b"\xff\xfe\x00\x01"])
def test_coco_file_that_is_no_annotation_file_is_refused(tmp_path, content):
    root = make_coco(tmp_path, [])
    (root / "annotations" / "instances_val2014.json").write_bytes(content)
    with pytest.raises(CamexpError, match=r"instances_val2014\.json is not a COCO annotation file"):
        COCO(str(root))


@pytest.mark.parametrize("missing", ["annotations/instances_val2014.json", "val2014"])
def test_coco_missing_data_say_what_where_and_how(tmp_path, missing):
    root = make_coco(tmp_path, [])
    gone = root / missing
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises(CamexpError) as caught:
        COCO(str(root), hint="Fetch it from somewhere.")
    message = str(caught.value)
    assert message.startswith("COCO annotations" if missing.endswith("json") else "COCO images")
    assert str(gone) in message
    assert message.endswith("Fetch it from somewhere.")


# ------------------------------------------------------------------------------------------ run lengths


def test_runs_of_a_case_counted_by_hand():
    expected = np.zeros((4, 5), bool)
    expected[2:, 0] = True  # 3 and 4 of the first column
    expected[:2, 1] = True  # 5 and 6, the top of the second
    expected[0, 4] = True  # 17, the top of the last
    mask = decode_runs("3 4 17 1", height=4, width=5)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, expected)
    assert encode_runs(expected) == "3 4 17 1"


def test_runs_are_read_in_any_order():
    np.testing.assert_array_equal(decode_runs("17 1 3 4", 4, 5), decode_runs("3 4 17 1", 4, 5))


def test_runs_of_extreme_masks():
    assert encode_runs(np.zeros((4, 5), bool)) == ""
    assert encode_runs(np.ones((4, 5), bool)) == "1 20"
    assert not decode_runs("", 4, 5).any()
    assert decode_runs("1 20", 4, 5).all()


def test_runs_round_trip():
    rng = np.random.default_rng(0)
    for _ in range(200):
        height, width = rng.integers(1, 12, 2).tolist()
        mask = rng.random((height, width)) < rng.random()
        decoded = decode_runs(encode_runs(mask), height, width)
        np.testing.assert_array_equal(decoded, mask)


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ("1 2 3", "odd"),
        ("1 3 3 1", "overlap"),
        ("20 2", "5x4"),
        ("21 1", "5x4"),
        ("0 1", "5x4"),
        ("-1 3", "5x4"),
        ("3 0", "empty"),
        ("3 -1", "empty"),
        ("one two", "one"),
    ],
)
def test_broken_runs_are_refused(runs, message):
    with pytest.raises(ValueError, match=message):
        decode_runs(runs, height=4, width=5)


# -------------------------------------------------------------------------------------------- Severstal

SHEET_HEIGHT, SHEET_WIDTH, CROP = 8, 28, 8
"""Three crops at 0, 8 and 16; four columns are left over at the right edge."""


def block(x0: int, x1: int, y0: int = 0, y1: int = SHEET_HEIGHT) -> np.ndarray:
    mask = np.zeros((SHEET_HEIGHT, SHEET_WIDTH), bool)
    mask[y0:y1, x0:x1] = True
    return mask


def make_steel(root: Path, images: Sequence[str], rows: Sequence[tuple[str, object, str]] = ()) -> Path:
    """A Severstal folder with one sheet per name and the rows of train.csv."""
    (root / "train_images").mkdir(parents=True)
    for seed, name in enumerate(images):
        save_jpeg(root / "train_images" / name, SHEET_WIDTH, SHEET_HEIGHT, seed)
    lines = ["ImageId,ClassId,EncodedPixels", *(f"{name},{kind},{runs}" for name, kind, runs in rows)]
    (root / "train.csv").write_text("\n".join(lines) + "\n")
    return root


def steel(root: Path, **kwargs) -> Severstal:
    size = {"height": SHEET_HEIGHT, "width": SHEET_WIDTH, "crop": CROP, "stride": CROP}
    return Severstal(str(root), **{"split": "all", **size, **kwargs})


def test_severstal_crops_with_their_masks(tmp_path):
    defect = block(6, 11, 1, 3)
    dataset = steel(make_steel(tmp_path, ["s.jpg"], [("s.jpg", 3, encode_runs(defect))]))
    assert dataset.classes == ("no defect", "defect 1", "defect 2", "defect 3", "defect 4")
    assert dataset.image_ids == ("s@0", "s@8")
    assert dataset.targets == ((Target(3),), (Target(3),))
    with Image.open(tmp_path / "train_images" / "s.jpg") as image:
        sheet = np.asarray(image)
    for index, x in enumerate((0, 8)):
        sample = dataset.load(index)
        assert not sample.failures
        np.testing.assert_array_equal(np.asarray(sample.image), sheet[:, x : x + CROP])
        np.testing.assert_array_equal(sample.masks[0], defect[:, x : x + CROP])
    assert [int(dataset.load(i).masks[0].sum()) for i in (0, 1)] == [2 * 2, 3 * 2]


def test_severstal_label_is_the_defect_that_covers_most(tmp_path):
    rows = [("s.jpg", 1, encode_runs(block(5, 10))), ("s.jpg", 4, encode_runs(block(10, 18)))]
    dataset = steel(make_steel(tmp_path, ["s.jpg"], rows))
    assert dict(zip(dataset.image_ids, dataset.labels, strict=True)) == {"s@0": 1, "s@8": 4, "s@16": 4}
    np.testing.assert_array_equal(dataset.load(1).masks[0], block(10, 16)[:, 8:16])


def test_severstal_min_pixels_leaves_undecided_crops_out(tmp_path):
    rows = [("s.jpg", 2, encode_runs(block(7, 10)))]  # 8 pixels of the first crop, 16 of the second, none of the third
    root = make_steel(tmp_path, ["s.jpg"], rows)
    assert steel(root, min_pixels=8).image_ids == ("s@0", "s@8")
    assert steel(root, min_pixels=9).image_ids == ("s@8",)
    assert steel(root, min_pixels=9, with_normal=True).image_ids == ("s@8", "s@16")
    assert steel(root, min_pixels=17).image_ids == ()


def test_severstal_with_normal_lists_crops_without_pairs(tmp_path):
    root = make_steel(tmp_path, ["flat.jpg", "s.jpg"], [("s.jpg", 2, encode_runs(block(0, 8)))])
    assert steel(root).image_ids == ("s@0",)
    dataset = steel(root, with_normal=True)
    assert dataset.image_ids == ("flat@0", "flat@8", "flat@16", "s@0", "s@8", "s@16")
    assert dataset.labels == (0, 0, 0, 2, 0, 0)
    assert dataset.targets == ((), (), (), (Target(2),), (), ())
    assert dataset.load(0).image is not None


def test_severstal_stride(tmp_path):
    root = make_steel(tmp_path, ["s.jpg"], [("s.jpg", 2, encode_runs(block(0, 28)))])
    assert steel(root, stride=4).image_ids == tuple(f"s@{x}" for x in (0, 4, 8, 12, 16, 20))


def test_severstal_broken_runs_fail_the_whole_image(tmp_path):
    rows = [
        ("fine.jpg", 1, encode_runs(block(0, 8))),
        ("odd.jpg", 2, "1 2 3"),
        ("odd.jpg", 1, "1 2"),
        ("unknown.jpg", 7, "1 2"),
        ("blank.jpg", 1, ""),
    ]
    root = make_steel(tmp_path, ["blank.jpg", "fine.jpg", "odd.jpg", "unknown.jpg"], rows)
    dataset = steel(root, with_normal=True)
    assert [f.image_id for f in dataset.failures] == ["odd.jpg", "unknown.jpg", "blank.jpg"]
    assert all(f.class_id is None for f in dataset.failures)
    assert "class 7 is not one of 1..4" in reasons(dataset.failures)
    # a sheet whose defects are unknown is neither a defect's example nor a normal one
    assert {image_id.split("@")[0] for image_id in dataset.image_ids} == {"fine"}
    assert dataset.load(0).targets == (Target(1),)


def test_severstal_missing_or_torn_sheets_are_listed(tmp_path):
    names = ["fine.jpg", "gone.jpg", "torn.jpg", "wide.jpg"]
    root = make_steel(tmp_path, names, [(name, 1, encode_runs(block(0, 8))) for name in names])
    (root / "train_images" / "gone.jpg").unlink()
    cut_in_half(root / "train_images" / "torn.jpg")
    save_jpeg(root / "train_images" / "wide.jpg", SHEET_WIDTH + 1, SHEET_HEIGHT)
    dataset = steel(root)
    assert dataset.image_ids == ("fine@0", "gone@0", "torn@0", "wide@0")
    assert not dataset.load(0).failures
    for index in (1, 2, 3):
        sample = dataset.load(index)
        assert sample.image is None
        assert [(f.image_id, f.class_id) for f in sample.failures] == [(dataset.image_ids[index], 1)]
    assert "29x8 pixels, 28x8 expected" in dataset.load(3).failures[0].reason


def test_split_by_hash_is_stable_disjoint_and_complete():
    names = [f"{i:03d}.jpg" for i in range(10)]
    test, train = (split_by_hash(names, split, 0.3, 0) for split in ("test", "train"))
    assert test == STABLE_TEST_SPLIT
    assert sorted(test + train) == names
    assert not set(test) & set(train)
    assert train == sorted(train)
    assert split_by_hash(names, "all", 0.3, 0) == names
    assert set(split_by_hash(names[::-1], "test", 0.3, 0)) == set(test)
    assert any(split_by_hash(names, "test", 0.3, seed) != test for seed in (1, 2, 3))


STABLE_TEST_SPLIT = ["000.jpg", "002.jpg", "004.jpg"]
"""The smallest hashes of "0:<name>" among the ten names, sorted with hashlib once and for all."""


def test_severstal_splits_whole_sheets(tmp_path):
    names = [f"{i:03d}.jpg" for i in range(10)]
    root = make_steel(tmp_path, names, [(name, 1, encode_runs(block(0, 28))) for name in names])
    test, train = (set(steel(root, split=split).image_ids) for split in ("test", "train"))
    assert test == {f"{Path(name).stem}@{x}" for name in STABLE_TEST_SPLIT for x in (0, 8, 16)}
    assert not test & train
    assert test | train == set(steel(root, split="all").image_ids)


def test_severstal_failures_of_the_other_split_are_not_listed(tmp_path):
    names = [f"{i:03d}.jpg" for i in range(10)]
    root = make_steel(tmp_path, names, [(name, 1, "1 2 3") for name in names])
    assert [f.image_id for f in steel(root, split="test").failures] == STABLE_TEST_SPLIT


def test_severstal_missing_columns_are_named(tmp_path):
    root = make_steel(tmp_path, ["s.jpg"])
    (root / "train.csv").write_text("ImageId_ClassId,EncodedPixels\ns.jpg_1,1 2\n")
    with pytest.raises(CamexpError, match=r"train\.csv lacks the columns \['ClassId', 'ImageId'\]"):
        steel(root)


def test_severstal_folder_without_images_is_refused(tmp_path):
    with pytest.raises(CamexpError, match=r"no \.jpg images in .*train_images"):
        steel(make_steel(tmp_path, [], [("s.jpg", 1, "1 2")]))


@pytest.mark.parametrize("missing", ["train.csv", "train_images"])
def test_severstal_missing_data_say_what_where_and_how(tmp_path, missing):
    root = make_steel(tmp_path, ["s.jpg"])
    gone = root / missing
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    with pytest.raises(CamexpError) as caught:
        steel(root, hint="Fetch it from somewhere.")
    message = str(caught.value)
    assert message.startswith("Severstal's ")
    assert str(gone) in message
    assert message.endswith("Fetch it from somewhere.")


def test_severstal_unknown_split_is_refused(tmp_path):
    with pytest.raises(CamexpError, match=r"dataset\.split must be test, train or all, not 'val'"):
        steel(make_steel(tmp_path, ["s.jpg"]), split="val")


MULTI_ROWS = [("s.jpg", 1, encode_runs(block(0, 10))), ("s.jpg", 4, encode_runs(block(5, 18, 0, 4)))]
"""Pixels of classes 1 and 4 in the three crops: 64 and 12, 16 and 32, 0 and 8."""


@pytest.mark.parametrize(
    ("multi", "min_pixels", "expected"),
    [
        ("largest", 1, {"s@0": (1,), "s@8": (4,), "s@16": (4,)}),
        ("skip", 1, {"s@16": (4,)}),
        ("all", 1, {"s@0": (1, 4), "s@8": (1, 4), "s@16": (4,)}),
        ("skip", 13, {"s@0": (1,)}),
        ("skip", 17, {"s@0": (1,), "s@8": (4,)}),
        ("all", 13, {"s@0": (1,), "s@8": (1, 4)}),
    ],
)
def test_severstal_crops_with_several_defects(tmp_path, multi, min_pixels, expected):
    dataset = steel(make_steel(tmp_path, ["s.jpg"], MULTI_ROWS), multi=multi, min_pixels=min_pixels)
    found = {
        i: tuple(t.class_id for t in targets) for i, targets in zip(dataset.image_ids, dataset.targets, strict=True)
    }
    assert found == expected
    for index in range(len(dataset)):
        sample = dataset.load(index)
        areas = {t.class_id: int(m.sum()) for t, m in zip(sample.targets, sample.masks, strict=True)}
        assert areas == {
            c: {"s@0": {1: 64, 4: 12}, "s@8": {1: 16, 4: 32}, "s@16": {4: 8}}[sample.image_id][c] for c in areas
        }


def make_unbalanced(root: Path) -> Path:
    """Ten sheets with three crops of class 3 each, one with three of class 1, and one without defects."""
    names = [f"{i:03d}.jpg" for i in range(10)]
    rows = [(name, 3, encode_runs(block(0, 28))) for name in names] + [("rare.jpg", 1, encode_runs(block(0, 28)))]
    return make_steel(root, [*names, "rare.jpg", "flat.jpg"], rows)


def test_severstal_balanced_selection(tmp_path):
    root = make_unbalanced(tmp_path)
    full, balanced, fewer = (
        steel(root, with_normal=True, **options)
        for options in ({}, {"selection": "balanced", "class_limit": 7}, {"selection": "balanced", "class_limit": 3})
    )
    assert [full.labels.count(c) for c in (0, 1, 3)] == [3, 3, 30]
    assert [balanced.labels.count(c) for c in (0, 1, 3)] == [3, 3, 7]
    assert [fewer.labels.count(c) for c in (0, 1, 3)] == [3, 3, 3]
    assert set(fewer.image_ids) < set(balanced.image_ids) < set(full.image_ids)
    assert list(balanced.image_ids) == [i for i in full.image_ids if i in set(balanced.image_ids)]
    assert len({i.partition("@")[0] for i in balanced.image_ids if i.startswith("0")}) > 3  # not the first sheets
    again, other = (steel(root, selection="balanced", class_limit=7, split_seed=seed) for seed in (0, 1))
    assert set(again.image_ids) == {i for i in balanced.image_ids if not i.startswith("flat")}
    assert again.image_ids != other.image_ids


def test_severstal_balanced_selection_knows_nothing_of_the_other_split(tmp_path):
    root = make_unbalanced(tmp_path)
    test = steel(root, split="test", selection="balanced", class_limit=2)
    assert set(test.image_ids) <= set(steel(root, split="test").image_ids)
    assert test.labels.count(3) == 2


def test_severstal_papers_selections(tmp_path):
    """Of 401/63/3500/417 crops the balanced selection keeps the 1381 of the table, the full one all 4381."""
    counts = {1: 401, 2: 63, 3: 3500, 4: 417}
    crops = [Crop(f"{c}_{n}.jpg", 0, c, (c,)) for c, count in counts.items() for n in range(count)]
    assert len(SELECTIONS["full"](crops, 500, 0)) == 4381
    kept = SELECTIONS["balanced"](crops, 500, 0)
    assert [sum(crop.label == c for crop in kept) for c in counts] == [401, 63, 500, 417]


def test_severstal_normal_crops_of_defective_sheets(tmp_path):
    root = make_steel(tmp_path, ["flat.jpg", "s.jpg"], [("s.jpg", 2, encode_runs(block(0, 8)))])
    assert steel(root, with_normal=True, sheets="defective").image_ids == ("s@0", "s@8", "s@16")
    assert steel(root, sheets="defective").image_ids == ("s@0",)


def test_severstal_limit_keeps_labels_and_images_together(tmp_path):
    dataset = steel(make_unbalanced(tmp_path))
    dataset.limit(4)
    assert len(dataset) == len(dataset.labels) == len(dataset.targets) == 4


def test_severstal_layout_of_other_sheets(tmp_path):
    """Square sheets with three classes, as NEU's steel photographs in Severstal's layout."""
    root = make_steel(tmp_path, [])
    save_jpeg(root / "train_images" / "n.jpg", 20, 20)
    (root / "train.csv").write_text("ImageId,ClassId,EncodedPixels\nn.jpg,3,21 4 399 2\n")
    dataset = Severstal(str(root), "all", height=20, width=20, crop=20, stride=20, n_defects=3)
    assert dataset.classes == ("no defect", "defect 1", "defect 2", "defect 3")
    assert dataset.image_ids == ("n@0",)
    assert np.argwhere(dataset.load(0).masks[0]).tolist() == [[0, 1], [1, 1], [2, 1], [3, 1], [18, 19], [19, 19]]
