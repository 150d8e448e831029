"""The script that measures a checkpoint: on embedded and handmade data, against plain loops."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from camexp.config import compose_config, make_classifier, make_dataset
from camexp.evaluation import quality
from camexp.models.build import build
from camexp.models.checkpoint import EMBEDDED, load, read_state
from camexp.models.preprocess import NORMALISATIONS, Preprocess


def _load_script() -> ModuleType:
    path = Path(__file__).parent.parent / "scripts" / "validate_checkpoint.py"
    spec = importlib.util.spec_from_file_location("validate_checkpoint", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["validate_checkpoint"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


script = _load_script()
Feeding = script.Feeding

OBJECT = "<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{box}</bndbox></object>"
BOX = "<xmin>2</xmin><ymin>3</ymin><xmax>20</xmax><ymax>15</ymax>"
SIZES = {"000001": (60, 40), "000002": (40, 60), "000003": (50, 50), "000004": (60, 40)}
OBJECTS = {
    "000001": [("cat", 0), ("dog", 1)],
    "000002": [("dog", 1)],  # every object is difficult
    "000003": [("cat", 0), ("cat", 1)],
    "000004": [("dog", 0)],
}


@pytest.fixture(scope="module")
def devkit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VOCdevkit of four images of different shapes."""
    root = tmp_path_factory.mktemp("VOCdevkit")
    folder = root / "VOC2007"
    for name in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (folder / name).mkdir(parents=True)
    (folder / "ImageSets" / "Main" / "test.txt").write_text("\n".join(OBJECTS) + "\n")
    generator = np.random.default_rng(0)
    for image_id, objects in OBJECTS.items():
        width, height = SIZES[image_id]
        pixels = generator.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "JPEGImages" / f"{image_id}.jpg")
        boxes = "".join(OBJECT.format(name=name, difficult=difficult, box=BOX) for name, difficult in objects)
        size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        (folder / "Annotations" / f"{image_id}.xml").write_text(f"<annotation>{size}{boxes}</annotation>")
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def on_devkit(devkit: Path, *more: str) -> list[str]:
    dataset = ["dataset=voc2007", f"dataset.root={devkit}", "model=resnet50"]
    network = ["model.architecture=resnet50", "model.width=0.0625", "model.checkpoint=random"]
    return [*dataset, *network, "model.preprocess=imagenet", "device=cpu", "workers=0", *more]


def on_minivoc(data: Path, *more: str) -> list[str]:
    return ["dataset=minivoc", "dataset.images=12", "model=resnet50", f"data_dir={data}", "device=cpu", *more]


# ---------------------------------------------------------------------------------------------------------- feeding


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("centring", ["model", "none"])
def test_feeding_is_what_preprocess_feeds(normalisation: str, centring: str) -> None:
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (30, 50, 3), np.uint8))
    pixels = Preprocess("caffe", 24, centring="none").image(image)[None]
    expected = Preprocess(normalisation, 24, centring=centring).image(image)[None]
    assert torch.equal(Feeding(normalisation, centring)(pixels), expected)
    assert torch.equal(Feeding(normalisation, centring, "BGR")(pixels), expected[:, [2, 1, 0]])


def test_ways_of_feeding() -> None:
    assert script.feedings(Preprocess("caffe", centring="none"), compare=False) == [Feeding("caffe", "none")]
    ways = script.feedings(Preprocess("caffe", centring="none"), compare=True)
    assert ways[0] == Feeding("caffe", "none")
    assert len(ways) == len(set(ways)) == 4 * len(NORMALISATIONS)
    assert len({str(way) for way in ways}) == len(ways)


# -------------------------------------------------------------------------------------------------------- measuring


def test_labels_of_voc_keep_difficult_classes(devkit: Path) -> None:
    dataset = make_dataset(script.whole(compose_config(on_devkit(devkit))))
    cat, dog = dataset.classes.index("cat"), dataset.classes.index("dog")
    indices, truth, difficult = script.labels(dataset)
    assert indices == [0, 1, 2, 3]
    assert truth[:, [cat, dog]].tolist() == [[True, True], [False, True], [True, False], [False, True]]
    assert difficult[:, [cat, dog]].tolist() == [[False, True], [False, True], [False, False], [False, False]]
    assert truth.sum() == 5


def test_labels_of_steel_have_a_class_without_defect(data: Path) -> None:
    cfg = compose_config(["dataset=ministeel", "model=resnet101", f"data_dir={data}", "dataset.images=4"])
    dataset = make_dataset(script.whole(cfg))
    indices, truth, difficult = script.labels(dataset)
    assert indices == list(range(len(dataset)))
    assert (truth.sum(1) == 1).all()
    assert truth.argmax(1).tolist() == list(dataset.labels)  # type: ignore[attr-defined]
    assert not difficult.any()


def test_precision_leaves_difficult_pairs_out_and_the_rest_keeps_them() -> None:
    confidences = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.2, 0.8]])
    truth = np.array([[True, False], [False, True], [True, True], [False, True]])
    none = np.zeros_like(truth)
    assert script.measure(confidences, truth, none) == pytest.approx(quality(confidences, truth))
    difficult = np.array([[False, False], [False, True], [True, False], [False, False]])
    found = script.measure(confidences, truth, difficult)
    # class 0 ranks 0, 1, 3: the hit is the first; class 1 ranks 3, 2, 0: hits are the first two
    assert (found["map"], found["map_voc07"]) == (1, 1)
    # with all pairs class 0 would rank 0, 1, 2, 3 with hits at 1 and 3
    assert quality(confidences, truth)["map"] == pytest.approx(((1 + 2 / 3) / 2 + 1) / 2)
    for key in ("top1", "top5", "recall5", "true_probability"):
        assert found[key] == quality(confidences, truth)[key]


def test_a_class_that_is_difficult_everywhere_has_no_precision() -> None:
    confidences, truth = np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([[True, True], [False, True]])
    difficult = np.array([[False, True], [False, True]])
    assert script.measure(confidences, truth, difficult)["map"] == 1
    assert np.isnan(script.measure(confidences, truth, truth)["map"])


@pytest.mark.parametrize("protocol", ["protocol.resize=squash", "protocol.resize=shorter_side"])
def test_predictions_are_those_of_single_images(devkit: Path, protocol: str) -> None:
    cfg = script.whole(compose_config(on_devkit(devkit, protocol, "protocol.size=64", "batch_size=3")))
    dataset = make_dataset(cfg)
    classifier, _ = make_classifier(cfg, len(dataset.classes))
    ways = script.feedings(Preprocess("imagenet"), compare=True)
    confidences, read, failures = script.predict(cfg, dataset, [3, 0, 1, 2], classifier, ways)
    assert confidences.shape == (len(ways), 4, 20)
    assert read.all()
    assert failures == []
    for number, way in enumerate(ways):
        preprocess = Preprocess(way.normalisation, 64, cfg.protocol.resize, way.centring)
        for row, index in enumerate([3, 0, 1, 2]):
            fed = preprocess.image(dataset.read_image(index))[None]
            fed = fed if way.order == "RGB" else fed[:, [2, 1, 0]]
            expected = classifier.network(fed).softmax(1)[0].numpy()
            np.testing.assert_allclose(confidences[number, row], expected, rtol=1e-3, atol=1e-5)


# ----------------------------------------------------------------------------------------------------- command line


def test_embedded_network_end_to_end(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(on_minivoc(data)) == 0
    shown = capsys.readouterr().out
    dataset = make_dataset(compose_config(on_minivoc(data, "+dataset.difficult=keep")))
    network = build("resnet50", len(dataset.classes), 0.125)
    load(network, EMBEDDED / "minivoc_resnet50.safetensors")
    hits = 0
    with torch.no_grad():
        for index, targets in enumerate(dataset.targets):
            fed = Preprocess().image(dataset.read_image(index))
            hits += int(network(fed[None])[0].argmax()) in {target.class_id for target in targets}
    labelled = sum(1 for targets in dataset.targets if targets)
    row = next(line for line in shown.splitlines() if line.startswith("imagenet, RGB (configured)"))
    assert float(row.split()[3]) == pytest.approx(100 * hits / labelled, abs=0.005)
    assert f"{sum(map(len, dataset.targets))} (image, class) pairs" in shown
    assert "published" not in shown
    assert "better" not in shown


def test_every_image_counts(devkit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(on_devkit(devkit)) == 0
    shown = capsys.readouterr().out
    assert "4 of 4 images, 5 (image, class) pairs, 2 of them difficult" in shown
    assert script.main(on_devkit(devkit, "limit=2")) == 0
    shown = capsys.readouterr().out
    assert "2 of 2 images, 3 (image, class) pairs, 2 of them difficult" in shown
    assert "93.09 (SISE paper, VOC2007 test; here only the first 2 images)" in shown


def test_compare_tells_the_order_of_channels(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = read_state(EMBEDDED / "minivoc_resnet50.safetensors")
    state["conv1.weight"] = state["conv1.weight"].flip(1)
    torch.save(state, tmp_path / "bgr.pth")
    turned = on_minivoc(data, f"model.checkpoint={tmp_path / 'bgr.pth'}")
    assert script.main([*turned, "--compare"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert "The network is better when it is fed as imagenet, BGR" in rows[-1]
    assert "its first convolution expects BGR" in rows[-1]
    assert script.main(["--compare", *on_minivoc(data)]) == 0
    straight = capsys.readouterr().out.splitlines()
    assert "better" not in straight[-1]
    values = {tuple(row.split()[-6:]) for row in rows if row.startswith("imagenet, BGR")}
    assert values == {tuple(row.split()[-6:]) for row in straight if row.startswith("imagenet, RGB (configured)")}


def test_compare_tells_the_normalisation(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main([*on_minivoc(data, "model.preprocess=caffe", "protocol.centring=none"), "--compare"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert (
        "better when it is fed as imagenet, RGB: pass model.preprocess=imagenet; pass protocol.centring=model." in last
    )


def advice(measured: list[float], *options: str, compare: bool = False, images: int = 100) -> str:
    """What is advised for a first way with these values of mAP (and of top-5)."""
    cfg = compose_config([*options, "model.checkpoint=random"])
    ways = script.feedings(Preprocess(cfg.model.preprocess), compare)
    values = [dict.fromkeys(script.COLUMNS, value) for value in measured]
    return "\n".join(script.advice(cfg, ways[: len(values)], values, images))


def test_published_values_and_what_to_do_when_they_are_missed() -> None:
    vgg16 = ("dataset=voc2007", "model=vgg16")
    assert advice([0.95], *vgg16) == "published top-5: 93.29 (SISE paper, VOC2007 test)"
    assert "published top-5: 93.09" in advice([0.91], "dataset=voc2007", "model=resnet50")
    assert "published top-1: 86.58" in advice([0.86], "dataset=severstal", "model=resnet101")
    assert "Far below" not in advice([0.91], *vgg16)
    assert "Far below the published value: is the network fed as it was in training? --compare" in advice([0.6], *vgg16)
    assert advice([0.6], "dataset=minivoc", "model=vgg16") == ""
    assert "is it the right checkpoint?" in advice([0.6, 0.59, 0.2], *vgg16, compare=True)
    found = advice([0.6, 0.9, 0.2], *vgg16, compare=True)
    assert "The network is better when it is fed as" in found
    assert "right checkpoint" not in found
    assert "may be chance" not in found


def test_advice_from_few_images_says_so() -> None:
    vgg16 = ("dataset=voc2007", "model=vgg16")
    for measured in ([0.6], [0.6, 0.59], [0.6, 0.9]):
        found = advice(measured, *vgg16, compare=len(measured) > 1, images=8)
        assert found.endswith(" (With only 8 images it may be chance.)")
    assert "chance" not in advice([0.95], *vgg16, images=8)  # nothing is advised


def test_unreadable_images_are_listed_and_not_counted(
    devkit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "VOCdevkit"
    (broken / "VOC2007" / "JPEGImages").mkdir(parents=True)
    for path in (devkit / "VOC2007").rglob("*.*"):
        copy = broken / "VOC2007" / path.relative_to(devkit / "VOC2007")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    images = broken / "VOC2007" / "JPEGImages"
    (images / "000002.jpg").write_bytes(b"no image")
    assert script.main(on_devkit(broken)) == 1
    shown = capsys.readouterr()
    assert "3 of 4 images, 4 (image, class) pairs, 1 of them difficult" in shown.out
    assert "not read: 000002: image: " in shown.err
    assert "1 images could not be read and are not counted" in shown.err
    (broken / "VOC2007" / "Annotations" / "000004.xml").write_text("no annotation")  # what it shows is unknown
    assert script.main(on_devkit(broken)) == 1
    shown = capsys.readouterr()
    assert "2 of 4 images, 3 (image, class) pairs, 1 of them difficult" in shown.out
    assert "not read: 000004: annotation 000004.xml: " in shown.err
    for path in images.iterdir():
        path.write_bytes(b"no image")
    assert script.main(on_devkit(broken)) == 2
    assert "error: none of the 4 images could be read; the first: image: " in capsys.readouterr().err


def test_mistakes_are_explained(tmp_path: Path, devkit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, message in {
        (f"dataset=voc2007 data_dir={tmp_path}"): "VOC2007 not found",
        (f"dataset=voc2007 dataset.root={devkit} model=vgg16 data_dir={tmp_path}"): "`make weights`",
        "dataset=nosuch": "nosuch",
        "nosuch=1": "nosuch",
    }.items():
        assert script.main(options.split()) == 2
        shown = capsys.readouterr()
        assert shown.err.startswith("error: ")
        assert message in shown.err
        assert shown.out == ""
