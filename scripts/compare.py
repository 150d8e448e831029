"""Show what changed between two runs, or between the runs that two results folders have in common.

python scripts/compare.py RUN_A RUN_B [--tolerance 0.001]

Exit status: 0 equal within the tolerance, 1 different, 2 a mistake that the message explains.
"""

import argparse
import sys
from pathlib import Path

from camexp.command import counted, exit_status
from camexp.report.compare import compare_folders, render


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", type=Path, metavar="RUN_A", help="folder of a run, or of results")
    parser.add_argument("b", type=Path, metavar="RUN_B", help="the one to compare it with")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.0,
        help="largest change of a mean (a fraction) that counts as equal; 0 allows no change of any pair",
    )
    args = parser.parse_args(argv)
    return exit_status(lambda: compare(args.a, args.b, args.tolerance))


def compare(a: Path, b: Path, tolerance: float) -> int:
    """Print how two runs, or the runs of two folders, differ; returns 0 if they do not, and 1 if they do."""
    compared, remarks = compare_folders(a, b, tolerance)
    for comparison in compared:
        print(render(comparison))
    for remark in remarks:
        print(f"! {remark}", file=sys.stderr)
    different = sum(not comparison.equal for comparison in compared)
    print(f"{counted(len(compared), 'run')} compared, {different} different")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
