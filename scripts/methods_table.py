"""Write docs/methods.md, the table of methods, from their docstrings and configs.

python scripts/methods_table.py [--check]
"""

import argparse
import importlib
import re
import sys
from pathlib import Path

from camexp.experiment import label_of
from camexp.files import read_yaml
from camexp.methods import FAMILIES
from camexp.places import CONFIGS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "methods.md"

HEAD = """# Methods

Made by `python scripts/methods_table.py` from the docstrings in `camexp/methods/`, where the formulas are. Each is
run by `python -m camexp.run method=<name>`; its parameters are given as `method.<parameter>=<value>`.
"""


def row(name: str) -> str:
    """One line of the table: name, source, cost, parameters with their defaults."""
    values = read_yaml(CONFIGS / "method" / f"{name}.yaml")
    module_name, class_name = values["_target_"].rsplit(".", 1)
    module = importlib.import_module(module_name)
    source = " ".join((module.__doc__ or "").split("\n\n")[0].split()).rstrip(".")
    text = " ".join((getattr(module, class_name).__doc__ or "").split())
    found = re.search(r"Cost: (.*?)(?= Parameters -{3,}| Raises -{3,}|$)", text)
    if not source:
        raise SystemExit(f"{module_name} has no docstring that names the method's paper")
    if found is None:
        raise SystemExit(f"{module_name}: the docstring of {class_name} does not say `Cost: ...`")
    parameters = ", ".join(f"`{k}={_shown(v)}`" for k, v in values.items() if k not in ("name", "_target_", "seed"))
    cells = [f"`{name}`", label_of(name), source, found[1], parameters or "none"]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _shown(value: object) -> str:
    return "null" if value is None else str(value)


def page() -> str:
    """The whole of docs/methods.md."""
    sections = [HEAD]
    for family, names in FAMILIES.items():
        lines = ["| config | name | source | cost | parameters |", "|---|---|---|---|---|", *map(row, names)]
        sections.append(f"## {family[0].upper()}{family[1:]}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(sections)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only say whether the page is current")
    args = parser.parse_args()
    if args.check:
        current = PAGE.is_file() and PAGE.read_text() == page()
        print(f"{PAGE.relative_to(Path.cwd()) if PAGE.is_relative_to(Path.cwd()) else PAGE}: ", end="")
        print("current" if current else "out of date; run python scripts/methods_table.py")
        return 0 if current else 1
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
