"""Techniques that show only in a run on a data set, measured on the embedded minivoc."""

from collections.abc import Iterator, Sequence

from camexp import config
from camexp.bench.comparison import Comparison, Technique
from camexp.bench.subject import telling
from camexp.bench.walk import Walk
from camexp.bench.watch import Contender
from camexp.loading import count_workers
from camexp.measure import measure

LOADING = Technique("loading and decoding beside the computation", "workers=0")
METRICS = Technique("Drop and Increase forwards batched across pairs", "forward_batch=1")

RUN = ("dataset=minivoc", "model=resnet50", "method=gradcam")

SMALL_BATCHES = "batch_size=2"
"""Enough of them to load some ahead."""


class Scenes:
    """Makes the comparisons.

    Parameters
    ----------
    options: as of `python -m camexp.run`.
    """

    def __init__(self, options: Sequence[str] = ()):
        self.options = (*RUN, SMALL_BATCHES, *options)
        self.usual = Walk(self.options)
        self.method = config.make_method(self.usual.cfg)

    def comparisons(self) -> Iterator[Comparison]:
        """One after the other, because each needs a network of its own."""
        pairs = sum(len(targets) for targets in self.usual.dataset.targets)
        name = f"{self.usual.cfg.method.name} {self.usual.cfg.dataset.name}"
        batches = len(self.usual.dataset) // self.usual.cfg.batch_size
        if count_workers(self.usual.cfg.workers, batches):  # else nothing is loaded ahead anyway
            yield Comparison.of(LOADING, f"run of {name}, {SMALL_BATCHES}", pairs, self.run)
        yield Comparison.of(METRICS, f"Drop and Increase of {name}", pairs, self.metrics)

    def walk(self, *more: str) -> Walk:
        """A run with further options."""
        return Walk((*self.options, *more), self.usual.dataset) if more else self.usual

    def run(self, *more: str) -> Contender:
        """All of a run: loading, maps and metrics."""
        walk = self.walk(*more)

        def call() -> None:
            for explanation in walk.explanations(self.method):
                walk.rows(explanation)

        return Contender("run", call, lambda tell: telling(walk.classifier, tell))

    def metrics(self, *more: str) -> Contender:
        """Drop and Increase of maps at hand."""
        walk = self.walk(*more)
        explained = list(walk.explanations(self.method))
        metrics = {name: walk.metrics[name] for name in ("drop", "increase")}

        def call() -> None:
            for explanation in explained:
                measure(explanation, walk.classifier, metrics, walk.dataset.classes)

        return Contender("metrics", call, lambda tell: telling(walk.classifier, tell))
