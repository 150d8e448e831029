"""scripts/show.py: what its options mean, what it draws and prints, and what it says of mistakes."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from test_docs import script
from test_run import Ended

from camexp import config
from camexp.config import compose_config
from camexp.datasets.mini import minicoco, ministeel, minivoc
from camexp.datasets.voc import VOC
from camexp.errors import CamexpError
from camexp.explain import stack
from camexp.methods import FAMILIES
from camexp.methods.gradcam import GradCAM
from camexp.metrics import EBPG, Explained
from camexp.models.preprocess import Preprocess
from camexp.runner import execute
from camexp.show import MapMaker, ShownMaps, ground_truth_row, map_rows, show

command = script("show")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """`data_dir` with a few scenes of every embedded set."""
    folder = tmp_path_factory.mktemp("data")
    minivoc(str(folder / "minivoc"), images=5)
    minicoco(str(folder / "minicoco"), images=5)
    ministeel(str(folder / "ministeel"), images=4)
    return folder


IMAGES = {"minivoc": 5, "minicoco": 5, "ministeel": 4}


@pytest.fixture
def draw(data, tmp_path, capsys, monkeypatch) -> Callable[..., Ended]:
    """`python scripts/show.py OPTIONS`, quick: untrained narrow networks and small inputs."""
    monkeypatch.chdir(tmp_path)

    def run(*options: str, data: Path = data) -> Ended:
        named = next((o.removeprefix("dataset=") for o in options if o.startswith("dataset=")), "minivoc")
        quick = [f"data_dir={data}", f"dataset.images={IMAGES.get(named, 5)}", "protocol.size=64", "device=cpu",
                 "model.checkpoint=random", "model.width=0.125", "forward_batch=4"]  # fmt: skip
        capsys.readouterr()
        status = command.main([*quick, *options])
        return Ended(status, *capsys.readouterr())

    return run


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


# ------------------------------------------------------------------------------------------------- options


def test_own_options_are_told_from_overrides():
    own, overrides = command.split_options(["dataset=voc", "index=[1,2]", "method.m=3", "methods=a=b", "+x=1", "~y"])
    assert own == {"index": "[1,2]", "methods": "a=b"}
    assert overrides == ["dataset=voc", "method.m=3", "+x=1", "~y"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("gradcam", [("gradcam", {})]),
        ("gradcam,cam", [("gradcam", {}), ("cam", {})]),
        ("[gradcam, rise:masks=500:cells=5]", [("gradcam", {}), ("rise", {"masks": "500", "cells": "5"})]),
        ("[{method: rise, overrides: {masks: 500}}]", [("rise", {"masks": "500"})]),
        ("[{method: extremal_perturbation, overrides: {areas: [0.1, 0.2]}}]",
         [("extremal_perturbation", {"areas": "[0.1,0.2]"})]),
        ("[rise:masks=9, rise:masks=10]", [("rise", {"masks": "9"}), ("rise", {"masks": "10"})]),
    ],
)  # fmt: skip
def test_methods_are_read(value, expected):
    chosen = command.chosen_methods({"methods": value}, [])
    assert [(method.name, method.parameters) for method in chosen] == expected


def test_all_methods_are_those_of_the_families_and_others_replace_them():
    every = [name for names in FAMILIES.values() for name in names]
    assert [m.name for m in command.chosen_methods({"methods": "all"}, [])] == every
    chosen = command.chosen_methods({"methods": "[all, rise:masks=5]"}, [])
    assert sorted(m.name for m in chosen) == sorted(every)
    assert [m.parameters for m in chosen if m.name == "rise"] == [{"masks": "5"}]


def test_method_of_a_run_is_shown_too():
    assert [m.name for m in command.chosen_methods({}, ["method=igcam", "seed=1"])] == ["igcam"]
    assert command.chosen_methods({}, ["seed=1"]) == []


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("gradcamm", "no method 'gradcamm'.*gradcam, gradcam_pp"),
        ("rise:masks", "neither name:parameter=value"),
        ("[{name: rise}]", "neither name:parameter=value"),
        ("[gradcam", "not a list"),
    ],
)
def test_methods_that_are_none_are_named(draw, value, message):
    ended = draw(f"methods={value}")
    assert ended.status == 2
    assert re.search(message, ended.err), ended.err


def test_methods_of_ones_own_are_found(draw, tmp_path):
    (tmp_path / "own" / "method").mkdir(parents=True)
    (tmp_path / "own" / "method" / "flat.yaml").write_text("{name: flat, _target_: camexp.methods.uniform.Uniform}")
    assert draw("methods=flat").status == 2
    ended = draw("methods=[flat,center]", "--config-dir", "own", "output=shown.png")
    assert ended.status == 0, ended.err
    assert "flat" in ended.out


# ------------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("dataset", IMAGES)
def test_every_embedded_set_is_drawn(draw, tmp_path, dataset):
    ended = draw(f"dataset={dataset}", "index=[0,1]", "output=shown.png")
    assert ended.status == 0, ended.err
    assert ended.out.splitlines()[-1] == "shown.png"
    assert "(index 0)" in ended.out
    assert "(index 1)" in ended.out
    assert picture(tmp_path / "shown.png").std() > 20


def shown(data: Path, dataset: str = "minivoc", index: int = 1):
    composed = compose_config([f"dataset={dataset}", f"data_dir={data}", f"dataset.images={IMAGES[dataset]}"])
    return show(config.make_dataset(composed), index, Preprocess("imagenet", 64))


@pytest.mark.parametrize("dataset", IMAGES)
def test_row_has_the_photograph_and_each_pair_as_fed(data, dataset):
    found = [shown(data, dataset, index) for index in range(IMAGES[dataset])]
    for image in found:
        photograph, *fed = ground_truth_row(image).pictures
        assert photograph.image.shape == (*image.sample.image.size[::-1], 3)
        assert [p.image.shape for p in fed] == [(64, 64, 3)] * max(1, len(image.names))
        for pair in range(len(image.names)):
            inside = image.fed.masks[pair].numpy()
            share = f"{100 * inside.mean():.1f} %"
            assert fed[pair].caption == f"{image.names[pair]}, area {share}"
            changed = (fed[pair].image != image.pixels).any(2)
            assert changed.any()
            assert not changed[8:-8, 8:-8][inside[8:-8, 8:-8]].any()  # the contour lies outside
    assert any(len(image.names) for image in found)


def test_contour_surrounds_the_annotated_box(data):
    image = shown(data)
    root = ElementTree.parse(next((data / "minivoc").rglob(f"{image.sample.image_id}.xml")))
    boxes = [object for object in root.iter("object") if object.findtext("name") == image.names[0]]
    assert len(boxes) == 1
    x0, y0, x1, y1 = (int(boxes[0].findtext(f"bndbox/{corner}")) for corner in ("xmin", "ymin", "xmax", "ymax"))
    drawn = image.photograph_with([0]).image
    # boxes count from 1, their last pixel included
    assert (drawn[y1, x0 - 1 : x1] == 255).all()  # the line below
    assert (drawn[y0 - 1 : y1, x1] == 255).all()  # and at the right
    assert (drawn[y0 - 1 : y1, x0 - 1 : x1] == image.photograph[y0 - 1 : y1, x0 - 1 : x1]).all()


def test_names_of_difficult_pairs_are_marked(data, tmp_path):
    own = Path(shutil.copytree(data, tmp_path / "own"))
    for path in (own / "minivoc").rglob("*.xml"):
        path.write_text(path.read_text().replace("<difficult>0<", "<difficult>1<"))
    devkit = next((own / "minivoc").rglob("VOC2007")).parent
    image = show(VOC(str(devkit), classes=classes(data), difficult="keep"), 0, Preprocess("imagenet", 64))
    assert image.names
    assert all(name.endswith(" (difficult)") for name in image.names)


def classes(data: Path) -> tuple[str, ...]:
    return config.make_dataset(compose_config([f"data_dir={data}", "dataset.images=5"])).classes


# ---------------------------------------------------------------------------------------------------- maps


def test_maps_are_drawn_one_row_per_pair_one_column_per_method(draw, tmp_path):
    alone = draw("index=1", "output=alone.png")
    ended = draw("index=1", "methods=[gradcam,uniform]", "output=maps.png")
    assert (alone.status, ended.status) == (0, 0), ended.err
    pairs = alone.out.count("% of the fed image")
    assert ended.out.count("    gradcam: EBPG") == ended.out.count("    uniform: EBPG") == pairs
    assert ended.out.count("degenerate") >= pairs
    assert ended.out.count("p = ") == pairs
    assert picture(tmp_path / "maps.png").shape[0] > pairs * 224


def test_values_are_those_of_a_run(draw, data, tmp_path):
    """Probability and EBPG in the text are those in the records of camexp.run."""
    quick = [f"data_dir={data}", "dataset.images=5", "protocol.size=64", "device=cpu", "model.checkpoint=random",
             "model.width=0.125", "method=igcam", "method.m=3", "runtime.trials=0", "workers=0"]  # fmt: skip
    execute(compose_config([*quick, f"output={tmp_path / 'run'}"]))
    rows = [line.split(",") for line in (tmp_path / "run" / "records.csv").read_text().splitlines()]
    ended = draw("index=[0,1,2,3,4]", "methods=igcam:m=3")
    assert len(rows) > 5
    for row in (dict(zip(rows[0], line, strict=True)) for line in rows[1:]):
        block = ended.out.split(f"{row['image_id']} (index")[1].split("(index")[0]
        said = block.split(f"  {row['class_name']}: ")[1].splitlines()[:2]
        assert f"{100 * float(row['area']):.1f} % of the fed image, p = {float(row['prob']):.3g}" in said[0]
        assert ("first choice" in said[0]) == (row["argmax"] == "1")
        assert float(said[1].split("EBPG ")[1].split(" %")[0]) == pytest.approx(100 * float(row["ebpg"]), abs=0.051)


def test_map_picture_is_the_scaled_map_over_the_fed_image(data):
    image = shown(data)
    values = torch.rand(len(image.names), 64, 64)
    maps = ShownMaps(values * 7 - 3, torch.full((len(image.names),), 0.25))
    (row, *_) = map_rows(image, ["p = 1"] * len(image.names), [maps], "viridis")
    assert [p.image.shape[:2] for p in row.pictures][1:] == [(64, 64), (64, 64)]
    assert row.pictures[2].caption == "EBPG 25.0 %"
    assert row.title.endswith(f"{image.names[0]}: p = 1")


@pytest.mark.parametrize(
    ("value", "caption"), [(0.0, "EBPG 50.0 %, degenerate"), (float("nan"), "the map is not finite")]
)
def test_caption_marks_what_is_no_explanation(data, value, caption):
    maps = ShownMaps(torch.full((1, 64, 64), value), torch.tensor([0.5]))
    assert maps.caption(0) == caption
    assert maps.picture(shown(data), 0, "inferno").caption == caption


def test_method_that_cannot_run_is_skipped_with_its_reason(draw, tmp_path):
    ended = draw("model=vgg16", "methods=[cam,gradcam]", "output=maps.png")
    assert ended.status == 1
    assert "cam skipped: cam needs a network" in ended.err
    assert "    gradcam: EBPG" in ended.out
    assert "    cam: EBPG" not in ended.out
    assert (tmp_path / "maps.png").exists()


def test_long_sheets_are_broken_into_lines(draw, tmp_path):
    methods = "methods=[gradcam,uniform,center,random,gradient]"
    draw("index=0", methods, "output=wide.png", "height=50")
    draw("index=0", methods, "output=narrow.png", "height=50", "across=3")
    wide, narrow = picture(tmp_path / "wide.png"), picture(tmp_path / "narrow.png")
    assert narrow.shape[1] < wide.shape[1]
    assert narrow.shape[0] > wide.shape[0]


def test_images_of_other_sizes_and_without_pairs_are_drawn(draw, tmp_path, data):
    own = Path(shutil.copytree(data, tmp_path / "own"))
    path = min((own / "minivoc").rglob("*.xml"))
    text = path.read_text()
    path.write_text(text[: text.index("<object>")] + text[text.rindex("</object>") + 9 :])
    ended = draw("index=[0,1]", "methods=gradcam", "protocol.resize=shorter_side", "output=s.png", data=own)
    assert ended.status == 0, ended.err
    assert "no pairs to explain" in ended.out
    assert picture(tmp_path / "s.png").std() > 20


# ---------------------------------------------------------------------------------------------- which images


def test_first_image_is_shown_by_default_below_results(draw, tmp_path):
    ended = draw()
    assert ended.status == 0
    assert ended.out.splitlines()[-1] == "results/show/minivoc-0.png"
    assert (tmp_path / "results" / "show" / "minivoc-0.png").is_file()


def test_image_id_names_the_same_image_and_keeps_its_zeros(draw, tmp_path):
    by_index, by_id = draw("index=2", "output=a.png"), draw("image_id=000003", "output=b.png")
    assert by_index.out.splitlines()[0] == by_id.out.splitlines()[0]
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    several = draw("image_id=[000002,000001]", "output=c.png")
    assert [line.split()[0] for line in several.out.splitlines() if "(index" in line] == ["000002", "000001"]


@pytest.mark.parametrize("index", ["5", "-1", "one", "[0,99]", "1.5"])
def test_wrong_index_says_how_many_there_are(draw, index):
    ended = draw(f"index={index}")
    assert ended.status == 2
    assert "5 images, index 0 to 4" in ended.err


def test_unknown_id_names_the_nearest(draw):
    ended = draw("image_id=00004")
    assert ended.status == 2
    assert "no image '00004' among the 5" in ended.err
    assert "000004" in ended.err


# ------------------------------------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("height=0", "height must be a whole number"),
        ("across=none", "across must be a whole number"),
        ("output=picture.txt", ".png"),
        ("output=picture", ".png"),
        ("dataset=nothing", "nothing"),
        ("nonsense=1", "nonsense"),
        ("method.nonsense=1", "nonsense"),
    ],
)
def test_mistakes_are_explained(draw, option, message):
    ended = draw(option)
    assert ended.status == 2
    assert message in ended.err
    assert "Traceback" not in ended.err


def test_unknown_colours_are_explained(draw):
    ended = draw("methods=uniform", "colours=jungle")
    assert (ended.status, "jungle" in ended.err) == (2, True)


def test_no_network_is_needed_without_methods(draw):
    assert draw("model.checkpoint=null").status == 0
    ended = draw("model.checkpoint=null", "methods=gradcam")
    assert ended.status == 2
    assert "no checkpoint" in ended.err


def test_unreadable_image_is_named_and_the_others_are_drawn(draw, tmp_path, data):
    own = Path(shutil.copytree(data, tmp_path / "own"))
    path = min((own / "minivoc").rglob("*.jpg"))
    path.write_bytes(path.read_bytes()[:200])
    ended = draw("index=[0,1]", "output=s.png", data=own)
    assert ended.status == 1
    assert f"{path.stem} (index 0): image:" in ended.err
    assert (tmp_path / "s.png").exists()
    alone = draw("index=0", "methods=gradcam", "output=t.png", data=own)
    assert alone.status == 1
    assert not (tmp_path / "t.png").exists()


def test_pair_without_ground_truth_is_named(draw, tmp_path, data):
    own = Path(shutil.copytree(data, tmp_path / "own"))
    path = min((own / "minivoc").rglob("*.xml"))
    path.write_text(path.read_text().replace("<xmin>", "<xmin>9", 1).replace("<xmax>", "<xmax>9", 1))
    ended = draw("index=0", "output=s.png", data=own)
    assert ended.status == 1
    assert path.stem in ended.err
    assert "reaches outside the image" in ended.err


def test_explained_ebpg_is_the_metric_of_the_config(data):
    image = shown(data)
    composed = compose_config([f"data_dir={data}", "model.checkpoint=random", "model.width=0.125", "device=cpu"])
    classifier, _ = config.make_classifier(composed, len(classes(data)))
    shown_maps = MapMaker(classifier, EBPG("clip")).maps(GradCAM(), image)
    images, pairs = stack([image.fed], classifier)
    maps = GradCAM()(classifier, images, pairs)
    expected = EBPG("clip")(Explained(classifier, images, pairs, maps, torch.zeros(len(pairs))))
    assert shown_maps.ebpg.tolist() == pytest.approx(expected.tolist())


def test_show_raises_for_an_image_that_cannot_be_read(data, tmp_path):
    own = Path(shutil.copytree(data, tmp_path / "own"))
    composed = compose_config([f"data_dir={own}", "dataset.images=5"])
    dataset = config.make_dataset(composed)
    min((own / "minivoc").rglob("*.jpg")).unlink()
    with pytest.raises(CamexpError, match=r"000001 \(index 0\): image:"):
        show(dataset, 0, Preprocess("imagenet", 64))
