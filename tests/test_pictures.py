"""Overlays, contours and sheets: by hand on small images, and by their pixels."""

import matplotlib
import numpy as np
import pytest
from PIL import Image

from camexp.errors import CamexpError
from camexp.pictures import (
    BLACK,
    COLOURS,
    MARGIN,
    WHITE,
    Picture,
    SheetRow,
    dilated,
    font,
    label_objects,
    outline,
    overlay,
    sheet,
    wrap,
)


def plain(height: int, width: int, value: int = 128) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def box(height: int, width: int, rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[rows, columns] = True
    return mask


# ------------------------------------------------------------------------------------------------- overlays


def test_overlay_is_the_colour_map_where_it_is_opaque():
    values = np.array([[0.0, 0.5], [0.75, 1.0]])
    expected = (matplotlib.colormaps[COLOURS](values)[..., :3] * 255).round()
    assert overlay(plain(2, 2), values, opacity=1).tolist() == expected.tolist()


def test_overlay_shows_the_brightness_of_the_image():
    image = np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8)
    grey = np.asarray(Image.fromarray(image).convert("L"))
    assert (overlay(image, np.zeros((1, 2)), opacity=0) == grey[..., None]).all()


def test_overlay_mixes_by_hand():
    heat = np.array(matplotlib.colormaps["viridis"](1.0)[:3]) * 255
    mixed = overlay(plain(1, 1, 100), np.ones((1, 1)), "viridis", opacity=0.5)
    assert mixed[0, 0].tolist() == (0.5 * heat + 50).round().tolist()


def test_overlay_orders_brightness_as_the_map_orders_pixels():
    values = np.linspace(0, 1, 64)[None]
    grey = np.asarray(Image.fromarray(overlay(plain(1, 64), values)).convert("L"), int)
    assert (np.diff(grey[0]) >= 0).all()
    assert grey[0, -1] > grey[0, 0] + 80


def test_overlay_of_values_beyond_the_unit_interval_is_that_of_its_ends():
    assert (overlay(plain(1, 2), np.array([[-3.0, 9.0]])) == overlay(plain(1, 2), np.array([[0.0, 1.0]]))).all()


def test_overlay_refuses_unknown_colours_and_other_sizes():
    with pytest.raises(CamexpError, match=r"'jungle'.*viridis"):
        overlay(plain(2, 2), np.zeros((2, 2)), "jungle")
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3, 2\)"):
        overlay(plain(3, 2), np.zeros((2, 3)))


# ------------------------------------------------------------------------------------------------- contours


def test_dilated_by_hand():
    mask = box(6, 7, slice(2, 4), slice(3, 5))
    assert (dilated(mask, 1) == box(6, 7, slice(1, 5), slice(2, 6))).all()
    assert (dilated(mask, 2) == box(6, 7, slice(0, 6), slice(1, 7))).all()
    assert dilated(mask, 9).all()


def test_outline_by_hand():
    # the box is not square: transposed masks would show
    drawn = outline(plain(10, 12), box(10, 12, slice(3, 6), slice(4, 8)))
    expected = np.full((10, 12), 128)
    expected[1:8, 2:10] = 0
    expected[2:7, 3:9] = 255
    expected[3:6, 4:8] = 128
    assert (drawn == expected[..., None]).all()


def test_outline_of_the_whole_image_runs_along_its_edge():
    drawn = outline(plain(8, 9), np.ones((8, 9), bool))
    assert (drawn[[0, -1]] == 0).all()
    assert (drawn[:, [0, -1]] == 0).all()
    assert (drawn[1, 1:-1] == 255).all()
    assert (drawn[2:-2, 2:-2] == 128).all()


def test_outline_of_an_object_at_the_very_edge_is_seen():
    drawn = outline(plain(8, 9), box(8, 9, slice(0, 8), slice(0, 1)))
    assert (drawn[:, 0] == 128).all()
    assert (drawn[:, 1] == 255).all()
    assert (drawn[:, 2] == 0).all()


def test_outline_hides_nothing_of_a_thin_object():
    image, mask = plain(20, 20), box(20, 20, slice(5, 15), slice(9, 10))
    assert (outline(image, mask)[mask] == 128).all()


def test_outline_of_nothing_changes_nothing():
    image = plain(5, 5)
    assert (outline(image, np.zeros((5, 5), bool)) == image).all()


def test_outline_of_one_pixel_is_seen():
    drawn = outline(plain(5, 5), box(5, 5, slice(2, 3), slice(2, 3)))
    assert drawn[2, 2].tolist() == [128] * 3
    assert drawn[1, 2].tolist() == list(WHITE)
    assert drawn[0, 2].tolist() == list(BLACK)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_outline_is_seen_on_any_background_without_colour(value):
    image = plain(20, 20, value)
    changed = (outline(image, box(20, 20, slice(5, 15), slice(5, 15))) != image).any(2)
    assert changed.sum() >= 36  # the perimeter of 10x10 pixels


def test_outline_is_as_wide_as_told_and_leaves_its_image_alone():
    image = plain(20, 20)
    drawn = outline(image, box(20, 20, slice(5, 15), slice(5, 15)), width=2, colour=(1, 2, 3))
    assert drawn[3:5, 5:15].tolist() == [[[1, 2, 3]] * 10] * 2
    assert drawn[1:3, 10].max() == 0
    assert drawn[0, 10, 0] == drawn[5, 10, 0] == 128
    assert (image == 128).all()


# --------------------------------------------------------------------------------------------------- labels


def tags(image: np.ndarray) -> np.ndarray:
    """Where a plain grey image was written on."""
    return (image != 128).any(2)


def test_label_stands_at_the_top_of_its_object():
    drawn = label_objects(plain(100, 200), [box(100, 200, slice(40, 90), slice(70, 120))], ["cat"])
    rows, columns = np.nonzero(tags(drawn))
    assert rows.max() == 39
    assert columns.min() == 70
    assert rows.min() > 10


def test_labels_stay_in_the_image():
    drawn = label_objects(plain(50, 120), [box(50, 120, slice(48, 50), slice(115, 120))], ["motorbike"])
    assert tags(drawn)[:, -1].any()
    assert tags(drawn).sum() > 500


def test_labels_of_objects_at_one_place_give_way():
    mask = box(100, 100, slice(10, 90), slice(10, 90))
    one = tags(label_objects(plain(100, 100), [mask], ["dog"]))
    three = tags(label_objects(plain(100, 100), [mask] * 3, ["dog"] * 3))
    assert three.sum() > 2.5 * one.sum()


# --------------------------------------------------------------------------------------------------- sheets


def test_pictures_stand_side_by_side_in_one_height():
    wide, tall = Picture(plain(50, 100, 10)), Picture(plain(80, 40, 200))
    page = np.asarray(sheet([SheetRow("", [wide, tall])], height=100))
    assert page.shape[:2] == (100 + 2 * MARGIN, 200 + 50 + 3 * MARGIN)
    assert (page[MARGIN : MARGIN + 100, MARGIN : MARGIN + 200] == 10).all()
    assert (page[MARGIN : MARGIN + 100, 2 * MARGIN + 200 : 2 * MARGIN + 250] == 200).all()
    assert (page[:MARGIN] == 255).all()


def test_columns_of_all_rows_stand_below_each_other():
    rows = [SheetRow("", [Picture(plain(50, width, 0)), Picture(plain(50, 50, 90))]) for width in (50, 150)]
    page = np.asarray(sheet(rows, height=50))
    rows_found, columns_found = np.nonzero((page == 90).all(2))
    assert columns_found.min() == 150 + 2 * MARGIN
    assert columns_found.max() == 200 + 2 * MARGIN - 1
    assert len(set(rows_found)) == 100


def test_empty_place_stays_white():
    page = np.asarray(sheet([SheetRow("", [None, Picture(plain(50, 50, 0))])], height=50))
    assert (page[:, : 50 + 2 * MARGIN] == 255).all()
    assert (page[MARGIN : MARGIN + 50, 2 * MARGIN + 50 : -MARGIN] == 0).all()


def test_long_rows_go_on_in_the_next_line():
    colours = [(200, 0, blue) for blue in range(5)]  # letters are grey
    row = SheetRow("title", [Picture(np.full((50, 50, 3), colour, np.uint8)) for colour in colours])
    page = np.asarray(sheet([row], ["a", "b", "c", "d", "e"], height=50, across=2))
    assert page.shape[1] == 2 * 50 + 3 * MARGIN
    tops = [np.nonzero((page == colour).all(2))[0].min() for colour in colours]
    assert tops[0] == tops[1] < tops[2] == tops[3] < tops[4]


def test_titles_and_captions_take_place_only_where_they_are():
    def height(title: str = "", columns: tuple[str, ...] = (), caption: str = "") -> int:
        return sheet([SheetRow(title, [Picture(plain(50, 50), caption)])], columns, height=50).height

    assert height() == 50 + 2 * MARGIN
    assert height(title="dog") == height() + 20
    assert height(columns=("photo",)) == height() + 16
    assert height(caption="dog") == height() + 16
    assert height(caption="dog\ncat") == height() + 32
    assert height(caption="of several words") > height(caption="dog")


def test_texts_are_written():
    page = np.asarray(sheet([SheetRow("title", [Picture(plain(50, 50, 255), "caption")])], ["column"], height=50))
    written = (page < 128).all(2).any(1)
    assert written[MARGIN : MARGIN + 20].any()
    assert written[MARGIN + 20 : MARGIN + 36].any()
    assert not written[MARGIN + 36 : MARGIN + 86].any()
    assert written[MARGIN + 86 :].any()


def test_a_long_title_widens_the_page():
    page = sheet([SheetRow("a title that is much longer than its only picture", [Picture(plain(50, 50))])], height=50)
    assert page.width > 300


def test_more_pictures_than_columns_are_refused():
    with pytest.raises(ValueError, match="columns"):
        sheet([SheetRow("", [None, None])], ["one"])


def test_wrapped_lines_fit_and_hold_every_letter():
    text = "EBPG 12.3 %, degenerate and a-word-that-is-far-too-long-for-the-line"
    lines = wrap(text, 90)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert lines[:2] == ["EBPG 12.3 %,", "degenerate"]
    assert all(font(12).getlength(line) <= 90 for line in lines)
    assert wrap("", 90) == []
    assert wrap("abc", 1) == ["a", "b", "c"]
