"""The runs that a suite of tables needs, in order, resumable: `python -m camexp.reproduce [SUITE] [option=value ...]`.

Options are those of camexp.run and go to every run. Exit status as for camexp.run; the tables are printed anyway.
"""

import argparse
import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm

from camexp.config import compose_config, make_device
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


def timed(experiments: list[Experiment]) -> list[str]:
    """The runs of tables that show the run time."""
    return list(planned([e for e in experiments if "runtime" in e.metrics]))


def run_one(run: str, overrides: list[str]) -> tuple[str, int]:
    """Execute one run; what to say of it, and its exit status."""
    try:
        outcome = execute(compose_config(overrides))
    except CamexpError as error:
        return f"{run}: skipped: {error}", 2
    state = f"{outcome.computed} pairs computed" if outcome.computed else "already finished"
    failed = f", {outcome.failures} failures listed in {outcome.path}" if outcome.failures else ""
    return f"{run}: {state}{failed}", int(outcome.failures > 0)


def run_all(runs: dict[str, list[str]], jobs: int) -> int:
    """Execute the runs, `jobs` at a time, each with its share of the cores; the worst exit status."""
    statuses = []
    with tqdm(total=len(runs), desc="runs", unit="run", dynamic_ncols=True) as progress:

        def tell(result: tuple[str, int]) -> None:
            statuses.append(result[1])
            progress.write(f"[{len(statuses)}/{len(runs)}] {result[0]}", file=sys.stderr)
            progress.update()

        if jobs == 1:
            for run, overrides in runs.items():
                tell(run_one(run, overrides))
        else:
            with _workers(jobs) as pool:
                for done in as_completed([pool.submit(run_one, *item) for item in runs.items()]):
                    tell(done.result())
    return max(statuses, default=0)


@contextmanager
def _workers(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Processes without progress bars of their own; what waits is given up when the context is left by an error."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    os.environ["TQDM_DISABLE"] = "1"  # read when a worker imports tqdm
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=torch.set_num_threads, initargs=(threads,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        del os.environ["TQDM_DISABLE"]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", nargs="?", default="mini", help="a file of configs/suite or configs/experiment")
    parser.add_argument("options", nargs="*", help="options for every run, e.g. device=cuda limit=100")
    parser.add_argument("--jobs", type=int, help="runs at a time; by default one per core without a GPU, else one")
    args = parser.parse_intermixed_args(argv)
    try:
        experiments = load_suite(args.suite)
        cfg = compose_config(args.options)
        jobs = args.jobs or (1 if make_device(cfg.device).type == "cuda" else os.cpu_count() or 1)
    except CamexpError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    runs = {run: [*overrides, *args.options] for run, overrides in planned(experiments).items()}
    try:
        # trials of the run time come last and one by one: nothing else may use the machine
        status = run_all({run: [*overrides, "runtime.trials=0"] for run, overrides in runs.items()}, jobs)
        for run in timed(experiments):
            status = max(status, run_one(run, runs[run])[1])
    except KeyboardInterrupt:
        print("\ninterrupted: finished batches stay; the same command goes on from here", file=sys.stderr)
        return 130
    print_report(Path(cfg.results_dir), experiments)
    return status


if __name__ == "__main__":
    sys.exit(main())
