"""Training: label sets, balance, augmentation, resume to the byte, records, and what is refused."""

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_network
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from camexp.datasets.base import Dataset, Failure, Target
from camexp.errors import CamexpError
from camexp.evaluation import QUALITIES
from camexp.models import checkpoint
from camexp.models.build import build
from camexp.models.preprocess import Preprocess
from camexp.places import CONFIGS
from camexp.training import run as training_run
from camexp.training.data import Labelled, Preloaded, Streamed
from camexp.training.labels import class_weights, draw_order, hold_out, image_weights, label_sets
from camexp.training.loop import Trainer
from camexp.training.networks import find_initial, starting_network
from camexp.training.outcome import output_path
from camexp.training.recipe import make, read_recipe
from camexp.training.run import train

RECIPES = sorted(p.stem for p in (CONFIGS / "dataset").glob("*.yaml"))


class Pictures(Dataset):
    """Coloured pictures in memory; the class is the brightest channel, and some show two."""

    def __init__(self, count: int = 12, side: int = 24, classes: tuple[str, ...] = ("red", "green", "blue")):
        generator = np.random.default_rng(0)
        self.classes = classes
        self.image_ids = tuple(f"picture{i}" for i in range(count))
        shown = [tuple(sorted({i % 3, 0 if i % 4 else i % 3})) for i in range(count)]
        self.targets = tuple(tuple(Target(c) for c in classes) for classes in shown)
        self.pixels = generator.integers(0, 100, (count, side, side, 3), dtype=np.uint8)
        for i, found in enumerate(shown):
            self.pixels[i, ..., list(found)] += 120
        self.broken: set[int] = set()

    def read_image(self, index: int) -> Image.Image:
        if index in self.broken:
            raise OSError("broken data stream")
        return Image.fromarray(self.pixels[index])

    def read_mask(self, index: int, class_id: int, width: int, height: int) -> np.ndarray:
        return np.ones((height, width), bool)


def labelled(dataset: Dataset, size: int = 16, workers: int = 0) -> Labelled:
    indices, labels = label_sets(dataset)
    return Labelled(dataset, indices, labels, Preprocess(size=size), workers)


def config(*overrides: str):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", list(overrides))


def recipe(*overrides: str):
    """The embedded recipe cut to tiny pictures."""
    return read_recipe(config("recipe.batch=4", "recipe.half_epochs=1", "recipe.full_epochs=2", *overrides).recipe)


# ------------------------------------------------------------------------------------------------- labels


def test_label_sets_leave_out_what_shows_nothing_or_is_broken() -> None:
    dataset = Pictures(5)
    dataset.targets = ((Target(1), Target(2)), (), (Target(0),), (Target(0),), (Target(1),))
    dataset.failures = (Failure("picture2", None, "broken"), Failure("picture3", 1, "no box"))
    indices, labels = label_sets(dataset)
    assert indices == [0, 4]
    assert labels.tolist() == [[0, 1, 1], [0, 1, 0]]


def test_label_sets_take_no_defect_for_a_class() -> None:
    dataset = Pictures(3, classes=("no defect", "defect 1", "defect 2"))
    dataset.targets = ((), (Target(2),), ())
    indices, labels = label_sets(dataset)
    assert indices == [0, 1, 2]
    assert labels.tolist() == [[1, 0, 0], [0, 0, 1], [1, 0, 0]]


def test_label_sets_of_nothing_are_refused() -> None:
    dataset = Pictures(2)
    dataset.targets = ((), ())
    with pytest.raises(CamexpError, match="none of the 2 images"):
        label_sets(dataset)


def test_class_weights_by_hand() -> None:
    labels = torch.tensor([[1.0, 0, 0], [1, 0, 0], [1, 0, 0], [1, 1, 0]])  # counts 4, 1, 0
    full = class_weights(labels, 1.0)
    assert full.tolist() == pytest.approx([5 / 8, 5 / 2, 0])  # 1/4 and 1, scaled by 5 labels / 2 classes
    assert (full * labels).sum() / labels.sum() == pytest.approx(1)
    assert class_weights(labels, 0.0).tolist() == pytest.approx([1, 1, 0])
    root = class_weights(labels, 0.5)
    assert root[1] / root[0] == pytest.approx(2)
    assert image_weights(labels, 1.0).tolist() == pytest.approx([5 / 8] * 3 + [(5 / 8 + 5 / 2) / 2])


def test_draw_order_is_a_permutation_or_follows_the_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    assert sorted(draw_order(None, 7, generator).tolist()) == list(range(7))
    drawn = draw_order(torch.tensor([1.0, 0, 3]), 4000, generator)
    assert len(drawn) == 4000
    assert drawn.bincount(minlength=3).tolist() == pytest.approx([1000, 0, 3000], abs=120)


def test_hold_out_keeps_crops_of_one_sheet_together() -> None:
    ids = [f"sheet{i // 4}@{i % 4 * 256}" for i in range(80)]
    kept, held = hold_out(ids, 0.25, seed=0)
    assert sorted(kept + held) == list(range(80))
    assert len(held) == 20
    assert not {ids[r].split("@")[0] for r in kept} & {ids[r].split("@")[0] for r in held}
    assert hold_out(ids, 0.25, seed=0) == (kept, held)
    assert hold_out(ids, 0.25, seed=1) != (kept, held)
    assert hold_out(ids, 0, seed=0) == (list(range(80)), [])


# ------------------------------------------------------------------------------------------- augmentation


def still(**changes) -> Preloaded:
    """A source whose augmentation does nothing but what is asked for."""
    options = {"zoom": (1, 1), "shift": 0, "contrast": (1, 1), "brightness": 0} | changes
    return Preloaded(labelled(Pictures()), 0, **options)


@pytest.mark.parametrize("vertical", [False, True])
def test_preloaded_mirrors_and_nothing_else(vertical: bool) -> None:
    source = still(vertical=vertical)
    images = source.pixels.float()
    moved = source.augment(images.repeat(8, 1, 1, 1), 16, torch.Generator().manual_seed(0))
    ways = {"same": images, "left-right": images.flip(3), "top-bottom": images.flip(2), "both": images.flip(2, 3)}
    seen = {
        name
        for before, after in enumerate(moved)
        for name, way in ways.items()
        if torch.allclose(after, way[before % len(images)], atol=1e-5)
    }
    assert seen == (set(ways) if vertical else {"same", "left-right"})


def test_preloaded_stays_in_its_bounds() -> None:
    images = torch.ones(400, 3, 16, 16)
    bright = still(brightness=0.3).augment(images, 16, torch.Generator().manual_seed(0))
    assert 0.7 <= bright.min() < 0.72
    assert 1.28 < bright.max() <= 1.3
    contrast = still(contrast=(0.8, 1.2)).augment(images, 16, torch.Generator().manual_seed(0))
    assert 0.8 - 1e-6 <= contrast.min() < 0.82
    assert 1.18 < contrast.max() <= 1.2 + 1e-6
    ramp = torch.linspace(-1, 1, 17)[:-1].add(1 / 16).expand(400, 3, 16, 16)  # values are places
    zoomed = still(zoom=(0.85, 1)).augment(ramp, 16, torch.Generator().manual_seed(0))
    edge = zoomed[..., 0].abs()
    assert edge.min() >= 15 / 16 * 0.85 - 1e-3
    assert edge.max() <= 15 / 16 + 1e-3
    assert bright.shape == (400, 3, 16, 16)
    assert still().augment(images, 8, torch.Generator()).shape == (400, 3, 8, 8)


def test_streamed_mirrors_and_stays_in_the_range_of_pixels() -> None:
    images = labelled(Pictures())
    source = Streamed(images, 0, crop=(1, 1), aspect=(1, 1), colour=0, vertical=False)
    rows = [torch.tensor([0, 1, 2, 3])] * 6
    plain = next(images.fed("", 4))
    seen = set()
    for batch in source.batches(rows, 0, 16, torch.Generator()):
        for before, after in zip(plain, batch, strict=True):
            near = {n for n, f in (("same", before), ("mirror", before.flip(2))) if (after - f).abs().max() < 0.05}
            assert near
            seen |= near
    assert seen == {"same", "mirror"}
    coloured = Streamed(images, 0, colour=0.5, vertical=True)
    norm = Preprocess(size=16)
    white = norm.image(Image.new("RGB", (16, 16), "white"))
    batch = next(coloured.batches(rows, 0, 16, torch.Generator()))
    assert (batch >= norm.black() - 1e-6).all()
    assert (batch <= white + 1e-6).all()
    assert next(coloured.batches(rows, 0, 8, torch.Generator())).shape == (4, 3, 8, 8)


def test_streamed_does_not_depend_on_workers_nor_on_where_it_began() -> None:
    rows = list(torch.arange(12).split(3))
    alone = list(Streamed(labelled(Pictures()), 5).batches(rows, 10, 16, torch.Generator()))
    worked = list(Streamed(labelled(Pictures(), workers=2), 5).batches(rows, 10, 16, torch.Generator()))
    later = list(Streamed(labelled(Pictures()), 5).batches(rows[2:], 12, 16, torch.Generator()))
    assert all(torch.equal(a, b) for a, b in zip(alone, worked, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(alone[2:], later, strict=True))
    again = list(Streamed(labelled(Pictures()), 5).batches(rows, 14, 16, torch.Generator()))
    assert not any(torch.equal(a, b) for a, b in zip(alone, again, strict=True))


def test_streaming_leaves_the_generator_of_dropout_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    for workers in (0, 1):
        list(Streamed(labelled(Pictures(), workers=workers), 0).batches([torch.arange(4)], 0, 16, torch.Generator()))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named(workers: int) -> None:
    dataset = Pictures()
    dataset.broken = {7}
    with pytest.raises(CamexpError, match="image picture7 cannot be used: broken data stream"):
        list(labelled(dataset, workers=workers).fed(""))


# ----------------------------------------------------------------------------------------------- the loop


def reference(network: nn.Module, images: Tensor, labels: Tensor, batch: int, epochs: list[int]) -> nn.Module:
    """The training of the embedded networks, written down once more without options and interruptions."""
    generator = torch.Generator().manual_seed(0)
    steps = len(images) // batch
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.02)
    total = steps * len(epochs)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=total, pct_start=0.15)
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.99), use_buffers=True)
    network.train()
    for side in epochs:
        for rows in torch.randperm(len(images), generator=generator)[: steps * batch].split(batch):
            n, theta = len(rows), torch.zeros(len(rows), 2, 3)
            drawn = [torch.rand(n, generator=generator) for _ in range(6)]
            theta[:, 0, 0] = (drawn[0] * (1.15 - 0.85) + 0.85) * (drawn[1] * 2 - 1).sign()
            theta[:, 1, 1] = drawn[0] * (1.15 - 0.85) + 0.85
            theta[:, 0, 2], theta[:, 1, 2] = drawn[2] * 0.2 - 0.1, drawn[3] * 0.2 - 0.1
            batch_images = images[rows].float()
            if side < images.shape[-1]:
                batch_images = F.interpolate(batch_images, (side, side), mode="bilinear", antialias=True)
            grid = F.affine_grid(theta, [n, 3, side, side], align_corners=False)
            moved = F.grid_sample(batch_images, grid, padding_mode="reflection", align_corners=False)
            moved = moved * (drawn[4] * (1.2 - 0.8) + 0.8).view(-1, 1, 1, 1) + (drawn[5] * 0.6 - 0.3).view(-1, 1, 1, 1)
            target = labels[rows] / labels[rows].sum(1, keepdim=True)
            loss = F.cross_entropy(network(moved.contiguous(memory_format=torch.channels_last)), target)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 2.0)
            optimiser.step()
            schedule.step()
            averaged.update_parameters(network)
    return averaged.module


def test_the_embedded_recipe_computes_what_it_always_did() -> None:
    images, start = labelled(Pictures(14)), tiny_network(3).to(memory_format=torch.channels_last)
    source = Preloaded(images, 0)
    expected = reference(start, source.pixels, images.labels, 4, [8, 16, 16]).state_dict()
    fresh = tiny_network(3).to(memory_format=torch.channels_last)
    settings = recipe("recipe.size=16")
    assert dict(settings.source) == {"_target_": "camexp.training.data.Preloaded", "vertical": False}
    trained = Trainer(fresh, source, images.labels, settings, seed=0).train("").state_dict()
    assert all(torch.equal(trained[key], value) for key, value in expected.items())


def test_training_learns_and_the_best_epoch_is_kept() -> None:
    images = labelled(Pictures(24))
    trainer = Trainer(
        tiny_network(3),
        Preloaded(images, 0),
        images.labels,
        recipe("recipe.size=16", "recipe.full_epochs=6", "recipe.half_epochs=0", "recipe.ema=0", "recipe.best=top1"),
        seed=0,
        validation=images,
    )
    trained = trainer.train("")
    assert trainer.history[-1]["loss"] < 0.8 * trainer.history[0]["loss"]
    best = max(range(6), key=lambda epoch: (trainer.history[epoch]["top1"], -epoch))
    assert trainer.best["epoch"] == best
    assert all(torch.equal(value, trainer.best["weights"][key]) for key, value in trained.state_dict().items())
    assert [row["step"] for row in trainer.history] == [6 * (epoch + 1) for epoch in range(6)]


def test_rare_classes_count_more_in_the_loss() -> None:
    images = labelled(Pictures(13))
    options = ("recipe.balance=weights", "recipe.balance_power=1", "recipe.steps=1", "recipe.size=16")
    trainer = Trainer(tiny_network(3), Preloaded(images, 0), images.labels, recipe(*options), seed=0)
    assert torch.equal(trainer.class_weights, class_weights(images.labels, 1.0))
    batch, labels = next(images.fed("", 4)), images.labels[:4]
    log_probability = trainer.network(batch).log_softmax(1)
    target = labels / labels.sum(1, keepdim=True)
    expected = -(trainer.class_weights * target * log_probability).sum(1).mean()
    assert trainer._step(batch, labels) == pytest.approx(expected.item(), rel=1e-5)


def test_a_loss_that_is_not_finite_stops() -> None:
    images, network = labelled(Pictures()), tiny_network(3)
    nn.init.constant_(network[7].weight, float("inf"))
    with pytest.raises(CamexpError, match="not finite at step 0"):
        Trainer(network, Streamed(images, 0), images.labels, recipe("recipe.size=16"), seed=0).train("")


@pytest.mark.parametrize(("warmup", "steps"), [(0.05, 20), (0.5, 2), (0.0, 3), (0.15, 1), (0.9, 2)])
def test_every_length_of_the_warm_up(warmup: float, steps: int) -> None:
    images = labelled(Pictures(8))
    options = (f"recipe.warmup={warmup}", f"recipe.steps={steps}", "recipe.full_epochs=20", "recipe.size=16")
    trainer = Trainer(tiny_network(3), Preloaded(images, 0), images.labels, recipe(*options), seed=0)
    usual, rates = trainer._step, []

    def noting(images: Tensor, labels: Tensor) -> float:
        rates.append(trainer.optimiser.param_groups[0]["lr"])
        return usual(images, labels)

    trainer._step = noting
    trainer.train("")
    assert len(rates) == steps
    assert all(0 < rate <= 3e-3 * (1 + 1e-9) for rate in rates)
    peak = rates.index(max(rates))
    assert rates == sorted(rates[: peak + 1]) + sorted(rates[peak + 1 :], reverse=True)


def test_too_few_images_for_a_batch() -> None:
    images = labelled(Pictures(3))
    with pytest.raises(CamexpError, match="3 training images do not fill one batch"):
        Trainer(tiny_network(3), Streamed(images, 0), images.labels, recipe(), seed=0)


# -------------------------------------------------------------------------------------- configs and recipes


@pytest.mark.parametrize("name", RECIPES)
def test_every_data_set_has_a_recipe(name: str) -> None:
    cfg = config(f"dataset={name}")
    found = read_recipe(cfg.recipe)
    assert found.train["split"] != found.test["split"]
    assert cfg.model.width == (0.125 if name.startswith("mini") else 1.0)
    optimiser = make(found.optimiser, tiny_network().parameters())
    assert optimiser.param_groups[0]["lr"] == found.optimiser["lr"]


def test_an_unknown_recipe_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(HydraException, match=r"(?s)recipe/nonsense.*severstal"):
        config("recipe=nonsense")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+recipe.learning_rate=1", "learning_rate is unknown"),
        ("~recipe.ema", "ema is missing"),
        ("recipe.balance=fair", "recipe.balance must be one of none, sampler, weights, not 'fair'"),
        ("recipe.precision=int8", "recipe.precision must be one of float32"),
        ("recipe.best=beauty", "recipe.best must be one of map"),
        ("recipe.validation=1.5", "recipe.validation must lie between 0 and 0.9, not 1.5"),
        ("recipe.batch=0", "recipe.batch must lie between 1"),
        ("recipe.batch=many", "wrong kind"),
        ("+recipe.target.top9=1", "recipe.target names"),
        ("recipe.full_epochs=0", "both 0"),
    ],
)
def test_a_wrong_value_is_explained(override: str, message: str) -> None:
    with pytest.raises(CamexpError, match=message):
        read_recipe(config("recipe.half_epochs=0", override).recipe)


def test_what_an_optimiser_refuses_is_explained() -> None:
    with pytest.raises(CamexpError, match="AdamW"):
        make({"_target_": "torch.optim.AdamW", "speed": 3}, tiny_network().parameters())
    with pytest.raises(CamexpError, match="Adamant"):
        make({"_target_": "torch.optim.Adamant"}, tiny_network().parameters())


def test_output_names_a_file_or_the_embedded_one(tmp_path: Path) -> None:
    assert output_path(config("dataset=severstal", "model=resnet101")) == Path(
        "data/weights/severstal_resnet101.safetensors"
    )
    assert output_path(config("dataset=voc2007")).name == "voc2007_resnet50_trained.safetensors"
    assert output_path(config("output=embedded")) == checkpoint.EMBEDDED / "minivoc_resnet50.safetensors"
    with pytest.raises(CamexpError, match="must be a file"):
        output_path(config(f"output={tmp_path}"))


# ------------------------------------------------------------------------------------------ initial weights


def test_missing_initial_weights_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(CamexpError, match=r"(?s)resnet101-63fe2227.pth.*IMAGENET1K_V1.*recipe.initial=random") as error:
        find_initial("imagenet", "resnet101")
    assert str(tmp_path) in str(error.value)
    with pytest.raises(CamexpError, match="no such file"):
        find_initial(str(tmp_path / "none.pth"), "resnet101")
    with pytest.raises(CamexpError, match="torchvision has no weights"):
        find_initial("imagenet", "resnet50_caffe")
    assert find_initial("random", "resnet101") is None


@pytest.mark.parametrize(
    ("architecture", "file"), [("resnet50", "resnet50-0676ba61.pth"), ("vgg16", "vgg16_bn-6c64b313.pth")]
)
def test_initial_weights_keep_all_but_the_last_layer(
    architecture: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    model = config(f"model={architecture}", "model.width=0.03125").model
    known = starting_network(model, 10, None).state_dict()
    torch.save(known, tmp_path / "checkpoints" / file)
    found = find_initial("imagenet", architecture)
    assert found == tmp_path / "checkpoints" / file
    network = starting_network(model, 4, found, dropout=0.2)
    last = {name for name in known if known[name].shape != network.state_dict()[name].shape}
    assert {name.rpartition(".")[0] for name in last} == {
        [n for n, m in network.named_modules() if isinstance(m, nn.Linear)][-1]
    }
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in known.items() if name not in last)
    assert all(module.p == 0.2 for module in network.modules() if isinstance(module, nn.Dropout))
    assert network.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 4)


def test_initial_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(build("resnet50", 10, 0.03125).state_dict(), tmp_path / "narrow.pth")
    with pytest.raises(CamexpError, match="does not fit the network"):
        starting_network(config("model=resnet50", "model.width=0.0625").model, 4, tmp_path / "narrow.pth")
    torch.save({"bias": torch.zeros(3)}, tmp_path / "bias.pth")
    with pytest.raises(CamexpError, match="holds no classifier"):
        starting_network(config("model=resnet50").model, 4, tmp_path / "bias.pth")


# --------------------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def options(data: Path, output: Path, *more: str) -> list[str]:
    """A run of six steps: two epochs at 16 and 32 pixels."""
    return [
        f"data_dir={data}",
        f"output={output}",
        "model.width=0.03125",
        "recipe.train.images=12",
        "recipe.test.images=6",
        "recipe.size=32",
        "recipe.batch=4",
        "recipe.half_epochs=1",
        "recipe.full_epochs=1",
        "checkpoint_minutes=0",
        "workers=0",
        "device=cpu",
        *more,
    ]


FULL_SIDE = ("recipe.half_epochs=0", "recipe.full_epochs=2")  # VGG16 divides the side by 32

STREAMED = (
    "recipe.source._target_=camexp.training.data.Streamed",
    "recipe.optimiser._target_=torch.optim.SGD",
    "+recipe.optimiser.momentum=0.9",
    "recipe.cycle_momentum=false",
    "recipe.balance=sampler",
    "recipe.validation=0.2",
    "recipe.batch=3",
)


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the loop break off before the given step."""
    usual = Trainer._step

    def breaking(self: Trainer, images: Tensor, labels: Tensor) -> float:
        if self.step == step:
            raise KeyboardInterrupt
        return usual(self, images, labels)

    monkeypatch.setattr(Trainer, "_step", breaking)


@pytest.mark.parametrize(
    ("step", "more"),
    [
        (1, ()),
        (3, ()),
        (4, ("model=vgg16", *FULL_SIDE)),
        (2, STREAMED),
        (4, STREAMED),
    ],
    ids=["first epoch", "between epochs", "dropout", "streamed", "streamed, second epoch"],
)
def test_an_interrupted_run_ends_with_the_same_bytes(
    step: int, more: tuple[str, ...], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    through, broken = tmp_path / "through.safetensors", tmp_path / "broken.safetensors"
    assert "written" in train(config(*options(data, through, *more)))
    with monkeypatch.context() as patched:
        stop_at(step, patched)
        with pytest.raises(KeyboardInterrupt):
            train(config(*options(data, broken, *more)))
    assert not broken.exists()
    assert broken.with_suffix(".resume").exists()
    torch.manual_seed(99)  # another process has another state
    assert "written" in train(config(*options(data, broken, *more)))
    assert f"going on at step {step}" in capsys.readouterr().err
    assert broken.read_bytes() == through.read_bytes()
    assert broken.with_suffix(".csv").read_bytes() == through.with_suffix(".csv").read_bytes()
    assert not broken.with_suffix(".resume").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"{stem}.{kind}" for stem in ("broken", "through") for kind in ("csv", "json", "safetensors")
    ]


def test_record_repetition_and_what_a_finished_run_says(data: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    said = train(config(*options(data, first, "+recipe.target.top1=0.0", "+recipe.target.map=1.1")))
    train(config(*options(data, second, "+recipe.target.top1=0.0", "+recipe.target.map=1.1")))
    assert first.read_bytes() == second.read_bytes()
    record = json.loads(first.with_suffix(".json").read_text())
    assert record["sha256"] == checkpoint.sha256(first)
    assert set(record["test"]) == set(QUALITIES)
    assert (record["train_images"], record["test_images"], record["steps"]) == (12, 6, 6)
    assert record["settings"]["recipe.batch"] == 4
    assert record["environment"]["torch"] == torch.__version__
    assert not any(str(data) in str(value) for value in record["settings"].values())
    with first.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["step"]) for row in rows] == [("0", "3"), ("1", "6")]
    assert "target 0.00 %: reached" in said
    assert "target 110.00 %: missed" in said
    before = first.stat().st_mtime_ns
    again = train(config(*options(data, first, "+recipe.target.top1=0.0", "+recipe.target.map=1.1")))
    assert "already finished, nothing to do" in again
    assert first.stat().st_mtime_ns == before


def test_weights_of_other_settings_are_not_overwritten(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    train(config(*options(data, path)))
    old = path.read_bytes()
    with pytest.raises(CamexpError, match=r"(?s)seed: 0 -> 1.*overwrite=true"):
        train(config(*options(data, path, "seed=1")))
    assert path.read_bytes() == old
    train(config(*options(data, path, "seed=1", "overwrite=true")))
    assert path.read_bytes() != old
    path.with_suffix(".json").unlink()
    with pytest.raises(CamexpError, match="not made by this version"):
        train(config(*options(data, path)))


def test_what_is_written_is_a_plain_vgg16_that_loads(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    said = train(config(*options(data, path, "model=vgg16", "model.head=16", "recipe.steps=2", *FULL_SIDE)))
    network = build("vgg16", 8, 0.03125, 16)
    checkpoint.load(network, path)
    assert json.loads(path.with_suffix(".json").read_text())["steps"] == 2
    assert f"model.checkpoint={path} model.architecture=vgg16 model.width=0.03125 model.head=16" in said


def test_a_state_of_other_settings_or_a_corrupt_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, state = tmp_path / "net.safetensors", tmp_path / "net.resume"
    with monkeypatch.context() as patched:
        stop_at(1, patched)
        with pytest.raises(KeyboardInterrupt):
            train(config(*options(data, path)))
    with pytest.raises(CamexpError, match=r"(?s)other settings.*recipe.clip: 2.0 -> 1.0"):
        train(config(*options(data, path, "recipe.clip=1.0")))
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(CamexpError, match=r"(?s)cannot read the interrupted training.*overwrite=true"):
        train(config(*options(data, path)))
    train(config(*options(data, path, "overwrite=true")))
    assert path.exists()
    assert not state.exists()


def test_a_full_disk_keeps_the_last_state(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    through, path = tmp_path / "through.safetensors", tmp_path / "net.safetensors"
    train(config(*options(data, through)))
    real, calls = os.fsync, []

    def fill_up(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fill_up)
        with pytest.raises(CamexpError, match="the disk is full"):
            train(config(*options(data, path)))
    assert [p.name for p in tmp_path.glob("net*")] == ["net.resume"]
    train(config(*options(data, path)))
    assert path.read_bytes() == through.read_bytes()


def test_two_trainings_of_the_same_weights(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    with training_run._alone(path), pytest.raises(CamexpError, match="another training is writing"):
        train(config(*options(data, path)))


def test_the_script_goes_on_after_a_kill(data: Path, tmp_path: Path) -> None:
    script = [sys.executable, str(CONFIGS.parent / "scripts" / "train.py")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    path = tmp_path / "net.safetensors"
    long = options(data, path, "recipe.full_epochs=1000")
    victim = subprocess.Popen([*script, *long], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not path.with_suffix(".resume").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    state = torch.load(path.with_suffix(".resume"), weights_only=True)["state"]
    assert state["step"] > 0
    with pytest.raises(CamexpError, match=r"recipe.batch: 4 -> 8"):
        train(config(*long, "recipe.batch=8"))
