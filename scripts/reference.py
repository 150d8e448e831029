"""Make the reference scores of the regression test anew, or check the code against them.

python scripts/reference.py [--check] [--file tests/reference/mini.json]

Make them anew only when the scores are meant to change, and say why in the commit.
Exit status: 0 done or equal, 1 different, 2 a mistake that the message explains, 130 interrupted.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from camexp.command import exit_status
from camexp.report import regression

FILE = Path(__file__).resolve().parent.parent / "tests" / "reference" / "mini.json"


def check(reference: Path, folder: Path) -> int:
    """Run everything once and say what deviates."""
    different = 0
    for name, expected in regression.read_reference(reference)["runs"].items():
        found = regression.deviations(expected, regression.measure(name, folder))
        different += bool(found)
        print(f"{name}: {'; '.join(found) or 'as expected'}")
    return int(different > 0)


def remake(reference: Path, folder: Path) -> int:
    """Run everything once and keep the scores."""
    regression.write_reference(reference, regression.make_reference(folder))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only compare")
    parser.add_argument("--file", type=Path, default=FILE, help="the reference file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return exit_status(lambda: (check if args.check else remake)(args.file, Path(folder)))


if __name__ == "__main__":
    sys.exit(main())
