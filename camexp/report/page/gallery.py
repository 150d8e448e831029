"""The gallery: saved maps, small enough to be embedded, with the values of every metric for their pairs.

A map stays grey here; the page lays a perceptually uniform colour map over it. What several runs share (the image, the
ground truth) is embedded once.
"""

import base64
import hashlib
import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from camexp.errors import CamexpError
from camexp.maps import SavedMap, read_saved
from camexp.report.layout import model_name
from camexp.report.page.series import Runs, Tables, groups, measured, metrics_of, rows_of, select
from camexp.report.table import quantity

MAP_SIDE = 112
IMAGE_SIDE = 224
PAIRS = 24
"""At most so many pairs of one network on one data set; the page says when there are more."""


@dataclass
class Pictures:
    """Data URIs by a hash of their content."""

    uris: dict[str, str] = field(default_factory=dict)

    def add(self, image: Image.Image, form: str, **options: Any) -> str:
        """Embed a picture and return its key."""
        buffer = io.BytesIO()
        image.save(buffer, form, **options)
        content = buffer.getvalue()
        key = hashlib.sha256(content).hexdigest()[:16]
        self.uris[key] = f"data:image/{form.lower()};base64,{base64.b64encode(content).decode()}"
        return key


def build_gallery(tables: Tables, runs: Runs) -> dict[str, Any]:
    """Pictures by key, and for every network on every data set its pairs with the maps of all methods, as JSON."""
    cells, pictures = measured(tables), Pictures()
    found = [_group(select(cells, *name), *name, runs, pictures) for name in groups(cells)]
    return {"groups": [group for group in found if group["pairs"]], "pictures": pictures.uris}


def _group(cells: pd.DataFrame, dataset: str, model: str, runs: Runs, pictures: Pictures) -> dict[str, Any]:
    named = cells.drop_duplicates("run_name")
    saved: dict[tuple[str, int], dict[str, SavedMap]] = {}
    for name in named["run_name"]:
        for one in read_saved(runs[dataset, model, name].path):
            saved.setdefault((one.image_id, one.class_id), {})[name] = one
    metrics = metrics_of(cells)
    rows = {name: _indexed(runs[dataset, model, name].rows, set(saved)) for name in named["run_name"]}
    pairs = []
    for key in _spread(sorted(saved), PAIRS):
        mine = saved[key]
        entries = [
            _entry(row, mine[row.run_name], rows[row.run_name], metrics, pictures)
            for row in rows_of(named)
            if row.run_name in mine
        ]
        pairs.append(_pair(mine, rows, pictures) | {"maps": entries})
    return {
        "dataset": dataset,
        "model": model,
        "label": f"{model_name(model)} on {dataset}",
        "metrics": [_metric(name) for name in metrics],
        "saved": len(saved),
        "pairs": pairs,
    }


def _metric(name: str) -> dict[str, Any]:
    shown = quantity(name)
    return {"name": name, "label": shown.label, "unit": shown.unit, "higher": shown.higher_is_better}


def _spread(keys: list[tuple[str, int]], count: int) -> list[tuple[str, int]]:
    """`count` of the keys, spread evenly; all when there are fewer."""
    if len(keys) <= count:
        return keys
    return [keys[i] for i in np.linspace(0, len(keys) - 1, count).round().astype(int)]


def _indexed(rows: pd.DataFrame, wanted: set[tuple[str, int]]) -> pd.DataFrame:
    """Rows of the wanted images by (image, class); of runs with several seeds the first, whose maps are shown."""
    chosen = rows[rows["image_id"].isin({image_id for image_id, _ in wanted}) & (rows["run"] == 0)]
    return chosen.astype({"image_id": str}).set_index(["image_id", "class_id"])


def _pair(saved: dict[str, SavedMap], rows: dict[str, pd.DataFrame], pictures: Pictures) -> dict[str, Any]:
    """What the maps of a pair have in common."""
    name, one = next(iter(saved.items()))
    row = _row(rows[name], one)
    image = Image.fromarray(_read(one, "image"))
    image.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    return {
        "image_id": one.image_id,
        "class_id": one.class_id,
        "class_name": one.class_name,
        "prob": round(float(row["prob"]), 4) if row else None,
        "area": round(float(row["area"]), 4) if row else None,
        "width": image.width,
        "height": image.height,
        "image": pictures.add(image, "WEBP", quality=80),
        "outline": pictures.add(outline(_read(one, "mask")), "PNG", optimize=True),
    }


def _entry(named: Any, one: SavedMap, rows: pd.DataFrame, metrics: list[str], pictures: Pictures) -> dict[str, Any]:
    """One method's map with its values in percent."""
    row = _row(rows, one)
    grey = Image.fromarray((255 * _read(one, "map")).round().astype(np.uint8))
    grey.thumbnail((MAP_SIDE, MAP_SIDE), Image.Resampling.BILINEAR)
    values = {name: round(quantity(name).scale * float(row[name]), 3) for name in metrics if name in row}
    return {
        "label": named.label,
        "method": named.method,
        "control": bool(named.control),
        "map": pictures.add(grey, "WEBP", quality=70, method=6),
        "constant": one.minimum == one.maximum,
        "values": values,
    }


def _row(rows: pd.DataFrame, one: SavedMap) -> dict[str, Any]:
    """The record of a map's pair; empty when there is none."""
    key = (one.image_id, one.class_id)
    return {str(n): v for n, v in rows.loc[[key]].iloc[0].items()} if key in rows.index else {}


def _read(one: SavedMap, what: str) -> np.ndarray:
    try:
        return {"map": one.read_map, "image": one.read_image, "mask": one.read_mask}[what]()
    except (OSError, ValueError, SyntaxError) as error:
        path = {"map": one.map_path, "image": one.image_path, "mask": one.mask_path}[what]
        raise CamexpError(f"cannot read the saved picture {path}: {error}; delete it and run again") from error


def outline(mask: np.ndarray) -> Image.Image:
    """The border of a mask (H,W) on a transparent picture: white with a dark rim, visible on any background."""
    ring = mask & ~_shrunk(mask)
    rim = _grown(ring) & ~ring
    pixels = np.zeros(mask.shape, np.uint8)
    pixels[rim], pixels[ring] = 1, 2
    image = Image.fromarray(pixels, "P")
    image.putpalette([0, 0, 0, 0, 0, 0, 255, 255, 255])
    image.info["transparency"] = 0
    return image


def _grown(mask: np.ndarray) -> np.ndarray:
    """The mask and the pixels that share a side with it."""
    padded = np.pad(mask, 1)
    return padded[1:-1, 1:-1] | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]


def _shrunk(mask: np.ndarray) -> np.ndarray:
    """The mask without its border; at the picture's edge an object is open and has a border too."""
    return ~_grown(np.pad(~mask, 1, constant_values=True))[1:-1, 1:-1]
