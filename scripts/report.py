"""Print the papers' tables from records alone; write them to results/tables/ and the page to results/report/.

python scripts/report.py [--results results] [--format terminal|markdown|latex|csv] [--details] [--figures] [SUITE ...]
"""

import argparse
import sys
from pathlib import Path

from camexp.command import exit_status
from camexp.experiment import load_suite
from camexp.report.main import FORMATS, print_report
from camexp.report.verdicts import Tolerance


def report(args: argparse.Namespace) -> int:
    """Print and write what the command line asks for."""
    chosen = [experiment for name in args.suites for experiment in load_suite(name)]
    tolerance = Tolerance(args.points, args.factor)
    print_report(args.results, chosen or None, args.format, args.details, tolerance, args.figures)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", help="suites or experiments; by default every table that has a run")
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of the runs")
    parser.add_argument("--format", choices=FORMATS, default="terminal", help="what is printed; all are written")
    parser.add_argument("--details", action="store_true", help="also differences, ranks, orderings, results by group")
    parser.add_argument("--figures", action="store_true", help="also figures for papers, as PNG and SVG")
    parser.add_argument("--points", type=float, default=Tolerance.points, help="tolerance in percentage points (2)")
    parser.add_argument("--factor", type=float, default=Tolerance.factor, help="tolerance of run times (2)")
    args = parser.parse_args()
    return exit_status(lambda: report(args))


if __name__ == "__main__":
    sys.exit(main())
