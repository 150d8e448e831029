"""The documentation says what is there."""

import importlib.util
from types import ModuleType

import pytest
from omegaconf import OmegaConf

from camexp.methods import FAMILIES
from camexp.places import CONFIGS

ROOT = CONFIGS.parent


def script(name: str) -> ModuleType:
    """A module of scripts/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_method_belongs_to_one_family():
    listed = [name for names in FAMILIES.values() for name in names]
    targets = {path.stem: OmegaConf.load(path)._target_ for path in (CONFIGS / "method").glob("*.yaml")}
    assert sorted(listed) == sorted(name for name, target in targets.items() if target.startswith("camexp."))


def test_page_of_methods_is_current():
    table = script("methods_table")
    assert table.PAGE.read_text() == table.page(), "run python scripts/methods_table.py"


@pytest.mark.parametrize("group", ["dataset", "model"])
def test_readme_names_every_choice(group):
    readme = (ROOT / "README.md").read_text()
    for path in (CONFIGS / group).glob("*.yaml"):
        assert f"`{path.stem}`" in readme
