"""The accuracy guard: maps and metrics of every fast path against those of the plain one.

Every path that changes the order of sums changes the last digits of a map, and some numbers hang on them: Increase
of a pair whose two confidences all but agree, Drop of a map whose most important pixels all but tie, maps of methods
that choose, as DeepLIFT does at max-poolings and Ada-SISE by Otsu's threshold. So where a path is beyond the
tolerances, the guard also measures how far maps and metrics move when nothing changes but the rounding of the weights
(`nudge`), as another processor or library would make them move; a path may move them as far. A metric's mean moves
with a few pairs that jump, each by itself: a single draw seldom meets all of them, so each pair counts as far as any
draw moved it (`furthest`).
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from camexp import config
from camexp.bench.paths import Path
from camexp.bench.walk import Walk
from camexp.command import counted
from camexp.errors import CamexpError
from camexp.provenance import environment
from camexp.records import Row

POINTS = 0.1
"""Largest change of a metric's mean, in percentage points, unless rounding alone makes a larger one."""

EQUAL = 1e-6
"""Cosines, or changes, that differ by less are the same: maps and means summed in another order."""

PLAINLY = Path("plain")
"""Nothing switched on."""

ROUNDINGS = 8
"""How often the weights are rounded otherwise."""

SHORT = {"masks": 16, "m": 4, "steps": 4, "samples": 4, "iterations": 2, "stride": 32, "mu": 0.75}
"""Parameters of long methods, unless --full: the passes are the same, there are fewer of them."""


Pair = tuple[str, int]
"""Image id and class."""


@dataclass(frozen=True)
class Explained:
    """What a method gave on a path.

    Attributes
    ----------
    maps: (H,W) by (image id, class); values: (P,) by metric, of these pairs in order, in percent. Both are NaN for a
        pair that could not be measured.
    """

    maps: dict[Pair, Tensor]
    values: dict[str, Tensor]


@dataclass(frozen=True)
class Reach:
    """How far rounding alone moves a method.

    Attributes
    ----------
    cosine: the smallest of any pair's map in any draw.
    changes: of each metric's mean, in percentage points, by `furthest`.
    """

    cosine: float
    changes: dict[str, float]


@dataclass(frozen=True)
class Finding:
    """One path and method against the plain one.

    Attributes
    ----------
    cosine: the smallest of any pair; same: whether every map is the plain one, bit for bit.
    changes: of each metric's mean, in percentage points.
    rounding: what rounding alone did to this method; None if that was not asked.
    """

    path: Path
    method: str
    pairs: int
    cosine: float
    changes: dict[str, float]
    rounding: Reach | None = None
    same: bool = False

    @property
    def alone(self) -> bool:
        """Whether it keeps the tolerances, whatever rounding does."""
        return self.cosine >= self.path.cosine and all(change <= POINTS + EQUAL for change in self.changes.values())

    @property
    def passes(self) -> bool:
        if self.alone or self.rounding is None:
            return self.alone
        needed = min(self.path.cosine, self.rounding.cosine - EQUAL)
        allowed = {metric: max(POINTS, reach) for metric, reach in self.rounding.changes.items()}
        kept = all(change <= allowed[metric] + EQUAL for metric, change in self.changes.items())
        return self.cosine >= needed and kept

    @property
    def verdict(self) -> str:
        if not self.passes:
            return "MISSES"
        if self.same and not any(self.changes.values()):
            return "same bits"
        return "yes" if self.alone else "as rounding"

    def line(self) -> list[str]:
        """The cells of `HEAD` up to the verdict: every metric beyond the tolerance, or else what changed most."""
        beyond = [metric for metric, change in self.changes.items() if not change <= POINTS + EQUAL]
        shown = beyond or [max(self.changes, key=self.changes.__getitem__)]
        cosine, reaches = "", [""]
        if self.rounding is not None:
            cosine = f"{self.rounding.cosine:.7f}"
            reaches = [f"{self.rounding.changes[metric]:.3f}" for metric in shown]
        changes = [f"{self.changes[metric]:.3f} ({metric})" for metric in shown]
        told = [f"{self.cosine:.7f}", f"{self.path.cosine:g}", cosine, ", ".join(changes), ", ".join(reaches)]
        return [self.path.name, self.method, str(self.pairs), *told, self.verdict]


VERDICTS = ("yes", "same bits", "as rounding", "MISSES")

HEAD = ["path", "method", "pairs", "smallest cosine", "needed", "cosine by rounding alone"]
HEAD += ["largest change of a metric, points", "by rounding alone", "passes", "measured on", "commit"]


class Guard:
    """Compares paths on the first images of a data set.

    Parameters
    ----------
    options: as of `python -m camexp.run`; `limit=` is the number of images.
    full: keep the methods' own parameters.
    """

    def __init__(self, options: Sequence[str], full: bool = False):
        self.options, self.full = tuple(options), full
        self.dataset = config.make_dataset(config.compose_config([*options]))

    @cached_property
    def plain(self) -> Walk:
        """The way on which every technique is off."""
        return self.walk(PLAINLY)

    @cached_property
    def where(self) -> list[str]:
        """Network, weights (by the beginning of their hash), data and processor, in words; and the commit."""
        cfg, weights = self.plain.cfg, self.plain.weights
        images = counted(sum(map(bool, self.dataset.targets)), "image")
        known = "random weights" if weights.startswith("random") else f"weights {weights[:8]}"
        full = ", methods in full" if self.full else ""
        made_with = environment(self.plain.classifier.device)
        data = f"{images} of {cfg.dataset.name}{full}"
        return [f"{cfg.model.name}, {known}, {data}, {made_with['device']}", made_with["commit"] or ""]

    def walk(self, path: Path) -> Walk:
        return Walk((*self.options, *path.over, *path.options), self.dataset)

    def method(self, name: str) -> Any:
        method: Any = config.make_method(config.compose_config([*self.options, f"method={name}"]))
        names = {field.name for field in fields(method) if field.init} & SHORT.keys()
        return method if self.full else replace(method, **{name: SHORT[name] for name in names})

    def explained(self, walk: Walk, method: Any, pairs: Iterable[Pair] | None = None) -> Explained:
        """Of one method on the given pairs; without them, on all that can be measured."""
        maps: dict[Pair, Tensor] = {}
        rows: dict[Pair, Row] = {}
        for found in walk.explanations(method):
            rows |= {(image_id, int(target)): row for (image_id, target), row in walk.rows(found).items()}
            maps |= {(image_id, target): m for (_, image_id, target), m in zip(found.pairs, found.maps, strict=True)}
        pairs = [pair for pair in maps if pair in rows] if pairs is None else [*pairs]
        if not pairs:
            raise CamexpError("there is no pair to compare; choose another data set or a larger limit=")
        measured = {pair: maps[pair] if pair in rows else torch.full_like(maps[pair], torch.nan) for pair in pairs}
        percent = {metric: [100 * float(rows.get(p, {}).get(metric, "nan")) for p in pairs] for metric in walk.metrics}
        values = {metric: torch.tensor(column, dtype=torch.float64) for metric, column in percent.items()}
        return Explained(measured, values)

    def compare(self, paths: Sequence[Path], methods: Sequence[str]) -> Iterator[Finding]:
        """Every path and method; a method that the network does not allow is left out, and why is said."""
        with tqdm(total=len(methods) * (1 + len(paths)), desc="guard", unit="run") as progress:
            plain = self._plainly(methods, progress)
            progress.total = len(methods) + len(plain) * len(paths)
            reach: dict[str, Reach] = {}
            for path in paths:
                walk = self.walk(path)
                for name, expected in plain.items():
                    progress.set_postfix_str(f"{path.name} {name}")
                    found = finding(path, name, expected, self.explained(walk, self.method(name), expected.maps))
                    progress.update()
                    if not found.alone:
                        reach[name] = reach.get(name) or self._by_rounding(name, expected, progress)
                        found = replace(found, rounding=reach[name])
                    progress.write(" | ".join(found.line()), file=sys.stderr)
                    yield found

    def _by_rounding(self, name: str, plain: Explained, progress: tqdm) -> Reach:
        """Of a method, on the plain path."""
        progress.total += ROUNDINGS
        smallest, drawn = 1.0, []
        for draw in range(ROUNDINGS):
            progress.set_postfix_str(f"rounding {draw + 1} {name}")
            walk = self.walk(PLAINLY)
            nudge(walk.classifier.network, draw)
            found = self.explained(walk, self.method(name), plain.maps)
            smallest = min(smallest, smallest_cosine(plain, found))
            drawn.append(found.values)
            progress.update()
        return Reach(smallest, furthest(plain.values, drawn))

    def _plainly(self, methods: Sequence[str], progress: tqdm) -> dict[str, Explained]:
        found = {}
        for name in methods:
            progress.set_postfix_str(f"plain {name}")
            method = self.method(name)
            try:
                found[name] = self.explained(self.plain, method)
            except CamexpError as error:
                progress.write(f"{name}: left out: {error}", file=sys.stderr)
            progress.update()
        if not found:
            raise CamexpError(f"--methods {', '.join(methods)}: none is left to compare")
        return found


@torch.no_grad()
def nudge(network: nn.Module, draw: int) -> None:
    """Move every parameter to the next number of its type, up or down at random, in place."""
    generator = torch.Generator().manual_seed(draw)
    for parameter in network.parameters():
        up = torch.rand(parameter.shape, generator=generator) < 0.5
        ends = torch.where(up, torch.inf, -torch.inf).to(parameter)
        parameter.copy_(torch.nextafter(parameter, ends))


def finding(path: Path, method: str, plain: Explained, fast: Explained) -> Finding:
    """The largest differences of a path from the plain one."""
    same = all(torch.equal(plain.maps[pair], fast.maps[pair]) for pair in plain.maps)
    changes = {metric: (values - plain.values[metric]).mean().abs().item() for metric, values in fast.values.items()}
    return Finding(path, method, len(plain.maps), smallest_cosine(plain, fast), changes, same=same)


def furthest(plain: Mapping[str, Tensor], drawn: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """How far draws may move a metric's mean: when every pair goes up, or down, as far as it went in any of them.

    Parameters
    ----------
    plain, drawn: (P,) by metric.
    """
    found = {}
    for metric, values in plain.items():
        changes = torch.stack([draw[metric] - values for draw in drawn])  # (draws,P)
        up, down = (way.amax(0).clamp(min=0).mean().item() for way in (changes, -changes))
        found[metric] = max(up, down)
    return found


def smallest_cosine(plain: Explained, fast: Explained) -> float:
    """Of any pair's two maps; NaN if one has values that are no numbers."""
    return torch.cat([cosine(plain.maps[pair][None], fast.maps[pair][None]) for pair in plain.maps]).min().item()


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine (P,) of maps (P,H,W), in float64; 1 where both are zero."""
    a, b = a.double().flatten(1), b.double().flatten(1)
    both_zero = ~(a.any(1) | b.any(1))
    found = torch.nn.functional.cosine_similarity(a, b, dim=1)
    return torch.where(both_zero, 1.0, found)


def what(line: Iterable[str]) -> tuple[str, str, str]:
    """Path, method, and what it was measured on, of a line of `HEAD`: one line of each is kept."""
    path, method, *_, measured_on, _ = line
    return path, method, measured_on


def overview(lines: Iterable[Sequence[str]]) -> list[list[str]]:
    """Of lines of `HEAD`: the methods of each path by verdict, a line per path below a head."""
    said: dict[str, dict[str, dict[str, None]]] = {}  # methods, each once, by verdict, by path
    for path, method, *_, found, _measured_on, _commit in lines:
        said.setdefault(path, {}).setdefault(found, {})[method] = None
    named = [[path, *(", ".join(by.get(found, ())) for found in VERDICTS)] for path, by in said.items()]
    return [["path", *VERDICTS], *named]


def verdict(findings: Sequence[Finding]) -> str:
    """Which paths miss, and in what, and which are beyond the tolerances only as rounding is."""

    def told(verdict: str, what: str) -> list[str]:
        methods: dict[str, list[str]] = {}
        for finding in findings:
            if finding.verdict == verdict:
                methods.setdefault(finding.path.name, []).append(finding.method)
        return [f"{path} {what.format(', '.join(names))}" for path, names in methods.items()]

    lines = told("MISSES", "misses: {}; it must be off by default")
    lines += told("as rounding", "is beyond the tolerances in {}, but no further than rounding alone")
    return "\n".join(lines) or "every path keeps the tolerances"
