"""One training from a composed config to the weights' file and its record."""

import contextlib
import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save
from torch import nn

from camexp import config
from camexp.datasets.base import Dataset
from camexp.errors import CamexpError
from camexp.files import make_folder, write_atomically
from camexp.identity import NOT_IDENTITY
from camexp.models import checkpoint
from camexp.models.preprocess import Preprocess
from camexp.provenance import environment
from camexp.records import differing
from camexp.training.data import Labelled
from camexp.training.labels import hold_out, label_sets
from camexp.training.loop import Trainer, measure
from camexp.training.networks import find_initial, finished, starting_network
from camexp.training.outcome import output_path, read_record, summary, usage
from camexp.training.recipe import PRECISIONS, Recipe, make, read_recipe
from camexp.training.state import ResumeFile


def train(cfg: DictConfig) -> str:
    """Train as the config says, or go on where it was interrupted; returns what to tell the user.

    Raises
    ------
    CamexpError: for anything that the user can mend; the last saved state stays.
    """
    run = _Run.from_config(cfg)
    with _alone(run.weights):
        if run.is_finished():
            return f"{run.weights}: already finished, nothing to do\n{summary(read_record(run.weights))}"
        try:
            with _repeatable(run.device):
                run.execute()
        except torch.OutOfMemoryError as error:
            raise CamexpError("the GPU's memory is too small for this batch; lower recipe.batch") from error
        return f"{run.weights}: written\n{summary(read_record(run.weights))}\n{usage(cfg, run.weights)}"


@contextlib.contextmanager
def _alone(weights: Path) -> Iterator[None]:
    """Keep a second training from writing the same weights."""
    make_folder(weights.parent)
    lock = FileLock(weights.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise CamexpError(f"another training is writing {weights}; wait for it or choose another output=") from None
    try:
        yield
    finally:
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


@contextlib.contextmanager
def _repeatable(device: torch.device) -> Iterator[None]:
    """Let torch compute the same every time; some layers have no such form on a GPU and differ in the last bits."""
    before, only_warned = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=device.type == "cuda")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=only_warned)


@dataclass
class _Run:
    """The parts of one training while it lasts."""

    cfg: DictConfig
    recipe: Recipe
    device: torch.device
    initial: Path | None
    training: Labelled
    validation: Labelled | None
    test: Labelled
    settings: dict[str, Any]
    weights: Path

    @classmethod
    def from_config(cls, cfg: DictConfig) -> "_Run":
        recipe = read_recipe(cfg.recipe)
        device = config.make_device(cfg.device)
        initial = find_initial(recipe.initial, cfg.model.architecture)
        learned, test = _labelled(cfg, recipe, recipe.train), _labelled(cfg, recipe, recipe.test)
        if learned.dataset.classes != test.dataset.classes:
            raise CamexpError(f"the splits' classes differ: {learned.dataset.classes} and {test.dataset.classes}")
        ids = [learned.dataset.image_ids[i] for i in learned.indices]
        rows, held = hold_out(ids, recipe.validation, cfg.seed)
        return cls(
            cfg,
            recipe,
            device,
            initial,
            learned.subset(rows),
            learned.subset(held) if held else None,
            test,
            _settings(cfg, recipe, initial, learned.dataset, len(ids)),
            output_path(cfg),
        )

    @property
    def resume(self) -> ResumeFile:
        return ResumeFile(self.weights.with_suffix(".resume"), self.settings)

    def is_finished(self) -> bool:
        """Whether the weights are there, made with these settings.

        Raises
        ------
        CamexpError: when they were made with others, unless `overwrite`.
        """
        if not self.weights.exists() or self.cfg.overwrite or self.resume.path.exists():
            return False
        record = read_record(self.weights)
        if record.get("settings") is None or record.get("sha256") != checkpoint.sha256(self.weights):
            raise CamexpError(
                f"{self.weights} was not made by this version of the script; "
                "choose another output= or pass overwrite=true to replace it."
            )
        fields = differing(record["settings"], self.settings)
        if fields:
            raise CamexpError(
                f"{self.weights} was trained with other settings; they differ in\n  " + "\n  ".join(fields) + "\n"
                "Choose another output= or pass overwrite=true to replace it."
            )
        return True

    # ----------------------------------------------------------------------------------------- training

    def execute(self) -> None:
        """Train, measure, and write the weights and the record."""
        torch.manual_seed(self.cfg.seed)
        state = self.resume.load(self.cfg.overwrite)
        model = self.cfg.model
        network = starting_network(model, self.training.labels.shape[1], self.initial, self.recipe.dropout)
        trainer = Trainer(
            network.to(self.device, memory_format=torch.channels_last),  # type: ignore[call-overload]
            make(self.recipe.source, self.training, self.cfg.seed),
            self.training.labels,
            self.recipe,
            self.cfg.seed,
            self.validation,
            self.resume.save,
            self.cfg.checkpoint_minutes * 60,
        )
        if state is not None:
            trainer.restore(state)
            print(f"{self.resume.path}: going on at step {trainer.step} of {trainer.total}", file=sys.stderr)
        trained = finished(trainer.train(self.weights.stem), model.architecture).cpu()
        self._write(trained, trainer)
        self.resume.remove()

    def _write(self, network: nn.Module, trainer: Trainer) -> None:
        """The weights, the epochs' CSV and the JSON; what is measured is what is written."""
        kept = {k: v for k, v in network.state_dict().items() if "num_batches" not in k}
        state = {k: v.to(PRECISIONS[self.recipe.store]).contiguous() for k, v in kept.items()}
        network.load_state_dict({k: v.float() for k, v in state.items()}, strict=False)
        quality = measure(network.to(self.device), self.test, self.device, "test images")
        write_atomically(self.weights, save(state))
        self.weights.chmod(0o644)
        epochs = pd.DataFrame(trainer.history).to_csv(index=False, float_format="%.6g", lineterminator="\n")
        write_atomically(self.weights.with_suffix(".csv"), epochs)
        record = {
            "command": shlex.join(["python", "scripts/train.py", *sys.argv[1:]]),
            "test": {k: round(v, 4) for k, v in quality.items()},
            "target": self.recipe.target,
            "test_images": len(self.test),
            "train_images": len(self.training),
            "validation_images": len(self.validation) if self.validation else 0,
            "steps": trainer.step,
            "best_epoch": trainer.best.get("epoch"),
            "width": self.cfg.model.width,
            "parameters": sum(p.numel() for p in network.parameters()),
            "minutes": round(trainer.seconds / 60, 1),
            "initial": str(self.initial.name) if self.initial else "random",
            "torch": torch.__version__,
            "environment": environment(self.device),
            "sha256": checkpoint.sha256(self.weights),
            "settings": self.settings,
        }
        write_atomically(self.weights.with_suffix(".json"), json.dumps(record, indent=2) + "\n")


def _labelled(cfg: DictConfig, recipe: Recipe, options: dict[str, Any]) -> Labelled:
    """The labelled images of the data set with the recipe's options for a split."""
    node = {**_plain(cfg.dataset), **options}
    dataset = config.make_dataset(OmegaConf.create({"dataset": node, "limit": cfg.limit}))
    indices, labels = label_sets(dataset)
    return Labelled(dataset, indices, labels, Preprocess(cfg.model.preprocess, recipe.size), cfg.workers)


def _settings(cfg: DictConfig, recipe: Recipe, initial: Path | None, dataset: Dataset, images: int) -> dict[str, Any]:
    """Everything that the weights depend on, flat; places are left out, contents are told by hashes."""
    kept = ("architecture", "width", "head", "preprocess")
    ignored = (*NOT_IDENTITY, "cache", *(recipe.train.keys() & recipe.test.keys()))
    nested = {
        "dataset": {"name": cfg.dataset.name} | {k: v for k, v in _plain(cfg.dataset).items() if k not in ignored},
        "model": {k: v for k, v in _plain(cfg.model).items() if k in kept},
        "recipe": asdict(recipe) | {"initial": checkpoint.sha256(initial) if initial else "random"},
        "seed": cfg.seed,
        "limit": cfg.limit,
        "training": {"images": images, "annotations_sha256": dataset.annotations_sha256},
    }
    flat = pd.json_normalize(nested, sep=".").to_dict("records")[0]
    return json.loads(json.dumps(flat, default=str))


def _plain(node: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(node, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
