"""Reading records.csv so that no damage turns into a wrong average: fast when all is well, else the line is named."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from camexp.errors import CamexpError
from camexp.metrics import METRICS
from camexp.records import PAIR_COLUMNS

TEXT = ("image_id", "class_name")
WHOLE = ("class_id", "argmax", "difficult", "degenerate")


def read_rows(path: Path, metrics: Sequence[str], listed: Sequence[str]) -> tuple[pd.DataFrame, list[str]]:
    """The rows of a file with the pair's columns and `metrics`, and remarks on what was left out.

    Parameters
    ----------
    metrics: the columns to read beside the pair's.
    listed: the metrics that run.json lists; other columns come from another version.

    Raises
    ------
    CamexpError: for a file that is missing, lacks a column, or holds a line that cannot be right; which line.
    """
    content, remarks = _whole_lines(path)
    header = content[: content.find(b"\n") + 1].decode("utf-8", "replace")
    columns = next(csv.reader([header]), [])
    wanted = [*PAIR_COLUMNS, *metrics]
    missing = [name for name in wanted if name not in columns]
    if missing:
        raise CamexpError(f"{path} lacks the columns {missing}")
    unknown = [name for name in columns if name not in (*PAIR_COLUMNS, *listed)]
    if unknown:
        remarks.append(f"the columns {', '.join(unknown)} of {path.name} are unknown and are left out")
    rows = _parse(path, content, columns, wanted)
    _check(path, content, rows, metrics)
    return rows, remarks


def _whole_lines(path: Path) -> tuple[bytes, list[str]]:
    """The file without a torn last line, which a value cut short could pass for a whole one."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CamexpError(f"cannot read {path}: {error}") from error
    whole = content[: content.rfind(b"\n") + 1]
    return whole, ["the last line of records.csv is torn and left out"] if len(whole) < len(content) else []


def _parse(path: Path, content: bytes, columns: list[str], wanted: list[str]) -> pd.DataFrame:
    # "category" at once would turn ids like 000001 into numbers
    kinds = {name: "str" if name in TEXT else "int32" if name in WHOLE else "float64" for name in wanted}
    # quoted commas make the counts differ too: then every line is looked at
    if content.count(b",") != content.count(b"\n") * (len(columns) - 1):
        _look_at_each_line(path, content, columns, wanted)
    try:
        rows = pd.read_csv(io.BytesIO(content), usecols=wanted, dtype=kinds, na_filter=False)[wanted]
        return rows.astype(dict.fromkeys(TEXT, "category"))
    except (ValueError, OverflowError) as error:
        _look_at_each_line(path, content, columns, wanted)
        raise CamexpError(f"cannot read {path}: {error}") from error


def _look_at_each_line(path: Path, content: bytes, columns: list[str], wanted: list[str]) -> None:
    """Raise for the first line with another number of fields or a field that is not a number."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise CamexpError(f"{path}, line {line}: not UTF-8") from error
    reader = csv.reader(io.StringIO(text))
    next(reader)
    for fields in reader:
        where = f"{path}, line {reader.line_num}"
        if len(fields) != len(columns):
            raise CamexpError(f"{where}: {len(fields)} fields, expected {len(columns)}")
        for name, value in zip(columns, fields, strict=True):
            if name in wanted and name not in TEXT and not _is_number(value, whole=name in WHOLE):
                raise CamexpError(f"{where}: {name} is {value!r}, not a {'whole ' if name in WHOLE else ''}number")


def _is_number(text: str, whole: bool) -> bool:
    try:
        return bool(np.isfinite(int(text) if whole else float(text)))
    except ValueError:
        return False


def _check(path: Path, content: bytes, rows: pd.DataFrame, metrics: Sequence[str]) -> None:
    """Numbers are finite, shares lie in [-1,1], and no pair comes twice."""
    for name in ("prob", "area", *metrics):
        values = rows[name].to_numpy()
        share = name not in METRICS or METRICS[name].unit == "%"
        wrong = ~np.isfinite(values) | (share & (np.abs(values) > 1 + 1e-6))
        if wrong.any():
            position = int(np.flatnonzero(wrong)[0])
            found = f"{values[position]:g}"
            raise CamexpError(f"{path}, line {_line(content, position)}: {name} is {found}, not a fraction")
    classes = rows["class_id"].to_numpy(np.int64)
    pair = rows["image_id"].cat.codes.to_numpy(np.int64) * (1 << 32) + classes
    twice = pd.Series(pair).duplicated().to_numpy()
    if twice.any():
        position = int(np.flatnonzero(twice)[0])
        image, target = rows["image_id"].iloc[position], classes[position]
        raise CamexpError(
            f"{path}, line {_line(content, position)}: image {image}, class {target} has a row already; "
            f"{int(twice.sum())} rows come twice"
        )


def _line(content: bytes, position: int) -> int:
    """The line on which the row at a position ends; quoted line breaks and blank lines count."""
    reader = csv.reader(io.StringIO(content.decode("utf-8", "replace")))
    seen = -2
    for fields in reader:
        seen += bool(fields)
        if seen == position:
            break
    return reader.line_num
