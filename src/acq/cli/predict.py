"""``acq predict``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from acq import api
from acq.cli import options as o
from acq.cli.app import command
from acq.cli.output import print_json, print_lines
from acq.cli.requests import network_options, target_of


@command(
    "acq predict runs/first cat.png dog.jpg",
    "acq predict mypackage.nets:build cat.png --checkpoint weights.pth --input-size 3,32,32 --classes names.txt",
)
def predict(
    target: o.Target,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="image files, of any size")],
    checkpoint: o.Checkpoint = None,
    checkpoint_key: o.CheckpointKey = None,
    model_args: o.ModelArgs = None,
    input_size: o.InputSize = None,
    mean: o.Mean = None,
    std: o.Std = None,
    resize: o.Resize = None,
    crop: o.Crop = None,
    outputs: o.Outputs = None,
    output_kind: o.OutputKind = None,
    classes: o.Classes = None,
    device: o.DeviceName = None,
    top: Annotated[
        int, typer.Option(metavar="N", help="classes per image at most (default 3)", show_default=False)
    ] = 3,
    as_json: o.AsJson = False,
) -> None:
    """Name the classes of pictures, as a run's student, an exported file or a network sees them."""
    options = network_options(checkpoint, checkpoint_key, model_args, input_size, mean, std, resize, crop)
    found = target_of(target, options, outputs, output_kind, classes, device)
    made = api.predictions(found, images, top)
    if as_json:
        rows = [{"image": str(each.image), "answers": list(map(asdict, each.answers))} for each in made]
        print_json({"target": target, "predictions": rows})
        return
    width = max(len(str(each.image)) for each in made)
    for each in made:
        answers = ", ".join(f"{answer.name} {answer.percent:.1f} %" for answer in each.answers)
        print_lines([f"{each.image!s:<{width}}  {answers or 'no label applies'}"])
