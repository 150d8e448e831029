"""One run: `python -m camexp.run dataset=minivoc model=resnet50 method=igcam`.

Exit status: 0 done, 1 done with listed failures, 2 ended by a mistake or another error, 130 interrupted.
"""

import sys

import hydra
from omegaconf import DictConfig

from camexp.checks import check_options
from camexp.command import counted, exit_status, run_hydra
from camexp.places import CONFIGS
from camexp.runner import command_of, execute

EMBEDDED_NOTE = (
    "{name}: embedded procedural scenes with a small network; the numbers are not the papers'.\n"
    "For the papers' data pass dataset=voc2007, coco2014 or severstal (README.md, \"The papers' tables\")."
)


def report(cfg: DictConfig) -> int:
    """Execute a config, say what came of it, and return the exit status."""
    if str(cfg.dataset.name).startswith("mini"):
        print(EMBEDDED_NOTE.format(name=cfg.dataset.name), file=sys.stderr)
    outcome = execute(cfg, command_of(sys.argv[1:]))
    more = [f"maps of {counted(outcome.maps, 'pair')} saved"] if outcome.maps else []
    more += [f"{counted(outcome.trials, 'run time')} taken"] if outcome.trials else []
    if outcome.computed:
        state = f"{counted(outcome.computed, 'pair')} computed"
    elif cfg.runtime.only:
        state = ", ".join(more) or "run times already taken"
    else:
        state = f"already finished{'; '.join(['', *more]) or ', nothing to do'}"
    print(f"{outcome.path}: {state}; {counted(outcome.rows, 'row')}", end="")
    if outcome.failures:
        listed = f"{counted(outcome.failures, 'failure')} listed in {outcome.path / 'failures.csv'}"
        print(f", {listed}; retry=true tries them again; once annotations are mended, overwrite=true starts anew")
        return 1
    print()
    return 0


@hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")
def _run(cfg: DictConfig) -> None:
    def command() -> int:
        check_options(cfg)
        told = f"interrupted: finished batches are in {cfg.output}; the same command goes on"
        return exit_status(lambda: report(cfg), told)

    sys.exit(exit_status(command))


def main() -> None:
    """Compose the config from the command line and run it."""
    run_hydra(_run)


if __name__ == "__main__":
    main()
