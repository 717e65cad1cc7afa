"""Measures an exported file against the same network in floating point: latency, size and memory on this machine."""

from __future__ import annotations

import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from acq.core.file_form import FileForm
from acq.errors import RequestError
from acq.export.engine import Engine
from acq.export.form import in_form
from acq.export.graph import onnx_model
from acq.files.screening import has_tail
from acq.quantization.student import Student

_WARM_UP_RUNS = 3
_PIXEL_MEAN, _PIXEL_STD = 128, 64  # of noise for files that take bytes
_AGAIN = "export it again"
# a process with ONNX Runtime and numpy only: acq.core.memory would load torch, which holds more memory than the engine
_LOAD_AND_RUN = """
import resource, sys
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
engine = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
kind, *shape = sys.argv[2:]
engine.run(None, {engine.get_inputs()[0].name: numpy.zeros(list(map(int, shape)), kind)})
try:  # on Linux getrusage's figure survives exec: it would be the parent's
    print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
except (OSError, StopIteration):
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@dataclass(frozen=True)
class Latency:
    """Latency at one number of threads and one batch size.

    Attributes:
        threads: Threads of the engine.
        batch: Images per batch.
        float_ms: Median milliseconds per batch in floating point.
        integer_ms: Median milliseconds per batch in integers.
        latency_ratio: ``integer_ms / float_ms``.
    """

    threads: int
    batch: int
    float_ms: float
    integer_ms: float
    latency_ratio: float


@dataclass(frozen=True)
class Benchmark:
    """A file in integers compared with the file in floating point.

    Attributes:
        float_bytes: Size of the file in floating point.
        integer_bytes: Size of the file in integers.
        size_ratio: ``integer_bytes / float_bytes``.
        float_memory_mb: Peak memory in MB of a process that runs one image in floating point, or the fixed batch.
        integer_memory_mb: The same in integers.
        fixed_batch: The only batch size that the files take, and so the only one measured; None where it is free.
        without_tail: Whether both files end at the network's outputs, because ``--outputs`` cut off what is behind.
        latencies: One entry per number of threads and batch size.
    """

    float_bytes: int
    integer_bytes: int
    size_ratio: float
    float_memory_mb: int
    integer_memory_mb: int
    fixed_batch: int | None
    without_tail: bool
    latencies: tuple[Latency, ...]


def benchmark(
    student: Student,
    file: Path,
    *,
    form: FileForm | None = None,
    threads: Sequence[int] = (1, 2),
    batches: Sequence[int] = (1, 32),
    seconds: float = 5.0,
) -> Benchmark:
    """Measure an exported file against a file in floating point, which is written for the measurement.

    Both engines take turns in one process, so that other load on the machine affects both. They get the same input per
    call, of the type, layout and batch that ``file`` declares. A file that goes on behind the network's outputs is not
    measured itself. The student is written again up to these outputs, and the file in floating point ends there too.

    Args:
        student: The student that ``file`` was exported from.
        file: The exported file.
        form: The form of the ONNX file that the network came from, if it came from one.
        threads: Numbers of threads.
        batches: Batch sizes; a file with a fixed batch is measured with that one alone.
        seconds: Time per pair of threads and batch size.

    Returns:
        The figures.

    Raises:
        RequestError: ``file`` is not a file of ``acq export``, its input is not that of ``student`` in this form, or an
            engine does not run it.
    """
    cut = has_tail(file)
    if cut and (form is None or not form.tail):
        raise RequestError(f"{file} goes on behind outputs that this run does not know; {_AGAIN}")
    with tempfile.TemporaryDirectory() as folder:
        integers = _written(student, Path(folder) / "integer.onnx", form) if cut else file
        known = Engine(integers)  # first, because it reports a wrong file
        floats = _written(student, Path(folder) / "float.onnx", form, floating=True, raw_images=known.raw)
        if _entrance(known) != _entrance(Engine(floats)):
            raise RequestError(f"{file} takes another input than this run's network; {_AGAIN}")
        fixed = known.batch
        sizes = floats.stat().st_size, integers.stat().st_size
        images = _noise(known, fixed or 1)
        memories = _memory_mb(floats, images), _memory_mb(integers, images)
        pairs = itertools.product(threads, batches if fixed is None else [fixed])
        latencies = tuple(_latency(floats, integers, count, batch, seconds) for count, batch in pairs)
    return Benchmark(*sizes, sizes[1] / sizes[0], *memories, fixed, cut, latencies)


def _written(
    student: Student, file: Path, form: FileForm | None, *, floating: bool = False, raw_images: bool = False
) -> Path:
    """Write a student's file as ``acq export`` does, up to the network's outputs."""
    model = onnx_model(student, floating=floating, raw_images=raw_images)
    if form is not None and not raw_images:
        in_form(model, form)
    onnx.save(model, file)
    return file


def _entrance(engine: Engine) -> tuple[str, int | None, list[int]]:
    """What a file takes: type, batch and the other sizes."""
    (entrance,) = engine.session.get_inputs()
    return entrance.type, engine.batch, entrance.shape[1:]


def _latency(floats: Path, integers: Path, threads: int, batch: int, seconds: float) -> Latency:
    engines = [Engine(file, threads=threads) for file in (floats, integers)]
    images = _noise(engines[1], batch)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(_WARM_UP_RUNS):
        for engine in engines:
            engine.run(images)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < _WARM_UP_RUNS:
        for engine, taken in zip(engines, times, strict=True):
            start = time.perf_counter()
            engine.run(images)
            taken.append(1e3 * (time.perf_counter() - start))
    float_ms, integer_ms = (statistics.median(taken) for taken in times)
    return Latency(threads, batch, float_ms, integer_ms, integer_ms / float_ms)


def _noise(engine: Engine, batch: int) -> np.ndarray:
    """Images of noise in the form that the file takes."""
    (entrance,) = engine.session.get_inputs()
    noise = np.random.default_rng(0).standard_normal((batch, *entrance.shape[1:]), np.float32)
    if engine.kind == np.uint8:
        noise = (noise * _PIXEL_STD + _PIXEL_MEAN).clip(0, 255)
    return noise.astype(engine.kind)


def _memory_mb(file: Path, images: np.ndarray) -> int:
    """Peak memory of a new process that loads ONNX Runtime and the file, and runs zeros of the images' shape."""
    words = [str(file), images.dtype.name, *map(str, images.shape)]
    done = subprocess.run([sys.executable, "-c", _LOAD_AND_RUN, *words], capture_output=True, text=True)
    if done.returncode:
        fault = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        raise RequestError(f"the memory of a process that runs the file cannot be measured ({fault}); {_AGAIN}")
    unit = 1 if sys.platform == "darwin" else 1024
    return round(int(done.stdout) * unit / 1e6)
