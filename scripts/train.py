"""Train a classifier on a data set, measure it on the test images and write its checkpoint.

    python scripts/train.py dataset=severstal model=resnet101 [option=value ...]

Options are those of configs/train.yaml, and recipe.<key>= of configs/recipe/<dataset>.yaml; `--cfg job` prints all of
them. Beside the weights lie a .json (command, quality, counts, versions, SHA-256, settings) and a .csv (the epochs).
The same command goes on after an interruption, to the same weights, and says so when there is nothing left to do.

Exit status: 0 done, 2 ended by a mistake or another error, 130 interrupted.
"""

import os
import sys

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats its sums; read when it starts

import hydra
from omegaconf import DictConfig

from camexp.command import exit_status, run_hydra
from camexp.training.run import train


@hydra.main(version_base="1.3", config_path="../configs", config_name="train")
def _main(cfg: DictConfig) -> None:
    def report() -> int:
        print(train(cfg))
        return 0

    sys.exit(exit_status(report, "interrupted: the same command goes on from the last saved state"))


if __name__ == "__main__":
    run_hydra(_main)
