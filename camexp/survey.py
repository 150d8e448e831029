"""What runs will take before they start: what is missing for them, how many pairs are left, and how long they last."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from tqdm import tqdm

from camexp import config
from camexp.checks import check_options
from camexp.config import compose_config
from camexp.datasets.base import Dataset
from camexp.errors import CamexpError
from camexp.explain import Explainer, clock, stack
from camexp.files import free_bytes
from camexp.identity import identify
from camexp.models.classifier import Classifier
from camexp.models.preprocess import feed
from camexp.pairs import Pairs
from camexp.plan import PlannedRun
from camexp.records import conflict, keys_in, something_computed

BYTES_PER_ROW = 150


@dataclass(frozen=True)
class Prospect:
    """What is known of a run before it starts.

    Attributes
    ----------
    problem: why it cannot run, with what to do; empty if it can.
    pairs: of the data set; `left` of them are not computed yet.
    seconds: estimated for what is left; None when unknown. `at_least`: the probe ended before one image did.
    """

    run: PlannedRun
    problem: str = ""
    pairs: int = 0
    left: int = 0
    seconds: float | None = None
    at_least: bool = False

    @property
    def state(self) -> str:
        if self.problem:
            return "cannot run"
        if self.pairs and not self.left:
            return "finished"
        return f"{self.pairs - self.left} of {self.pairs} pairs" if self.left < self.pairs else "new"


@dataclass
class Surveyor:
    """Looks at runs one after the other; data sets and networks are built once for all of them.

    Parameters
    ----------
    budget: seconds that the probe of one run may take, on one image; 0 for no probes.
    """

    budget: float
    _datasets: dict[str, Dataset | CamexpError] = field(default_factory=dict)
    _classifiers: dict[str, Classifier] = field(default_factory=dict)

    def survey(self, runs: list[PlannedRun]) -> list[Prospect]:
        """What each run will take, with a progress bar."""
        return [self._prospect(run) for run in tqdm(runs, desc="plan", unit="run", leave=False, dynamic_ncols=True)]

    def _prospect(self, run: PlannedRun) -> Prospect:
        try:
            cfg = compose_config(list(run.overrides))
            check_options(cfg)
            missing = [problem for part in (self._dataset, config.checkpoint_path) if (problem := _problem(part, cfg))]
            if missing:
                return Prospect(run, "\n".join(missing))
            dataset = self._dataset(cfg)
            if said := _conflict(cfg, dataset):
                return Prospect(run, said)
            pairs = sum(map(len, dataset.targets)) if run.rows else 0
            left = _left(dataset, Path(cfg.output)) if run.rows else 0
            seconds, at_least = self._estimate(cfg, dataset, left or int(not run.rows))
        except CamexpError as error:
            return Prospect(run, str(error))
        return Prospect(run, "", pairs, left, seconds, at_least)

    def _dataset(self, cfg: DictConfig) -> Dataset:
        key = OmegaConf.to_yaml(cfg.dataset, resolve=True) + f"limit: {cfg.limit}"
        if key not in self._datasets:
            try:
                self._datasets[key] = config.make_dataset(cfg)
            except CamexpError as error:
                self._datasets[key] = error
        found = self._datasets[key]
        if isinstance(found, CamexpError):
            raise found
        return found

    def _estimate(self, cfg: DictConfig, dataset: Dataset, pairs: int) -> tuple[float | None, bool]:
        if not self.budget or not pairs:
            return (None if pairs else 0.0), False
        key = f"{cfg.dataset.name} {cfg.model.name} {cfg.protocol}"
        if key not in self._classifiers:
            self._classifiers.clear()  # one network at a time: runs come in the order of the tables
            self._classifiers[key], _ = config.make_classifier(cfg, len(dataset.classes))
        try:
            per_pair, at_least = probe(cfg, dataset, self._classifiers[key], self.budget)
        except CamexpError:
            raise
        except Exception as error:  # of a method's own code; the run itself tells more
            print(f"{cfg.method.name}: no estimate: {type(error).__name__}: {error}", file=sys.stderr)
            return None, False
        return per_pair * pairs, at_least


def _conflict(cfg: DictConfig, dataset: Dataset) -> str:
    """What keeps a run from its folder, with what to do; empty if nothing does."""
    folder = Path(cfg.output)
    if cfg.overwrite or not something_computed(folder):
        return ""
    said = conflict(folder, identify(cfg, dataset, config.weights_of(cfg)))
    return f"{said}\nMove or delete this folder, and it is computed anew." if said else ""


def _left(dataset: Dataset, folder: Path) -> int:
    """Pairs of a data set of which a run's folder has neither a row nor a failure."""
    done = keys_in(folder)
    pairs = zip(dataset.image_ids, dataset.targets, strict=True)
    return sum((image_id, str(target.class_id)) not in done for image_id, targets in pairs for target in targets)


def _problem(part: Callable[[DictConfig], object], cfg: DictConfig) -> str:
    """What a part of a run lacks; empty if it can be made."""
    try:
        part(cfg)
    except CamexpError as error:
        return str(error)
    return ""


class _Over(Exception):
    """The probe's time is over."""


def probe(cfg: DictConfig, dataset: Dataset, classifier: Classifier, budget: float) -> tuple[float, bool]:
    """Seconds per pair of explaining and measuring one image, and whether it took longer than `budget` seconds.

    One image alone takes longer per pair than a batch, so that estimates err on the long side.

    Raises
    ------
    CamexpError: when none of the first images can be read.
    """
    images, pairs = _first_image(cfg, dataset, classifier)
    classifier.scores(images)  # warm-up
    started = clock(classifier.device)

    def check(images: int) -> None:
        if clock(classifier.device) - started > budget:
            raise _Over

    classifier.on_forward = check
    try:
        Explainer(classifier, config.make_method(cfg), cfg.share_classes).maps(images, pairs)
        classifier.scores(images[pairs.image])  # Drop and Increase
        over = False
    except _Over:
        over = True
    finally:
        classifier.on_forward = _nothing
    return (clock(classifier.device) - started) / len(pairs), over


def _nothing(images: int) -> None:
    pass


def _first_image(cfg: DictConfig, dataset: Dataset, classifier: Classifier) -> tuple[Tensor, Pairs]:
    preprocess = config.make_preprocess(cfg)
    with_pairs = (index for index, targets in enumerate(dataset.targets) if targets)
    for index, _ in zip(with_pairs, range(10), strict=False):
        fed = feed(dataset.load(index), preprocess)
        if fed.image is not None and fed.sample.targets:
            return stack([fed], classifier)
    raise CamexpError(f"none of the first images of dataset={cfg.dataset.name} can be read")


# --------------------------------------------------------------------------------------------- as text


def describe(prospects: list[Prospect], results: Path) -> str:
    """The plan for people: one line per run, then totals, then what is missing and how to get it."""
    width = max((len(p.run.name) for p in prospects), default=0)
    lines = [f"{'run':{width}}  {'pairs':>7}  {'state':<20} time"]
    lines += [f"{p.run.name:{width}}  {p.pairs or '':>7}  {p.state:<20} {_time(p)}" for p in prospects]
    return "\n".join([*lines, "", *_totals(prospects, results), *_problems(prospects)])


def _time(prospect: Prospect) -> str:
    if prospect.problem:
        return ""
    if prospect.seconds is None:
        return "not probed"
    return f"{'> ' if prospect.at_least else ''}{duration(prospect.seconds)}" if prospect.seconds else ""


def duration(seconds: float) -> str:
    """Seconds as "40 s", "12 min", "3.5 h" or "2.1 days"."""
    for unit, length in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}" if unit != "min" else f"{seconds / length:.0f} min"
    return f"{seconds:.0f} s" if seconds >= 1 else "< 1 s"


def _totals(prospects: list[Prospect], results: Path) -> Iterator[str]:
    able = [p for p in prospects if not p.problem]
    yield f"{len(prospects)} runs: {len(able)} can run, {sum(p.state == 'finished' for p in able)} of them finished"
    if any(p.seconds for p in able):
        bound = " at least" if any(p.at_least for p in able) else ""
        yield f"time{bound}: {duration(sum(p.seconds or 0 for p in able))} on this machine, from probes of one image"
    need = sum(p.left for p in able) * BYTES_PER_ROW / 1e6
    yield f"disk: about {need:.1f} MB of rows in {results}; {free_bytes(results) / 1e9:.0f} GB are free"


def _problems(prospects: list[Prospect]) -> Iterator[str]:
    by_reason: dict[str, list[str]] = {}
    for prospect in prospects:
        if prospect.problem:
            by_reason.setdefault(prospect.problem, []).append(prospect.run.name)
    for reason, names in by_reason.items():
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        yield f"\ncannot run: {shown}:\n  " + reason.replace("\n", "\n  ")
