"""Write the embedded scenes to disk in the real formats: VOCdevkit, COCO JSON, Severstal's CSV."""

import json
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image
from pycocotools import mask as rle
from tqdm import tqdm

from camexp.datasets.mini.scenes import Instance, Scene, compose
from camexp.datasets.mini.steel import compose_sheet
from camexp.datasets.severstal_index import encode_runs
from camexp.seeding import numpy_generator

T = TypeVar("T")

DIFFICULT = 0.6
"""In minivoc a thing of which less than this is visible is marked difficult."""


def _in_parallel(write: Callable[[int], T], indices: Iterable[int], label: str) -> list[T]:
    """`write(i)` for every index, in processes, in order, with a progress bar."""
    todo = list(indices)
    with ProcessPoolExecutor() as pool:
        return list(tqdm(pool.map(write, todo, chunksize=4), total=len(todo), desc=label, unit="img"))


def _save(image: np.ndarray, path: Path) -> None:
    Image.fromarray(image).save(path, quality=92)


# ------------------------------------------------------------------------------------------------ VOC


def _voc_xml(image_id: str, scene: Scene) -> str:
    height, width = scene.image.shape[:2]
    objects = []
    for instance in scene.instances:
        x0, y0, x1, y1 = instance.box
        objects.append(
            f"<object><name>{escape(instance.name)}</name><pose>Unspecified</pose>"
            f"<truncated>{int(instance.visible < 0.9)}</truncated>"
            f"<difficult>{int(instance.visible < DIFFICULT)}</difficult><bndbox>"
            f"<xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
        )
    return (
        f"<annotation><folder>VOC2007</folder><filename>{image_id}.jpg</filename>"
        f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        f"<segmented>1</segmented>{''.join(objects)}</annotation>\n"
    )


def _write_voc_image(folder: Path, split: str, classes: tuple[str, ...], seed: int, index: int) -> str:
    scene = compose(numpy_generator("minivoc", seed, split, index), classes)
    image_id = f"{index + 1:06d}" if split == "test" else f"{index + 500001:06d}"
    _save(scene.image, folder / "JPEGImages" / f"{image_id}.jpg")
    (folder / "Annotations" / f"{image_id}.xml").write_text(_voc_xml(image_id, scene))
    labels = np.zeros(scene.image.shape[:2], np.uint8)
    for instance in scene.instances:
        labels[instance.mask] = classes.index(instance.name) + 1
    palette = Image.fromarray(labels, mode="P")
    palette.putpalette(numpy_generator("palette").integers(40, 255, (256, 3), dtype=np.uint8).tobytes())
    palette.save(folder / "SegmentationClass" / f"{image_id}.png")
    return image_id


def write_voc(root: Path, split: str, count: int, classes: tuple[str, ...], seed: int) -> None:
    """`count` scenes as `VOC2007/` with XML boxes, class masks and `ImageSets/Main/<split>.txt`."""
    folder = root / "VOC2007"
    for name in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    ids = _in_parallel(partial(_write_voc_image, folder, split, classes, seed), range(count), f"minivoc {split}")
    (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{i}\n" for i in ids))


# ----------------------------------------------------------------------------------------------- COCO


def _uncompressed(mask: np.ndarray) -> dict:
    """COCO's uncompressed run lengths: column by column, zeros first."""
    flat = mask.T.reshape(-1)
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return {"counts": ([0, *counts] if flat[0] else counts), "size": list(mask.shape)}


def _compressed(mask: np.ndarray) -> dict:
    encoded = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"counts": encoded["counts"].decode("ascii"), "size": list(mask.shape)}


def _annotation(mask: np.ndarray, segmentation: object, name: str, iscrowd: int) -> dict:
    x0, y0, x1, y1 = Instance(name, mask).box
    return {
        "segmentation": segmentation,
        "area": int(mask.sum()),
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "iscrowd": iscrowd,
        "name": name,
    }


def _coco_annotations(scene: Scene, crowd: bool) -> list[dict]:
    """Polygons for things in full view, run lengths for occluded ones, one crowd of the commonest class."""
    names = [instance.name for instance in scene.instances]
    commonest = max(sorted(set(names)), key=names.count, default="") if crowd else ""
    members = [instance.mask for instance in scene.instances if instance.name == commonest]
    annotations = []
    if len(members) > 1:
        union = np.any(members, axis=0)
        annotations.append(_annotation(union, _uncompressed(union), commonest, 1))
    else:
        commonest = ""
    for instance in scene.instances:
        if instance.name == commonest:
            continue
        inside = all((o >= 0).all() and (o < scene.image.shape[1::-1]).all() for o in instance.outlines)
        if instance.visible == 1.0 and inside:
            segmentation: object = [np.round(o, 2).reshape(-1).tolist() for o in instance.outlines]
        else:
            segmentation = _compressed(instance.mask)
        annotations.append(_annotation(instance.mask, segmentation, instance.name, 0))
    return annotations


def _write_coco_image(
    root: Path, split: str, classes: tuple[str, ...], seed: int, index: int
) -> tuple[dict, list[dict]]:
    scene = compose(numpy_generator("minicoco", seed, split, index), classes)
    number = index + 1 if split == "val2014" else index + 500001
    name = f"COCO_{split}_{number:012d}.jpg"
    _save(scene.image, root / split / name)
    height, width = scene.image.shape[:2]
    # every 20th image keeps its things but not their annotations, as some images of COCO have none
    annotations = [] if index % 20 == 19 else _coco_annotations(scene, crowd=index % 4 == 1)
    return {"id": number, "file_name": name, "width": width, "height": height}, annotations


def write_coco(root: Path, split: str, count: int, classes: tuple[str, ...], seed: int) -> None:
    """`count` scenes as `<split>/` and `annotations/instances_<split>.json`; category ids have gaps."""
    (root / split).mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    written = _in_parallel(partial(_write_coco_image, root, split, classes, seed), range(count), f"minicoco {split}")
    ids = {name: 1 + i + i // 3 for i, name in enumerate(classes)}
    annotations = [
        {
            **{k: v for k, v in a.items() if k != "name"},
            "image_id": image["id"],
            "category_id": ids[a["name"]],
        }
        for image, found in written
        for a in found
    ]
    for number, annotation in enumerate(annotations, 1):
        annotation["id"] = number
    document = {
        "images": [image for image, _ in written],
        "annotations": annotations,
        "categories": [{"id": ids[name], "name": name, "supercategory": "thing"} for name in classes],
    }
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(document))


# -------------------------------------------------------------------------------------------- Severstal


def _write_sheet(root: Path, seed: int, index: int) -> list[str]:
    sheet, masks = compose_sheet(numpy_generator("ministeel", seed, index))
    name = f"{index:09x}.jpg"
    _save(np.repeat(sheet[..., None], 3, axis=2), root / "train_images" / name)
    return [f"{name},{kind},{encode_runs(mask)}" for kind, mask in sorted(masks.items()) if mask.any()]


def write_steel(root: Path, count: int, seed: int, first: int = 0) -> None:
    """`count` sheets of 1600x256, numbered from `first`, as `train_images/` and `train.csv`."""
    (root / "train_images").mkdir(parents=True, exist_ok=True)
    rows = _in_parallel(partial(_write_sheet, root, seed), range(first, first + count), "ministeel")
    lines = ["ImageId,ClassId,EncodedPixels", *(line for sheet in rows for line in sheet)]
    (root / "train.csv").write_text("\n".join(lines) + "\n")
