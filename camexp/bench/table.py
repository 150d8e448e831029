"""Measuring the whole table within a budget of time, resumable."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from camexp.bench.cells import COLUMNS, Budget, Row, least_seconds, measure_cell
from camexp.bench.floor import Rates
from camexp.bench.peer import MODULES, version
from camexp.bench.subject import Cell, Subject
from camexp.bench.work import Shape, needed
from camexp.errors import CamexpError
from camexp.files import write_atomically
from camexp.provenance import environment
from camexp.records import read_csv, to_csv


@dataclass
class Store:
    """The finished cells, in a CSV, and beside it in a JSON what they were measured with.

    Cells of another machine, version or option are not mixed with new ones: with the first new one they are set aside,
    in files whose names end in `_before`.

    Parameters
    ----------
    command: that measures the new cells; the JSON lists each that measured any.
    fresh: set all cells aside.
    """

    path: Path
    made_with: dict[str, Any]
    command: str
    fresh: bool = False

    def __post_init__(self) -> None:
        self.rows: dict[Cell, Row] = {}
        self.left_out: dict[str, str] = {}
        self.commands: list[str] = []
        self.replaced: list[str] = []
        self.set_aside = False
        if self.path.is_file():
            info = read_info(self.path)
            before = info.get("made_with", {})
            keys = sorted(before.keys() | self.made_with.keys())
            self.replaced = [key for key in keys if before.get(key) != self.made_with.get(key)]
            if not self.replaced and not self.fresh:
                self.rows = {cell_of(row): row for row in read_csv(self.path, COLUMNS)}
                self.commands, self.left_out = info.get("commands", []), info.get("left_out", {})

    def add(self, row: Row) -> None:
        """Keep a finished cell."""
        self.rows[cell_of(row)] = row
        self.left_out.pop(str(cell_of(row)), None)
        if self.command not in self.commands:
            self.commands.append(self.command)
        self.write()

    def write(self) -> None:
        """Write both files."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if (self.replaced or self.fresh) and not self.set_aside:
            self.set_aside = True
            for suffix in (".csv", ".json"):
                set_aside(self.path.with_suffix(suffix))
        info = {"made_with": self.made_with, "commands": self.commands, "left_out": self.left_out}
        write_atomically(self.path, to_csv(self.rows.values(), COLUMNS, header=True))
        write_info(self.path, info)


def set_aside(file: Path) -> None:
    """Let a file that may be there keep what it has under a name that ends in `_before`."""
    if file.is_file():
        file.replace(file.with_name(f"{file.stem}_before{file.suffix}"))


def write_info(path: Path, info: dict[str, Any]) -> None:
    """Keep what a table was measured with beside it."""
    write_atomically(path.with_suffix(".json"), json.dumps(info, indent=1) + "\n")


def read_info(path: Path) -> dict[str, Any]:
    """What a table was measured with; empty when that is not known."""
    try:
        content = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def cell_of(row: Row) -> Cell:
    return Cell(row["method"], row["model"], int(row["images"]), int(row["classes"]))


def made_with(device: torch.device, options: Sequence[str]) -> dict[str, Any]:
    """Machine, versions and options."""
    libraries = {library: version(library) for library in MODULES}
    return {**environment(device), **libraries, "options": list(options)}


@dataclass
class Bench:
    """One run over the cells.

    Parameters
    ----------
    make: the subject of a model.
    rounds: at most so many per cell.
    """

    store: Store
    budget: Budget
    rounds: int
    make: Callable[[str], Subject]

    def __post_init__(self) -> None:
        self.subjects: dict[str, Subject] = {}
        self.forward: dict[str, float] = {}  # seconds of a plain pass, by model
        self.impossible: dict[tuple[str, str], str] = {}  # why, by method and model: a call may end before it is seen

    def run(self, cells: Sequence[Cell]) -> None:
        """Measure the cells that are not finished, as far as the time allows."""
        todo = [cell for cell in cells if cell not in self.store.rows]
        with tqdm(total=len(cells), initial=len(cells) - len(todo), desc="bench", unit="cell") as progress:
            for _, group in groupby(todo, lambda cell: (cell.model, cell.images, cell.classes)):
                block = list(group)
                self._measure(block, todo[todo.index(block[-1]) + 1 :], progress)

    def _measure(self, block: list[Cell], after: list[Cell], progress: Any) -> None:
        if self.budget.left <= 0:
            for cell in block:
                self._leave_out(cell, "no time left", progress)
            return
        progress.set_postfix_str(f"{block[0].model}: plain passes")
        subject = self._subject(block[0].model)
        rates = self._rates(subject, block)
        forward = self.forward[subject.model] = rates.scaled(subject.stopwatch.pulse()).forward
        for position, cell in enumerate(block):
            progress.set_postfix_str(str(cell))
            rest = [*block[position + 1 :], *after]
            shape = Shape(cell.images, cell.classes)
            if least_seconds(1, shape, forward, subject.batch) > self.budget.left:
                self._leave_out(cell, "no time left", progress)
                continue
            if (cell.method, cell.model) in self.impossible:
                self._leave_out(cell, self.impossible[cell.method, cell.model], progress)
                continue
            seconds = self.budget.share(cell, rest, self.forward)
            try:
                row = measure_cell(cell, subject, rates, seconds, self.rounds, partial(say, cell))
            except CamexpError as error:
                self.impossible[cell.method, cell.model] = str(error)
                self._leave_out(cell, str(error), progress)
                continue
            self.store.add(row)
            progress.update()

    def _subject(self, model: str) -> Subject:
        if model not in self.subjects:
            self.subjects[model] = self.make(model)
        return self.subjects[model]

    @staticmethod
    def _rates(subject: Subject, block: list[Cell]) -> Rates:
        """The rates that the block's methods need."""
        works = []
        for cell in block:
            works.append(needed(cell.method, subject.method(cell.method), Shape(cell.images, cell.classes, masks=1)))
        return subject.stopwatch.rates(works)

    def _leave_out(self, cell: Cell, reason: str, progress: Any) -> None:
        self.store.left_out[str(cell)] = reason
        progress.write(f"{cell}: left out: {reason}", file=sys.stderr)


def say(cell: Cell, text: str) -> None:
    """Something about a cell, above the progress bar."""
    tqdm.write(f"{cell}: {text}", file=sys.stderr)
