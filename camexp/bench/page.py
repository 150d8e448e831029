"""The table for the terminal, and the Markdown page, from the CSVs alone."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

from camexp.bench.cells import COLUMNS, Row
from camexp.bench.guard import overview
from camexp.bench.table import read_info
from camexp.bench.targets import ELSEWHERE, TARGETS, judge, place
from camexp.experiment import label_of
from camexp.files import write_atomically
from camexp.records import read_csv
from camexp.report.markdown import grid

HEAD = """# How fast the methods are

Made by `make bench` (`scripts/bench.py`). **ours/floor** is camexp's time over that of the passes through the network
that the method's formula needs, at the network's best on the same machine: inference mode, channels last, batch norms
folded, the best number of images per pass. **peer/ours** is the time of the fastest of grad-cam, torchcam and captum
that has the method over camexp's: larger is better. Both are of one run, in alternating rounds after a rehearsal; times
are medians, with the fastest and the slowest round.
"""

HOW = """## How it is measured

- Networks have random weights at full width, images are random: time does not depend on them, except for the number
  of masks of Score-CAM, SISE, Ada-SISE and Ablation-CAM, which is counted on the images at hand.
- The floor is the sum of rows per kind of pass (`camexp/bench/work.py`) times seconds per row. With several classes it
  has one forward per image and one backward per class. Masks, reductions and enlarging are not in it. Seconds per row
  are found once per network, and follow the machine: a short plain forward right before and after every call of camexp
  tells how fast it is then, and ours/floor is the median of the rounds' ratios. On a CPU it can be well below 1,
  because the plain network multiplies more than camexp does (`winograd` in `configs/config.yaml`).
- A call that takes longer than its share of the time is ended after some of its passes, and the rest, which is
  uniform, is extrapolated to the papers' number of masks, steps or iterations: column `extrapolated`, for camexp and
  peers alike.
- Peers run on their own copy of the plain network with the same weights, in batches where they take them, with one
  forward for several classes where they can, and their settings for rows per pass set. One that takes more than twice
  as long as the fastest in the first round is not measured again.
- The process keeps freed memory (`camexp.memory`), which serves the peers as well. On a GPU it rounds no factors to
  TensorFloat-32 and makes convolutions repeat to the bit, for the peers as well.
- Peak memory is what a call has in use beyond what was in use before it: on the CPU what malloc has handed out, looked
  at every 20 ms (the resident set would not show it, since freed memory is kept), on a GPU the allocator's own maximum.
  It is watched in the rehearsal, because looking makes a call a few percent longer. What is kept from call to call is
  not in it: beside the network its weights in other forms, of which those of `winograd` are the largest, four times
  the convolutions' own. With VGG16 they take 223 MiB, with ResNet-50 52, and as much for the way back where there is
  one; both up to twice, because few tiles need another order than many.
- The controls are left out: they ask nothing of the network.
"""

NO_GPU = """No GPU was at hand. On a machine with one, this fills the section:

```sh
make bench OPTIONS="--device cuda --images 1,16,64 --budget 60"
```
"""

TECHNIQUES = """A technique pays on this machine where without/with is above 1: the median of the ratios of the rounds,
which need not be the ratio of the median times. The switch is an option of
`python -m camexp.run`: it turns off what is on by default, and on what is not (`precision=`, `compile=`). All else
stays as it is, save that the run which shows loading has small batches, enough of them to load ahead (it is left out
where that is not done by itself, as on two cores without a GPU). Batch size and
precision belong to a run's identity and need an `output=` of their own; with any other switch a run goes on in its
folder.
"""

DEVICES = {"cpu": "CPU", "gpu": "GPU"}

GUARD = """Maps of every technique against those of the plain path, on which all techniques are off, pair by pair, and
the means of all metrics. A path passes when no cosine is below the one needed and no metric's mean moves by more than
0.1 percentage points. Else what rounding alone does is measured, and it passes when neither its cosine nor any metric
is further off than that: what the plain path itself does when every weight is moved to the next number of float32, up
or down, in eight draws. Of maps it is the smallest cosine; of a metric the change of its mean when every pair goes as
far as any draw took it, for a mean moves with a few pairs that jump, each by itself. This is how much the last digits
decide, and how much maps and metrics may differ between processors. (Rows that name no processor are older: rounding
had three draws, each by its own mean, or eight, and any metric might move as far as the one that rounding moves
most.) *Yes*:
within the tolerances by itself; *as rounding*: beyond them, but no further than rounding alone; *same bits*: the path
changes nothing of this method with this network, so the row says nothing about others. Long methods are run with few
masks, steps or iterations (all with `--full`). By `python scripts/bench.py --guard --methods ... [--paths ...]
dataset=voc dataset.root=... model=... limit=50`, each time for some methods, paths and networks. `default` is the path
that a run takes if nothing is switched.
"""


def _guarded(rows: Sequence[Sequence[str]]) -> str:
    """The verdicts of the guard, then all that it found."""
    short = grid(overview(rows[1:]))
    return f"{short}\n\n<details><summary>All measurements</summary>\n\n{grid(rows)}\n\n</details>"


EXTRAS: dict[str, tuple[str, str, Callable[[Sequence[Sequence[str]]], str]]] = {
    "techniques": ("What each technique buys", TECHNIQUES, grid),
    "guard": ("What the techniques do to the numbers", GUARD, _guarded),
    "scaling": ("Scaling and start-up", "", grid),
}
"""Further tables of a device by the files' names: heading, what is said before, and how the rows are shown."""


def table(rows: Sequence[Row]) -> str:
    """All cells, one line each."""
    head = ["method", "model", "images", "classes", "ms per map", "low-high", "floor", "ours/floor"]
    head += ["fastest peer", "its ms", "peer/ours", "MiB", "peer's MiB", "extrapolated"]
    return grid([head, *(_line(row) for row in rows)])


def _line(row: Row) -> list[str]:
    peer = [row["fastest_peer"], _ms(row["peer_seconds"]), _short(row["peer/ours"])]
    return [
        *(row["method"], row["model"], row["images"], row["classes"], _ms(row["seconds_per_map"])),
        *(f"{_ms(row['low'])}-{_ms(row['high'])}", _ms(row["floor"]), _short(row["ours/floor"]), *peer),
        *(_whole(row["peak_mb"]), _whole(row["peer_peak_mb"]), row["extrapolated"]),
    ]


def _ms(seconds: str) -> str:
    return f"{float(seconds) * 1000:.4g}" if seconds else ""


def _short(value: str) -> str:
    return f"{float(value):.3g}" if value else ""


def _whole(value: str) -> str:
    return f"{float(value):.0f}" if value else ""


def headline(rows: Sequence[Row]) -> str:
    """Per method ours/floor and peer/ours for each number of images and classes, geometric means over the models."""
    shapes = sorted({(int(row["images"]), int(row["classes"])) for row in rows})
    names = [f"{images} x {classes}" for images, classes in shapes]
    head = ["method", *(f"ours/floor {name}" for name in names), *(f"peer/ours {name}" for name in names)]
    lines = [head]
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        cells = [_mean(own, shape, column) for column in ("ours/floor", "peer/ours") for shape in shapes]
        lines.append([label_of(method), *cells])
    return grid(lines)


def _mean(rows: Sequence[Row], shape: tuple[int, int], column: str) -> str:
    of_shape = [row for row in rows if (int(row["images"]), int(row["classes"])) == shape]
    values = [float(row[column]) for row in of_shape if row[column]]
    return f"{geometric_mean(values):.2f}" if values else ""


def verdicts(rows: Sequence[Row], device: str) -> str:
    """The targets and whether they are met."""
    own = [target for target in TARGETS if target.device == device]
    return grid([["target", "verdict"], *([target.text, judge(target, rows).text] for target in own)])


def section(folder: Path, device: str) -> str:
    """What was measured on the CPU or a GPU."""
    path = folder / f"bench_{device}.csv"
    title = f"## {DEVICES[device]}\n"
    extras = [part for name, told in EXTRAS.items() for part in _extra(folder / f"bench_{name}_{device}.csv", *told)]
    if not path.is_file():
        return "\n".join([title, NO_GPU if device == "gpu" else "Not measured yet: `make bench`.\n", *extras])
    rows, info = read_csv(path, COLUMNS), read_info(path)
    parts = [title, _machine(info.get("made_with", {})), _plain(rows), _commands(info.get("commands", []))]
    parts += ["Images x classes per image, geometric means over the networks:\n", headline(rows) + "\n"]
    parts += [
        verdicts(rows, device) + "\n",
        "<details><summary>All cells</summary>\n",
        table(rows) + "\n",
        "</details>\n",
    ]
    if info.get("left_out"):
        parts += ["Left out:\n", *(f"- {cell}: {reason}" for cell, reason in info["left_out"].items()), ""]
    return "\n".join([*parts, *extras])


def _machine(made_with: dict[str, Any]) -> str:
    """The machine and versions."""
    known = {key: value for key, value in made_with.items() if value not in (None, [], "")}
    return ", ".join(f"{key} {value}" for key, value in known.items()) + ".\n"


def _plain(rows: Sequence[Row]) -> str:
    """How long a plain forward pass takes, over the cells: it follows the machine."""
    seconds = {
        model: [float(r["forward_seconds"]) for r in rows if r["model"] == model]
        for model in dict.fromkeys(r["model"] for r in rows)
    }
    told = [f"{m} {1e3 * median(s):.1f} ms ({1e3 * min(s):.1f} to {1e3 * max(s):.1f})" for m, s in seconds.items()]
    return f"A plain forward pass per image, median over the cells: {', '.join(told)}.\n"


def _commands(commands: Sequence[str]) -> str:
    shown = ", then ".join(f"`{command}`" for command in commands)
    return f"Command: {shown}\n" if commands else ""


def _extra(path: Path, heading: str, text: str, shown: Callable[[Sequence[Sequence[str]]], str]) -> list[str]:
    if not path.is_file():
        return []
    info = read_info(path)
    made = [_machine(info["made_with"]), _commands(info["commands"])] if info else []
    with path.open(encoding="utf-8", newline="") as file:
        return [f"### {heading}\n", *made, *([text] if text else []), shown(list(csv.reader(file))) + "\n"]


def page(folder: Path) -> str:
    """The whole page."""
    elsewhere = "\n".join(f"- {text}" for text in ELSEWHERE)
    parts = [
        HEAD,
        section(folder, "cpu"),
        section(folder, "gpu"),
        HOW,
        f"## Targets that this table does not measure\n\n{elsewhere}\n",
    ]
    return "\n".join(parts)


def write_page(folder: Path) -> Path:
    """Write the page beside the CSVs."""
    path = folder / "bench.md"
    write_atomically(path, page(folder))
    return path


def summary(rows: Sequence[Row], left_out: dict[str, str], device: str) -> str:
    """What is said in the terminal at the end."""
    slow = [row for row in rows if float(row["ours/floor"]) > 1.15]
    slow.sort(key=lambda row: -float(row["ours/floor"]))
    lines = [table(rows), "", verdicts(rows, device)]
    lines += [f"\nabove 1.15 x floor: {', '.join(place(row) for row in slow)}"] if slow else []
    lines += [f"\nleft out ({len(left_out)} cells; the same command goes on with them):"] if left_out else []
    return "\n".join([*lines, *(f"  {cell}: {reason}" for cell, reason in left_out.items())])
