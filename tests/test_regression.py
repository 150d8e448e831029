"""The scores of small runs against the committed reference, and deliberate errors that it must catch."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import camexp.loading
from camexp.errors import CamexpError
from camexp.methods.base import upsample
from camexp.methods.gradcam import GradCAM
from camexp.metrics import faithfulness
from camexp.models.classifier import Classifier
from camexp.models.preprocess import feed
from camexp.report import regression

REFERENCE = Path(__file__).parent / "reference" / "mini.json"


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """Where the embedded scenes are drawn, once for all tests."""
    return tmp_path_factory.mktemp("regression")


@pytest.fixture(scope="session")
def reference() -> dict:
    return regression.read_reference(REFERENCE)["runs"]


@pytest.mark.parametrize("name", regression.run_names())
def test_scores_are_those_of_the_reference(name, reference, scenes):
    found = regression.deviations(reference[name], regression.measure(name, scenes))
    assert not found, f"{name}: {'; '.join(found)}; if this is meant: python scripts/reference.py, and say why"


def transposed_masks(sample, preprocess):
    fed = feed(sample, preprocess)
    fed.masks.copy_(fed.masks.transpose(1, 2).clone())
    return fed


def without_relu(self, classifier, images, pairs):
    activation, gradient = classifier.activations_and_gradients(images, pairs, classifier.cam_layer)
    return upsample((gradient.mean((2, 3), keepdim=True) * activation).sum(1), images.shape[2:])


ERRORS = {
    "transposed masks": ((camexp.loading, "feed", transposed_masks), "minivoc/resnet50/gradcam", "ebpg"),
    "transposed masks, oracle": ((camexp.loading, "feed", transposed_masks), "minicoco/resnet50/oracle", "drop"),
    "no ReLU in Grad-CAM": ((GradCAM, "__call__", without_relu), "minivoc/resnet50/gradcam", "ebpg"),
    "softmax over the wrong axis": (
        (Classifier, "confidence", lambda self, logits: logits.softmax(0)),
        "minivoc/resnet50/gradcam",
        "drop",
    ),
    "drop not divided": (
        (faithfulness, "drop", lambda before, after: (before - after).clamp(min=0).double()),
        "minivoc/resnet50/gradcam",
        "drop",
    ),
    "drop not cut at zero": (
        (faithfulness, "drop", lambda before, after: ((before - after) / before).double().clamp(min=-1)),
        "minivoc/resnet50/gradcam",
        "drop",
    ),
}


@pytest.mark.parametrize("error", ERRORS)
def test_a_deliberate_error_is_caught(error, reference, scenes, monkeypatch):
    (owner, attribute, wrong), name, metric = ERRORS[error]
    monkeypatch.setattr(owner, attribute, wrong)
    found = regression.deviations(reference[name], regression.measure(name, scenes))
    assert any(sentence.startswith(f"{metric} is ") for sentence in found), found


def test_transposed_boxes_are_caught(reference, scenes, monkeypatch):
    from camexp.datasets import voc  # noqa: PLC0415

    right = voc.box_slice
    monkeypatch.setattr(voc, "box_slice", lambda box, width, height: right(box, width, height)[::-1])
    found = regression.deviations(
        reference["minivoc/resnet50/gradcam"], regression.measure("minivoc/resnet50/gradcam", scenes)
    )
    assert any(sentence.startswith("ebpg is ") for sentence in found)


def test_the_reference_covers_every_run_and_its_tolerances_are_small(reference):
    assert list(reference) == regression.run_names()
    for name, run in reference.items():
        for metric, one in run["metrics"].items():
            assert one["spread"] <= one["tolerance"] <= 0.2, (name, metric)
            assert one["tolerance"] >= regression.LEAST
    continuous = [m["tolerance"] for run in reference.values() for k, m in run["metrics"].items() if k != "increase"]
    assert np.median(continuous) <= 2 * regression.LEAST


def test_tolerance_by_hand():
    repeats = [pd.DataFrame({"ebpg": [0.2 + shift, 0.4], "increase": [0, 1]}) for shift in (0.0, 0.01, -0.002)]
    found = regression.score(repeats)
    assert found["ebpg"] == pytest.approx({"mean": 0.3, "spread": 0.005, "tolerance": 0.025})
    assert found["increase"]["tolerance"] == 0.75


def test_deviations_by_hand():
    expected = {"pairs": 2, "metrics": {"ebpg": {"mean": 0.3, "tolerance": 0.01}, "drop": {"mean": 1, "tolerance": 1}}}
    assert regression.deviations(expected, pd.DataFrame({"ebpg": [0.2, 0.41], "drop": [1, 1]})) == []
    found = regression.deviations(expected, pd.DataFrame({"ebpg": [0.2, np.nan, 0.9]}))
    assert found[:2] == ["3 pairs, expected 2", "drop is missing"]
    assert found[2].startswith("ebpg is 0.55, expected 0.3")


def test_threads_are_restored(scenes):
    before = torch.get_num_threads()
    regression.measure("minivoc/resnet50/oracle", scenes, regression.SETTINGS[1])
    assert torch.get_num_threads() == before


def test_a_missing_reference_names_the_command(tmp_path):
    with pytest.raises(CamexpError, match=r"python scripts/reference\.py makes it"):
        regression.read_reference(tmp_path / "none.json")
