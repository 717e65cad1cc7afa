"""``acq quantize``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acq import api
from acq.cli import options as o
from acq.cli.app import command
from acq.cli.dry_run import describe
from acq.cli.output import note, notes, parity_lines, print_json, print_lines, without_notes
from acq.cli.requests import config_of, data_path, network_of, network_options
from acq.core.accuracies import ACCURACIES, plus_minus
from acq.core.device import choose_device
from acq.core.outputs import agreement_of, is_cosine
from acq.core.processes import joined, started_by_torchrun
from acq.core.settings import names_of
from acq.core.units import in_kilobytes, in_minutes
from acq.errors import RequestError
from acq.recipe import Request
from acq.recipe import quantize as run_recipe
from acq.runs.folder import free_folder, require_free
from acq.runs.names import MODEL
from acq.runs.progress import watching
from acq.runs.session import Session
from acq.runs.summary import STOPPED_IN, accuracies, margin_of_change

if TYPE_CHECKING:
    from acq.export.onnx_file import Exported


@command(
    "acq quantize resnet20-cifar10 --bits w4a4 --data sample --out runs/first",
    "acq quantize mypackage.nets:build --checkpoint weights.pth --input-size 3,32,32 --bits w4a8 --out runs/mine",
    "acq quantize resnet20-cifar10 --bits auto --budget 3.5 --out runs/mixed",
)
def quantize(
    model: o.Model, out: o.Out = None,
    checkpoint: o.Checkpoint = None, checkpoint_key: o.CheckpointKey = None, model_args: o.ModelArgs = None,
    input_size: o.InputSize = None, mean: o.Mean = None, std: o.Std = None,
    resize: o.Resize = None, crop: o.Crop = None,
    outputs: o.Outputs = None, output_kind: o.OutputKind = None, classes: o.Classes = None,
    bits: o.Bits = None, budget: o.Budget = None, first_last_bits: o.FirstLastBits = None, add_bits: o.AddBits = None,
    exclude: o.Exclude = None, placement: o.Placement = None,
    preset: o.Preset = None, config: o.ConfigFile = None, set_: o.Set = None, data: o.TestData = None,
    device: o.DeviceName = None, seed: o.Seed = None,
    engines: o.Engines = None, no_export: o.NoExport = False,
    resume: o.Resume = False, overwrite: o.Overwrite = False, dry_run: o.DryRun = False,
    tensorboard: o.TensorBoard = False, quiet: o.Quiet = False, verbose: o.Verbose = False, as_json: o.AsJson = False,
) -> None:  # fmt: skip
    """Quantize MODEL without its data, and keep the result in a run folder."""
    if quiet and verbose:
        raise RequestError("--quiet and --verbose contradict each other; give one of them")
    if out is None and resume:
        raise RequestError("--resume needs the folder of the run; give --out")
    is_main = started_by_torchrun().is_main
    quiet = quiet or not is_main
    place = None if data is None else data_path(data, model)
    settings = config_of(
        preset, config, set_, exclude, bits=bits, budget=budget, first_last_bits=first_last_bits, add_bits=add_bits,
        placement=placement, device=device, seed=seed, outputs=outputs, output_kind=output_kind,
    )  # fmt: skip
    options = network_options(checkpoint, checkpoint_key, model_args, input_size, mean, std, resize, crop)
    network = network_of(model, options, settings.outputs, classes)
    folder = out or free_folder(model, settings.bits)
    origin = {
        "model": model,
        "checkpoint": None if checkpoint is None else str(checkpoint),
        **({} if checkpoint_key is None else {"checkpoint_key": checkpoint_key}),
        "arguments": options["arguments"] or {},
    }
    request = Request.of(network, settings, origin)
    if dry_run:
        if is_main:
            require_free(folder, resume=resume, overwrite=overwrite)
            with without_notes(quiet):
                describe(request, folder, place, as_json, export=not no_export, engines=names_of(engines))
        return
    with (
        without_notes(quiet),
        joined(choose_device(settings.device)) as processes,
        watching(notes(quiet), verbose=verbose) as watch,
    ):
        session = Session(folder, resume, overwrite, (watch,), tensorboard, processes, not no_export, names_of(engines))
        result = run_recipe(request, session, place)
    if is_main:
        places = {"run": str(folder), "report": _report(folder, quiet), **_file(result.exported, folder / MODEL)}
        figures = result.summary | places
        _show(figures, result.exported, as_json, quiet)


def _report(folder: Path, quiet: bool) -> str | None:
    """Where the page of the run is. A run without a page is as good, so a missing extra is only a note."""
    try:
        return str(api.write_report(folder))
    except RequestError as error:
        note(f"no report: {error}", quiet)
        return None


def _file(exported: Exported | None, place: Path) -> dict[str, Any]:
    """The ONNX file of a run as JSON values; nulls where there is none. That of an earlier run was compared then."""
    if exported is None:
        has_file = place.exists()
        return {
            "file": str(place) if has_file else None, "file_bytes": place.stat().st_size if has_file else None,
            "engines": None,
        }  # fmt: skip
    return {
        "file": str(exported.path), "file_bytes": exported.bytes, "engines": asdict(exported.parity)["engines"],
    }  # fmt: skip


def _show(figures: dict[str, Any], exported: Exported | None, as_json: bool, quiet: bool) -> None:
    if as_json:
        print_json(figures)
    elif not quiet:
        print_lines(finished_lines(figures))
        print_lines([] if exported is None else parity_lines(exported.parity))


def finished_lines(figures: dict[str, Any]) -> list[str]:
    """A finished run in a few lines: quality, expected loss, where it stopped, cost, and the file or what is next."""
    bits, kind, measured = figures["bits"], figures["output"]["kind"], accuracies(figures)
    if measured is not None:
        float_, low = measured
        quality = f"{ACCURACIES[kind].word:<11}float {float_:.2f} %  ->  {bits} {low:.2f} %  "
        quality += f"({low - float_:+.2f}{plus_minus(margin_of_change(figures))}, "
        quality += f"{figures['test_images']:,} test images)"
    else:
        verb = "agree with" if is_cosine(kind) else "agree on"
        like = agreement_of(kind, figures["agreement"], "augmented synthetic images")
        quality = f"agreement  {bits} student and float network {verb} {like}"
    size = f"{in_kilobytes(figures['float_bytes'])}  ->  {in_kilobytes(figures['quantized_bytes'])}"
    report = f"    (report: {figures['report']})" if figures["report"] else ""
    file = f"next       acq export {figures['run']}"
    if figures["file"]:
        file = f"file       {figures['file']}, {in_kilobytes(figures['file_bytes'])}"
    stop, loss = figures.get("stopped"), figures.get("expected_loss")  # a finished run of an earlier version has none
    return [
        quality,
        *_top5(figures),
        *([] if loss is None else [_expected(loss)]),
        *([] if stop is None else [f"stopped    {STOPPED_IN[stop['phase']]}: {stop['reason']}"]),
        f"size       {size} of weights and scales    time {in_minutes(figures['seconds'])}",
        file + report,
    ]


def _top5(figures: dict[str, Any]) -> Iterator[str]:
    """The line on top-5, where there are many classes."""
    if (low := figures.get("top5")) is not None:
        yield f"top-5      float {figures['teacher_top5']:.2f} %  ->  {figures['bits']} {low:.2f} %"


def _expected(loss: dict[str, float]) -> str:
    """The line on the expected loss."""
    points, low, high = (f"{loss[name]:.1f}" for name in ("points", "low", "high"))
    return f"expected   {points} points of top-1 lost on real images ({low} to {high} in 9 of 10 runs)"
