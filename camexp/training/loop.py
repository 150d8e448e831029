"""The loop over steps: one for every network and data set, and resumable at any step.

Loss: softmax cross-entropy against the image's normalised label set (one class of n gets 1/n), so that the softmax
confidence that the explanation papers use means something. What is kept is the moving average of the weights: that
of the last step, or with a validation share that of the epoch that was best.
"""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from camexp.errors import CamexpError
from camexp.evaluation import quality
from camexp.training.data import Labelled, Source
from camexp.training.labels import BALANCES, draw_order
from camexp.training.recipe import PRECISIONS, Recipe, make


@torch.inference_mode()
def measure(network: nn.Module, images: Labelled, device: torch.device, label: str) -> dict[str, float]:
    """The quality of a network in evaluation mode on labelled images, by its softmax probabilities."""
    network.eval()
    probabilities = [network(batch.to(device)).softmax(1).cpu() for batch in images.fed(label)]
    return quality(torch.cat(probabilities).numpy(), images.labels.numpy() > 0)


class Trainer:
    """A network while it is trained; `state` and `restore` carry all of it over an interruption.

    Parameters
    ----------
    network: on its device; its weights change.
    source: makes the batches.
    labels: (N,C) in {0,1}, of the source's images.
    validation: images that decide which epoch is kept; None keeps the last.
    save: called with the state at the end of each epoch, and in between when `save_seconds` have passed.
    """

    def __init__(
        self,
        network: nn.Module,
        source: Source,
        labels: Tensor,
        recipe: Recipe,
        seed: int,
        validation: Labelled | None = None,
        save: Callable[[Mapping[str, Any]], None] = lambda state: None,
        save_seconds: float = 600,
    ):
        self.steps_per_epoch = len(labels) // recipe.batch
        if not self.steps_per_epoch:
            raise CamexpError(f"{len(labels)} training images do not fill one batch of recipe.batch={recipe.batch}")
        total = self.steps_per_epoch * recipe.epochs
        self.total = min(total, recipe.steps or total)
        self.network, self.source, self.labels, self.recipe = network, source, labels, recipe
        self.validation, self.save, self.save_seconds = validation, save, save_seconds
        self.device = next(network.parameters()).device
        self.drawing, weights = BALANCES[recipe.balance](labels, recipe.balance_power)
        self.class_weights = weights if weights is None else weights.to(self.device)
        self.generator = torch.Generator().manual_seed(seed)
        self.optimiser: torch.optim.Optimizer = make(recipe.optimiser, network.parameters())
        self.schedule = self._schedule()
        self.averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema), use_buffers=True)
        mixed = self.device.type == "cuda" and recipe.precision != "float32"
        self.autocast = torch.autocast(self.device.type, PRECISIONS[recipe.precision], enabled=mixed)
        self.scaler = torch.amp.GradScaler("cuda", 2.0**12, enabled=mixed and recipe.precision == "float16")
        self.step, self.loss_sum, self.seconds = 0, 0.0, 0.0
        self.order = torch.empty(0, dtype=torch.int64)
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] = {}

    def _schedule(self) -> OneCycleLR:
        warmup = self.recipe.warmup
        if warmup * self.total == 1:
            warmup += 1e-9  # torch divides by the length of a rise of one step, which it takes for 0
        highest = [group["lr"] for group in self.optimiser.param_groups]
        cycle = self.recipe.cycle_momentum
        return OneCycleLR(self.optimiser, highest, self.total, pct_start=warmup, cycle_momentum=cycle)

    # ----------------------------------------------------------------------------------------- training

    def train(self, label: str) -> nn.Module:
        """Train to the end, from wherever the state is; returns the network with the weights to keep."""
        progress = tqdm(total=self.total, initial=self.step, desc=label, unit="step", dynamic_ncols=True)
        with progress:
            while self.step < self.total:
                self._epoch(progress)
        if self.best:
            self.averaged.module.load_state_dict(self.best["weights"])
        return self.averaged.module

    def _epoch(self, progress: tqdm) -> None:
        """The rest of the epoch in which `step` lies."""
        started = saved = time.perf_counter()
        epoch, done = divmod(self.step, self.steps_per_epoch)
        if not done:
            self.order, self.loss_sum = draw_order(self.drawing, len(self.labels), self.generator), 0.0
        size, last = self.recipe.batch, min(self.total, (epoch + 1) * self.steps_per_epoch)
        rows = self.order[done * size : (done + last - self.step) * size].split(size)
        side = self.recipe.side(epoch)
        self.network.train()
        for chosen, images in zip(rows, self.source.batches(rows, self.step, side, self.generator), strict=True):
            loss = self._step(images, self.labels[chosen])
            progress.update()
            progress.set_postfix(epoch=epoch, side=side, loss=f"{loss:.3f}", **self._shown())
            if self.step < last and time.perf_counter() - saved >= self.save_seconds:
                self.seconds, started = self.seconds + time.perf_counter() - started, time.perf_counter()
                self.save(self.state())
                saved = time.perf_counter()
        self._close_epoch(epoch, len(rows) + done)
        self.seconds += time.perf_counter() - started
        self.save(self.state())

    def _step(self, images: Tensor, labels: Tensor) -> float:
        """One step on images (B,3,h,w) with label sets (B,C); returns the loss."""
        inputs = images.to(self.device, non_blocking=True).contiguous(memory_format=torch.channels_last)
        target = (labels / labels.sum(1, keepdim=True)).to(self.device)
        with self.autocast:
            loss = F.cross_entropy(self.network(inputs), target, weight=self.class_weights)
        value = loss.item()
        if not math.isfinite(value):
            raise CamexpError(f"the loss is not finite at step {self.step}; lower recipe.optimiser.lr")
        self.optimiser.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimiser)
        nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.schedule.step()
        self.averaged.update_parameters(self.network)
        self.step += 1
        self.loss_sum += value
        return value

    def _close_epoch(self, epoch: int, steps: int) -> None:
        """Note the epoch's loss and validation, and keep its weights when they are the best so far."""
        row = {"epoch": epoch, "step": self.step, "loss": self.loss_sum / steps}
        if self.validation is not None:
            row |= measure(self.averaged.module, self.validation, self.device, "validation")
            score = row[self.recipe.best]
            if not self.best or score > self.best["score"]:
                weights = {k: v.detach().cpu().clone() for k, v in self.averaged.module.state_dict().items()}
                self.best = {"score": score, "epoch": epoch, "weights": weights}
        self.history.append(row)

    def _shown(self) -> dict[str, str]:
        return {f"best_{self.recipe.best}": f"{self.best['score']:.3f}"} if self.best else {}

    # ------------------------------------------------------------------------------------- interruption

    def state(self) -> dict[str, Any]:
        """Everything that the steps to come depend on."""
        return {
            "step": self.step,
            "order": self.order,
            "loss_sum": self.loss_sum,
            "seconds": self.seconds,
            "history": self.history,
            "best": self.best,
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "generator": self.generator.get_state(),
            "random": torch.get_rng_state(),
            "random_device": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.step, self.order, self.loss_sum = state["step"], state["order"], state["loss_sum"]
        self.seconds, self.history, self.best = state["seconds"], state["history"], state["best"]
        for name in ("network", "averaged", "optimiser", "schedule", "scaler"):
            getattr(self, name).load_state_dict(state[name])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["random"])
        if state["random_device"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random_device"], self.device)
