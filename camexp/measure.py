"""From maps to rows: every metric of every pair."""

import math
from collections.abc import Mapping, Sequence

import torch

from camexp.explain import Explanation
from camexp.metrics import Explained, Metric
from camexp.models.classifier import Classifier
from camexp.records import Key, Row, number


@torch.no_grad()
def measure(
    explanation: Explanation, classifier: Classifier, metrics: Mapping[str, Metric], classes: Sequence[str]
) -> dict[Key, Row]:
    """The rows of the pairs whose map, confidence and metrics are finite, by (image id, class id).

    Columns are `records.PAIR_COLUMNS` and the names of the metrics. Metrics are measured at full precision, whatever
    the method's passes had.
    """
    images, pairs, maps = explanation.images, explanation.pairs, explanation.maps
    sizes = torch.tensor([f.size for f in explanation.fed], device=images.device)
    with classifier.exactly():
        scores = classifier.scores(images)
        confidence = scores[pairs.image, pairs.target]
        explained = Explained(classifier, images, pairs, maps, confidence, sizes)
        values = {name: metric(explained).tolist() for name, metric in metrics.items()}
    first = (scores.argmax(1)[pairs.image] == pairs.target).tolist()
    constant = (maps.amax((1, 2)) == maps.amin((1, 2))).tolist()
    area = explained.masks.flatten(1).double().mean(1).tolist()
    difficult = [t.difficult for f in explanation.fed for t in f.sample.targets]
    rows = {}
    finite = explanation.finite.tolist()
    for p, (_, image_id, target) in enumerate(pairs):
        measured = [confidence[p].item(), *(v[p] for v in values.values())]
        if finite[p] and all(map(math.isfinite, measured)):
            row = {
                "image_id": image_id,
                "class_id": str(target),
                "class_name": classes[target],
                "prob": number(confidence[p].item()),
                "argmax": str(int(first[p])),
                "difficult": str(int(difficult[p])),
                "area": number(area[p]),
                "degenerate": str(int(constant[p])),
            }
            rows[image_id, str(target)] = row | {name: number(v[p]) for name, v in values.items()}
    return rows
