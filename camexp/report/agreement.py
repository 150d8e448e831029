"""Which runs may stand in one table or be averaged: those whose identities agree where they must."""

import json
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeVar

from camexp.records import differing
from camexp.report.runs import Run

K = TypeVar("K", bound=Hashable)

SAME_DATA = ("dataset.", "protocol.", "metrics.", "limit", "pairs_sha256", "annotations_sha256")
"""Beginnings of the identity's fields in which all runs of a table agree."""

SAME_MODEL = ("model.", "weights_sha256", "fold_batch_norms")
"""Beginnings of the fields in which the runs of one model agree."""

NAMES = ("model.name", "dataset.name", "protocol.name", "protocol.average")
"""Fields that name things or belong to the report; what they stand for has fields of its own."""

FREE = ("seed", "batch_size", "method.seed")
"""Fields in which runs of one method may differ and still be averaged."""


def conflicts(runs: Mapping[K, Run]) -> dict[K, list[str]]:
    """What sets runs of one table apart from most of its others, as "field: most -> this one", by the runs' keys.

    Runs that agree with the majority are left out; where two readings are equally common the first one counts. If any
    run is of the whole data set, those that are of a part of it have no say.
    """
    found: dict[K, list[str]] = {}
    whole = {key for key, run in runs.items() if run.identity.get("limit") is None}
    for group, beginnings in [(list(runs), SAME_DATA), *((keys, SAME_MODEL) for keys in _by_model(runs))]:
        for key, fields in _apart({key: _part(runs[key], beginnings) for key in group}, whole).items():
            found.setdefault(key, []).extend(fields)
    return found


def _by_model(runs: Mapping[K, Run]) -> list[list[K]]:
    models = sorted({run.info["model"] for run in runs.values()})
    return [[key for key, run in runs.items() if run.info["model"] == model] for model in models]


def _part(run: Run, beginnings: Sequence[str]) -> dict[str, Any]:
    fields = run.identity.items()
    return {name: value for name, value in fields if name.startswith(tuple(beginnings)) and name not in NAMES}


def _apart(parts: Mapping[K, dict[str, Any]], whole: set[K]) -> dict[K, list[str]]:
    """The fields in which each part differs from the most common one, of `whole` runs if there are any.

    Metrics that one side lacks do not count.
    """
    texts = {key: json.dumps(part, sort_keys=True) for key, part in parts.items()}
    if len(set(texts.values())) < 2:
        return {}
    asked = [text for key, text in texts.items() if key in whole] or texts.values()
    most = json.loads(Counter(asked).most_common(1)[0][0])
    apart = {key: _fields(most, json.loads(text)) for key, text in texts.items()}
    return {key: fields for key, fields in apart.items() if fields}


def _fields(most: dict[str, Any], part: dict[str, Any]) -> list[str]:
    def measured(one: dict[str, Any]) -> set[str]:
        return {name.split(".")[1] for name in one if name.startswith("metrics.")}

    both = measured(most) & measured(part)

    def compared(one: dict[str, Any]) -> dict[str, Any]:
        return {n: v for n, v in one.items() if not n.startswith("metrics.") or n.split(".")[1] in both}

    return differing(compared(most), compared(part))


def without_repeats(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Of runs with the same data set, model and name those that may be averaged, and why the others may not.

    Averaged are runs that differ in their seed only; of two with the same seed the first one stays.
    """
    kept: list[Run] = []
    problems = []
    bare = [{n: v for n, v in run.identity.items() if n not in FREE} for run in runs]
    most = json.loads(Counter(json.dumps(part, sort_keys=True) for part in bare).most_common(1)[0][0])
    seeds: dict[Any, Run] = {}
    for run, part in zip(runs, bare, strict=True):
        seed = run.identity.get("seed", str(run.path))
        if fields := "; ".join(differing(most, part)):
            problems.append(f"not shown: {run.path} would stand in one cell with others but differs in {fields}")
        elif seed in seeds:
            problems.append(f"not shown: {run.path} is the run of {seeds[seed].path} with the same seed")
        else:
            seeds[seed] = run
            kept.append(run)
    return kept, problems
