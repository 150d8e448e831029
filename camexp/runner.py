"""One run: the loop over batches (load, explain, measure, append), then the runtime trials and the maps to look at."""

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from camexp import config, trials
from camexp.checks import check_options
from camexp.datasets.base import Dataset, Failure
from camexp.explain import Explainer, clock
from camexp.files import write_atomically
from camexp.identity import identify
from camexp.loading import load_batches
from camexp.maps import MapSaver
from camexp.measure import measure
from camexp.memory import keep_freed_memory
from camexp.methods.base import Method
from camexp.metrics import Metric
from camexp.models.classifier import Classifier
from camexp.models.preprocess import Fed, Preprocess
from camexp.provenance import environment, machine
from camexp.records import Key, Row, RunFolder, key_of, timing

NOT_FINITE = "the method's map is not finite"
NOT_MEASURED = "the network's confidence in the image, or in what the metrics make of it, is not finite"


@dataclass(frozen=True)
class Outcome:
    """What a run left: its folder, its counts, and what had to be computed.

    Attributes
    ----------
    computed: pairs; maps: pairs of finished batches that were explained again to save their maps; trials: of the
        run time.
    """

    path: Path
    rows: int
    failures: int
    computed: int
    maps: int = 0
    trials: int = 0


def execute(cfg: DictConfig, command: str = "") -> Outcome:
    """Run one config to its end, or go on where it was interrupted.

    Parameters
    ----------
    command: that composes the config, for run.json.

    Raises
    ------
    CamexpError: for anything that the user can mend; rows that were finished stay.
    """
    if cfg.keep_freed_memory:
        keep_freed_memory()
    check_options(cfg)
    preprocess = config.make_preprocess(cfg)
    dataset = config.make_dataset(cfg)
    method, metrics = config.make_method(cfg), config.make_metrics(cfg)
    classifier, weights = config.make_classifier(cfg, len(dataset.classes))
    identity = identify(cfg, dataset, weights)
    folder = RunFolder(Path(cfg.output), list(metrics), identity, cfg.overwrite)
    try:
        return _Run(cfg, dataset, preprocess, classifier, method, metrics, identity, folder, command).execute()
    finally:
        folder.close()


def command_of(options: Sequence[str]) -> str:
    """The command line of a run."""
    return shlex.join(["python", "-m", "camexp.run", *options])


@dataclass
class _Run:
    """The parts of one run while it lasts."""

    cfg: DictConfig
    dataset: Dataset
    preprocess: Preprocess
    classifier: Classifier
    method: Method
    metrics: dict[str, Metric]
    identity: dict[str, Any]
    folder: RunFolder
    command: str
    explainer: Explainer = field(init=False)
    saver: MapSaver = field(init=False)
    here: dict[str, Any] = field(init=False)
    timed_on: dict[str, Any] | None = None

    @property
    def label(self) -> str:
        return f"{self.cfg.dataset.name} {self.cfg.model.name} {self.cfg.method.name}"

    def execute(self) -> Outcome:
        size = self.cfg.batch_size
        batches = [range(i, min(i + size, len(self.dataset))) for i in range(0, len(self.dataset), size)]
        keys = [[key for index in batch for key in self._keys(index)] for batch in batches]
        only_times = self.cfg.runtime.only
        todo = self.folder.prepare(keys, self.dataset.failures, self.cfg.retry and not only_times)
        if only_times:
            todo = []
        self.explainer = Explainer(self.classifier, self.method, self.cfg.share_classes)
        self.saver = MapSaver(self.folder.path, self.dataset, self.preprocess, self.cfg.save_maps, self.folder.rows)
        info = self.folder.read_info()
        self.here = machine(self.classifier.device)
        if any(row["kind"] == "trial" for row in self.folder.timing):
            timed_on = info.get("timed_on") or info.get("environment") or {}
            self.timed_on = {name: timed_on.get(name) for name in self.here}
        missing = self._missing_trials()
        complete = info.get("complete", False)
        if todo or missing or not complete:
            if missing:
                self._time_here()
            self._write_info(complete=False)
            write_atomically(self.folder.path / "config.yaml", OmegaConf.to_yaml(self.cfg, resolve=True))
            self._explain_batches([batches[n] for n in todo], todo, sum(len(keys[n]) for n in todo))
            self.folder.finish()
            self._run_trials(missing)
            self._write_info(complete=complete or not only_times)
        maps = self._save_missing_maps()
        computed = sum(len(keys[n]) for n in todo)
        taken = missing - self._missing_trials()  # what cannot be read is not timed
        return Outcome(self.folder.path, len(self.folder.rows), len(self.folder.failures), computed, maps, taken)

    def _keys(self, index: int) -> list[Key]:
        image_id = self.dataset.image_ids[index]
        return [(image_id, str(target.class_id)) for target in self.dataset.targets[index]]

    # --------------------------------------------------------------------------------------- main loop

    def _explain_batches(self, batches: list[range], numbers: list[int], pairs: int) -> None:
        with_pairs = [[index for index in batch if self.dataset.targets[index]] for batch in batches]
        loaded = load_batches(self.dataset, self.preprocess, with_pairs, self.cfg.workers)
        with tqdm(total=pairs, desc=self.label, unit="pair", dynamic_ncols=True) as progress:
            self.classifier.on_forward = _forward_counter(progress)
            for batch, batch_number in zip(batches, numbers, strict=True):
                started = time.perf_counter()
                fed = next(loaded)
                load_s = time.perf_counter() - started
                rows, failures, explain_s, metrics_s = self._measure(fed)
                told = timing(
                    "batch",
                    batch=batch_number,
                    images=len(fed),
                    pairs=len(rows),
                    load_s=load_s,
                    explain_s=explain_s,
                    metrics_s=metrics_s,
                )
                self.folder.append(rows, failures, told)
                progress.update(sum(len(self.dataset.targets[index]) for index in batch))

    def _measure(self, fed: list[Fed]) -> tuple[list[Row], list[Failure], float, float]:
        """Rows and failures of one batch and the seconds spent on explaining and measuring."""
        failures = [failure for f in fed for failure in f.sample.failures]
        rows: dict[Key, Row] = {}
        explain_s = metrics_s = 0.0
        for found in self.explainer.explain(fed):
            started = clock(self.classifier.device)
            measured = measure(found, self.classifier, self.metrics, self.dataset.classes)
            failures += [
                Failure(image_id, target, NOT_MEASURED if finite else NOT_FINITE)
                for (_, image_id, target), finite in zip(found.pairs, found.finite.tolist(), strict=True)
                if (image_id, str(target)) not in measured
            ]
            rows |= measured
            explain_s += found.seconds
            metrics_s += clock(self.classifier.device) - started
            self.saver.save(found.images, found.pairs, found.maps, found.finite)
        order = [(f.sample.image_id, str(t.class_id)) for f in fed for t in f.sample.targets]
        return [rows[key] for key in order if key in rows], failures, explain_s, metrics_s

    def _save_missing_maps(self) -> int:
        """Explain again, for their maps alone, images of finished batches; the number of their pairs."""
        missing, size, saved = self.saver.missing(self.folder.rows), self.cfg.batch_size, 0
        batches = [missing[i : i + size] for i in range(0, len(missing), size)]
        loaded = load_batches(self.dataset, self.preprocess, batches, self.cfg.workers)
        label = f"{self.label} maps"
        for fed in tqdm(loaded, total=len(batches), desc=label, unit="batch", disable=not batches, dynamic_ncols=True):
            for found in self.explainer.explain(fed):
                saved += self.saver.save(found.images, found.pairs, found.maps, found.finite)
        self.saver.finish()
        if saved:
            print(
                f"{self.saver.folder}: {saved} maps of finished batches saved; the rows are untouched", file=sys.stderr
            )
        return saved

    # ---------------------------------------------------------------------------------- runtime protocol

    def _missing_trials(self) -> int:
        """How many are asked for beyond those that this machine has made."""
        done = sum(row["kind"] == "trial" for row in self.folder.timing)
        return max(0, self.cfg.runtime.trials - done * (self.timed_on == self.here))

    def _time_here(self) -> None:
        """From now on trials are this machine's; those of another are dropped: a mean of both would mean nothing."""
        before, self.timed_on = self.timed_on, self.here
        if before and before != self.here:
            self.folder.forget_trials()
            print(
                f"{self.folder.path}: run times are taken anew: those at hand are of {before['device']}, "
                f"{before['threads']} threads, and this is {self.here['device']}, {self.here['threads']} threads",
                file=sys.stderr,
            )

    def _run_trials(self, missing: int) -> None:
        """Append one timing row per trial."""
        rows = {key_of(row) for row in self.folder.rows}
        pairs = trials.candidates(self.dataset, None if self.cfg.runtime.only else rows)
        chosen = trials.choose(pairs, self.cfg.runtime.trials, missing, self.cfg.seed)
        warmup = self.cfg.runtime.warmup
        for image_id, seconds in trials.times(
            self.explainer, self.dataset, self.preprocess, chosen, warmup, self.label
        ):
            self.folder.append_timing(timing("trial", images=1, pairs=1, image_id=image_id, explain_s=seconds))

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
                "timed_on": self.timed_on,
                "command": self.command,
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
