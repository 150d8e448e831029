"""The embedded data sets: procedural scenes in the real formats, read by the real sets' loaders.

They are made when first asked for (a few seconds for a test split), deterministically by seed, each number of images
and seed in a folder of its own: a run may be reading another.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from camexp.datasets.coco import COCO
from camexp.datasets.mini.things import THINGS
from camexp.datasets.mini.write import write_coco, write_steel, write_voc
from camexp.datasets.severstal import Severstal
from camexp.datasets.voc import VOC
from camexp.errors import CamexpError
from camexp.files import make_folder, saying_why

RECIPE = 1
"""Version of the scenes; a change that alters a pixel raises it, and the data are made anew."""

COCO_THINGS = tuple(THINGS)
VOC_THINGS = COCO_THINGS[:8]


def ensure(folder: Path, recipe: dict, write: Callable[[Path], None]) -> None:
    """Make `folder` by `write(temporary folder)` unless it was made by the same `recipe`.

    The folder appears complete or not at all: it is written beside its place and then renamed. Of several processes
    that ask for it at once, one makes it and the others wait.
    """
    stamp = folder / "recipe.json"

    def there() -> bool:
        return stamp.is_file() and json.loads(stamp.read_text()) == recipe

    if there():  # perhaps where nothing may be written
        return
    make_folder(folder.parent)
    with saying_why(folder.absolute()), FileLock(folder.parent / f".{folder.name}.lock"):
        if there():
            return
        if folder.exists() and not stamp.exists():
            raise CamexpError(
                f"{folder.absolute()} holds no recipe.json, so camexp did not make it; pass dataset.root="
            )
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
            made = Path(temporary) / folder.name
            made.mkdir()
            write(made)
            (made / "recipe.json").write_text(json.dumps(recipe))
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(made, folder)


def _place(root: str, name: str, split: str, images: int, seed: int) -> tuple[Path, dict]:
    """The folder of the scenes under `root`, and their recipe."""
    if images < 1:
        raise CamexpError(f"dataset.images of {name} must be at least 1, not {images}")
    recipe = {"version": RECIPE, "set": name, "split": split, "images": images, "seed": seed}
    return Path(root) / (f"{split}-{images}" + (f"-seed{seed}" if seed else "")), recipe


def minivoc(root: str, split: str = "test", images: int = 32, seed: int = 0, difficult: str = "skip") -> VOC:
    """Scenes with eight classes as a VOCdevkit folder under `root`; `images` in the split."""
    folder, recipe = _place(root, "minivoc", split, images, seed)
    ensure(folder, recipe, lambda made: write_voc(made, split, images, VOC_THINGS, seed))
    return VOC(str(folder), 2007, split, VOC_THINGS, difficult)


def minicoco(root: str, split: str = "val2014", images: int = 32, seed: int = 0) -> COCO:
    """Scenes with twelve classes as COCO JSON (polygons, run lengths, crowds) under `root`."""
    folder, recipe = _place(root, "minicoco", split, images, seed)
    ensure(folder, recipe, lambda made: write_coco(made, split, images, COCO_THINGS, seed))
    return COCO(str(folder), split)


def ministeel(
    root: str,
    split: str = "test",
    images: int = 32,
    seed: int = 0,
    with_normal: bool = False,
    selection: str = "full",
    class_limit: int = 500,
) -> Severstal:
    """Steel sheets of 1600x256 with four kinds of defect as `train.csv` and `train_images/` under `root`.

    The last three arguments are those of `Severstal`.
    """
    folder, recipe = _place(root, "ministeel", split, images, seed)
    first = 0 if split == "test" else 1_000_000
    ensure(folder, recipe, lambda made: write_steel(made, images, seed, first))
    return Severstal(
        str(folder),
        "all",
        min_pixels=MIN_DEFECT_PIXELS,
        with_normal=with_normal,
        selection=selection,
        class_limit=class_limit,
    )


MIN_DEFECT_PIXELS = 200
"""A crop of ministeel shows a defect from this many pixels on."""
