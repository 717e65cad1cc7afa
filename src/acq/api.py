"""The public verbs of the library, in plain Python values: quantize, evaluate, load, and those of exported files."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from acq.config import Config
from acq.core.evaluate import Classifier, accuracy
from acq.core.values import Preprocessing
from acq.errors import RequestError, first_line
from acq.files.images import batches, read
from acq.network.trace import classes_of, trace
from acq.quantization.student import Student
from acq.recipe import Request, Result, Watch, run
from acq.runs import checkpoint
from acq.runs import student_file as artifact
from acq.runs.folder import LATENCY, REPORT, STATE, as_begun, write_text
from acq.synthesis.scenes import normalised_scenes
from acq.zoo import preprocessing_of

if TYPE_CHECKING:
    from acq.export.benchmark import Benchmark
    from acq.export.engine import Engine
    from acq.export.onnx_file import Exported


def quantize(
    model: nn.Module,
    *,
    input_size: Sequence[int],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    bits: str | None = None,
    out: str | Path | None = None,
    preset: str = "default",
    settings: Mapping[str, Any] | None = None,
    data: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    watch: Watch | None = None,
    tensorboard: bool = False,
) -> Result:
    """Quantize a trained classifier without its training data.

    ``input_size`` is (C, H, W); ``mean`` and ``std`` are those of the network's normalisation of pixels in [0, 1]
    (ImageNet's where not given, for three channels). ``bits`` are such as ``"w4a4"``, the default. ``settings`` are
    nested as in a configuration file, for example ``{"placement": "relu-only", "student": {"steps": 1000}}``. ``data``
    (an ``.npz`` or a folder of classes) is used at the end, to report. With ``tensorboard`` losses, images and weights
    go to ``out/tensorboard`` while it runs (extra ``tensorboard``). ``model`` is left exactly as it was.

    Raises:
        RequestError: what was asked for cannot be done; nothing was written.
    """
    request = Request(
        model,
        preprocessing_of(input_size, mean, std),
        Config.create(preset, settings or {}, {"bits": bits} if bits else {}),
        origin={"model": f"{type(model).__module__}:{type(model).__qualname__}"},
    )
    return run(
        request,
        None if out is None else Path(out),
        data=None if data is None else Path(data),
        resume=resume,
        overwrite=overwrite,
        watch=watch,
        tensorboard=tensorboard,
    )


def evaluate(
    network: nn.Module | str | Path,
    data: str | Path,
    *,
    preprocessing: Preprocessing | None = None,
    limit: int | None = None,
) -> float:
    """Top-1 accuracy in percent on labelled images: of a student, of what is at a path (a run folder, or a file of
    ``acq export``), or of any classifier with its ``preprocessing``.

    Raises:
        RequestError: the data does not fit the network, its preprocessing is not known, or there is no such run or
            file.
    """
    if isinstance(network, str | Path):
        path = Path(network)
        found = engine(path) if path.suffix == ".onnx" else load(path)
        return _top1(found, found.classes, preprocessing or found.preprocessing, data, limit)
    if isinstance(network, Student):
        return _top1(network, network.classes, preprocessing or network.preprocessing, data, limit)
    classes = None if preprocessing is None else classes_of(trace(network, preprocessing.input_size))
    return _top1(network, classes, preprocessing, data, limit)


def _top1(
    network: Classifier, classes: int | None, known: Preprocessing | None, data: str | Path, limit: int | None
) -> float:
    if known is None or classes is None:
        raise RequestError("how images are normalised for this network is not known; give preprocessing")
    device = next(network.parameters()).device if isinstance(network, nn.Module) else "cpu"
    images = read(Path(data), input_size=known.input_size, classes=classes, limit=limit)
    return accuracy(network, batches(images, known), device)


def export_onnx(
    student: Student, path: str | Path, *, images: Tensor | None = None, raw_images: bool = False
) -> Exported:
    """Write a student as an ONNX file of integers and check it before it gets its name.

    The check compares the file's logits with the student's on normalised ``images`` [N, C, H, W], by default on 64
    procedural pictures. With ``raw_images`` the file takes bytes [N, H, W, C] and normalises them itself.

    Raises:
        RequestError: the extra ``onnx`` is not installed, an operator cannot be exported, the place cannot be written,
            or fewer than 99 % of the images get the student's class; no file is left behind.
    """
    export, _ = _onnx()
    return export(student, Path(path), _pictures(student) if images is None else images, raw_images=raw_images)


def export_run(run: str | Path, path: str | Path | None = None, *, raw_images: bool = False) -> Exported:
    """Write a finished run's student as an ONNX file, by default ``RUN/model.onnx``; see ``export_onnx``.

    The check uses up to 256 of the run's own synthetic images, procedural pictures where these are gone. Latencies that
    were measured on an earlier ``RUN/model.onnx`` go with it.

    Raises:
        RequestError: as ``export_onnx`` does, or there is no finished run.
    """
    export, _ = _onnx()
    folder = Path(run)
    student = artifact.load(folder).eval()
    facts = artifact.load_facts(folder)
    origin = facts.get("origin", {}) | facts.get("config", {})
    known = {key: origin[key] for key in ("model", "ends", "addends", "preset", "seed") if key in origin}
    images = _pool_images(folder)
    made = export(
        student,
        folder / "model.onnx" if path is None else Path(path),
        _pictures(student) if images is None else images,
        raw_images=raw_images,
        facts={**known, "acq": version("acq")},
    )
    if made.path.resolve() == (folder / "model.onnx").resolve():
        try:
            (folder / LATENCY).unlink(missing_ok=True)
        except OSError as error:
            raise RequestError(f"{folder / LATENCY} cannot be removed: {error.strerror}") from error
    return made


def engine(file: str | Path) -> Engine:
    """An exported file as a classifier on ONNX Runtime, for ``accuracy`` and the like.

    Raises:
        RequestError: the extra ``onnx`` is not installed, or the file is none of ``acq export``.
    """
    return _onnx()[1](Path(file))


def report(run: str | Path) -> Path:
    """Write a finished run's page, ``RUN/report.html``: one file that needs nothing else.

    Raises:
        RequestError: the extra ``report`` is not installed, the run is not finished or damaged, or the page cannot be
            written.
    """
    try:
        from acq.report.page import render
    except ModuleNotFoundError as error:
        raise RequestError(f"the report needs {error.name}; install it with pip install 'acq[report]'") from error
    folder = Path(run)
    try:
        command = _command(artifact.load_facts(folder), folder)
    except (KeyError, TypeError, ValueError) as error:
        raise RequestError(f"{folder / artifact.DOCUMENT} is damaged ({first_line(error)}); quantize again") from error
    page = render(folder, artifact.load_plan(folder).rows(), command)
    _write(folder / REPORT, page)
    return folder / REPORT


def compare(runs: Sequence[str | Path], html: str | Path | None = None) -> list[tuple[str, list[str]]]:
    """Each figure of the runs' summaries and every run's value of it, as text; as a page too where ``html`` says so.

    Raises:
        RequestError: the extra ``report`` is not installed, fewer than two runs are given, one is not finished, or the
            page cannot be written or has no name of one.
    """
    try:
        from acq.report.comparison import render, rows_of
    except ModuleNotFoundError as error:
        raise RequestError(f"comparing needs {error.name}; install it with pip install 'acq[report]'") from error
    if html is not None and Path(html).suffix != ".html":
        raise RequestError(f"{html} is no name of a page; give one that ends in .html as --html")
    folders = list(map(Path, runs))
    rows = rows_of(folders)
    if html is not None:
        _write(Path(html), render(folders))
    return rows


def _command(facts: Mapping[str, Any], run: Path) -> str:
    """The command that makes a run again, with the settings that differ from its preset's."""
    origin, known = facts["origin"], facts["preprocessing"]
    config = Config.model_validate(as_begun(facts["config"]))
    usual = Config.create(config.preset, {"bits": config.bits}).fitted(known["input_size"])
    parts = ["acq", "quantize", str(origin["model"]), "--preset", config.preset, "--bits", config.bits]
    for option, value in (("checkpoint", origin.get("checkpoint")), ("model-args", origin.get("arguments"))):
        parts += [f"--{option}", value if isinstance(value, str) else json.dumps(value)] if value else []
    for option, name in (("input-size", "input_size"), ("mean", "mean"), ("std", "std")):
        parts += [f"--{option}", ",".join(map(str, known[name]))]
    for key, value in _differences(config.model_dump(mode="json"), usual.model_dump(mode="json")):
        parts += ["--set", f"{key}={json.dumps(value)}"]
    return shlex.join([*parts, "--out", str(run)])


def _differences(found: Mapping[str, Any], usual: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in found.items():
        if isinstance(value, dict) and isinstance(usual.get(name), dict) and usual[name]:
            yield from _differences(value, usual[name], f"{above}{name}.")
        elif value != usual.get(name):
            yield f"{above}{name}", value


def benchmark_run(run: str | Path, *, seconds: float = 5.0) -> Benchmark:
    """Latency, size and memory of a run's ONNX file against the same network in floating point, on this machine.

    Measured on ``RUN/model.onnx``, which is written first where it is missing. The figures are kept in
    ``RUN/latency.json``, from where the report takes them.

    Raises:
        RequestError: as ``export_run`` does, or the folder cannot be written.
    """
    _onnx()
    from acq.export.benchmark import benchmark

    file = Path(run) / "model.onnx"
    if not file.exists():
        export_run(run)
    found = benchmark(artifact.load(Path(run)).eval(), file, seconds=seconds)
    _write(Path(run) / LATENCY, json.dumps(asdict(found), indent=1) + "\n")
    return found


def _write(path: Path, text: str) -> None:
    try:
        write_text(path, text)
    except OSError as error:
        raise RequestError(f"{path} cannot be written: {error.strerror}") from error


def _onnx() -> tuple[Callable[..., Exported], type[Engine]]:
    try:
        from acq.export.engine import Engine
        from acq.export.onnx_file import export_onnx
    except ModuleNotFoundError as error:
        raise RequestError(f"ONNX files need {error.name}; install it with pip install 'acq[onnx]'") from error
    return export_onnx, Engine


def _pool_images(run: Path, most: int = 256) -> Tensor | None:
    path = run / STATE
    if not checkpoint.exists(path):
        return None
    try:
        pool = checkpoint.load(path).get("trainer", {}).get("pool")
    except RequestError:  # a damaged checkpoint; the student, which is not part of it, is whole
        return None
    return None if pool is None else pool["images"][:most].contiguous()


def _pictures(student: Student, count: int = 64) -> Tensor:
    known = student.preprocessing
    if known is None:
        raise RequestError("how images are normalised for this student is not known; give images to check the file on")
    return normalised_scenes(count, known, torch.Generator().manual_seed(0))


def load(run: str | Path) -> Student:
    """The student of a finished run folder, without the network that it came from.

    Raises:
        RequestError: there is none, or a file is damaged.
    """
    return artifact.load(Path(run)).eval()
