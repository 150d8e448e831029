"""Protocols: every one with every data set and model, what each changes, and the page that lists the switches."""

import re
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from camexp import config
from camexp.datasets.base import Dataset, Sample, Target
from camexp.datasets.mini import minivoc
from camexp.errors import CamexpError
from camexp.identity import identify
from camexp.methods.igcam import IntegratedGradCAM
from camexp.models.build import build
from camexp.models.classifier import Classifier
from camexp.models.preprocess import NORMALISATIONS, Preprocess, feed
from camexp.pairs import Pairs
from camexp.runner import execute

PAGE = config.CONFIGS.parent / "docs" / "paper_and_code.md"


def names(group: str) -> list[str]:
    """Every file of a config group."""
    return sorted(path.stem for path in (config.CONFIGS / group).glob("*.yaml"))


@cache
def composed(*overrides: str) -> DictConfig:
    return config.compose_config(list(overrides))


class OneImage(Dataset):
    """An image of 40x20 pixels with one pair; enough to be identified and fed."""

    def __init__(self) -> None:
        self.classes, self.image_ids, self.targets = ("thing",), ("image0",), ((Target(0),),)

    def read_image(self, index: int) -> Image.Image:
        return Image.new("RGB", (40, 20), (51, 102, 255))

    def read_mask(self, index: int, class_id: int, width: int, height: int) -> np.ndarray:
        return np.ones((height, width), dtype=bool)


# ----------------------------------------------------------------------------------------------------- composing


@pytest.mark.parametrize("dataset", names("dataset"))
@pytest.mark.parametrize("protocol", names("protocol"))
def test_every_protocol_with_every_data_set_and_model(protocol: str, dataset: str) -> None:
    expected = OmegaConf.to_container(composed(f"protocol={protocol}").protocol)
    for model in names("model"):
        cfg = composed(f"protocol={protocol}", f"dataset={dataset}", f"model={model}")
        assert OmegaConf.to_container(cfg.protocol) == expected  # whatever the combination's own file sets
        identity = identify(cfg, OneImage(), "weights")
        assert {key: identity.get(f"protocol.{key}") for key in expected} == expected
        preprocess = config.make_preprocess(cfg)
        assert (preprocess.size, preprocess.resize) == (expected["size"], expected["resize"])
        assert bool(preprocess.black().any()) == (expected["centring"] == "model")


@pytest.mark.parametrize("protocol", names("protocol"))
def test_protocols_name_themselves_and_have_the_same_keys(protocol: str) -> None:
    keys = composed("protocol=paper").protocol.keys()
    assert composed(f"protocol={protocol}").protocol.keys() == keys
    assert composed(f"protocol={protocol}").protocol.name == protocol


def differing(protocol: str) -> dict[str, object]:
    """What a protocol sets otherwise than the paper's."""
    paper = composed("protocol=paper").protocol
    return {key: value for key, value in composed(f"protocol={protocol}").protocol.items() if value != paper[key]}


def test_paper_is_the_default() -> None:
    assert composed().protocol == composed("protocol=paper").protocol
    assert OmegaConf.to_container(composed().protocol) == {
        "name": "paper",
        "score": "softmax",
        "resize": "squash",
        "size": 224,
        "centring": "model",
        "fill": "fed_zero",
    }
    assert composed().metrics.drop.rule == composed().metrics.increase.rule == "strict"


def test_what_the_others_change() -> None:
    assert differing("igcam_released") == {"name": "igcam_released", "centring": "none"}
    torchray = {"name": "torchray", "score": "sigmoid", "resize": "shorter_side"}
    assert differing("torchray") == torchray


# ------------------------------------------------------------------------------------------------------ centring


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_centring_none_leaves_the_mean_in(normalisation: str) -> None:
    image = Image.new("RGB", (4, 4), (51, 102, 255))  # 0.2, 0.4, 1
    norm = NORMALISATIONS[normalisation]
    preprocess = Preprocess(normalisation, size=4, centring="none")
    expected = [value * norm.scale / std for value, std in zip((0.2, 0.4, 1.0), norm.std, strict=True)]
    assert preprocess.image(image)[:, 0, 0].tolist() == pytest.approx(expected)
    assert not preprocess.black().any()
    assert preprocess.applied.mean == (0, 0, 0)
    assert Preprocess(normalisation).applied is norm


def test_released_notebook_is_fed_255_times_the_image() -> None:
    cfg = composed("protocol=igcam_released", "dataset=voc2007", "model=resnet50")
    assert cfg.model.preprocess == "caffe"
    fed = config.make_preprocess(cfg).image(Image.new("RGB", (30, 20), (51, 102, 255)))
    assert fed.shape == (3, 224, 224)
    assert fed[:, 0, 0].tolist() == pytest.approx([51, 102, 255])


def test_released_notebooks_layer_is_the_cam_layers_last_block() -> None:
    torch.manual_seed(0)
    classifier = Classifier(build("resnet50", 3, 0.0625), {"cam": "layer4"})
    images = torch.randn(2, 3, 64, 64)
    pairs = Pairs(torch.tensor([0, 1, 1]), torch.tensor([2, 0, 1]), ("a", "b"))
    maps = [IntegratedGradCAM(3, "released", layer)(classifier, images, pairs) for layer in (None, "layer4.2")]
    assert torch.equal(*maps)
    assert maps[0].amax() > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Preprocess(centring="caffe"), "protocol.centring must be model or none, not 'caffe'"),
        (lambda: Preprocess(size=0), "protocol.size must be a number of pixels from 1 on, not 0"),
        (lambda: Preprocess(size="large"), "protocol.size must be a number of pixels from 1 on, not 'large'"),
    ],
)
def test_bad_preprocessing_is_named(make, message: str) -> None:
    with pytest.raises(CamexpError, match=message):
        make()


def test_what_a_table_averages_over_is_not_an_option_of_a_run() -> None:
    with pytest.raises(HydraException, match="average"):
        composed("protocol.average=macro")


# ------------------------------------------------------------------------------------------ sizes and whole runs


def test_fed_samples_know_the_original_size() -> None:
    assert feed(OneImage().load(0), Preprocess(size=8)).size == (40, 20)
    assert feed(OneImage().load(0), Preprocess(size=8, resize="shorter_side")).size == (40, 20)
    assert feed(Sample("image0", None, (), ()), Preprocess()).image is None


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data_dir` with six scenes of minivoc."""
    folder = tmp_path_factory.mktemp("data")
    minivoc(str(folder / "minivoc"), images=6)
    return folder


def rows_of(data: Path, output: Path, *overrides: str) -> pd.DataFrame:
    """The records of a quick run that measures the pointing game too."""
    quick = [f"data_dir={data}", f"output={output}", "dataset.images=6", "device=cpu", "model.checkpoint=random"]
    quick += ["model.width=0.0625", "protocol.size=64", "batch_size=4", "runtime.trials=0"]
    execute(config.compose_config([*quick, "+metric@metrics.pointing=pointing", *overrides]))
    return pd.read_csv(output / "records.csv", dtype={"image_id": str})


def centre_hits(data: Path, tolerance: float) -> list[bool]:
    """Whether the middle of the original image lies within the tolerance of an original pixel of each pair."""
    dataset = minivoc(str(data / "minivoc"), images=6)
    hits = []
    for index in range(len(dataset)):
        for mask in dataset.load(index).masks:
            distance = np.argwhere(mask) + 0.5 - np.array(mask.shape) / 2
            hits.append(bool(np.hypot(*distance.T).min() <= tolerance))
    return hits


@pytest.mark.parametrize(("protocol", "tolerance"), [*((name, 15) for name in names("protocol")), ("paper", 60)])
def test_pointing_of_the_centre_in_a_run(data: Path, tmp_path: Path, protocol: str, tolerance: int) -> None:
    overrides = ["method=center", f"protocol={protocol}", f"metrics.pointing.tolerance={tolerance}"]
    rows = rows_of(data, tmp_path / "run", *overrides)
    expected = centre_hits(data, tolerance)
    assert len(set(expected)) == 2
    # the four pixels in the middle share the maximum; the object's edge may run between them
    agree = [abs(found - true) <= 0.5 for found, true in zip(rows["pointing"], expected, strict=True)]
    assert all(agree)
    assert np.mean(rows["pointing"] == expected) >= 0.75


def test_pointing_of_controls_in_a_run(data: Path, tmp_path: Path) -> None:
    protocol = ["protocol=torchray", "+metric@metrics.average_gain=average_gain"]
    assert rows_of(data, tmp_path / "oracle", "method=oracle", *protocol)["pointing"].eq(1).all()
    uniform = rows_of(data, tmp_path / "uniform", "method=uniform", *protocol)
    assert (uniform["pointing"] > uniform["area"]).all()  # the object and what lies around it
    assert (uniform["pointing"] < 1).any()
    assert uniform["average_gain"].between(0, 1).all()
    info = (tmp_path / "uniform" / "run.json").read_text()
    assert '"protocol.name": "torchray"' in info
    assert '"metrics.pointing.tolerance": 15' in info


# --------------------------------------------------------------------------------------------- paper and code


def switches() -> list[str]:
    """The last column of every row of the page's tables, which holds the switches."""
    rows = [line.strip().strip("|").split("|") for line in PAGE.read_text().splitlines() if line.startswith("|")]
    assert {len(row) for row in rows} == {5}
    bodies = [row[-1].strip() for row in rows if not set(row[0].strip()) <= {"-"} and row[0].strip() != "what"]
    assert all("`" in body for body in bodies), "a row without a switch"
    return [span for body in bodies for span in re.findall(r"`([^`]+)`", body)]


def test_page_has_a_switch_for_everything_that_varies() -> None:
    text = " ".join(switches())
    protocols = {f"protocol.{key}=" for key in composed().protocol if key not in ("name", "size")}
    assert {key for key in protocols if key not in text} == set()
    assert {name for name in names("protocol") if f"protocol={name}" not in text and name != "paper"} == set()
    assert len(switches()) > 30


@pytest.mark.parametrize("switch", sorted(set(switches())) if PAGE.exists() else ["no page"])
def test_switch_of_the_page_exists(switch: str) -> None:
    overrides = switch.split()
    choices = [override for override in overrides if override.partition("=")[0] in ("dataset", "model", "method")]
    cfg = composed(*overrides)
    assert cfg != composed(*(choices if len(choices) < len(overrides) else ())), "it changes nothing"
    config.make_method(cfg)
    config.make_metrics(cfg)
    config.make_preprocess(cfg)
    layers = cfg.method.get("layers")
    assert not isinstance(layers, str) or layers in cfg.model.layers
