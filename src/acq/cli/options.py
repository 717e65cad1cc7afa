"""The arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from acq import zoo

NETWORK, STUDENT, RUN, OUTPUT = "Network", "Student", "Run", "Output"
MODEL_HELP = "a built-in name (see `acq models`), an .onnx file, torchvision:NAME, timm:NAME or package.module:callable"


def _builtin_names(incomplete: str) -> list[str]:
    return [name for name in zoo.builtin_names() if name.startswith(incomplete)]


Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP, autocompletion=_builtin_names)]
Target = Annotated[
    str, typer.Argument(metavar="TARGET", help=f"a run folder, an .onnx file of acq export, or {MODEL_HELP}")
]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="the folder of a finished run")]

Checkpoint = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="weights, such as .pth, .ckpt or .safetensors", rich_help_panel=NETWORK),
]
CheckpointKey = Annotated[
    str | None,
    typer.Option(
        metavar="KEY", help="where the weights are in FILE, such as state_dict; by default what fits",
        rich_help_panel=NETWORK,
    ),
]  # fmt: skip
ModelArgs = Annotated[
    str | None, typer.Option(metavar="JSON", help="keyword arguments of the callable", rich_help_panel=NETWORK)
]
InputSize = Annotated[
    str | None,
    typer.Option(metavar="C,H,W", help="size of the images, such as 3,32,32", rich_help_panel=NETWORK),
]
Mean = Annotated[
    str | None,
    typer.Option(metavar="A,B,C", help="mean per channel of pixels in [0, 1]", rich_help_panel=NETWORK),
]
Std = Annotated[
    str | None,
    typer.Option(metavar="A,B,C", help="standard deviation per channel", rich_help_panel=NETWORK),
]
Resize = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="shorter side of pictures of another size, before the crop (default as the network is known to take "
        "them, or 8/7 of its side)",
        rich_help_panel=NETWORK,
    ),
]
Crop = Annotated[
    int | None,
    typer.Option(metavar="N", help="side of the crop: the network's own (default)", rich_help_panel=NETWORK),
]
Classes = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="names of the classes, one per line in class order (default those of the run, file or built-in network)",
        rich_help_panel=NETWORK,
    ),
]
Outputs = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|INDEX,...",
        help="the returned tensors that decide, if MODEL returns several; in an ONNX file also values to cut it at",
        rich_help_panel=NETWORK,
    ),
]
OutputKind = Annotated[
    str | None,
    typer.Option(
        metavar="KIND,...",
        help="class, multilabel, map, sequence or values: what the scores of each mean, where that is not found",
        rich_help_panel=NETWORK,
    ),
]

Bits = Annotated[
    str | None,
    typer.Option(
        metavar="wNaM|wN|auto",
        help="bits of weights and activations, 2 to 8 (default w4a4), or of weights alone as in w4; auto chooses bits "
        "per layer",
        rich_help_panel=STUDENT,
    ),
]
Budget = Annotated[
    float | None,
    typer.Option(metavar="BITS", help="mean bits of weights for --bits auto (default 4)", rich_help_panel=STUDENT),
]
FirstLastBits = Annotated[
    str | None,
    typer.Option(
        metavar="8|same", help="bits of the first and last layers' weights (default 8)", rich_help_panel=STUDENT
    ),
]
AddBits = Annotated[
    str | None,
    typer.Option(metavar="8|same", help="bits of tensors that enter an addition (default 8)", rich_help_panel=STUDENT),
]
Placement = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="auto (default), deployable, layers for transformers, or relu-only as in papers",
        rich_help_panel=STUDENT,
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN", help="keep these layers in floating point, such as 'head.*'; repeatable",
        rich_help_panel=STUDENT,
    ),
]  # fmt: skip
Preset = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="fast, default, best, acq or gdfq", rich_help_panel=RUN),
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="FILE.yaml", help="a file of settings", rich_help_panel=RUN)
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="a setting (see `acq settings`); repeatable", rich_help_panel=RUN),
]
DeviceName = Annotated[
    str | None, typer.Option(metavar="NAME", help="auto (default), cpu or cuda", rich_help_panel=RUN)
]
Out = Annotated[
    Path | None,
    typer.Option(metavar="RUN", help="the run folder (default runs/MODEL-BITS, numbered)", rich_help_panel=RUN),
]
TestData = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="PATH",
        help="labelled images that only report accuracy: .npz, a folder of classes, or sample",
        rich_help_panel=RUN,
    ),
]
Seed = Annotated[
    int | None, typer.Option(metavar="N", help="seed of all random numbers (default 0)", rich_help_panel=RUN)
]
Resume = Annotated[bool, typer.Option("--resume", help="continue the run", rich_help_panel=RUN)]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace the run", rich_help_panel=RUN)]
NoExport = Annotated[
    bool, typer.Option("--no-export", help="write no model.onnx, and do not try it at the start", rich_help_panel=RUN)
]
Engines = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,...",
        help="engines that the file must agree on (default onnxruntime), such as openvino",
        rich_help_panel=RUN,
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="print the plan, the settings and the time", rich_help_panel=RUN)
]
TensorBoard = Annotated[bool, typer.Option("--tensorboard", help="write RUN/tensorboard", rich_help_panel=OUTPUT)]
Data = Annotated[
    str,
    typer.Option(
        metavar="PATH", help="labelled images: .npz, a folder of classes, or sample for a built-in network's own"
    ),
]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="print one JSON object on standard output", rich_help_panel=OUTPUT),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="print only errors and warnings", rich_help_panel=OUTPUT)]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="print all losses, line by line", rich_help_panel=OUTPUT)
]
