"""The accuracy guard: maps and metrics of every fast path against those of the plain one."""

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from omegaconf import DictConfig
from tqdm import tqdm

from camexp import config
from camexp.bench.techniques import has_compiler
from camexp.bench.variants import ChannelsFirst, cosine
from camexp.datasets.base import Dataset
from camexp.errors import CamexpError
from camexp.explain import Explainer, Explanation
from camexp.loading import load_batches
from camexp.measure import measure
from camexp.metrics import Metric
from camexp.models.classifier import Classifier

EXACT, ROUNDED = 0.9999, 0.999
"""Smallest cosine of a map with the plain one, for paths that change the order of sums, and that round to bfloat16."""

POINTS = 0.1
"""Largest change of a metric's mean, in percent points."""

SHORT = {"masks": 32, "m": 8, "steps": 8, "samples": 8, "iterations": 4}
"""Parameters of long methods, unless --full: the passes are the same, there are fewer of them."""

PLAIN = ("fold_batch_norms=false", "precision=fp32", "compile=false", "forward_batch=2")


@dataclass(frozen=True)
class Path:
    """A fast path: what is switched on over the plain one.

    Attributes
    ----------
    channels_last: the classifier's memory format; the plain path has PyTorch's default one.
    cosine: the smallest that passes.
    possible: whether the machine can take it.
    """

    name: str
    options: tuple[str, ...] = ()
    channels_last: bool = False
    cosine: float = EXACT
    possible: Callable[[torch.device], bool] = lambda device: True


PATHS = (
    Path("fold_batch_norms", ("fold_batch_norms=true",)),
    Path("channels_last", channels_last=True),
    Path("forward_batch=32", ("forward_batch=32",)),
    Path("default", ("fold_batch_norms=true", "forward_batch=auto"), channels_last=True),
    Path("precision=bf16", ("precision=bf16",), cosine=ROUNDED),
    Path("precision=tf32", ("precision=tf32",), cosine=ROUNDED, possible=lambda device: device.type == "cuda"),
    Path("compile", ("compile=true", "forward_batch=8"), True, possible=lambda device: has_compiler()),
)


@dataclass(frozen=True)
class Finding:
    """One path and method against the plain one.

    Attributes
    ----------
    cosine: the smallest of any pair; change: the largest of any metric's mean, in percent points, and that metric.
    """

    path: Path
    method: str
    pairs: int
    cosine: float
    change: float
    metric: str

    @property
    def passes(self) -> bool:
        return self.cosine >= self.path.cosine and self.change <= POINTS

    def line(self) -> list[str]:
        needed = f"{self.path.cosine:g}"
        told = [f"{self.cosine:.7f}", needed, f"{self.change:.3f} ({self.metric})"]
        return [self.path.name, self.method, str(self.pairs), *told, "yes" if self.passes else "MISSES"]


HEAD = ["path", "method", "pairs", "smallest cosine", "needed", "largest change of a metric, points", "passes"]


class Guard:
    """Compares paths on the first images of a data set.

    Parameters
    ----------
    options: as of `python -m camexp.run`; `limit=` is the number of images.
    full: keep the methods' own parameters.
    """

    def __init__(self, options: Sequence[str], full: bool = False):
        self.options, self.full = tuple(options), full
        self.cfg = config.compose_config([*options])
        self.dataset: Dataset = config.make_dataset(self.cfg)
        self.metrics: dict[str, Metric] = config.make_metrics(self.cfg)
        self.device = config.make_device(self.cfg.device)

    def classifier(self, path: Path) -> Classifier:
        cfg = config.compose_config([*self.options, *PLAIN, *path.options])
        classifier, _ = config.make_classifier(cfg, len(self.dataset.classes))
        return classifier if path.channels_last else ChannelsFirst.of(classifier)

    def method(self, name: str) -> Any:
        cfg: DictConfig = config.compose_config([*self.options, f"method={name}"])
        method: Any = config.make_method(cfg)
        names = {field.name for field in fields(method)} & SHORT.keys()
        return method if self.full else replace(method, **{name: SHORT[name] for name in names})

    def explanations(self, classifier: Classifier, method: Any) -> list[Explanation]:
        """Of all images, batch by batch."""
        indices = [index for index in range(len(self.dataset)) if self.dataset.targets[index]]
        size = self.cfg.batch_size
        batches = [indices[i : i + size] for i in range(0, len(indices), size)]
        explainer = Explainer(classifier, method)
        loaded = load_batches(self.dataset, config.make_preprocess(self.cfg), batches, workers=0)
        return [explanation for fed in loaded for explanation in explainer.explain(fed)]

    def means(self, classifier: Classifier, explanations: Iterable[Explanation]) -> dict[str, float]:
        """Each metric's mean over the pairs, in percent."""
        rows = [
            row
            for explanation in explanations
            for row in measure(explanation, classifier, self.metrics, self.dataset.classes).values()
        ]
        if not rows:
            raise CamexpError("there is no pair to compare; choose another data set or a larger limit=")
        return {name: 100 * sum(float(row[name]) for row in rows) / len(rows) for name in self.metrics}

    def compare(self, paths: Sequence[Path], methods: Sequence[str]) -> list[Finding]:
        """Every path and method; a method that the network does not allow is left out, and why is said."""
        findings, plain = [], self.classifier(Path("plain"))
        fast = {path.name: self.classifier(path) for path in paths}
        with tqdm(total=len(methods) * len(paths), desc="guard", unit="comparison") as progress:
            for name in methods:
                progress.set_postfix_str(name)
                method = self.method(name)
                try:
                    exact = self.explanations(plain, method)
                except CamexpError as error:
                    progress.write(f"{name}: left out: {error}", file=sys.stderr)
                    progress.update(len(paths))
                    continue
                means = self.means(plain, exact)
                for path in paths:
                    findings.append(self._finding(path, name, method, fast[path.name], exact, means))
                    progress.write(" | ".join(findings[-1].line()), file=sys.stderr)
                    progress.update()
        return findings

    def _finding(
        self,
        path: Path,
        name: str,
        method: Any,
        classifier: Classifier,
        exact: list[Explanation],
        means: dict[str, float],
    ) -> Finding:
        found = self.explanations(classifier, method)
        cosines = torch.cat([cosine(a.maps, b.maps) for a, b in zip(exact, found, strict=True)])
        changes = {metric: abs(mean - means[metric]) for metric, mean in self.means(classifier, found).items()}
        worst = max(changes, key=changes.__getitem__)
        return Finding(path, name, len(cosines), cosines.min().item(), changes[worst], worst)


def possible_paths(device: torch.device, say: Callable[[str], None]) -> list[Path]:
    """The paths that the machine can take."""
    for path in PATHS:
        if not path.possible(device):
            say(f"{path.name}: left out: {device.type} has no such path")
    return [path for path in PATHS if path.possible(device)]


def verdict(findings: Sequence[Finding]) -> str:
    """Which paths miss, and in what."""
    missed = {finding.path.name: [] for finding in findings if not finding.passes}  # type: dict[str, list[str]]
    for finding in findings:
        if not finding.passes:
            missed[finding.path.name].append(finding.method)
    if not missed:
        return "every path keeps the tolerances"
    return "\n".join(
        f"{path} misses: {', '.join(methods)}; it must be off by default" for path, methods in missed.items()
    )
