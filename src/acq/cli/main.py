"""The command line: what the user typed becomes a request, and what came of it becomes text or JSON."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from acq import api, zoo
from acq.config import Config
from acq.core.evaluate import accuracy
from acq.core.processes import joined, started_by_torchrun
from acq.errors import Interrupted, RequestError, RunError
from acq.files.images import LabelledImages, batches, read
from acq.files.limits import assignment, read_settings
from acq.network.trace import classes_of, trace
from acq.quantization.plan import Plan
from acq.recipe import Request, choose_device, follow, prepare, run
from acq.runs import student_file as artifact
from acq.runs.estimate import estimate
from acq.runs.folder import require_free
from acq.runs.malloc import keep_freed_memory
from acq.runs.progress import watching

# the base of everything that the parser raises; newer typers carry their own copy of click, older ones need it
_ParserError: type[Exception] = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="acq",
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

_NETWORK, _RUN = "The network", "The run"
MODEL_HELP = "a built-in name (see `acq models`), torchvision:NAME, timm:NAME or package.module:callable"
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help=MODEL_HELP,
        autocompletion=lambda incomplete: [name for name in zoo.builtin_names() if name.startswith(incomplete)],
    ),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(help="weights: .safetensors, .pth, .pt or .th", rich_help_panel=_NETWORK),
]
ModelArgs = Annotated[
    str | None,
    typer.Option(metavar="JSON", help="keyword arguments of the callable", rich_help_panel=_NETWORK),
]
InputSize = Annotated[
    str | None,
    typer.Option(metavar="C,H,W", help="size of its images, such as 3,32,32", rich_help_panel=_NETWORK),
]
Mean = Annotated[
    str | None,
    typer.Option(metavar="A,B,C", help="mean of its normalisation of [0, 1]", rich_help_panel=_NETWORK),
]
Std = Annotated[
    str | None,
    typer.Option(metavar="A,B,C", help="deviation of its normalisation", rich_help_panel=_NETWORK),
]
NumberFormat = Annotated[
    str | None,
    typer.Option(
        metavar="wNaM|auto",
        help="bits of weights and activations, 2 to 8 [w4a4]; auto, or wautoaM: bits of its own for each layer",
        rich_help_panel=_RUN,
    ),
]
Budget = Annotated[
    float | None,
    typer.Option(metavar="MEAN", help="mean bits of weights under --bits auto [4]", rich_help_panel=_RUN),
]
Ends = Annotated[
    str | None,
    typer.Option(metavar="N|same", help="bits of the first and last layers' weights [8]", rich_help_panel=_RUN),
]
Addends = Annotated[
    str | None,
    typer.Option(metavar="N|same", help="bits of values where they are added to others [8]", rich_help_panel=_RUN),
]
Placement = Annotated[
    str | None, typer.Option(help="deployable, or relu-only as in the literature", rich_help_panel=_RUN)
]
DeviceName = Annotated[str | None, typer.Option(help="auto, cpu or cuda", rich_help_panel=_RUN)]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        help="print nothing but errors and warnings, and what --json or --dry-run ask for",
        rich_help_panel=_RUN,
    ),
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="print losses line by line, no bars", rich_help_panel=_RUN)
]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON object on standard output")]


def _examples(*lines: str) -> str:
    return "\n\n".join(["Examples:", *lines])


def _say_version(wanted: bool) -> None:
    if wanted:
        print(f"acq {version('acq')}")
        raise typer.Exit


@app.callback()
def _acq(
    version_: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Quantize a trained image classifier to low-bit integers without its training data."""


@app.command(
    epilog=_examples(
        "acq quantize resnet20-cifar10 --bits w4a4 --data sample --out runs/first",
        "acq quantize mypackage.nets:build --checkpoint weights.pth --input-size 3,32,32 --bits w4a8 --out runs/mine",
        "acq quantize resnet20-cifar10 --bits auto --budget 3.5 --out runs/mixed",
    )
)
def quantize(
    model: Model,
    out: Annotated[Path, typer.Option(help="the run folder", rich_help_panel=_RUN)],
    bits: NumberFormat = None,
    budget: Budget = None,
    checkpoint: Checkpoint = None,
    model_args: ModelArgs = None,
    input_size: InputSize = None,
    mean: Mean = None,
    std: Std = None,
    preset: Annotated[str | None, typer.Option(help="fast, default, best or gdfq", rich_help_panel=_RUN)] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE.yaml", help="settings", rich_help_panel=_RUN)] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="one setting, may be repeated", rich_help_panel=_RUN),
    ] = None,
    placement: Placement = None,
    ends: Ends = None,
    addends: Addends = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help=".npz or folder of classes, to report accuracy only; `sample` for a built-in network's own",
            rich_help_panel=_RUN,
        ),
    ] = None,
    device: DeviceName = None,
    seed: Annotated[int | None, typer.Option(help="of everything random [0]", rich_help_panel=_RUN)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run", rich_help_panel=_RUN)] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="start the run again", rich_help_panel=_RUN)] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="say what would happen and how long it would take", rich_help_panel=_RUN)
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="write RUN/tensorboard while it runs", rich_help_panel=_RUN)
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Quantize MODEL without its data and keep the result in the folder --out.

    torchrun --nproc-per-node N -m acq quantize ... shares every batch among N processes.
    """
    if quiet and verbose:
        raise RequestError("--quiet and --verbose contradict each other; give one of them")
    place = None if data is None else _data_path(data, model)
    widths = _widths(bits, ends, addends)
    given = {**widths, "budget": budget, "placement": placement, "device": device, "seed": seed}
    settings = Config.create(
        preset or "default",
        read_settings(config) if config else {},
        *map(assignment, set_ or []),
        {key: value for key, value in given.items() if value is not None},
        {"preset": preset} if preset else {},
    )
    quiet = quiet or not started_by_torchrun().leads
    network = _network(model, checkpoint, model_args, input_size, mean, std, quiet)
    origin = {
        "model": model,
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "arguments": _json_object(model_args),
    }
    request = Request(network.model, network.preprocessing, settings, origin)
    if dry_run:
        if started_by_torchrun().leads:
            require_free(out, resume=resume, overwrite=overwrite)
            _describe(request, out, place, as_json)
        return
    with joined(choose_device(settings.device)) as team:
        if not team.leads:
            follow(request, team)
            return
        with watching(_console(quiet), verbose=verbose) as watch:
            result = run(
                request,
                out,
                data=place,
                resume=resume,
                overwrite=overwrite,
                watch=watch,
                tensorboard=tensorboard,
                team=team,
            )
    figures = result.summary | {"run": str(out), "report": _reported(out, quiet)}
    _finish(figures, as_json, quiet)
    size = f"{figures['quantized_bytes'] / 1e3:,.0f} kB of weights and scales"
    if not as_json:
        _console(quiet).print(f"{out}: {figures['bits']} student, {size}, {figures['seconds']:.0f} s", soft_wrap=True)


@app.command(
    epilog=_examples(
        "acq evaluate runs/first --data sample",
        "acq evaluate resnet20-cifar10 --data test.npz --limit 1000",
    )
)
def evaluate(
    target: Annotated[str, typer.Argument(metavar="TARGET", help=f"a run folder, or {MODEL_HELP}")],
    data: Annotated[str, typer.Option(metavar="PATH", help=".npz or folder of classes; or `sample`")],
    checkpoint: Checkpoint = None,
    model_args: ModelArgs = None,
    input_size: InputSize = None,
    mean: Mean = None,
    std: Std = None,
    device: DeviceName = None,
    limit: Annotated[int | None, typer.Option(help="evaluate the first N images alone")] = None,
    as_json: AsJson = False,
) -> None:
    """Top-1 accuracy of a run's student, or of a network, on labelled images."""
    if target.endswith(".onnx") and device not in (None, "auto", "cpu"):
        raise RequestError(f"{target} runs on the CPU alone here; leave out --device")
    place = choose_device(device or "auto")
    whole = Path(target).is_dir() or target.endswith(".onnx")
    if whole and any((checkpoint, model_args, input_size, mean, std)):
        kind = "an ONNX file" if target.endswith(".onnx") else "a run folder"
        raise RequestError(f"{target} is {kind}, which has its own weights and sizes; give --data alone")
    if target.endswith(".onnx"):
        engine = api.engine(target)
        if engine.preprocessing is None:
            raise RequestError(f"{target} does not say how its images are normalised; export it from a run folder")
        images = _labelled(data, engine.model, engine.preprocessing.input_size, engine.classes, limit)
        top1 = accuracy(engine, batches(images, engine.preprocessing))
    elif whole:
        student = artifact.load(Path(target)).eval()
        if student.preprocessing is None:
            raise RequestError(f"{target} does not say how its images are normalised; quantize again")
        name = str(artifact.load_facts(Path(target)).get("origin", {}).get("model"))
        images = _labelled(data, name, student.preprocessing.input_size, student.classes, limit)
        top1 = accuracy(student.to(place), batches(images, student.preprocessing), place)
    else:
        network = _network(target, checkpoint, model_args, input_size, mean, std)
        graph = trace(network.model, network.preprocessing.input_size).to(place)
        images = _labelled(data, target, network.preprocessing.input_size, classes_of(graph), limit)
        top1 = accuracy(graph, batches(images, network.preprocessing), place)
    _finish({"target": target, "data": data, "images": len(images), "top1": round(top1, 2)}, as_json)


@app.command(
    epilog=_examples("acq export runs/first", "acq export runs/mine --raw-images --out deploy.onnx"),
)
def export(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="the folder of a finished run")],
    out: Annotated[Path | None, typer.Option(metavar="FILE.onnx", help="where to write it [RUN/model.onnx]")] = None,
    raw_images: Annotated[
        bool, typer.Option("--raw-images", help="make a file that takes bytes [N, H, W, C] and normalises them itself")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write RUN's student as an ONNX file of integers, checked against the student on ONNX Runtime."""
    clock = time.perf_counter()
    made = api.export_run(run_folder, out, raw_images=raw_images)
    figures = {"file": str(made.path), "bytes": made.bytes, **asdict(made.parity)}
    _finish({key: _rounded(value) for key, value in figures.items()}, as_json)
    if not as_json:
        parity, took = made.parity, time.perf_counter() - clock
        kernels = f"{parity.integer} of {parity.layers} layers on integer kernels"
        _console().print(f"{made.path}: {made.bytes / 1e3:,.0f} kB, {kernels}, {took:.0f} s", soft_wrap=True)


@app.command()
def report(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="the folder of a finished run")],
    as_json: AsJson = False,
) -> None:
    """Write RUN/report.html: what happened in the run, on one page that needs nothing else."""
    _finish({"report": str(api.report(run_folder))}, as_json)


@app.command(epilog=_examples("acq compare runs/first runs/mixed --html both.html"))
def compare(
    run_folders: Annotated[list[Path], typer.Argument(metavar="RUN RUN...", help="the folders of finished runs")],
    html: Annotated[Path | None, typer.Option(metavar="FILE.html", help="write the table as a page too")] = None,
    as_json: AsJson = False,
) -> None:
    """Print the figures of several runs side by side, what differs first."""
    rows = api.compare(run_folders, html)
    if as_json:
        _print_json({"runs": list(map(str, run_folders)), "figures": dict(rows)})
        return
    table = Table(box=None, pad_edge=False)
    for title in ("", *map(str, run_folders)):
        table.add_column(title, overflow="fold")
    for name, values in rows:
        table.add_row(name, *values)
    _console().print(table)


@app.command()
def benchmark(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="the folder of a finished run")],
    seconds: Annotated[float, typer.Option(help="how long each latency is measured", min=0.0)] = 5.0,
    as_json: AsJson = False,
) -> None:
    """Measure RUN's ONNX file of integers against the same network in floating point, on this machine's CPU."""
    found = _rounded(asdict(api.benchmark_run(run_folder, seconds=seconds)))
    if as_json:
        _print_json(found)
        return
    latencies = found.pop("latencies")
    _finish(found, as_json=False)
    table = Table(box=None, pad_edge=False)
    for column in ("threads", "batch", "float ms", "integer ms", "ratio"):
        table.add_column(column, justify="right")
    for row in latencies:
        table.add_row(*(f"{value:.3g}" for value in row.values()))
    _console().print(table)


@app.command(
    epilog=_examples(
        "acq inspect resnet20-cifar10 --bits w4a4 --ends same",
        "acq inspect mypackage.nets:build --input-size 3,32,32 --bits w4a8",
    )
)
def inspect(
    model: Model,
    bits: NumberFormat = None,
    budget: Budget = None,
    checkpoint: Checkpoint = None,
    model_args: ModelArgs = None,
    input_size: InputSize = None,
    mean: Mean = None,
    std: Std = None,
    placement: Placement = None,
    ends: Ends = None,
    addends: Addends = None,
    as_json: AsJson = False,
) -> None:
    """Print what would become of every operator of MODEL, and what would stay in floating point."""
    network = _network(model, checkpoint, model_args, input_size, mean, std)
    widths = _widths(bits, ends, addends)
    given = {**widths, "budget": budget, "placement": placement, "device": "cpu"}
    settings = Config.create("default", {key: value for key, value in given.items() if value is not None})
    trainer = prepare(Request(network.model, network.preprocessing, settings, {"model": model}))
    layout = trainer.student.plan
    if as_json:
        structure = trainer.teacher.structure
        _print_json(
            {
                "model": model,
                "classes": structure.classes,
                "features": structure.features,
                "batch_norms": len(structure.norms),
                "attention": "class activation" if structure.head else "channel energy",
                "plan": layout.rows(),
            }
        )
        return
    _show_plan(layout)


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the built-in networks."""
    facts = zoo.facts()
    if as_json:
        _print_json({"models": [vars(fact) | {"input_size": list(fact.input_size)} for fact in facts]})
        return
    table = Table(box=None, pad_edge=False)
    for column in ("name", "input", "classes", "parameters", "weights"):
        table.add_column(column)
    for fact in facts:
        size = "x".join(map(str, fact.input_size))
        table.add_row(fact.name, size, str(fact.classes), f"{fact.parameters:,}", fact.source)
    Console().print(table)


def main() -> NoReturn:
    """Run the command; exit code 0 done, 1 the run failed, 2 the request is wrong, 130 interrupted."""
    keep_freed_memory()
    warnings.showwarning = _warned
    sys.exit(_exit_code(lambda: app(sys.argv[1:] or ["--help"], standalone_mode=False)))


def _exit_code(command: Callable[[], Any]) -> int:
    try:
        command()
    except _ParserError as error:
        return _error(error.format_message(), 2)  # type: ignore[attr-defined]
    except RequestError as error:
        return _error(str(error), 2)
    except RunError as error:
        return _error(str(error), 1)
    except (Interrupted, KeyboardInterrupt, typer.Abort) as error:
        return _error(str(error) or "interrupted", 130)
    return 0


def _reported(run_folder: Path, quiet: bool) -> str | None:
    """Where the page of a run went; a run without one is as good, so what is missing is told in a note."""
    try:
        return str(api.report(run_folder))
    except RequestError as error:
        _console(quiet).print(Text(f"note: no report, {error}"), soft_wrap=True)
        return None


def _warned(message: Warning | str, *_: object, **__: object) -> None:
    """A warning as a line without the place in the code."""
    if started_by_torchrun().leads:  # the others would say the same
        print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


def _error(message: str, code: int) -> int:
    line, place = " ".join(message.split()), started_by_torchrun()
    who = "" if place.leads else f"process {place.rank} of {place.size}: "
    print(who + {1: "failed: ", 2: "error: "}.get(code, "") + line, file=sys.stderr)
    return code


def _console(quiet: bool = False) -> Console:
    return Console(stderr=True, quiet=quiet)


def _network(
    model: str,
    checkpoint: Path | None,
    model_args: str | None,
    input_size: str | None,
    mean: str | None,
    std: str | None,
    quiet: bool = False,
) -> zoo.Network:
    network = zoo.resolve(
        model,
        arguments=_json_object(model_args),
        checkpoint=checkpoint,
        input_size=_numbers(input_size, "--input-size", int),
        mean=_numbers(mean, "--mean", float),
        std=_numbers(std, "--std", float),
    )
    if not network.preprocessing_given:
        mean_, std_ = network.preprocessing.mean, network.preprocessing.std
        _console(quiet).print(
            Text(f"note: --mean and --std not given, ImageNet's are assumed: {mean_}, {std_}"), soft_wrap=True
        )
    return network


def _numbers(text: str | None, option: str, kind: Callable[[str], Any]) -> list[Any] | None:
    if text is None:
        return None
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise RequestError(f"{option} {text!r} is not a list of numbers such as 3,32,32") from None


def _json_object(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise RequestError(
            f"--model-args is not JSON ({error.msg}); give an object such as '{{\"width\": 2}}'"
        ) from None
    if not isinstance(value, dict):
        raise RequestError("--model-args must be a JSON object of keyword arguments, such as '{\"width\": 2}'")
    return value


def _widths(bits: str | None, ends: str | None, addends: str | None) -> dict[str, int | str | None]:
    counts = {"ends": ends, "addends": addends}
    return {"bits": bits, **{name: int(text) if text and text.isdecimal() else text for name, text in counts.items()}}


def _data_path(data: str, model: str) -> Path:
    """``sample`` names the test images that are bundled with a built-in network."""
    if data != "sample":
        return Path(data)
    sample = zoo.sample_of(model)
    if sample is None:
        raise RequestError(f"no sample is bundled with {model}; give --data an .npz or a folder of classes")
    return sample


def _labelled(data: str, model: str, size: tuple[int, int, int], classes: int, limit: int | None) -> LabelledImages:
    return read(_data_path(data, model), input_size=size, classes=classes, limit=limit)


def _describe(request: Request, out: Path, data: Path | None, as_json: bool) -> None:
    trainer = prepare(request)
    if data is not None:  # as the run would
        read(data, input_size=request.preprocessing.input_size, classes=trainer.teacher.classes)
    config, layout = request.config, trainer.student.plan
    seconds = {phase: round(value, 1) for phase, value in estimate(trainer).items()}
    if as_json:
        settings = config.model_dump(mode="json")
        _print_json({"run": str(out), "config": settings, "plan": layout.rows(), "seconds": seconds})
        return
    _show_plan(layout)
    print(config.to_yaml(), end="")
    print(
        f"would train the generator for {config.generator.steps} steps and the student for "
        f"{config.student.steps} on {trainer.rng.device}, and write {out}; nothing was written"
    )
    parts = ", ".join(f"{phase} {value:.0f} s" for phase, value in seconds.items())
    print(f"it would take about {sum(seconds.values()) / 60:.1f} min here ({parts}), a tenth more with the report")


def _show_plan(layout: Plan) -> None:
    print(layout)
    print(f"\n{len(layout.floating)} operators stay in floating point" + (":" if layout.floating else ""))
    for site in layout.floating:
        print(f"  {site.node} ({site.operator}): {site.reason}")


def _finish(figures: dict[str, Any], as_json: bool, quiet: bool = False) -> None:
    if as_json:
        _print_json(figures)
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in figures.items():
        shown = " ".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        table.add_row(name, shown if value is not None else "-")
    _console(quiet).print(table)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value))
