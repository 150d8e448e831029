"""A run without its files: batches are loaded, explained and measured, and nothing is written."""

from collections.abc import Iterator, Sequence

from camexp import config
from camexp.datasets.base import Dataset
from camexp.explain import Explainer, Explanation
from camexp.loading import load_batches
from camexp.measure import measure
from camexp.methods.base import Method
from camexp.records import Key, Row


class Walk:
    """The way of a run through its data set.

    Parameters
    ----------
    options: as of `python -m camexp.run`.
    dataset: one that is open already.
    """

    def __init__(self, options: Sequence[str], dataset: Dataset | None = None):
        self.cfg = config.compose_config([*options])
        self.dataset = dataset or config.make_dataset(self.cfg)
        self.preprocess, self.metrics = config.make_preprocess(self.cfg), config.make_metrics(self.cfg)
        self.classifier, self.weights = config.make_classifier(self.cfg, len(self.dataset.classes))

    def explanations(self, method: Method) -> Iterator[Explanation]:
        """Of the images that have pairs, batch by batch."""
        indices = [index for index in range(len(self.dataset)) if self.dataset.targets[index]]
        size = self.cfg.batch_size
        batches = [indices[i : i + size] for i in range(0, len(indices), size)]
        explainer = Explainer(self.classifier, method, self.cfg.share_classes)
        for fed in load_batches(self.dataset, self.preprocess, batches, self.cfg.workers):
            yield from explainer.explain(fed)

    def rows(self, explanation: Explanation) -> dict[Key, Row]:
        """What the metrics say of it, by pair."""
        return measure(explanation, self.classifier, self.metrics, self.dataset.classes)
