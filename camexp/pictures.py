"""Pictures for people: heat-map overlays, contours of the ground truth, and sheets of labelled pictures.

Images are (H,W,3) uint8 RGB. Contours and labels are readable without colour.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from camexp.errors import CamexpError

COLOURS = "inferno"
"""Name of matplotlib's colour map for overlays: perceptually uniform, and ordered in greyscale too."""

WHITE = (255, 255, 255)
BLACK = (0, 0, 0)

MARGIN = 8
"""Pixels between the pictures of a sheet."""


# -------------------------------------------------------------------------------------------------- one image


def overlay(image: np.ndarray, values: np.ndarray, colours: str = COLOURS, opacity: float = 0.65) -> np.ndarray:
    """An explanation map laid over its image; the image shows through as brightness, without colours of its own.

    Parameters
    ----------
    image: (H,W,3) uint8.
    values: (H,W) in [0,1].
    colours: name of a colour map of matplotlib; a perceptually uniform one (inferno, viridis, magma, cividis).
    opacity: of the map, from 0 to 1.

    Raises
    ------
    CamexpError: for an unknown colour map.
    ValueError: when map and image differ in size.
    """
    if colours not in matplotlib.colormaps:
        raise CamexpError(f"unknown colour map {colours!r}; for example inferno, viridis, magma or cividis")
    if image.shape[:2] != values.shape:
        raise ValueError(f"a map {values.shape} over an image {image.shape[:2]}")
    heat = matplotlib.colormaps[colours](np.clip(values, 0, 1))[..., :3] * 255
    grey = np.asarray(Image.fromarray(image).convert("L"), float)[..., None]
    return (opacity * heat + (1 - opacity) * grey).round().astype(np.uint8)


def outline(image: np.ndarray, mask: np.ndarray, width: int = 1, colour: tuple[int, int, int] = WHITE) -> np.ndarray:
    """An image with the contour of a mask: a line around the object, and a black one around the line.

    Both lie outside, so that nothing of a thin object is hidden; only at the image's edge they lie on the object.

    Parameters
    ----------
    image: (H,W,3) uint8; mask: (H,W) bool.
    width: of each line, in pixels.
    """
    inner = mask[2 * width : -2 * width, 2 * width : -2 * width]
    core = np.pad(inner, 2 * width) if inner.any() else mask
    line = dilated(core, width)
    result = image.copy()
    result[dilated(core, 2 * width) & ~line] = BLACK
    result[line & ~core] = colour
    return result


def dilated(mask: np.ndarray, pixels: int) -> np.ndarray:
    """A mask (H,W) of bool with what lies within `pixels` of it, diagonally too."""
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(grey.filter(ImageFilter.MaxFilter(2 * pixels + 1))) > 0


def label_objects(image: np.ndarray, masks: Sequence[np.ndarray], names: Sequence[str], size: int = 13) -> np.ndarray:
    """An image with each name on a tag above the topmost pixel of its mask; tags give way to each other.

    Parameters
    ----------
    masks: one (H,W) bool per name, none empty.
    size: of the letters, in pixels.
    """
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    taken: list[tuple[int, int, int, int]] = []  # left, top, right, bottom
    for mask, name in zip(masks, names, strict=True):
        top, left = np.argwhere(mask)[0].tolist()
        width, height = round(font(size).getlength(name)) + 6, size + 5
        x, y = max(0, min(left, canvas.width - width)), max(0, top - height)
        while any(x < t[2] and t[0] < x + width and y < t[3] and t[1] < y + height for t in taken):
            y += height
        taken.append((x, y, x + width, y + height))
        draw.rectangle((x, y, x + width - 1, y + height - 1), fill=BLACK, outline=WHITE)
        draw.text((x + 3, y + height / 2), name, WHITE, font(size), anchor="lm")
    return np.array(canvas)


# ---------------------------------------------------------------------------------------------------- sheets


@dataclass(frozen=True)
class Picture:
    """A picture (H,W,3) uint8 of a sheet with what stands below it."""

    image: np.ndarray
    caption: str = ""


@dataclass(frozen=True)
class SheetRow:
    """A row of a sheet: its title, and a picture (or None, an empty place) for every column."""

    title: str
    pictures: Sequence[Picture | None]


@dataclass(frozen=True)
class _Line:
    """What stands side by side: a row of the sheet, or a part of a row that is too long for one line."""

    title: str
    columns: Sequence[str]
    pictures: Sequence[Picture | None]


def sheet(rows: Sequence[SheetRow], columns: Sequence[str] = (), height: int = 224, across: int = 8) -> Image.Image:
    """Pictures in rows and columns with titles, on white.

    Parameters
    ----------
    rows: from top to bottom; the pictures of each are laid from left to right.
    columns: titles, one for each picture of the longest row, or none.
    height: in pixels, to which every picture is scaled, its aspect kept.
    across: pictures side by side; a longer row goes on in the next line.

    Raises
    ------
    ValueError: when a row has more pictures than there are columns' titles.
    """
    if columns and any(len(row.pictures) > len(columns) for row in rows):
        raise ValueError("a row has more pictures than there are columns")
    lines = list(_lines(rows, columns, across))
    widths = _widths(lines, height)
    heights = [_line_height(line, widths, height) for line in lines]
    titles = [font(14, bold=True).getlength(line.title) for line in lines]
    width = max(sum(widths) + MARGIN * (len(widths) + 1), round(max(titles, default=0)) + 2 * MARGIN)
    page = Image.new("RGB", (width, max(1, sum(heights) + MARGIN)), WHITE)
    for line, top in zip(lines, np.cumsum([0, *heights[:-1]]).tolist(), strict=True):
        _draw(page, line, top + MARGIN, widths, height)
    return page


def _lines(rows: Sequence[SheetRow], columns: Sequence[str], across: int) -> Iterator[_Line]:
    """The lines of all rows; columns' titles stand once on top, and at every line when rows are broken."""
    broken = any(len(row.pictures) > across for row in rows)
    for number, row in enumerate(rows):
        for start in range(0, max(len(row.pictures), 1), across):
            part = slice(start, start + across)
            titles = columns[part] if broken or number == 0 else ()
            yield _Line(row.title if start == 0 else "", titles, row.pictures[part])


def _widths(lines: Sequence[_Line], height: int) -> list[int]:
    """Width of each place in a line: that of its widest picture."""
    places = max((max(len(line.pictures), len(line.columns)) for line in lines), default=0)
    pictures = [[line.pictures[i] for line in lines if i < len(line.pictures)] for i in range(places)]
    return [max([_scaled_width(p, height) for p in column if p is not None] or [height]) for column in pictures]


def _scaled_width(picture: Picture, height: int) -> int:
    return max(1, round(picture.image.shape[1] * height / picture.image.shape[0]))


def _line_height(line: _Line, widths: Sequence[int], height: int) -> int:
    captions = [len(wrap(p.caption, w)) for p, w in zip(line.pictures, widths, strict=False) if p is not None]
    titles = [len(wrap(t, w, bold=True)) for t, w in zip(line.columns, widths, strict=False)]
    texts = max(captions, default=0) + max(titles, default=0)
    return height + (20 if line.title else 0) + 16 * texts + MARGIN


def _draw(page: Image.Image, line: _Line, top: int, widths: Sequence[int], height: int) -> None:
    """Draw one line, its upper edge at `top`: title, columns' titles, pictures, captions."""
    draw = ImageDraw.Draw(page)
    if line.title:
        draw.text((MARGIN, top), line.title, BLACK, font(14, bold=True))
        top += 20
    titles = [wrap(title, width, bold=True) for title, width in zip(line.columns, widths, strict=False)]
    deepest = max(map(len, titles), default=0)
    lefts = np.cumsum([MARGIN, *(width + MARGIN for width in widths)]).tolist()
    for title, left in zip(titles, lefts, strict=False):
        _write(draw, left, top + 16 * (deepest - len(title)), title, bold=True)
    top += 16 * deepest
    for picture, left, width in zip(line.pictures, lefts, widths, strict=False):
        if picture is not None:
            size = (_scaled_width(picture, height), height)
            page.paste(Image.fromarray(picture.image).resize(size, Image.Resampling.LANCZOS), (left, top))
            _write(draw, left, top + height + 1, wrap(picture.caption, width))


def _write(draw: ImageDraw.ImageDraw, left: int, top: int, lines: Sequence[str], bold: bool = False) -> None:
    for number, text in enumerate(lines):
        draw.text((left, top + 16 * number), text, BLACK, font(12, bold))


def wrap(text: str, width: int, bold: bool = False) -> list[str]:
    """A text in lines of at most `width` pixels as captions are written; longer words are cut."""
    lines: list[str] = []
    for paragraph in text.splitlines():
        lines.append("")
        for word in paragraph.split():
            for part in _cut(word, width, bold):
                longer = f"{lines[-1]} {part}".strip()
                if lines[-1] and font(12, bold).getlength(longer) > width:
                    lines.append(part)
                else:
                    lines[-1] = longer
    return lines


def _cut(word: str, width: int, bold: bool) -> Iterator[str]:
    """A word in parts of at most `width` pixels, of one letter at least."""
    while word:
        fitting = [n for n in range(1, len(word) + 1) if font(12, bold).getlength(word[:n]) <= width]
        length = max(fitting, default=1)
        yield word[:length]
        word = word[length:]


@cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib, at a size in pixels."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)
