"""``acq evaluate``."""

from __future__ import annotations

from typing import Annotated

import typer

from acq import api
from acq.cli import options as o
from acq.cli.app import command
from acq.cli.output import print_json, print_lines
from acq.cli.requests import data_path, kinds_of, network_options
from acq.core.accuracies import ACCURACIES


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
    device: o.DeviceName = None,
    limit: Annotated[int | None, typer.Option(metavar="N", help="evaluate only the first N images")] = None,
    as_json: o.AsJson = False,
) -> None:
    """Accuracy of a run's student, an exported file or a network on labelled images.

    It is top-1 of classes, the share of right labels or steps, or mean IoU of a map.
    """
    found = api.target(
        target,
        outputs=outputs,
        output_kinds=kinds_of(output_kind),
        device=device or "auto",
        **network_options(checkpoint, checkpoint_key, model_args, input_size, mean, std, resize, crop),
    )
    percent, count = found.accuracy(data_path(data, found.model), limit)
    measured = ACCURACIES[found.output.kind]  # images were not read for an output without one
    if as_json:
        print_json({"target": target, "data": data, "test_images": count, measured.key: round(percent, 2)})
    else:
        meaning = "" if found.output.kind == "class" else f"{found.output}, "
        print_lines([f"{measured.word}  {percent:.2f} %  ({meaning}{count:,} images)"])
