"""What the measurements are held against, as data, and the verdicts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from camexp.bench.cells import Row
from camexp.methods import FAMILIES

ONE_LAYER = tuple(
    name
    for name in FAMILIES["CAM layer"]
    if name not in ("igcam", "expected_gradcam", "smooth_gradcam_pp", "ablationcam", "scorecam")
)
"""One pass and the tail's backward."""

MUCH_FASTER = (*ONE_LAYER, "scorecam", "rise", "occlusion", "integrated_gradients", "extremal_perturbation")


@dataclass(frozen=True)
class Target:
    """A bound on a column, for the lines that it concerns.

    Attributes
    ----------
    value: of a line; None where it says nothing.
    at_least: the bound is the smallest allowed value, not the largest.
    """

    text: str
    device: str
    concerns: Callable[[Row], bool]
    value: Callable[[Row], float | None]
    bound: float
    at_least: bool = False

    def holds(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound


def column(name: str) -> Callable[[Row], float | None]:
    return lambda row: float(row[name]) if row[name] else None


def peak_ratio(row: Row) -> float | None:
    """Peak memory, ours over the fastest peer's."""
    if not row["peak_mb"] or not row["peer_peak_mb"] or float(row["peer_peak_mb"]) == 0:
        return None
    return float(row["peak_mb"]) / float(row["peer_peak_mb"])


def _at(images: int, classes: int | None = None, methods: Sequence[str] = (), model: str = "") -> Callable[[Row], bool]:
    def concerns(row: Row) -> bool:
        return (
            row["images"] == str(images)
            and (classes is None or row["classes"] == str(classes))
            and (not methods or row["method"] in methods)
            and (not model or row["model"] == model)
        )

    return concerns


def _per_map(text: str, method: str, seconds: float) -> Target:
    return Target(text, "gpu", _at(64, 1, [method], "resnet50"), column("seconds_per_map"), seconds)


PEER = column("peer/ours")

TARGETS = (
    Target("16 images: every method <= 1.15 x floor", "cpu", _at(16), column("ours/floor"), 1.15),
    Target("fastest peer >= 1.0 x ours everywhere", "cpu", lambda row: True, PEER, 1.0, True),
    Target(
        "fastest peer >= 1.3 x ours with one class: one-layer methods, Score-CAM, RISE, Occlusion, Integrated "
        "Gradients, Extremal Perturbation",
        "cpu",
        lambda row: row["classes"] == "1" and row["method"] in MUCH_FASTER,
        PEER,
        1.3,
        True,
    ),
    Target(
        "fastest peer >= 3 x ours with three classes: RISE, Score-CAM",
        "cpu",
        lambda row: row["classes"] == "3" and row["method"] in ("rise", "scorecam"),
        PEER,
        3,
        True,
    ),
    Target("fastest peer >= 8 x ours: FullGrad", "cpu", lambda row: row["method"] == "fullgrad", PEER, 8, True),
    Target(
        "fastest peer >= 100 x ours: Ablation-CAM at layer4",
        "cpu",
        lambda row: (row["method"], row["model"]) == ("ablationcam", "resnet50"),
        PEER,
        100,
        True,
    ),
    Target("peak memory <= the fastest peer's", "cpu", lambda row: True, peak_ratio, 1.0),
    _per_map("Grad-CAM <= 0.5 ms per map (ResNet-50, 64 images)", "gradcam", 0.0005),
    _per_map("Integrated Grad-CAM, m = 20, <= 5 ms", "igcam", 0.005),
    _per_map("SISE, mu = 0, <= 0.3 s", "sise", 0.3),
    _per_map("Score-CAM, 2048 masks, <= 0.3 s", "scorecam", 0.3),
    _per_map("RISE, 8000 masks, <= 1.2 s", "rise", 1.2),
    _per_map("Extremal Perturbation, 800 iterations x 4 areas, <= 2 s", "extremal_perturbation", 2.0),
    Target(
        "RISE at >= 85 % of the bare network's throughput", "gpu", _at(64, 1, ["rise"]), column("ours/floor"), 1 / 0.85
    ),
)
"""Ratios and times are those of one run of the table."""

ELSEWHERE = (
    "The complete Grad-CAM row of 7012 pairs in at most 60 s on a GPU, not measured: "
    "`python -m camexp.run dataset=voc2007 method=gradcam device=cuda`.",
    "`make reproduce` in at most 5 minutes on two cores, after the set-up: `time make reproduce`.",
)
"""Targets that this table does not measure."""


@dataclass(frozen=True)
class Verdict:
    """A target with how many lines it concerns, how many miss it, and the worst."""

    target: Target
    measured: int
    missed: list[tuple[float, Row]]

    @property
    def text(self) -> str:
        """ "met", "not met" with the worst lines and how many the floor itself would miss, or "not measured"."""
        if not self.measured:
            return "not measured"
        if not self.missed:
            return f"met ({self.measured} cells)"
        worst = ", ".join(f"{place(row)} {value:.4g}" for value, row in self.missed[:3])
        beyond = sum(not self.target.holds(at_the_floor(row)) for _, row in self.missed) if self.against_peers else 0
        told = f" (in {beyond} not even the floor would meet it)" if beyond else ""
        first = "the worst: " if len(self.missed) > 3 else ""
        return f"**not met** in {len(self.missed)} of {self.measured} cells{told}: {first}{worst}"

    @property
    def against_peers(self) -> bool:
        return self.target.value is PEER


def at_the_floor(row: Row) -> float:
    """What `PEER` would be if camexp took no longer than the floor."""
    return float(row["peer_seconds"]) / float(row["floor"])


def place(row: Row) -> str:
    return f"{row['method']} {row['model']} {row['images']}x{row['classes']}"


def judge(target: Target, rows: Sequence[Row]) -> Verdict:
    """Whether the lines that it concerns keep a target; the worst first."""
    values = [(value, row) for row in rows if target.concerns(row) and (value := target.value(row)) is not None]
    missed = [(value, row) for value, row in values if not target.holds(value)]
    missed.sort(key=lambda found: found[0], reverse=not target.at_least)
    return Verdict(target, len(values), missed)
