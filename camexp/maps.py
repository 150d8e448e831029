"""Maps that a run saves on request (`save_maps=N`) for people to look at; tables never need them.

`maps/` in a run's folder holds, for N images, the image as fed (JPEG), and for each of its pairs the map scaled to
[0,1] (8-bit greyscale PNG) and the ground truth (1-bit PNG). `index.csv` lists the pairs. Which images is a function
of the data set and N alone, so that the pictures of two methods or models can be laid side by side; a larger N
contains the images of a smaller one. A pair is listed once its files are complete.
"""

import csv
import hashlib
import io
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from camexp.datasets.base import Dataset
from camexp.files import saying_why, write_atomically
from camexp.methods.base import scale_to_unit
from camexp.models.preprocess import Preprocess
from camexp.pairs import Pairs
from camexp.records import Key, Row, key_of, number, to_csv

FOLDER = "maps"
INDEX_COLUMNS = ("image_id", "class_id", "class_name", "map", "image", "mask", "minimum", "maximum")

OWN_FILE = re.compile(r"-[0-9a-f]{12}(-\d+-(map|mask))?\.(png|jpg)(\.part)?$")
"""What a run may delete in the folder: files named by `file_stem`, whole or torn."""

GOLDEN = (math.sqrt(5) - 1) / 2
JPEG_QUALITY = 90


# -------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class SavedMap:
    """The saved files of one pair; all of them exist and have the same size.

    Attributes
    ----------
    map_path: 8-bit greyscale PNG; 0 stands for `minimum`, 255 for `maximum`, and a constant map is 0 throughout.
    image_path: RGB JPEG, the image as fed (resized, not normalised); pairs of one image share it.
    mask_path: 1-bit PNG, white on the pair's ground truth.
    minimum, maximum: of the map before it was scaled.
    """

    image_id: str
    class_id: int
    class_name: str
    map_path: Path
    image_path: Path
    mask_path: Path
    minimum: float
    maximum: float

    def read_map(self) -> np.ndarray:
        """The map (H,W) float32 in [0,1], in steps of 1/255."""
        with Image.open(self.map_path) as image:
            return np.asarray(image, np.float32) / 255

    def read_image(self) -> np.ndarray:
        """The image as fed (H,W,3) uint8."""
        with Image.open(self.image_path) as image:
            return np.array(image.convert("RGB"))

    def read_mask(self) -> np.ndarray:
        """The ground truth (H,W) bool."""
        with Image.open(self.mask_path) as image:
            return np.array(image, bool)


def read_saved(run_folder: Path) -> list[SavedMap]:
    """The maps that a run saved, in the order of its index (of the data set, once the run has ended).

    A missing index has none. Lines that are torn or do not fit, and pairs of which a file is missing, are left out.
    """
    folder = run_folder / FOLDER
    found = {}
    for row in _read_index(folder):
        saved = _saved_map(folder, row)
        if saved is not None:
            found[saved.image_id, saved.class_id] = saved
    return list(found.values())


def _read_index(folder: Path) -> list[Row]:
    """The complete lines of index.csv that have its columns."""
    try:
        content = (folder / "index.csv").read_bytes()
    except OSError:
        return []
    complete = content[: content.rfind(b"\n") + 1].decode("utf-8", errors="replace")
    lines = csv.reader(io.StringIO(complete))
    if tuple(next(lines, ())) != INDEX_COLUMNS:
        return []
    return [dict(zip(INDEX_COLUMNS, line, strict=True)) for line in lines if len(line) == len(INDEX_COLUMNS)]


def _saved_map(folder: Path, row: Row) -> SavedMap | None:
    names = [row[column] for column in ("map", "image", "mask")]
    # a name with a folder in it was not written by a run
    if not all(Path(name).name == name and (folder / name).is_file() for name in names):
        return None
    try:
        return SavedMap(
            image_id=row["image_id"],
            class_id=int(row["class_id"]),
            class_name=row["class_name"],
            map_path=folder / row["map"],
            image_path=folder / row["image"],
            mask_path=folder / row["mask"],
            minimum=float(row["minimum"]),
            maximum=float(row["maximum"]),
        )
    except ValueError:
        return None


# -------------------------------------------------------------------------------------------------- writing


def evenly_spread(total: int, count: int) -> list[int]:
    """`count` of the numbers 0..total-1 (all, when there are fewer), spread evenly and the same on every call.

    Multiples of the golden ratio modulo 1 keep their distance however many they are, so that a larger count
    contains the numbers of a smaller one.
    """
    chosen: dict[int, None] = {}
    step = 0
    while len(chosen) < min(count, total):
        chosen[int(total * (step * GOLDEN % 1))] = None
        step += 1
    return list(chosen)


def chosen_images(dataset: Dataset, count: int) -> list[int]:
    """Indices, in order, of the `count` images with pairs whose maps are saved."""
    candidates = [index for index, targets in enumerate(dataset.targets) if targets]
    return [candidates[position] for position in sorted(evenly_spread(len(candidates), count))]


def file_stem(image_id: str) -> str:
    """A file name for an image on any file system: what is harmless of its id, and a hash that tells ids apart."""
    harmless = re.sub(r"[^A-Za-z0-9]+", "_", image_id).strip("_")[:40]
    return f"{harmless}-{hashlib.sha256(image_id.encode()).hexdigest()[:12]}"


def fed_pixels(image: Tensor, preprocess: Preprocess) -> np.ndarray:
    """A fed image (3,h,w) as pixels (h,w,3) uint8: the inverse of the normalisation."""
    norm = preprocess.applied
    mean, std = image.new_tensor(norm.mean).view(3, 1, 1), image.new_tensor(norm.std).view(3, 1, 1)
    unit = (image * std + mean) / norm.scale
    return (unit.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()


class MapSaver:
    """Saves the maps of the chosen images as a run explains them.

    Parameters
    ----------
    run_folder: the run's folder, locked by the caller; nothing is made in it before a map is saved.
    dataset: names the images and classes.
    preprocess: how the images were fed.
    count: how many images.
    rows: of the run's finished batches; files of other pairs are of an earlier run or a torn batch, and deleted.
    """

    def __init__(self, run_folder: Path, dataset: Dataset, preprocess: Preprocess, count: int, rows: Iterable[Row]):
        self.run_folder, self.folder = run_folder, run_folder / FOLDER
        self.dataset, self.preprocess = dataset, preprocess
        self.chosen = {dataset.image_ids[index] for index in chosen_images(dataset, count)}
        self._rows: dict[Key, Row] = {}
        if self.folder.exists():
            self._keep({key_of(row) for row in rows})

    def _keep(self, keys: set[Key]) -> None:
        """Forget and delete everything but the complete files of these pairs."""
        whole = {(saved.image_id, str(saved.class_id)) for saved in read_saved(self.run_folder)} & keys
        self._rows = {key_of(row): row for row in _read_index(self.folder) if key_of(row) in whole}
        self._write_index()
        wanted = {row[column] for row in self._rows.values() for column in ("map", "image", "mask")}
        for path in self.folder.iterdir():
            if OWN_FILE.search(path.name) and path.name not in wanted:
                path.unlink()

    def missing(self, rows: Iterable[Row]) -> list[int]:
        """Indices of the chosen images of which a finished pair's map is not saved."""
        finished = {key for key in map(key_of, rows) if key[0] in self.chosen}
        images = {image_id for image_id, _ in finished - self._rows.keys()}
        return [index for index, image_id in enumerate(self.dataset.image_ids) if image_id in images]

    def save(self, images: Tensor, pairs: Pairs, maps: Tensor, finite: Tensor) -> int:
        """Save the maps of a batch's chosen images and return how many.

        Parameters
        ----------
        images: (B,3,H,W) as fed; maps: (P,H,W), one per pair of `pairs`; finite: (P,), maps that are none are left out.

        Raises
        ------
        CamexpError: when the disk is full; maps of earlier batches are safe.
        """
        rows = [
            self._save_pair(images[image], image_id, class_id, maps[p], pairs.masks[p])
            for p, (image, image_id, class_id) in enumerate(pairs)
            if image_id in self.chosen and finite[p] and pairs.masks is not None
        ]
        if rows:
            self._append(rows)
        return len(rows)

    def _save_pair(self, image: Tensor, image_id: str, class_id: int, values: Tensor, mask: Tensor) -> Row:
        stem = file_stem(image_id)
        row = {
            "image_id": image_id,
            "class_id": str(class_id),
            "class_name": self.dataset.classes[class_id],
            "map": f"{stem}-{class_id}-map.png",
            "image": f"{stem}.jpg",
            "mask": f"{stem}-{class_id}-mask.png",
            "minimum": number(values.min().item()),
            "maximum": number(values.max().item()),
        }
        with saying_why(self.folder):
            self.folder.mkdir(exist_ok=True)
        grey = (scale_to_unit(values) * 255).round().byte().cpu().numpy()
        write_image(self.folder / row["image"], Image.fromarray(fed_pixels(image, self.preprocess)))
        write_image(self.folder / row["map"], Image.fromarray(grey))
        write_image(self.folder / row["mask"], Image.fromarray(mask.cpu().numpy()))
        return row

    def _append(self, rows: list[Row]) -> None:
        path = self.folder / "index.csv"
        with saying_why(path), path.open("a", encoding="utf-8", newline="") as file:
            file.write(to_csv(rows, INDEX_COLUMNS, header=file.tell() == 0))
            file.flush()
            os.fsync(file.fileno())
        self._rows |= {key_of(row): row for row in rows}

    def finish(self) -> None:
        """Bring the index into the order of the data set."""
        position = {image_id: index for index, image_id in enumerate(self.dataset.image_ids)}
        order = sorted(self._rows, key=lambda key: (position[key[0]], int(key[1])))
        if order != list(self._rows):
            self._rows = {key: self._rows[key] for key in order}
            self._write_index()

    def _write_index(self) -> None:
        write_atomically(self.folder / "index.csv", to_csv(self._rows.values(), INDEX_COLUMNS, header=True))


def write_image(path: Path, image: Image.Image) -> None:
    """Write a picture in the format of the path's suffix, all or nothing.

    Raises
    ------
    CamexpError: when the disk is full; the old content stays.
    """
    buffer = io.BytesIO()
    image.save(buffer, Image.registered_extensions()[path.suffix.lower()], quality=JPEG_QUALITY, optimize=True)
    write_atomically(path, buffer.getvalue())
