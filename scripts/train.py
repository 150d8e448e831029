"""Train a small network on an embedded data set and write its checkpoint with the measured quality.

    python scripts/train.py --dataset minivoc --model resnet50

Loss: softmax cross-entropy against the image's normalised label set (one class of n gets 1/n), so that the
softmax confidence that the explanation papers use means something. VGG16 is trained with batch norm, which is
then folded into the convolutions: what is written is a plain VGG16. The training set is made, not downloaded.
"""

import argparse
import json
import shlex
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from camexp.datasets.base import Dataset
from camexp.datasets.mini import minicoco, ministeel, minivoc
from camexp.models.build import build, fold_vgg_batch_norm
from camexp.models.checkpoint import EMBEDDED, sha256
from camexp.models.preprocess import Preprocess

SETS = {
    "minivoc": (minivoc, {"split": "train", "difficult": "keep"}, {"split": "test", "difficult": "keep"}),
    "minicoco": (minicoco, {"split": "train2014"}, {"split": "val2014"}),
    "ministeel": (ministeel, {"split": "train", "with_normal": True}, {"split": "test", "with_normal": True}),
}


def load_all(dataset: Dataset, label: str) -> tuple[Tensor, Tensor]:
    """Every labelled image as fed, (N,3,224,224) float16, and its label sets (N,C) in {0,1}."""
    preprocess = Preprocess()
    images, labels = [], []
    for index in tqdm(range(len(dataset)), desc=label, unit="img"):
        label_set = torch.zeros(len(dataset.classes))
        for target in dataset.targets[index]:
            label_set[target.class_id] = 1
        if not dataset.targets[index]:
            if dataset.classes[0] != "no defect":
                continue
            label_set[0] = 1
        images.append(preprocess.image(dataset.read_image(index)).half())
        labels.append(label_set)
    return torch.stack(images), torch.stack(labels)


def augment(images: Tensor, side: int, generator: torch.Generator, vertical: bool) -> Tensor:
    """Mirror, zoom (0.85-1.15), shift, and change contrast and brightness of a batch; resize to `side`."""
    n = len(images)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, generator=generator) * (high - low) + low

    zoom, theta = uniform(0.85, 1.15), torch.zeros(n, 2, 3)
    theta[:, 0, 0] = zoom * uniform(-1, 1).sign()
    theta[:, 1, 1] = zoom * (uniform(-1, 1).sign() if vertical else 1)
    theta[:, :, 2] = torch.stack([uniform(-0.1, 0.1), uniform(-0.1, 0.1)], 1)
    grid = F.affine_grid(theta, [n, 3, side, side], align_corners=False)
    small = F.interpolate(images, (side, side), mode="bilinear", antialias=True) if side < 224 else images
    moved = F.grid_sample(small, grid, padding_mode="reflection", align_corners=False)
    return moved * uniform(0.8, 1.2).view(-1, 1, 1, 1) + uniform(-0.3, 0.3).view(-1, 1, 1, 1)


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Area under the precision-recall curve (mean precision at each hit) of one class."""
    hits = truth[np.argsort(-scores, kind="stable")]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precision[hits > 0].mean())


@torch.inference_mode()
def evaluate(network: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Mean average precision, share of images whose top class is a true one, mean probability of true classes."""
    network.eval()
    probability = torch.cat([network(batch.float()).softmax(1) for batch in images.split(32)]).numpy()
    truth = labels.numpy()
    classes = [c for c in range(truth.shape[1]) if truth[:, c].any()]
    return {
        "map": float(np.mean([average_precision(probability[:, c], truth[:, c]) for c in classes])),
        "top1": float(truth[np.arange(len(truth)), probability.argmax(1)].mean()),
        "true_probability": float(probability[truth > 0].mean()),
    }


def train(network: nn.Module, images: Tensor, labels: Tensor, args: argparse.Namespace) -> nn.Module:
    """AdamW with one warm-up and cosine decay, at half resolution first; returns the averaged weights' network."""
    generator = torch.Generator().manual_seed(args.seed)
    steps_per_epoch = len(images) // args.batch
    total = steps_per_epoch * (args.half_epochs + args.full_epochs)
    optimiser = torch.optim.AdamW(network.parameters(), lr=args.lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, args.lr, total_steps=total, pct_start=0.15)
    averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.99), use_buffers=True)
    progress = tqdm(total=total, desc=f"{args.dataset}_{args.model}", unit="step")
    for epoch in range(args.half_epochs + args.full_epochs):
        side = 112 if epoch < args.half_epochs else 224
        network.train()
        for rows in torch.randperm(len(images), generator=generator)[: steps_per_epoch * args.batch].split(args.batch):
            batch = augment(images[rows].float(), side, generator, vertical=args.dataset == "ministeel")
            target = labels[rows] / labels[rows].sum(1, keepdim=True)
            loss = F.cross_entropy(network(batch.contiguous(memory_format=torch.channels_last)), target)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 2.0)
            optimiser.step()
            schedule.step()
            averaged.update_parameters(network)
            progress.update()
            progress.set_postfix(epoch=epoch, side=side, loss=f"{loss.item():.3f}")
    progress.close()
    return averaged.module


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=SETS, required=True)
    parser.add_argument("--model", choices=("vgg16", "resnet50", "resnet101"), required=True)
    parser.add_argument("--width", type=float, default=0.125, help="factor on the channel counts")
    parser.add_argument("--images", type=int, default=4000, help="training images (sheets for ministeel)")
    parser.add_argument("--half-epochs", type=int, default=24, help="epochs at 112 x 112")
    parser.add_argument("--full-epochs", type=int, default=8, help="epochs at 224 x 224")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", default="data", help="folder of the generated data")
    parser.add_argument("--output", type=Path, default=EMBEDDED)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.use_deterministic_algorithms(True)
    make, train_split, test_split = SETS[args.dataset]
    root = str(Path(args.data) / args.dataset)
    images, labels = load_all(make(root, images=args.images, **train_split), "training images")
    test_images, test_labels = load_all(make(root, **test_split), "test images")

    started = time.perf_counter()
    network = build(args.model.replace("vgg16", "vgg16_bn"), labels.shape[1], args.width)
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1  # half of the units is too much to lose for so narrow a network
    network = train(network.to(memory_format=torch.channels_last), images, labels, args).eval()
    if args.model == "vgg16":
        network = fold_vgg_batch_norm(network)
    state = {k: v.half().contiguous() for k, v in network.state_dict().items() if "num_batches" not in k}
    network.load_state_dict({k: v.float() for k, v in state.items()}, strict=False)  # measure what is written

    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / f"{args.dataset}_{args.model}.safetensors"
    save_file(state, path)
    path.chmod(0o644)
    record = {
        "command": shlex.join(["python", "scripts/train.py", *sys.argv[1:]]),
        "test": {k: round(v, 4) for k, v in evaluate(network, test_images, test_labels).items()},
        "test_images": len(test_images),
        "train_images": len(images),
        "width": args.width,
        "parameters": sum(p.numel() for p in network.parameters()),
        "minutes": round((time.perf_counter() - started) / 60, 1),
        "torch": torch.__version__,
        "sha256": sha256(path),
    }
    path.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
