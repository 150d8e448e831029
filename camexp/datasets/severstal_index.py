"""Severstal's `train.csv` as plain arrays, and its run lengths: 1-based "start length" pairs, column by column."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from camexp.datasets.base import Failure
from camexp.datasets.index import Index, pack_failures
from camexp.datasets.run_lengths import RunLengths, compress
from camexp.errors import CamexpError

COLUMNS = ("ImageId", "ClassId", "EncodedPixels")


def read_severstal(path: Path, height: int, width: int, n_defects: int, left: Sequence[int], crop: int) -> Index:
    """The index of the table `path`, whose readable rows are `sheet`, `class_id` (R,) and masks of height x width.

    `areas` (R,X) counts the row's pixels in the crops of width `crop` that begin at the X columns `left`.

    Raises
    ------
    CamexpError: when the file is no such table or lists no defect.
    """
    sheets: list[str] = []
    classes: list[int] = []
    areas: list[np.ndarray] = []
    masks: list[bytes] = []
    failures: list[Failure] = []
    seen: set[tuple[str, int]] = set()
    for sheet, written, runs in _read_table(path).itertuples(index=False):
        try:
            class_id = _class_id(written, n_defects)
            if (sheet, class_id) in seen:
                raise ValueError(f"class {class_id} stands twice")
            seen.add((sheet, class_id))
            if not runs.strip():
                raise ValueError(f"class {class_id} has none")
            starts, stops = parse_runs(runs, height, width)
        except ValueError as error:
            failures.append(Failure(sheet, None, f"run lengths: {error}"))
            continue
        sheets.append(sheet)
        classes.append(class_id)
        areas.append(_areas(starts, stops, np.array(left) * height, crop * height))
        masks.append(_compressed(starts, stops, height, width))
    return {
        "sheet": np.array(sheets, str),
        "class_id": np.array(classes, np.int16),
        "areas": np.array(areas, np.int64).reshape(len(areas), len(left)),
        "sha256": np.array(hashlib.sha256(path.read_bytes()).hexdigest()),
        "failures": pack_failures(failures),
        **RunLengths.pack(masks).to_index(),
    }


def _read_table(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise CamexpError(f"{path} cannot be read as a table: {error}") from error
    missing = set(COLUMNS) - set(table.columns)
    if missing:
        raise CamexpError(f"{path} lacks the columns {sorted(missing)}; it has {list(table.columns)}")
    if table.empty:
        raise CamexpError(f"{path} has a header and no rows: it lists no defects")
    return table[list(COLUMNS)]


def _class_id(written: str, n_defects: int) -> int:
    if written not in map(str, range(1, n_defects + 1)):
        raise ValueError(f"class {written} is not one of 1..{n_defects}")
    return int(written)


def _areas(starts: np.ndarray, stops: np.ndarray, first: np.ndarray, pixels: int) -> np.ndarray:
    """Pixels (X,) of the runs in the stretches of `pixels` that begin at `first` (X,): a crop is one stretch."""
    overlap = np.minimum(stops, first[:, None] + pixels) - np.maximum(starts, first[:, None])  # (X, runs)
    return overlap.clip(0).sum(1)


def _compressed(starts: np.ndarray, stops: np.ndarray, height: int, width: int) -> bytes:
    edges = np.stack([starts, stops], 1).reshape(-1)
    counts = np.diff(np.concatenate([[0], edges, [height * width]])).tolist()
    return compress(counts, height, width)["counts"]


def parse_runs(runs: str, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the runs of "start length start length ..." start and stop, sorted, 0-based, in the flattened columns.

    Raises
    ------
    ValueError: when the numbers are no pairs, a run is empty or overlaps another, or one leaves the image.
    """
    try:
        numbers = np.array(runs.split(), dtype=np.int64)
    except OverflowError as error:
        raise ValueError("a number too large for any image") from error
    if numbers.size % 2:
        raise ValueError("an odd count of numbers")
    order = np.argsort(numbers[0::2], kind="stable")
    starts, lengths = numbers[0::2][order] - 1, numbers[1::2][order]
    if (lengths < 1).any() or (starts < 0).any() or (lengths > height * width - starts).any():
        raise ValueError(f"a run that is empty or leaves the image of {width}x{height}")
    stops = starts + lengths
    if (starts[1:] < stops[:-1]).any():
        raise ValueError("runs that overlap")
    return starts, stops


def decode_runs(runs: str, height: int, width: int) -> np.ndarray:
    """Mask (H,W) of bool from run lengths; raises ValueError as `parse_runs` does."""
    flat = np.zeros(height * width, bool)
    for start, stop in zip(*parse_runs(runs, height, width), strict=True):
        flat[start:stop] = True
    return flat.reshape(width, height).T


def encode_runs(mask: np.ndarray) -> str:
    """The inverse of `decode_runs` for a mask (H,W) of bool."""
    flat = np.concatenate([[0], mask.T.reshape(-1).astype(np.int8), [0]])
    starts, stops = np.flatnonzero(np.diff(flat) == 1), np.flatnonzero(np.diff(flat) == -1)
    return " ".join(f"{start + 1} {stop - start}" for start, stop in zip(starts, stops, strict=True))
