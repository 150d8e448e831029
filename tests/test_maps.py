"""Maps saved by a run: which images, what is in the files, and that nothing else changes."""

import csv
import errno
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig
from PIL import Image

from camexp import config, maps
from camexp.config import compose_config
from camexp.datasets.base import Dataset, Sample, Target
from camexp.datasets.mini import minivoc
from camexp.errors import CamexpError
from camexp.identity import identify
from camexp.maps import INDEX_COLUMNS, MapSaver, chosen_images, evenly_spread, fed_pixels, file_stem, read_saved
from camexp.methods.base import scale_to_unit
from camexp.methods.gradcam import GradCAM
from camexp.models.preprocess import NORMALISATIONS, Preprocess
from camexp.pairs import Pairs
from camexp.records import key_of
from camexp.runner import Outcome, execute

SCENES = 8

# ------------------------------------------------------------------------------------------- which images


@pytest.mark.parametrize(("total", "count"), [(10, 0), (10, 3), (10, 10), (10, 40), (0, 5), (1, 1), (40504, 100)])
def test_spread_has_the_count_and_no_number_twice(total, count):
    chosen = evenly_spread(total, count)
    assert len(chosen) == len(set(chosen)) == min(total, count)
    assert all(0 <= number < total for number in chosen)


@pytest.mark.parametrize(("total", "count"), [(4952, 8), (4952, 50), (64, 12), (1000, 333)])
def test_spread_leaves_no_large_gap(total, count):
    ends = [-1, *sorted(evenly_spread(total, count)), total]
    assert max(np.diff(ends)) <= 3 * total / count


def test_more_images_contain_the_fewer():
    for count in range(30):
        assert evenly_spread(97, count + 1)[:count] == evenly_spread(97, count)


class Named(Dataset):
    """Images that have names and pairs, and no files."""

    def __init__(self, targets: list[int]):
        self.classes = ("cat", "dog", 'a/b,"c"')
        self.image_ids = tuple(f"{i}" for i in range(len(targets)))
        self.targets = tuple(tuple(Target(c) for c in range(n)) for n in targets)

    def read_image(self, index: int) -> Image.Image:
        raise NotImplementedError

    def read_mask(self, index: int, class_id: int, width: int, height: int) -> np.ndarray:
        raise NotImplementedError


def test_images_without_pairs_are_not_chosen():
    dataset = Named([0, 1, 0, 2, 0, 1, 1])
    assert chosen_images(dataset, 99) == [1, 3, 5, 6]
    assert set(chosen_images(dataset, 2)) < {1, 3, 5, 6}


# ------------------------------------------------------------------------------------------------- file names

IDS = [
    "000012", "2007_000175", "../../etc/passwd", "/etc/passwd", "a/b", "a_b", "a\\b", "a b", "CON", "nul.txt",
    "", ".", "..", "x" * 300, "x" * 301, "A", "a", "été", "e\u0301te\u0301", "猫", 'a:*?"<>|', "a\nb", "~", "-rf", "a.",
    "000000001@1024",
]  # fmt: skip


def test_file_stems_are_harmless_and_told_apart_even_without_case():
    stems = [file_stem(image_id) for image_id in IDS]
    assert len({stem.lower() for stem in stems}) == len(IDS)
    for stem in stems:
        assert set(stem) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
        assert len(stem) <= 60
    assert file_stem("2007_000175").startswith("2007_000175-")


# ---------------------------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("centring", ["model", "none"])
def test_pixels_of_a_fed_image_are_those_before_normalisation(normalisation, centring):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    preprocess = Preprocess(normalisation, 9, "squash", centring)
    assert (fed_pixels(preprocess.image(Image.fromarray(pixels)), preprocess) == pixels).all()


def saver(folder: Path, dataset: Dataset, count: int = 99, rows: list | None = None) -> MapSaver:
    return MapSaver(folder, dataset, Preprocess("imagenet", 6), count, rows or [])


def batch(dataset: Dataset, index: int = 0) -> tuple[torch.Tensor, Pairs, torch.Tensor]:
    """One image of 5x6 pixels with its pairs and their maps."""
    target = torch.tensor([t.class_id for t in dataset.targets[index]])
    masks = torch.zeros(len(target), 5, 6, dtype=torch.bool)
    masks[:, 1:3, 2:6] = True
    values = torch.arange(30.0).view(1, 5, 6) * (target + 1).view(-1, 1, 1) - 7
    return torch.zeros(1, 3, 5, 6), Pairs(torch.zeros_like(target), target, (dataset.image_ids[index],), masks), values


def finite(values: torch.Tensor) -> torch.Tensor:
    return torch.ones(len(values), dtype=torch.bool)


def test_saved_files_hold_map_ground_truth_and_image(tmp_path):
    dataset = Named([3])
    images, pairs, values = batch(dataset)
    assert saver(tmp_path, dataset).save(images, pairs, values, finite(values)) == 3
    saved = read_saved(tmp_path)
    assert [(one.image_id, one.class_id, one.class_name) for one in saved] == [
        ("0", 0, "cat"), ("0", 1, "dog"), ("0", 2, 'a/b,"c"'),
    ]  # fmt: skip
    expected = (np.arange(30).reshape(5, 6) / 29 * 255).round().astype(np.uint8)
    for number, one in enumerate(saved, 1):
        with Image.open(one.map_path) as picture:
            assert picture.mode == "L"
            assert (np.asarray(picture) == expected).all()
        with Image.open(one.mask_path) as picture:
            assert picture.mode == "1"
        assert (one.minimum, one.maximum) == (-7, 29 * number - 7)
        assert np.abs(one.read_map() - expected / 255).max() < 1e-6
        assert one.read_map().dtype == np.float32
        assert (one.read_mask() == pairs.masks[0].numpy()).all()
        # fed zeros are the mean colour of imagenet; JPEG may be a little off
        assert np.abs(one.read_image() - np.array([124, 116, 104])).max() <= 3
        assert one.read_image().shape == (5, 6, 3)
    assert len({one.image_path for one in saved}) == 1
    assert len({one.map_path for one in saved}) == 3


def test_constant_map_is_black_and_keeps_its_value(tmp_path):
    dataset = Named([1])
    images, pairs, values = batch(dataset)
    saver(tmp_path, dataset).save(images, pairs, torch.full_like(values, 2.5), finite(values))
    (one,) = read_saved(tmp_path)
    assert one.read_map().max() == 0
    assert (one.minimum, one.maximum) == (2.5, 2.5)


def test_map_that_is_not_finite_is_left_out(tmp_path):
    dataset = Named([2])
    images, pairs, values = batch(dataset)
    values[0, 0, 0] = torch.nan
    assert saver(tmp_path, dataset).save(images, pairs, values, torch.tensor([False, True])) == 1
    assert [one.class_id for one in read_saved(tmp_path)] == [1]


def test_nothing_is_made_before_a_map_is_saved(tmp_path):
    dataset = Named([1, 1])
    images, pairs, values = batch(dataset)
    assert saver(tmp_path, dataset, 0).save(images, pairs, values, finite(values)) == 0
    assert list(tmp_path.iterdir()) == []


def test_ids_that_look_like_paths_stay_in_the_folder(tmp_path):
    dataset = Named([1] * len(IDS))
    dataset.image_ids = tuple(IDS)
    folder = tmp_path / "deep" / "run"
    folder.mkdir(parents=True)
    opened = saver(folder, dataset)
    for index in range(len(IDS)):
        images, pairs, values = batch(dataset, index)
        opened.save(images, pairs, values, finite(values))
    assert [one.image_id for one in read_saved(folder)] == IDS
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.parent for path in files} == {folder / "maps"}
    assert len(files) == 3 * len(IDS) + 1


# --------------------------------------------------------------------------------------------------- reading


@pytest.fixture
def filled(tmp_path) -> Path:
    """A run's folder with the maps of two pairs."""
    dataset = Named([2])
    images, pairs, values = batch(dataset)
    saver(tmp_path, dataset).save(images, pairs, values, finite(values))
    return tmp_path


def test_missing_index_has_no_maps(tmp_path, filled):
    (filled / "maps" / "index.csv").unlink()
    assert read_saved(filled) == []
    assert read_saved(tmp_path / "nowhere") == []


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_torn_line_is_left_out(filled, cut):
    index = filled / "maps" / "index.csv"
    index.write_bytes(index.read_bytes()[:-cut])
    assert [one.class_id for one in read_saved(filled)] == [0]


@pytest.mark.parametrize(
    ("column", "value"),
    [("map", "../secret.png"), ("mask", "/etc/hostname"), ("image", "gone.jpg"), ("class_id", "dog"), ("minimum", "")],
)
def test_line_that_does_not_fit_is_left_out(filled, column, value):
    (filled / "secret.png").write_bytes(b"")
    index = filled / "maps" / "index.csv"
    lines = list(csv.DictReader(index.open()))
    lines[0][column] = value
    with index.open("w", newline="") as file:
        writer = csv.DictWriter(file, INDEX_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    assert [one.class_id for one in read_saved(filled)] == [1]


@pytest.mark.parametrize("content", [b"", b"\n", b"a,b\n1,2\n", b"\xff\xfe\x00\n", b"image_id\n"])
def test_index_of_something_else_has_no_maps(filled, content):
    (filled / "maps" / "index.csv").write_bytes(content)
    assert read_saved(filled) == []


# ---------------------------------------------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    minivoc(str(folder / "minivoc"), images=SCENES)
    return folder


def cfg(data: Path, output: Path, *overrides: str) -> DictConfig:
    """A quick run: untrained narrow network, small input, batches of three images."""
    quick = [f"data_dir={data}", f"dataset.images={SCENES}", f"output={output}", "model.checkpoint=random",
             "model.width=0.125", "protocol.size=64", "batch_size=3", "forward_batch=4", "runtime.trials=0",
             "device=cpu", "workers=0"]  # fmt: skip
    return compose_config([*quick, *overrides])


def run(data: Path, output: Path, *overrides: str) -> Outcome:
    return execute(cfg(data, output, *overrides))


def pairs_of(folder: Path) -> list[tuple[str, int]]:
    return [(one.image_id, one.class_id) for one in read_saved(folder)]


def pairs_of_images(data: Path, output: Path, count: int) -> list[tuple[str, int]]:
    dataset = config.make_dataset(cfg(data, output))
    return [(dataset.image_ids[i], t.class_id) for i in chosen_images(dataset, count) for t in dataset.targets[i]]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "maps").iterdir()}


RECORDS = ("records.csv", "failures.csv", "run.json")


@pytest.fixture(scope="module")
def bare(data, tmp_path_factory) -> Path:
    """The folder of a run that saved no maps."""
    folder = tmp_path_factory.mktemp("runs") / "bare"
    run(data, folder)
    return folder


@pytest.fixture(scope="module")
def with_maps(data, tmp_path_factory) -> Path:
    """The folder of a run that saved the maps of four images."""
    folder = tmp_path_factory.mktemp("runs") / "with_maps"
    assert run(data, folder, "save_maps=4").maps == 0  # all along with the rows
    return folder


def test_no_maps_are_saved_unless_asked_for(bare):
    assert not (bare / "maps").exists()


def test_maps_are_those_of_the_method(data, with_maps):
    assert pairs_of(with_maps) == pairs_of_images(data, with_maps, 4)
    composed = cfg(data, with_maps)
    dataset, preprocess = config.make_dataset(composed), config.make_preprocess(composed)
    classifier, _ = config.make_classifier(composed, len(dataset.classes))
    for one in read_saved(with_maps):
        index = dataset.image_ids.index(one.image_id)
        sample: Sample = dataset.load(index)
        images = preprocess.image(sample.image)[None]
        (expected,) = GradCAM()(classifier, images, Pairs(torch.tensor([0]), torch.tensor([one.class_id]), ("x",)))
        assert np.abs(one.read_map() - scale_to_unit(expected).numpy()).max() <= 0.51 / 255 + 1e-4
        assert one.maximum == pytest.approx(expected.max().item(), rel=1e-4)
        which = [t.class_id for t in sample.targets].index(one.class_id)
        masks = preprocess.masks(sample.masks, sample.image.width, sample.image.height)
        assert (one.read_mask() == masks[which].numpy()).all()
        shown, fed = one.read_image().astype(int), fed_pixels(images[0], preprocess).astype(int)
        assert np.abs(shown - fed).mean() < 6  # JPEG


def test_rows_do_not_depend_on_saved_maps(bare, with_maps):
    assert (bare / "records.csv").read_bytes() == (with_maps / "records.csv").read_bytes()


def test_images_do_not_depend_on_method_or_batch_size(data, with_maps, tmp_path):
    run(data, tmp_path / "other", "method=gradient", "batch_size=5", "save_maps=4")
    assert pairs_of(tmp_path / "other") == pairs_of(with_maps)


def test_maps_of_a_finished_run_are_saved_without_touching_it(data, with_maps, tmp_path, capsys):
    folder = tmp_path / "run"
    run(data, folder)
    before = {name: (folder / name).read_bytes() for name in RECORDS}
    timing = (folder / "timing.csv").read_bytes()
    capsys.readouterr()
    outcome = run(data, folder, "save_maps=4")
    assert (outcome.computed, outcome.maps) == (0, len(pairs_of(with_maps)))
    assert f"{outcome.maps} maps of finished batches saved" in capsys.readouterr().err
    assert {name: (folder / name).read_bytes() for name in RECORDS} == before
    assert (folder / "timing.csv").read_bytes() == timing
    assert pairs_of(folder) == pairs_of(with_maps)
    for here, there in zip(read_saved(folder), read_saved(with_maps), strict=True):
        assert np.abs(here.read_map() - there.read_map()).max() <= 1.01 / 255  # of another batch: last bits
        assert here.image_path.read_bytes() == there.image_path.read_bytes()
        assert here.mask_path.read_bytes() == there.mask_path.read_bytes()


def explained(monkeypatch) -> list[str]:
    """The names of the images that the method is called with, as they come."""
    seen: list[str] = []
    original = GradCAM.__call__

    def spy(self, classifier, images, pairs):
        seen.extend(pairs.image_ids)
        return original(self, classifier, images, pairs)

    monkeypatch.setattr(GradCAM, "__call__", spy)
    return seen


def test_more_maps_compute_only_what_is_missing(data, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    run(data, folder, "save_maps=2")
    before = files(folder)
    seen = explained(monkeypatch)
    run(data, folder, "save_maps=4")
    few, more = pairs_of_images(data, folder, 2), pairs_of_images(data, folder, 4)
    assert sorted(seen) == sorted({i for i, _ in more} - {i for i, _ in few})
    assert pairs_of(folder) == more  # in the order of the data set
    after = files(folder)
    assert all(after[name] == content for name, content in before.items() if name != "index.csv")
    seen.clear()
    run(data, folder, "save_maps=3")
    assert seen == []
    assert files(folder) == after


def test_a_lost_file_is_computed_again(data, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    run(data, folder, "save_maps=3")
    before = files(folder)
    lost = read_saved(folder)[0]
    lost.map_path.unlink()
    seen = explained(monkeypatch)
    run(data, folder, "save_maps=3")
    assert seen == [lost.image_id]
    assert files(folder).keys() == before.keys()


def test_interrupted_run_ends_with_the_same_maps(data, with_maps, tmp_path, monkeypatch):
    folder, calls = tmp_path / "run", Counter()
    original = MapSaver.save

    def interrupt(self, *arguments):
        saved = original(self, *arguments)
        calls["save"] += 1
        if calls["save"] == 2:  # after the files, before the rows
            raise KeyboardInterrupt
        return saved

    monkeypatch.setattr(MapSaver, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(data, folder, "save_maps=4")
    assert 0 < len(pairs_of(folder)) < len(pairs_of(with_maps))
    (folder / "maps" / "index.csv").open("a").write("torn,li")
    run(data, folder, "save_maps=4")
    assert files(folder) == files(with_maps)


def test_overwrite_deletes_maps_and_nothing_of_others(data, tmp_path):
    folder = tmp_path / "run"
    run(data, folder, "save_maps=2")
    (folder / "maps" / "notes.txt").write_text("mine")
    run(data, folder, "overwrite=true", "seed=1")
    assert read_saved(folder) == []
    assert files(folder).keys() == {"index.csv", "notes.txt"}


def test_number_of_maps_is_not_part_of_the_identity(data, bare, with_maps):
    dataset = config.make_dataset(cfg(data, bare))
    one, other = (identify(cfg(data, bare, f"save_maps={n}"), dataset, "") for n in (0, 9))
    assert one == other


@pytest.mark.parametrize("value", ["-1", "1.5", "all"])
def test_bad_number_of_maps_is_named(data, tmp_path, value):
    with pytest.raises(CamexpError, match=f"save_maps must be .*{value}"):
        run(data, tmp_path / "run", f"save_maps={value}")


def test_full_disk_says_so_and_the_run_resumes(data, with_maps, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    original, calls = os.replace, Counter()

    def fill_up(source, target):
        calls["image"] += Path(target).suffix in (".png", ".jpg")
        if calls["image"] == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(maps.os, "replace", fill_up)
        with pytest.raises(CamexpError, match="disk is full"):
            run(data, folder, "save_maps=4")
    assert not list((folder / "maps").glob("*.part"))
    run(data, folder, "save_maps=4")
    assert files(folder) == files(with_maps)


def test_images_of_several_shapes_are_saved_as_they_were_fed(data, tmp_path):
    run(data, tmp_path / "run", "protocol.resize=shorter_side", "save_maps=4")
    saved = read_saved(tmp_path / "run")
    assert len({one.read_map().shape for one in saved}) > 1
    for one in saved:
        assert one.read_map().shape == one.read_mask().shape == one.read_image().shape[:2]


def test_keys_agree_with_the_rows(with_maps):
    with (with_maps / "records.csv").open() as file:
        rows = {key_of(row): row for row in csv.DictReader(file)}
    for one in read_saved(with_maps):
        assert rows[one.image_id, str(one.class_id)]["class_name"] == one.class_name
        assert float(rows[one.image_id, str(one.class_id)]["area"]) == pytest.approx(one.read_mask().mean(), rel=1e-5)
