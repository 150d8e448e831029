"""The runs that a suite of tables needs, in order, resumable: `python -m camexp.reproduce [SUITE] [option=value ...]`.

Options are those of camexp.run and go to every run. Exit status as for camexp.run; the tables are printed anyway.
"""

import argparse
import sys
from pathlib import Path

from camexp.config import compose_config
from camexp.errors import CamexpError
from camexp.experiment import Column, Experiment, load_suite
from camexp.report.main import print_report
from camexp.runner import execute


def planned(experiments: list[Experiment]) -> list[tuple[str, str, Column]]:
    """(dataset, model, column) of every run, each once, in the order of the tables."""
    runs = [(e.dataset, model, column) for e in experiments for model, column in e.runs()]
    unique = {(dataset, model, column.run_name): (dataset, model, column) for dataset, model, column in runs}
    return list(unique.values())


def overrides_of(dataset: str, model: str, column: Column) -> list[str]:
    """The command line of one run."""
    parameters = [f"method.{name}={value}" for name, value in column.overrides]
    output = f"output=${{results_dir}}/{dataset}/{model}/{column.run_name}" if parameters else None
    choices = [f"dataset={dataset}", f"model={model}", f"method={column.method}"]
    return [*choices, *parameters, *([output] if output else [])]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", nargs="?", default="mini", help="a file of configs/suite or configs/experiment")
    parser.add_argument("options", nargs="*", help="options for every run, e.g. device=cuda limit=100")
    args = parser.parse_args(argv)
    try:
        experiments = load_suite(args.suite)
        results = Path(compose_config(args.options).results_dir)
    except CamexpError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    runs = planned(experiments)
    status = 0
    for position, (dataset, model, column) in enumerate(runs, 1):
        name = f"[{position}/{len(runs)}] {dataset} {model} {column.run_name}"
        try:
            outcome = execute(compose_config([*overrides_of(dataset, model, column), *args.options]))
        except CamexpError as error:
            print(f"{name}: skipped: {error}", file=sys.stderr)
            status = max(status, 2)
        except KeyboardInterrupt:
            print(f"\ninterrupted in {name}; the same command goes on from here", file=sys.stderr)
            return 130
        else:
            state = f"{outcome.computed} pairs computed" if outcome.computed else "already finished"
            failed = f", {outcome.failures} failures listed in {outcome.path}" if outcome.failures else ""
            print(f"{name}: {state}{failed}", file=sys.stderr)
            status = max(status, int(outcome.failures > 0))
    print_report(results, experiments)
    return status


if __name__ == "__main__":
    sys.exit(main())
