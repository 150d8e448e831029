"""Parts of a run's rows that published tables average by themselves."""

from collections.abc import Callable

import pandas as pd

from camexp.errors import CamexpError


def difficult_subset(rows: pd.DataFrame) -> "pd.Series[bool]":
    """Which rows belong to the "difficult subset" of the pointing game (Zhang et al., ECCV 2016).

    Those whose ground truth covers less than a quarter of the image (`area`, the union of the class's objects) and
    whose image has a row of another class. Pairs without a row are not seen: a class whose boxes are all difficult
    makes no image one of several classes, and neither does a pair that failed.
    """
    classes = rows.groupby("image_id")["class_id"].transform("nunique")
    return (rows["area"] < 0.25) & (classes > 1)


SUBSETS: dict[str, Callable[[pd.DataFrame], "pd.Series[bool]"]] = {"difficult subset": difficult_subset}
"""Subsets by the name that the published tables' `variant` gives them."""


def select(rows: pd.DataFrame, subset: str = "") -> pd.DataFrame:
    """The rows of a subset; all of them for "" and "all".

    Raises
    ------
    CamexpError: for another name.
    """
    if subset in ("", "all"):
        return rows
    if subset not in SUBSETS:
        raise CamexpError(f"unknown subset {subset!r}; one of all, {', '.join(SUBSETS)}")
    return rows[SUBSETS[subset](rows)]
