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


def planned(experiments: list[Experiment]) -> dict[str, list[str]]:
    """The command line of every run by "dataset/model/name", each once, in the order of the tables."""
    return {
        f"{e.dataset}/{model}/{folder_name(column, seed)}": overrides_of(e.dataset, model, column, seed)
        for e in experiments
        for model, column in e.runs()
        for seed in column.seeds
    }


def folder_name(column: Column, seed: int = 0) -> str:
    """Name of a run's folder; seeds other than 0 are told apart."""
    return column.run_name if seed == 0 else f"{column.run_name}-seed{seed}"


def overrides_of(dataset: str, model: str, column: Column, seed: int = 0) -> list[str]:
    """The command line of one run."""
    choices = [f"dataset={dataset}", f"model={model}", f"method={column.method}", f"seed={seed}"]
    parameters = [f"method.{name}={value}" for name, value in column.overrides]
    return [*choices, *parameters, f"output=${{results_dir}}/{dataset}/{model}/{folder_name(column, seed)}"]


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
    for position, (run, overrides) in enumerate(runs.items(), 1):
        name = f"[{position}/{len(runs)}] {run}"
        try:
            outcome = execute(compose_config([*overrides, *args.options]))
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
