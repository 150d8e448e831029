"""The hash of a method's code: what it sees and what it does not."""

import importlib
import itertools
import linecache
import sys
from pathlib import Path

import pytest

from camexp.config import compose_config, make_dataset
from camexp.identity import identify, pairs_hash, source_hash

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
        return source_hash([f"{name}.Own"])

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


def test_hash_is_the_same_for_every_python(hash_of) -> None:  # type: ignore[no-untyped-def]
    """Versions write f-strings, and fields that are empty, in different ways."""
    code = """class Own:\n    def __str__(self, *x):\n        return f"{', '.join(x)} {x:{len(x)}}" if x else None\n"""
    assert hash_of(code) == "23f43eecfafaf578"


def test_what_has_no_source_has_no_hash() -> None:
    assert source_hash(["builtins.len"]) == ""
    assert source_hash(["camexp.methods.gradcam.GradCAM"]) != ""


@pytest.fixture
def hash_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """The hash of a class `Own` in own/methods/method.py, after sources of the package were written, by their paths."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name in ("methods", "models"):
        (tmp_path / "own" / name).mkdir(parents=True)
        (tmp_path / "own" / name / "__init__.py").touch()

    def hash_with(sources: dict[str, str]) -> str:
        for name, source in sources.items():
            (tmp_path / "own" / f"{name}.py").write_text(source)
        for name in [name for name in sys.modules if name.partition(".")[0] == "own"]:
            del sys.modules[name]
        importlib.invalidate_caches()
        linecache.clearcache()
        return source_hash(["own.methods.method.Own"])

    return hash_with


def method_that(imports: str) -> str:
    """Source of a method."""
    return f"import json\n{imports}\n\n\nclass Own:\n    pass\n"


@pytest.mark.parametrize(
    "imported",
    [
        "from own.methods.part import SCALE",
        "from .part import SCALE",
        "from . import part",
        "import own.methods.part",
        "from own.methods import all",
    ],
)
def test_what_is_imported_from_the_same_package_counts(hash_with, imported: str) -> None:  # type: ignore[no-untyped-def]
    sources = {"methods/all": "from own.methods import part\n", "methods/other": "", "methods/part": "SCALE = 1\n"}
    first = hash_with(sources | {"methods/method": method_that(imported)})
    assert hash_with({"methods/part": "# a remark\nSCALE = 1\n"}) == first
    assert hash_with({"methods/other": "SCALE = 2\n"}) == first
    assert hash_with({"methods/part": "SCALE = 2\n"}) != first


@pytest.mark.parametrize(
    "imported",
    ["from own.ranking import SCALE", "from ..ranking import SCALE", "from .. import ranking", "from . import part"],
)
def test_modules_beside_the_package_count_but_packages_do_not(hash_with, imported: str) -> None:  # type: ignore[no-untyped-def]
    sources = {"ranking": "SCALE = 1\n", "models/net": "SCALE = 1\n", "methods/part": "from own import ranking\n"}
    first = hash_with(sources | {"methods/method": method_that(f"{imported}\nfrom own.models import net")})
    assert hash_with({"models/net": "SCALE = 2\n"}) == first
    assert hash_with({"ranking": "SCALE = 2\n"}) != first


def test_an_import_beyond_the_top_is_left_out(hash_of) -> None:  # type: ignore[no-untyped-def]
    beyond = "try:\n    from ..other import SCALE\nexcept ImportError:\n    SCALE = 2\n"
    assert hash_of(CODE.replace("SCALE = 2\n", beyond)) != ""


def test_every_metric_has_a_hash() -> None:
    cfg = compose_config(["dataset=minivoc", "limit=1"])
    found = identify(cfg, make_dataset(cfg), "weights")
    sources = {name: value for name, value in found.items() if name.endswith(".source")}
    assert set(sources) == {f"metrics.{name}.source" for name in cfg.metrics}
    assert all(sources.values())


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
