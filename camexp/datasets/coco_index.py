"""A COCO annotation file as plain arrays: images, pairs, and each pair's mask as compressed run lengths.

The JSON is parsed once; of its dictionaries nothing is kept.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as rle
from tqdm import tqdm

from camexp.datasets.base import Failure
from camexp.datasets.index import Index, offsets, pack_failures, pack_json
from camexp.datasets.layout import require_unique
from camexp.datasets.run_lengths import RunLengths, compress
from camexp.errors import CamexpError

NEEDED: dict[str, dict[str, Any]] = {
    "images": {"id": int, "file_name": str, "width": int, "height": int},
    "annotations": {"id": int | str, "image_id": int, "category_id": int},
    "categories": {"id": int, "name": str},
}
"""The lists of a COCO file, with the keys that the entries must have, and their kinds."""

FAR = 10
"""A polygon's corner so many sides of the image away is an error, not an object that leaves the image."""

Entry = dict[str, Any]


def read_coco(path: Path) -> Index:
    """The index of the annotation file `path`.

    `image_id`, `file_name`, `width`, `height` (N,) are the images by ascending id, `pair_start` (N+1,) says where
    each image's pairs begin in `pair_class` (P,); `run_start` and `run_counts` are the pairs' masks, `reasons` says
    why a mask is empty; `classes` are the names by ascending category id.

    Raises
    ------
    CamexpError: when the file is no COCO annotation file or an id stands twice.
    """
    document, sha256 = _parse(path)
    images = sorted(document["images"], key=lambda image: image["id"])
    categories = sorted(document["categories"], key=lambda category: category["id"])
    class_of = {category["id"]: index for index, category in enumerate(categories)}
    grouped, failures = _group(document["annotations"], {image["id"] for image in images}, class_of)
    pair_class, runs, reasons = _pairs(images, grouped)
    return {
        "image_id": np.array([image["id"] for image in images], np.int64),
        "file_name": np.array([image["file_name"] for image in images]),
        "width": np.array([image["width"] for image in images], np.int64),
        "height": np.array([image["height"] for image in images], np.int64),
        "pair_start": offsets([len(grouped.get(image["id"], ())) for image in images]),
        "pair_class": np.array(pair_class, np.int16),
        "reasons": pack_json(list(reasons.items())),
        "classes": pack_json([category["name"] for category in categories]),
        "sha256": np.array(sha256),
        "failures": pack_failures(failures),
        **RunLengths.pack(runs).to_index(),
    }


def _parse(path: Path) -> tuple[dict[str, list[Entry]], str]:
    """The checked JSON and the SHA-256 of the file."""
    try:
        content = path.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        document = json.loads(content)
        _check(document)
    except (OSError, ValueError, RecursionError) as error:
        raise CamexpError(f"{path} is not a COCO annotation file: {error}") from error
    for name in NEEDED:
        require_unique([entry["id"] for entry in document[name]], path, f"{name}: id")
    return document, sha256


def _check(document: Any) -> None:
    """Raise ValueError, with the first place that is wrong, when a list or a key is missing."""
    if not isinstance(document, dict):
        raise ValueError(f"an object with {', '.join(NEEDED)} is expected, it holds a {type(document).__name__}")
    for name, keys in NEEDED.items():
        entries = document.get(name)
        if not isinstance(entries, list):
            raise ValueError(f"the list {name!r} is missing" if entries is None else f"{name!r} is not a list")
        for number, entry in enumerate(entries):
            for key, kind in keys.items():
                if not isinstance(entry, dict) or not isinstance(entry.get(key), kind):
                    raise ValueError(f"{name}[{number}] has no {key!r}, or one of the wrong kind")
    if not document["images"] or not document["categories"]:
        raise ValueError("it lists no images or no categories")


def _group(
    annotations: Sequence[Entry], images: set[int], class_of: Mapping[int, int]
) -> tuple[dict[int, dict[int, list[Entry]]], list[Failure]]:
    """The annotations by image id and class index, and what belongs to no image or no class, each once."""
    grouped: dict[int, dict[int, list[Entry]]] = {}
    failures: dict[Failure, None] = {}
    for annotation in annotations:
        image, category = annotation["image_id"], annotation["category_id"]
        if image not in images:
            failures[Failure(str(image), None, "annotated, but not in the file's list of images")] = None
        elif category not in class_of:
            failures[Failure(str(image), None, f"category id {category} is not in the file's list")] = None
        else:
            grouped.setdefault(image, {}).setdefault(class_of[category], []).append(annotation)
    return grouped, list(failures)


def _pairs(
    images: Sequence[Entry], grouped: Mapping[int, Mapping[int, Sequence[Entry]]]
) -> tuple[list[int], list[bytes], dict[int, str]]:
    """Class, compressed mask (empty when there is none) and, by number, the reason for each empty one, of all pairs."""
    classes: list[int] = []
    runs: list[bytes] = []
    reasons: dict[int, str] = {}
    for image in tqdm(images, desc="indexing annotations", unit="img", delay=2, leave=False):
        for class_id, annotations in sorted(grouped.get(image["id"], {}).items()):
            try:
                runs.append(_union(annotations, image["height"], image["width"]))
            except ValueError as error:
                reasons[len(classes)] = str(error)
                runs.append(b"")
            classes.append(class_id)
    return classes, runs, reasons


def _union(annotations: Sequence[Entry], height: int, width: int) -> bytes:
    """Compressed run lengths of all annotations together; raises ValueError when there are none or one is broken."""
    parts = []
    for annotation in annotations:
        try:
            parts += _runs(annotation.get("segmentation"), height, width)
        except ValueError as error:
            raise ValueError(f"annotation {annotation['id']}: {error}") from error
        except (TypeError, AttributeError) as error:
            raise ValueError(f"annotation {annotation['id']}: neither polygons nor run lengths of numbers") from error
    if not parts:
        raise ValueError("every annotation of the class has an empty segmentation")
    return rle.merge(parts)["counts"]


def _runs(segmentation: Any, height: int, width: int) -> list[dict]:
    """Run lengths of one annotation, one per polygon; none when the segmentation is empty or absent."""
    if not segmentation:
        return []
    if isinstance(segmentation, list):
        for polygon in segmentation:
            _check_polygon(polygon, FAR * max(height, width))
        return rle.frPyObjects(segmentation, height, width)
    counts, size = segmentation.get("counts"), segmentation.get("size")
    if size != [height, width]:
        raise ValueError(f"run lengths of the size {size}, the image has the height and width {[height, width]}")
    return [compress(decompress(counts) if isinstance(counts, str) else counts, height, width)]


def _check_polygon(polygon: Any, far: float) -> None:
    # pycocotools reads four numbers as a box and checks none of them
    if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
        raise ValueError("a polygon needs at least three corners, two numbers each")
    if min(polygon) < -far or max(polygon) > far or not math.isfinite(sum(polygon)):
        raise ValueError("a polygon's corner is not a number or far outside of the image")


def decompress(text: str) -> list[int]:
    """Run lengths from COCO's compressed form: six bits per character, differences to the last but one length.

    pycocotools trusts the lengths and writes beyond the mask when they exceed the image, hence the detour.
    """
    counts: list[int] = []
    value = shift = 0
    for byte in text.encode("ascii"):
        bits = byte - 48
        if not 0 <= bits < 64:
            raise ValueError("compressed run lengths with a character that does not belong there")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) << 1 << (shift - 5)
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("compressed run lengths that end in the middle of a number")
    return counts
