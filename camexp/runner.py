"""The loop over batches: load, explain, measure, append; and the runtime protocol's single-image trials."""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from tqdm import tqdm

from camexp import config
from camexp.datasets.base import Dataset, Failure
from camexp.errors import CamexpError
from camexp.loading import load_batches
from camexp.memory import keep_freed_memory
from camexp.methods.base import Method
from camexp.metrics import Explained, Metric
from camexp.models.classifier import Classifier
from camexp.models.preprocess import Fed
from camexp.pairs import Pairs
from camexp.provenance import environment
from camexp.records import Key, Row, RunFolder, number, write_atomically
from camexp.seeding import numpy_generator


@dataclass(frozen=True)
class Outcome:
    """What a run left: its folder, its counts, and whether anything had to be computed."""

    path: Path
    rows: int
    failures: int
    computed: int


def execute(cfg: DictConfig) -> Outcome:
    """Run one config to its end, or go on where it was interrupted.

    Raises
    ------
    CamexpError: for anything that the user can mend; rows that were finished stay.
    """
    keep_freed_memory()
    dataset = config.make_dataset(cfg)
    method, metrics = config.make_method(cfg), config.make_metrics(cfg)
    classifier, weights = config.make_classifier(cfg, len(dataset.classes))
    identity = config.identity(cfg, dataset, weights)
    folder = RunFolder(Path(cfg.output), list(metrics), identity, cfg.overwrite)
    try:
        return _Run(cfg, dataset, classifier, method, metrics, identity, folder).execute()
    finally:
        folder.close()


@dataclass
class _Run:
    """The parts of one run while it lasts."""

    cfg: DictConfig
    dataset: Dataset
    classifier: Classifier
    method: Method
    metrics: dict[str, Metric]
    identity: dict[str, Any]
    folder: RunFolder

    def execute(self) -> Outcome:
        size = self.cfg.batch_size
        if size < 1:
            raise CamexpError(f"batch_size must be at least 1, not {size}")
        batches = [range(i, min(i + size, len(self.dataset))) for i in range(0, len(self.dataset), size)]
        keys = [[key for index in batch for key in self._keys(index)] for batch in batches]
        todo = self.folder.prepare(keys, self.dataset.failures, self.cfg.retry)
        trials = self._missing_trials()
        if todo or trials or not self.folder.read_info().get("complete"):
            self._write_info(complete=False)
            write_atomically(self.folder.path / "config.yaml", OmegaConf.to_yaml(self.cfg, resolve=True))
            self._explain_batches([batches[n] for n in todo], todo, sum(len(keys[n]) for n in todo))
            self.folder.finish()
            self._run_trials(trials)
            self._write_info(complete=True)
        computed = sum(len(keys[n]) for n in todo)
        return Outcome(self.folder.path, len(self.folder.rows), len(self.folder.failures), computed)

    def _keys(self, index: int) -> list[Key]:
        image_id = self.dataset.image_ids[index]
        return [(image_id, str(target.class_id)) for target in self.dataset.targets[index]]

    # --------------------------------------------------------------------------------------- main loop

    def _explain_batches(self, batches: list[range], numbers: list[int], pairs: int) -> None:
        preprocess = config.make_preprocess(self.cfg)
        with_pairs = [[index for index in batch if self.dataset.targets[index]] for batch in batches]
        loaded = load_batches(self.dataset, preprocess, with_pairs, self.cfg.workers)
        label = f"{self.cfg.dataset.name} {self.cfg.model.name} {self.cfg.method.name}"
        with tqdm(total=pairs, desc=label, unit="pair", dynamic_ncols=True) as progress:
            self.classifier.on_forward = _forward_counter(progress)
            for batch, batch_number in zip(batches, numbers, strict=True):
                started = time.perf_counter()
                fed = next(loaded)
                load_s = time.perf_counter() - started
                rows, failures, explain_s, metrics_s = self._measure(fed)
                timing = {
                    "kind": "batch",
                    "batch": str(batch_number),
                    "image_id": "",
                    "images": str(len(fed)),
                    "pairs": str(len(rows)),
                    "load_s": number(load_s),
                    "explain_s": number(explain_s),
                    "metrics_s": number(metrics_s),
                }
                self.folder.append(rows, failures, timing)
                progress.update(sum(len(self.dataset.targets[index]) for index in batch))

    def _measure(self, fed: list[Fed]) -> tuple[list[Row], list[Failure], float, float]:
        """Rows and failures of one batch and the seconds spent on explaining and measuring.

        Images of different sizes (with the aspect kept) go in groups of one size.
        """
        failures = [failure for f in fed for failure in f.sample.failures]
        shapes = sorted({tuple(f.image.shape) for f in fed if f.image is not None and f.sample.targets})
        rows: dict[Key, Row] = {}
        explain_s = metrics_s = 0.0
        for shape in shapes:
            group = [f for f in fed if f.image is not None and f.image.shape == shape and f.sample.targets]
            images, pairs = self._stack(group)
            started = self._clock()
            maps = self.method(self.classifier, images, pairs)
            explained_at = self._clock()
            finite = self._check(maps, pairs, images)
            failures += [
                Failure(image_id, target, "the method's map is not finite")
                for (_, image_id, target), ok in zip(pairs, finite.tolist(), strict=True)
                if not ok
            ]
            rows |= self._rows(group, images, pairs, torch.where(finite[:, None, None], maps, 0), finite)
            explain_s += explained_at - started
            metrics_s += self._clock() - explained_at
        order = [(f.sample.image_id, str(t.class_id)) for f in fed for t in f.sample.targets]
        return [rows[key] for key in order if key in rows], failures, explain_s, metrics_s

    def _stack(self, group: list[Fed]) -> tuple[Tensor, Pairs]:
        images = torch.stack([f.image for f in group if f.image is not None]).to(self.classifier.device)
        index = [i for i, f in enumerate(group) for _ in f.sample.targets]
        target = [t.class_id for f in group for t in f.sample.targets]
        ids = tuple(f.sample.image_id for f in group)
        pairs = Pairs(torch.tensor(index), torch.tensor(target), ids, torch.cat([f.masks for f in group]))
        return images, pairs.to(self.classifier.device)

    @staticmethod
    def _check(maps: Tensor, pairs: Pairs, images: Tensor) -> Tensor:
        """Which maps (P,) are finite; a wrong shape or type is the method's mistake."""
        expected = (len(pairs), *images.shape[2:])
        if tuple(maps.shape) != expected or maps.dtype != torch.float32:
            raise TypeError(f"a method must return float32 maps {expected}, got {maps.dtype} {tuple(maps.shape)}")
        return maps.isfinite().flatten(1).all(1)

    @torch.no_grad()
    def _rows(self, group: list[Fed], images: Tensor, pairs: Pairs, maps: Tensor, finite: Tensor) -> dict[Key, Row]:
        scores = self.classifier.scores(images)
        confidence = scores[pairs.image, pairs.target]
        explained = Explained(self.classifier, images, pairs, maps, confidence)
        values = {name: metric(explained).tolist() for name, metric in self.metrics.items()}
        top = (scores.argmax(1)[pairs.image] == pairs.target).tolist()
        constant = (maps.amax((1, 2)) == maps.amin((1, 2))).tolist()
        area = explained.masks.flatten(1).double().mean(1).tolist()
        difficult = [t.difficult for f in group for t in f.sample.targets]
        probability = confidence.tolist()
        rows = {}
        for p, (_, image_id, target) in enumerate(pairs):
            if finite[p]:
                row = {
                    "image_id": image_id,
                    "class_id": str(target),
                    "class_name": self.dataset.classes[target],
                    "prob": number(probability[p]),
                    "argmax": str(int(top[p])),
                    "difficult": str(int(difficult[p])),
                    "area": number(area[p]),
                    "degenerate": str(int(constant[p])),
                }
                rows[image_id, str(target)] = row | {name: number(v[p]) for name, v in values.items()}
        return rows

    def _clock(self) -> float:
        """Seconds, after the device has finished what was asked of it."""
        if self.classifier.device.type == "cuda":
            torch.cuda.synchronize(self.classifier.device)
        return time.perf_counter()

    # ---------------------------------------------------------------------------------- runtime protocol

    def _missing_trials(self) -> int:
        done = sum(row["kind"] == "trial" for row in self.folder.timing)
        return max(0, self.cfg.runtime.trials - done)

    def _run_trials(self, missing: int) -> None:
        """Explain single random pairs, batch 1, synchronised, after warm-up; one timing row per trial."""
        written = {(row["image_id"], row["class_id"]) for row in self.folder.rows}
        candidates = [
            (index, target)
            for index in range(len(self.dataset))
            for target, key in zip(self.dataset.targets[index], self._keys(index), strict=True)
            if key in written
        ]
        if not missing or not candidates:
            return
        chosen = numpy_generator(self.cfg.seed, "runtime").permutation(len(candidates))
        wanted = [candidates[chosen[i % len(chosen)]] for i in range(self.cfg.runtime.trials)][-missing:]
        warm_up = wanted[:1] * self.cfg.runtime.warmup
        preprocess = config.make_preprocess(self.cfg)
        batches = [[index] for index, _ in warm_up + wanted]
        loaded = load_batches(self.dataset, preprocess, batches, workers=0)
        label = f"{self.cfg.dataset.name} {self.cfg.model.name} {self.cfg.method.name} runtime"
        steps = zip(loaded, warm_up + wanted, strict=True)
        for step, (fed, (_, target)) in enumerate(tqdm(steps, total=len(batches), desc=label, leave=False)):
            images, pairs = self._stack(fed)
            position = fed[0].sample.targets.index(target)  # among the pairs that could be read
            _, pair = pairs.chunk(slice(position, position + 1))
            started = self._clock()
            self.method(self.classifier, images, pair)
            seconds = self._clock() - started
            if step >= len(warm_up):
                self.folder.append_timing(
                    {
                        "kind": "trial",
                        "batch": "",
                        "image_id": fed[0].sample.image_id,
                        "images": "1",
                        "pairs": "1",
                        "load_s": "",
                        "explain_s": number(seconds),
                        "metrics_s": "",
                    }
                )

    # ----------------------------------------------------------------------------------------- provenance

    def _write_info(self, complete: bool) -> None:
        targets = self.dataset.targets
        self.folder.write_info(
            {
                "dataset": self.cfg.dataset.name,
                "model": self.cfg.model.name,
                "method": self.cfg.method.name,
                "variant": config.variant(self.method),
                "metrics": list(self.metrics),
                "embedded": self.cfg.model.checkpoint == "embedded",
                "complete": complete,
                "images": len(self.dataset),
                "images_without_pairs": sum(not t for t in targets),
                "pairs": sum(len(t) for t in targets),
                "rows": len(self.folder.rows),
                "failures": len(self.folder.failures),
                "degenerate": sum(row["degenerate"] == "1" for row in self.folder.rows),
                "identity": self.identity,
                "environment": environment(self.classifier.device),
                "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            }
        )


def _forward_counter(progress: tqdm) -> Callable[[int], None]:
    """Shows twice a second how many images went through the network: a batch may take minutes."""
    count, shown = 0, time.monotonic()

    def tell(images: int) -> None:
        nonlocal count, shown
        count += images
        if time.monotonic() - shown > 0.5:
            shown = time.monotonic()
            progress.set_postfix_str(f"{count} forwards")

    return tell
