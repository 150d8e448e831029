"""The runs that a suite of tables needs, resumable: `python -m camexp.reproduce [SUITE] [option=value ...]`.

First the plan: runs, pairs, estimated time, disk, what is missing and the command that gets it. Then what can run;
the rest is skipped with a reason. Options are those of camexp.run and go to every run; what the tables choose for each
run (data set, model, method, protocol, seed, output) is refused. Exit status as for camexp.run, 2 also when something
was skipped; the tables are printed anyway.
"""

import argparse
import multiprocessing
import os
import sys
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from camexp.command import counted, exit_status
from camexp.config import compose_config, make_device
from camexp.errors import CamexpError
from camexp.experiment import load_suite, probe_seconds
from camexp.plan import PlannedRun, plan
from camexp.report.main import print_report
from camexp.runner import command_of, execute
from camexp.survey import Surveyor, describe


def run_one(run: PlannedRun) -> tuple[str, int]:
    """Execute one run; what to say of it, and its exit status."""
    try:
        outcome = execute(compose_config(list(run.overrides)), command_of(run.overrides))
    except CamexpError as error:
        return f"{run.name}: skipped: {error}", 2
    except Exception as error:  # of a method's own code; the other runs go on
        traceback.print_exc()
        return f"{run.name}: failed: {type(error).__name__}: {error}", 2
    state = f"{counted(outcome.computed, 'pair')} computed" if outcome.computed else "already finished"
    failed = f", {counted(outcome.failures, 'failure')} listed in {outcome.path}" if outcome.failures else ""
    return f"{run.name}: {state}{failed}", int(outcome.failures > 0)


def run_all(runs: list[PlannedRun], jobs: int) -> int:
    """Execute the runs, `jobs` at a time, each with its share of the cores; the worst exit status."""
    statuses = []
    with tqdm(total=len(runs), desc="runs", unit="run", dynamic_ncols=True) as progress:

        def tell(result: tuple[str, int]) -> None:
            statuses.append(result[1])
            progress.write(f"[{len(statuses)}/{len(runs)}] {result[0]}", file=sys.stderr)
            progress.update()

        if jobs == 1:
            for run in runs:
                tell(run_one(run))
        else:
            with _workers(jobs) as pool:
                for done in as_completed([pool.submit(run_one, run) for run in runs]):
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


def compute(runs: list[PlannedRun], jobs: int) -> int:
    """Rows of all runs, then their single-image times; the worst exit status."""
    # trials of the run time come last and one by one: nothing else may use the machine
    status = run_all([with_options(run, "runtime.trials=0") for run in runs if run.rows], jobs)
    for run in runs:
        if run.timed:
            said, code = run_one(run if run.rows else with_options(run, "runtime.only=true"))
            status = max(status, code)
            if code:
                print(said, file=sys.stderr)
    return status


def with_options(run: PlannedRun, *options: str) -> PlannedRun:
    """The run with further options at the end of its command line."""
    return replace(run, overrides=(*run.overrides, *options))


def reproduce(args: argparse.Namespace) -> int:
    """Print the plan, and without --dry-run execute it and print the tables; the exit status."""
    experiments = load_suite(args.suite)
    cfg = compose_config(args.options)
    jobs = args.jobs or (1 if make_device(cfg.device).type == "cuda" else os.cpu_count() or 1)
    budget = probe_seconds(args.suite) if args.probe is None else args.probe
    prospects = Surveyor(budget).survey(plan(experiments, args.options))
    print(describe(prospects, Path(cfg.results_dir)), flush=True)
    if args.dry_run:
        return 0
    status = compute([prospect.run for prospect in prospects if not prospect.problem], jobs)
    print_report(Path(cfg.results_dir), experiments)
    return max([status, *(2 for prospect in prospects if prospect.problem)])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", nargs="?", default="mini", help="a file of configs/suite or configs/experiment")
    parser.add_argument("options", nargs="*", help="options for every run, e.g. device=cuda limit=100")
    parser.add_argument("--jobs", type=int, help="runs at a time; by default one per core without a GPU, else one")
    parser.add_argument("--dry-run", action="store_true", help="print the plan only")
    parser.add_argument("--probe", type=float, help="seconds per run for estimating its time; 0 for no estimate")
    args = parser.parse_intermixed_args(argv)
    told = "interrupted: finished batches stay; the same command goes on from here"
    return exit_status(lambda: reproduce(args), told)


if __name__ == "__main__":
    sys.exit(main())
