"""An installed package away from the checkout: its configs, the papers' numbers and the embedded weights are in it."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from camexp.models.checkpoint import EMBEDDED
from camexp.places import CONFIGS, PUBLISHED

ROOT = CONFIGS.parent
PACKAGE = ROOT / "camexp"

pytest.importorskip("setuptools", minversion="77", reason="the build backend that pyproject.toml names")


def call(*arguments: str, cwd: Path, path: str = "") -> str:
    """What `python ARGUMENTS` prints; the test fails when it does."""
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The content of a wheel, built of a copy: a build writes beside its sources."""
    folder = tmp_path_factory.mktemp("install")
    source = folder / "source"
    for name in ("camexp", "configs", "results/published"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    call("-c", "from setuptools import build_meta; build_meta.build_wheel('..')", cwd=source)
    shutil.rmtree(source)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def files(folder: Path, *patterns: str) -> set[str]:
    return {str(path.relative_to(folder)) for pattern in patterns for path in folder.rglob(pattern) if path.is_file()}


def test_wheel_holds_every_module_and_all_data(installed):
    package = installed / "camexp"
    assert files(package, "*.py") == files(PACKAGE, "*.py"), "pyproject.toml lists the packages"
    assert files(package / "configs", "*") == files(CONFIGS, "*.yaml")
    assert files(package / "published", "*") == files(PUBLISHED, "*.csv", "*.yaml")
    embedded = ("*.json", "*.safetensors")
    assert files(package / "models" / "weights", "*") == files(EMBEDDED, *embedded)
    assert files(package, "*.j2", "*.js", "*.css") == files(PACKAGE, "*.j2", "*.js", "*.css")
    assert {path.name for path in installed.iterdir() if path.suffix != ".dist-info"} == {"camexp"}


def test_installed_package_finds_its_own_files(installed, tmp_path):
    """The manifest is read from it as well."""
    code = (
        "from camexp.download.manifest import MANIFEST; from camexp.places import PUBLISHED; print(MANIFEST, PUBLISHED)"
    )
    manifest, published = call("-c", code, cwd=tmp_path, path=str(installed)).split()
    assert Path(manifest) == installed.resolve() / "camexp" / "configs" / "download.yaml"
    assert Path(published) == installed.resolve() / "camexp" / "published"


IN_ONE_PROCESS = """
import runpy, sys
from camexp.reproduce import main

options = ["dataset.images=1", "runtime.trials=1", "runtime.warmup=0", "device=cpu", "workers=0"]
assert main(["mini_igcam_runtime", "--jobs", "1", "--probe", "0", *options]) == 0
sys.argv = ["camexp.run", "method=uniform", *options]
runpy.run_module("camexp.run", run_name="__main__")
"""
"""`python -m camexp.reproduce` and `python -m camexp.run`, without the seconds of a second process."""


def test_installed_package_runs_and_reports_in_another_folder(installed, tmp_path):
    said = call("-c", IN_ONE_PROCESS, cwd=tmp_path, path=str(installed))
    assert "results/report/index.html" in said
    cells = pd.read_csv(tmp_path / "results" / "tables" / "mini_igcam_runtime.csv")
    assert cells["value"].notna().all()
    assert cells["published"].notna().any()
    assert len(pd.read_csv(tmp_path / "results" / "minivoc" / "resnet50" / "uniform" / "records.csv"))
