"""The hash of a method's code: what it sees and what it does not."""

import importlib
import itertools
from pathlib import Path

import pytest

from camexp.identity import code_hash, pairs_hash

CODE = '''"""A method of one's own."""

SCALE = 2


class Own:
    """Twice the image."""

    def __call__(self, image):
        """A map."""
        return SCALE * image
'''


NUMBERS = itertools.count()


@pytest.fixture
def hash_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """The hash of a class `Own` in a module with the given code."""
    monkeypatch.syspath_prepend(tmp_path)

    def hash_of(code: str) -> str:
        name = f"own_method_{next(NUMBERS)}"  # a module is imported once
        (tmp_path / f"{name}.py").write_text(code)
        importlib.invalidate_caches()
        return code_hash(f"{name}.Own")

    return hash_of


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""A method of one\'s own."""\n', ""),
        ('"""Twice the image."""', '"""Two times the image."""'),
        ('        """A map."""\n', "        # a map\n"),
        ("SCALE * image", "(SCALE*image)  # in brackets"),
        ("\n\n\n", "\n"),
    ],
)
def test_texts_and_layout_do_not_count(hash_of, old: str, new: str) -> None:  # type: ignore[no-untyped-def]
    assert old in CODE
    assert hash_of(CODE.replace(old, new)) == hash_of(CODE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SCALE = 2", "SCALE = 3"),
        ("SCALE * image", "SCALE + image"),
        ("return SCALE * image", 'return "SCALE * image"'),
        ("class Own:", "class Other:\n    pass\n\n\nclass Own:"),
    ],
)
def test_code_counts(hash_of, old: str, new: str) -> None:  # type: ignore[no-untyped-def]
    assert old in CODE
    assert hash_of(CODE.replace(old, new)) != hash_of(CODE)


def test_what_has_no_source_has_no_hash() -> None:
    assert code_hash("builtins.len") == ""
    assert code_hash("camexp.methods.gradcam.GradCAM") != ""


def test_pairs_and_their_order_count() -> None:
    class Listed:
        def __init__(self, *images: tuple[str, tuple[int, ...]]):
            self.image_ids = tuple(name for name, _ in images)
            self.targets = tuple(tuple(Class(c) for c in classes) for _, classes in images)

    class Class:
        def __init__(self, class_id: int):
            self.class_id = class_id

    lists = [
        Listed(("a", (1, 2)), ("b", (3,))),
        Listed(("b", (3,)), ("a", (1, 2))),
        Listed(("a", (2, 1)), ("b", (3,))),
        Listed(("a", (1,)), ("b", (2, 3))),
        Listed(("a", (12,)), ("b", (3,))),
        Listed(("a", (1, 2))),
    ]
    hashes = [pairs_hash(each) for each in lists]  # type: ignore[arg-type]
    assert len(set(hashes)) == len(lists)
    assert pairs_hash(lists[0]) == hashes[0]  # type: ignore[arg-type]
