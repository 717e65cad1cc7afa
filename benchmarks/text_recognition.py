"""Networks that read text, at W8A8, against the files they were made from, on lines of text that are rendered here.

    pip download rapidocr-onnxruntime==1.4.4 --no-deps && unzip rapidocr_onnxruntime-1.4.4-*.whl
    python benchmarks/text_recognition.py rapidocr_onnxruntime/models [NAME ...] [--out runs/text]

The three networks of that package were trained by PaddleOCR and exported with folded batch norms: one finds text
(a map), one tells whether a line stands on its head (two classes), one reads a line (6,625 characters per step).
Each is quantized with the default settings, then file and quantized file run on ONNX Runtime on the same lines.
Finished runs are kept in ``--out`` and not repeated.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageDraw, ImageFont

TEXT = (
    "the quantized network reads this line about twelve boxes of paper that left Berlin on Friday and reached Oslo "
    "before noon while nobody checked invoice number 4711 or the price of 89.50 EUR per piece Street Garden Model "
    "Office Report Winter Summer total amount due customer address 2026 Nr. A-17 quick brown fox jumps over lazy dog"
)
WORDS = TEXT.split()
BLANK = 0  # the recogniser's class for "no character here"


@dataclass(frozen=True)
class Network:
    """One of the package's files.

    Attributes:
        file: Its name.
        size: Channels, height and width of the images.
        figure: Takes answers of file and quantized file, both [N, ...], and gives the share of equal ones.
        count: Number of lines or pages to measure on.
    """

    file: str
    size: tuple[int, int, int]
    figure: Callable[[np.ndarray, np.ndarray], float]
    count: int


def same_class(before: np.ndarray, after: np.ndarray) -> float:
    """The share of images whose most likely class stays, of probabilities [N, K]."""
    return float((before.argmax(1) == after.argmax(1)).mean())


def same_character(before: np.ndarray, after: np.ndarray) -> float:
    """The share of the steps with a character that keep it, of probabilities [N, T, K]."""
    characters = before.argmax(2)
    spoken = characters != BLANK
    return float((characters == after.argmax(2))[spoken].mean())


def same_text(before: np.ndarray, after: np.ndarray) -> float:
    """Text cells that both maps have, over those that one of them has (IoU), of probabilities [N, 1, H, W]."""
    one, other = before > 0.3, after > 0.3  # the threshold of the package
    return float((one & other).sum() / (one | other).sum())


NETWORKS = {
    "angle": Network("ch_ppocr_mobile_v2.0_cls_infer.onnx", (3, 48, 192), same_class, 400),
    "reader": Network("ch_PP-OCRv4_rec_infer.onnx", (3, 48, 320), same_character, 200),
    "finder": Network("ch_PP-OCRv4_det_infer.onnx", (3, 320, 320), same_text, 50),
}


def line_of_text(rng: random.Random, height: int, width: int) -> Image.Image:
    """A line of text in a random size and random colours that fills most of the image."""
    ground = tuple(rng.randint(150, 255) for _ in range(3))
    ink = tuple(rng.randint(0, 90) for _ in range(3))
    if rng.random() < 0.3:
        ground, ink = ink, ground
    image = Image.new("RGB", (width, height), ground)
    font = ImageFont.load_default(rng.uniform(0.5, 0.75) * height)
    words: list[str] = []
    while font.getlength(" ".join([*words, word := rng.choice(WORDS)])) < width - 8:
        words.append(word)
    text = " ".join(words) or rng.choice(WORDS)
    ImageDraw.Draw(image).text((4, height / 2), text, ink, font, anchor="lm")
    return image


def page_of_text(rng: random.Random, height: int, width: int) -> Image.Image:
    """Five to nine lines of text below one another."""
    lines = rng.randint(5, 9)
    page = Image.new("RGB", (width, height), tuple(rng.randint(150, 255) for _ in range(3)))
    for index in range(lines):
        line = line_of_text(rng, height // (lines + 2), rng.randint(width // 3, width - 20))
        page.paste(line, (rng.randint(0, 20), round((index + 0.5) * height / lines)))
    return page


def rendered(network: Network, seed: int) -> np.ndarray:
    """Pages for the map, lines for the others, every second one turned round for the angle: float32 [N, 3, H, W]."""
    rng = random.Random(seed)
    _, height, width = network.size
    draw = page_of_text if network.figure is same_text else line_of_text
    images = [draw(rng, height, width) for _ in range(network.count)]
    if network.figure is same_class:
        images = [image.rotate(180) if index % 2 else image for index, image in enumerate(images)]
    pixels = np.stack([np.asarray(image, np.float32) for image in images]).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(pixels / 255 / 0.5 - 1)


def answers(file: Path, images: np.ndarray) -> np.ndarray:
    """The first output of a file for all images."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: images[i : i + 10]})[0] for i in range(0, len(images), 10)])


def measured(name: str, folder: Path, out: Path, bits: str, seed: int) -> dict[str, object]:
    """Quantize one network and compare the files."""
    network = NETWORKS[name]
    run = out / f"{name}-{bits}-{seed}"
    start = time.perf_counter()
    if not (run / "student.onnx").exists():
        size, half = ",".join(map(str, network.size)), "0.5,0.5,0.5"
        words = ["quantize", str(folder / network.file), "--input-size", size, "--mean", half, "--std", half]
        words += ["--bits", bits, "--seed", str(seed), "--out", str(run), "--overwrite", "--quiet"]
        subprocess.run([sys.executable, "-m", "acq", *words], check=True)
    seconds = time.perf_counter() - start
    images = rendered(network, seed=1000)
    before, after = answers(folder / network.file, images), answers(run / "student.onnx", images)
    cosine = float((before * after).sum() / np.linalg.norm(before) / np.linalg.norm(after))
    share = round(100 * network.figure(before, after), 2)
    equal = network.figure is same_text and round(100 * float(((before > 0.3) == (after > 0.3)).mean()), 2)
    row = {"network": name, "bits": bits, "seed": seed, "same": share, "cosine": round(cosine, 4)}
    return row | ({"equal_cells": equal} if equal else {}) | {"seconds": round(seconds)}


def main() -> None:
    """Measure the networks and print a line of JSON for each."""
    known = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known.add_argument("models", type=Path, help="the folder with the three files")
    known.add_argument("networks", nargs="*", default=list(NETWORKS), help=", ".join(NETWORKS))
    known.add_argument("--out", type=Path, default=Path("runs/text"))
    known.add_argument("--bits", default="w8a8")
    known.add_argument("--seed", type=int, default=0)
    given = known.parse_args()
    for name in given.networks:
        print(json.dumps(measured(name, given.models, given.out, given.bits, given.seed)), flush=True)


if __name__ == "__main__":
    main()
