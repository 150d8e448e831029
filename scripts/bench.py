"""Measure how fast the methods are: `python scripts/bench.py --help`; see `camexp.bench.main`."""

import sys

from camexp.bench.main import main

if __name__ == "__main__":
    sys.exit(main())
