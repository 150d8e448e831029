"""Measure how fast the methods are, against the network itself and against other libraries, or check fast paths.

python scripts/bench.py [option=value ...]              the table, within --budget minutes; resumable
python scripts/bench.py --scaling                       time against images and masks, and the start-up
python scripts/bench.py --techniques                    what each technique buys
python scripts/bench.py --guard [option=value ...]      maps and metrics of every fast path against the plain one
python scripts/bench.py --page                          the page again, from the CSVs alone

Options are those of camexp.run, for camexp alone: precision=bf16, forward_batch=16; for --guard also dataset=, model=,
limit=. Exit status: 0 done, 1 a fast path misses its tolerance, 2 a mistake that the message explains, 130 interrupted.
"""

import argparse
import csv
import sys
import tempfile
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from camexp.bench import guard, scaling, techniques
from camexp.bench.cells import METHODS, MODELS, Budget, all_cells
from camexp.bench.comparison import COLUMNS
from camexp.bench.page import summary, write_page
from camexp.bench.paths import possible_paths
from camexp.bench.peer import MODULES, version
from camexp.bench.subject import CLASSES, Subject
from camexp.bench.table import Bench, Store, made_with, set_aside, write_info
from camexp.command import exit_status
from camexp.config import make_device
from camexp.errors import CamexpError
from camexp.files import write_atomically
from camexp.memory import keep_freed_memory
from camexp.places import CONFIGS
from camexp.records import read_csv
from camexp.report.markdown import grid

DOCS = Path("docs")


def kind(device: torch.device) -> str:
    """The part of the files' names: cpu or gpu."""
    return "cpu" if device.type == "cpu" else "gpu"


def options_of(args: argparse.Namespace) -> tuple[str, ...]:
    """The options for camexp, the device among them."""
    return (*args.options, f"device={args.device}")


def run_table(args: argparse.Namespace, device: torch.device) -> int:
    """Measure cells, and write the CSV and the page, also when interrupted."""
    for library in MODULES:
        if version(library) is None:
            print(f"{library} is not installed and left out; pip install '.[bench]' brings it", file=sys.stderr)
    cells = all_cells(args.methods, args.models, args.images, args.classes)
    path = args.output / f"bench_{kind(device)}.csv"
    store = Store(path, made_with(device, args.options), command_of(args), args.fresh)
    if store.replaced and not args.fresh:
        print(
            f"{store.path}: measured anew, because these differ: {', '.join(store.replaced)}; the cells of before are "
            "kept in *_before.csv",
            file=sys.stderr,
        )
    bench = Bench(store, Budget(60 * args.budget), args.rounds, lambda model: Subject(model, options_of(args)))
    status = 0
    try:
        bench.run(cells)
    except KeyboardInterrupt:
        print("\ninterrupted: finished cells stay; the same command goes on from here", file=sys.stderr)
        status = 130
    if store.rows:
        store.write()
        print(summary(list(store.rows.values()), store.left_out, kind(device)))
        print(f"\n{store.path}\n{write_page(args.output)}")
    return status


def run_scaling(args: argparse.Namespace, device: torch.device) -> int:
    """Fits of time against images and masks, and the start-up."""
    rows = [scaling.COLUMNS]
    for model in tqdm(args.models, desc="scaling", unit="model"):
        subject = Subject(model, options_of(args))
        rows += [scaling.by_images(subject), scaling.by_masks(subject)]
    with tempfile.TemporaryDirectory() as folder:
        rows.append([*scaling.start_up(Path(folder), options_of(args)), "", ""])
    return finish(rows, args.output / f"bench_scaling_{kind(device)}.csv", about(args, device))


def run_techniques(args: argparse.Namespace, device: torch.device) -> int:
    """Each technique switched off alone."""
    found = techniques.lines(args.models[0], options_of(args), max(args.images))
    rows = [COLUMNS, *tqdm(found, desc="techniques", unit="technique")]
    return finish(rows, args.output / f"bench_techniques_{kind(device)}.csv", about(args, device))


def about(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """What a table is measured with, and by which command."""
    return {"made_with": made_with(device, args.options), "commands": [command_of(args)]}


def command_of(args: argparse.Namespace) -> str:
    """What was typed."""
    return " ".join(["python", "scripts/bench.py", *args.given])


def finish(rows: Sequence[Sequence[str]], path: Path, info: dict[str, Any] | None = None) -> int:
    """Print a table, and write it, what is known of it, and the page."""
    write_lines(path, rows)
    if info is not None:
        write_info(path, info)
    print(grid(rows))
    print(f"\n{path}\n{write_page(path.parent)}")
    return 0


def write_lines(path: Path, rows: Sequence[Sequence[str]]) -> None:
    """Write a CSV; its folder is made."""
    text = StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.getvalue())


def run_guard(args: argparse.Namespace, device: torch.device) -> int:
    """Check fast paths; 1 if one misses. What an earlier check found of others stays in the table."""
    limit = [] if any(option.startswith("limit=") for option in args.options) else ["limit=2"]
    checked = guard.Guard([*limit, *options_of(args)], args.full)
    paths = possible_paths(device, lambda text: print(text, file=sys.stderr), args.paths)
    file = args.output / f"bench_guard_{kind(device)}.csv"
    known = [] if args.fresh else [[*row.values()] for row in read_csv(file, guard.HEAD)]
    lines = {guard.what(line): line for line in known}
    findings: list[guard.Finding] = []
    for found in checked.compare(paths, args.methods):
        if args.fresh and not findings:
            set_aside(file)
        findings.append(found)
        line = [*found.line(), *checked.where]
        lines.pop(guard.what(line), None)
        lines[guard.what(line)] = line
        write_lines(file, [guard.HEAD, *lines.values()])
    finish([guard.HEAD, *lines.values()], file)
    print(guard.verdict(findings))
    return int(any(not found.passes for found in findings))


def run_page(args: argparse.Namespace, device: torch.device) -> int:
    """Write the page from what there is."""
    print(write_page(args.output))
    return 0


def names(text: str) -> tuple[str, ...]:
    """An option's list, NAME,NAME."""
    return tuple(part for part in text.split(",") if part)


def numbers(text: str) -> tuple[int, ...]:
    """An option's list of whole numbers."""
    return tuple(int(part) for part in names(text))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("options", nargs="*", metavar="option=value", help="of camexp.run")
    modes = made.add_mutually_exclusive_group()
    for name, run in MODES.items():
        modes.add_argument(f"--{name}", dest="run", action="store_const", const=run)
    made.add_argument("--budget", type=float, default=15.0, help="minutes for the table (15)")
    made.add_argument("--rounds", type=int, default=5, help="alternating rounds per cell, at most (5)")
    made.add_argument("--methods", type=names, default=METHODS, help="NAME,NAME,...; all but the controls")
    made.add_argument("--models", type=names, default=MODELS, help="NAME,...; files of configs/model")
    made.add_argument("--images", type=numbers, default=(1, 16), help="N,N,...; images per call (1,16)")
    made.add_argument("--classes", type=numbers, default=(1, 3), help="N,N,...; classes per image (1,3)")
    made.add_argument("--device", default="auto", help="auto, cpu, cuda")
    made.add_argument("--output", type=Path, default=DOCS, help="folder of the CSVs and the page (docs)")
    made.add_argument("--fresh", action="store_true", help="a new table; the old is kept in *_before.csv")
    made.add_argument("--paths", type=names, default=(), help="NAME,...; of --guard, all that the machine can take")
    made.add_argument("--full", action="store_true", help="--guard with the methods' own parameters")
    return made


MODES: dict[str, Callable[[argparse.Namespace, torch.device], int]] = {
    "scaling": run_scaling,
    "techniques": run_techniques,
    "guard": run_guard,
    "page": run_page,
}


def check(args: argparse.Namespace) -> None:
    """Raise a CamexpError for numbers out of range, unknown models and what is no option."""
    for message, valid in (
        ("--budget must be positive", args.budget > 0),
        ("--rounds must be at least 1", args.rounds >= 1),
        ("--images must be whole numbers from 1 on", min(args.images, default=0) >= 1),
        (f"--classes must be whole numbers from 1 to {CLASSES}", set(args.classes) <= set(range(1, CLASSES + 1))),
        ("--methods and --models must not be empty", bool(args.methods and args.models and args.classes)),
    ):
        if not valid:
            raise CamexpError(message)
    known = sorted(path.stem for path in (CONFIGS / "model").glob("*.yaml"))
    unknown = [model for model in args.models if model not in known]
    if unknown:
        raise CamexpError(f"--models {', '.join(unknown)}: no such model; there are {', '.join(known)}")
    stray = [option for option in args.options if "=" not in option]
    if stray:
        raise CamexpError(f"{' '.join(stray)}: options are written option=value")


def measure(args: argparse.Namespace) -> int:
    """What the command line asks for; the exit status."""
    check(args)
    return (args.run or run_table)(args, make_device(args.device))


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_intermixed_args(argv)
    args.given = sys.argv[1:] if argv is None else argv
    keep_freed_memory()
    return exit_status(lambda: measure(args))
