"""ONNX files of other people, quantized without a thought, against what they were made from.

    pip download rapidocr-onnxruntime==1.4.4 --no-deps && unzip rapidocr_onnxruntime-1.4.4-*.whl -d files
    python benchmarks/onnx_files.py files/rapidocr_onnxruntime/models [NAME ...] [--photographs FOLDER]

Three networks of that package read text: one finds it (a map), one tells whether a line stands on its head (two
classes), one reads a line (6,625 characters per step). They were trained by PaddleOCR. They are measured on text that
is rendered here. ``FastestDet.onnx`` of <https://github.com/dog-qiuqiu/FastestDet> (``example/onnx-runtime``) detects
objects (85 numbers per cell), and ``version-RFB-320.onnx`` of
<https://github.com/Linzaer/Ultra-Light-Fast-Generic-Face-Detector-1MB> (``models/onnx``) faces, with boxes that are
computed in the file. These two are measured on photographs. Each network is quantized with the default settings, then
file and quantized file run on ONNX Runtime on the same images. Finished runs are kept in ``--out`` and not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
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
BLANK = 0  # the reader's class for "no character here"
TEXT_FROM = 0.3  # the package's least probability of text in a cell

Answers = np.ndarray  # probabilities, or numbers, of N images


@dataclass(frozen=True)
class Network:
    """A file of other people.

    Attributes:
        file: Its name.
        size: Channels, height and width of the images.
        draw: Makes the image to measure on of a random state, a height and a width.
        figures: Takes answers of file and quantized file, and gives shares of equal ones in percent, by name.
        count: Number of images to measure on.
        normalisation: One mean and one standard deviation for all channels.
        outputs: The names of those that count, where the file has several.
    """

    file: str
    size: tuple[int, int, int]
    draw: Callable[[random.Random, int, int], Image.Image]
    figures: Callable[[Answers, Answers], dict[str, float]]
    count: int
    normalisation: tuple[float, float] = (0.5, 0.5)
    outputs: str | None = None

    def images(self, seed: int) -> np.ndarray:
        """The images to measure on, normalised: float32 [N, 3, H, W]."""
        rng, (_, height, width) = random.Random(seed), self.size
        images = [self.draw(rng, height, width) for _ in range(self.count)]
        pixels = np.stack([np.asarray(image, np.float32) for image in images]).transpose(0, 3, 1, 2)
        mean, std = self.normalisation
        return np.ascontiguousarray((pixels / 255 - mean) / std, dtype=np.float32)


def same_class(before: Answers, after: Answers) -> dict[str, float]:
    """Images whose most likely class stays, of probabilities [N, K]."""
    return {"same_class": percent(before.argmax(1) == after.argmax(1))}


def same_character(before: Answers, after: Answers) -> dict[str, float]:
    """Steps with a character that keep it, of probabilities [N, T, K]."""
    characters = before.argmax(2)
    return {"same_character": percent((characters == after.argmax(2))[characters != BLANK])}


def same_text(before: Answers, after: Answers) -> dict[str, float]:
    """Equal cells, and cells with text in both over those in one (IoU), of probabilities [N, 1, H, W]."""
    one, other = before > TEXT_FROM, after > TEXT_FROM
    return {"equal_cells": percent(one == other), "text_in_both": percent((one & other)[one | other])}


def same_objects(before: Answers, after: Answers) -> dict[str, float]:
    """Cells with an object in both over those in one (IoU), and classes kept there: [N, 85, H, W], of FastestDet."""
    one, other = before[:, 0] > 0.5, after[:, 0] > 0.5
    kept = before[:, 5:].argmax(1) == after[:, 5:].argmax(1)
    return {"object_in_both": percent((one & other)[one | other]), "same_class": percent(kept[one & other])}


def same_faces(before: Answers, after: Answers) -> dict[str, float]:
    """Boxes with equal answers, and with a face in both over those in one (IoU), of probabilities [N, boxes, 2]."""
    one, other = before[..., 1] > 0.5, after[..., 1] > 0.5
    return {"equal_cells": percent(one == other), "face_in_both": percent((one & other)[one | other])}


def percent(values: np.ndarray) -> float:
    """The share of true values."""
    return round(100 * float(values.mean()), 2)


def text_line(rng: random.Random, height: int, width: int) -> Image.Image:
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


def turned_line(rng: random.Random, height: int, width: int) -> Image.Image:
    """A line of text, half of the time on its head."""
    line = text_line(rng, height, width)
    return line.rotate(180) if rng.random() < 0.5 else line


def text_page(rng: random.Random, height: int, width: int) -> Image.Image:
    """Five to nine lines of text below one another."""
    lines = rng.randint(5, 9)
    page = Image.new("RGB", (width, height), tuple(rng.randint(150, 255) for _ in range(3)))
    for row in range(lines):
        line = text_line(rng, height // (lines + 2), rng.randint(width // 3, width - 20))
        page.paste(line, (rng.randint(0, 20), round((row + 0.5) * height / lines)))
    return page


def photographs(folder: Path) -> Callable[[random.Random, int, int], Image.Image]:
    """Draws one of the photographs in a folder's sub-folders, resized."""
    files = sorted(folder.rglob("*.jpg"))

    def photograph(rng: random.Random, height: int, width: int) -> Image.Image:
        return Image.open(rng.choice(files)).convert("RGB").resize((width, height))

    return photograph


def networks(folder: Path | None) -> dict[str, Network]:
    """The networks by name; the detectors only where there are photographs."""
    found = {
        "angle": Network("ch_ppocr_mobile_v2.0_cls_infer.onnx", (3, 48, 192), turned_line, same_class, 400),
        "reader": Network("ch_PP-OCRv4_rec_infer.onnx", (3, 48, 320), text_line, same_character, 200),
        "finder": Network("ch_PP-OCRv4_det_infer.onnx", (3, 320, 320), text_page, same_text, 50),
    }
    if folder is not None:
        draw = photographs(folder)
        found["faces"] = Network(
            "version-RFB-320.onnx", (3, 240, 320), draw, same_faces, 200, (127 / 255, 128 / 255), "scores,boxes"
        )
        found["detector"] = Network("FastestDet.onnx", (3, 352, 352), draw, same_objects, 100, (0.0, 1.0))
    return found


def answers(file: Path, images: np.ndarray) -> list[Answers]:
    """Each output of a file for all images."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    name, size = session.get_inputs()[0].name, 10 if session.get_inputs()[0].shape[0] != 1 else 1
    parts = [session.run(None, {name: images[start : start + size]}) for start in range(0, len(images), size)]
    return [np.concatenate(values) for values in zip(*parts, strict=True)]


def measured(name: str, network: Network, folder: Path, run: Path, words: list[str]) -> dict[str, object]:
    """Quantize one network and compare the files.

    Args:
        name: Of the network, for the row.
        network: The network.
        folder: Where its file lies.
        run: The run folder; a file in it is not made again.
        words: More options of ``acq quantize``.
    """
    start = time.perf_counter()
    if not (run / "model.onnx").exists():
        size, (mean, std) = ",".join(map(str, network.size)), (",".join([str(n)] * 3) for n in network.normalisation)
        asked = ["quantize", str(folder / network.file), "--input-size", size, "--mean", mean, "--std", std, *words]
        asked += ["--outputs", network.outputs] if network.outputs else []
        subprocess.run([sys.executable, "-m", "acq", *asked, "--out", str(run), "--overwrite", "--quiet"], check=True)
    seconds = time.perf_counter() - start
    images = network.images(seed=1000)
    before, after = answers(folder / network.file, images), answers(run / "model.onnx", images)
    pairs = list(zip(before, after, strict=True))
    cosine = min(float((x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y)) for x, y in pairs)
    error = max(float(((x - y) ** 2).mean() / x.var()) for x, y in pairs)
    row = {"network": name, "options": " ".join(words), **network.figures(before[0], after[0])}
    return row | {"cosine": round(cosine, 4), "dB": round(-10 * math.log10(error), 1), "seconds": round(seconds)}


def main() -> None:
    """Measure the networks and print a line of JSON for each."""
    known = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known.add_argument("files", type=Path, help="the folder with the files")
    known.add_argument("networks", nargs="*", help="angle, reader, finder, faces, detector; all without")
    known.add_argument("--photographs", type=Path, help="a folder of folders of .jpg files, for faces and detector")
    known.add_argument("--out", type=Path, default=Path("runs/onnx-files"))
    known.add_argument("--bits", default="w8a8")
    known.add_argument("--seed", type=int, default=0)
    given, options = known.parse_known_args()
    found = networks(given.photographs)
    for name in given.networks or found:
        run = given.out / "-".join([name, given.bits, str(given.seed), *options]).replace("/", "_")
        words = ["--bits", given.bits, "--seed", str(given.seed), *options]
        print(json.dumps(measured(name, found[name], given.files, run, words)), flush=True)


if __name__ == "__main__":
    main()
