"""``acq evaluate``."""

from __future__ import annotations

from typing import Annotated

import typer

from acq.cli import options as o
from acq.cli.app import command
from acq.cli.output import print_json, print_lines
from acq.cli.requests import data_path, network_options, target_of
from acq.core.accuracies import ACCURACIES, margin, plus_minus


@command(
    "acq evaluate runs/first --data sample",
    "acq evaluate resnet20-cifar10 --data test.npz --limit 1000",
)
def evaluate(
    target: o.Target,
    data: o.Data,
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
    limit: Annotated[int | None, typer.Option(metavar="N", help="evaluate only the first N images")] = None,
    as_json: o.AsJson = False,
) -> None:
    """Accuracy of a run's student, an exported file or a network on labelled images.

    It is top-1 of classes, the share of right labels or steps, or mean IoU of a map. Top-1 has a 95 % interval, and
    top-5 beside it from 11 classes on.
    """
    options = network_options(checkpoint, checkpoint_key, model_args, input_size, mean, std, resize, crop)
    found = target_of(target, options, outputs, output_kind, classes, device)
    accuracy, count = found.accuracy(data_path(data, found.model), limit)
    known = ACCURACIES[found.output.kind]  # images were not read for an output without one
    shares = {known.key: (known.word, accuracy.percent)}
    if accuracy.top5 is not None:
        shares["top5"] = ("top-5", accuracy.top5)
    is_class = known.key == "top1"
    points = {key: margin(share, count) or None if is_class else None for key, (_, share) in shares.items()}
    if as_json:
        figures = {key: round(share, 2) for key, (_, share) in shares.items()}
        print_json({"target": target, "data": data, "test_images": count, **figures, "margin": points[known.key]})
    else:
        shown = [f"{word}  {share:.2f} %{plus_minus(points[key])}" for key, (word, share) in shares.items()]
        print_lines([f"{', '.join(shown)}  ({'' if is_class else f'{found.output}, '}{count:,} images)"])
