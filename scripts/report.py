"""Print the papers' tables from records alone, and write them to results/tables/.

python scripts/report.py [--results results] [SUITE ...]
"""

import argparse
import sys
from pathlib import Path

from camexp.errors import CamexpError
from camexp.experiment import load_suite
from camexp.report.main import print_report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", help="suites or experiments; by default every table that has a run")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the runs")
    args = parser.parse_args()
    try:
        chosen = [experiment for name in args.suites for experiment in load_suite(name)]
        print_report(args.results, chosen or None)
    except CamexpError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
