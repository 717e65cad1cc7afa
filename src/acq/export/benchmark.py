"""Measures an exported file against the same network in floating point: latency, size and memory on this machine."""

from __future__ import annotations

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

from acq.export.engine import Engine
from acq.export.graph import onnx_model
from acq.quantization.student import Student

_WARM_UP_RUNS = 3
_PIXEL_MEAN, _PIXEL_STD = 128, 64  # of noise for files that take bytes
# a process with ONNX Runtime and numpy only: acq.core.memory would load torch, which holds more memory than the engine
_LOAD_AND_RUN = """
import resource, sys
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
engine = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
entrance = engine.get_inputs()[0]
kind = numpy.uint8 if entrance.type == "tensor(uint8)" else numpy.float32
engine.run(None, {entrance.name: numpy.zeros((1, *entrance.shape[1:]), kind)})
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
        float_memory_mb: Peak memory in MB of a process that runs one image in floating point.
        integer_memory_mb: The same in integers.
        latencies: One entry per number of threads and batch size.
    """

    float_bytes: int
    integer_bytes: int
    size_ratio: float
    float_memory_mb: int
    integer_memory_mb: int
    latencies: tuple[Latency, ...]


def benchmark(
    student: Student,
    file: Path,
    *,
    threads: Sequence[int] = (1, 2),
    batches: Sequence[int] = (1, 32),
    seconds: float = 5.0,
) -> Benchmark:
    """Measure an exported file against a file in floating point, which is written for the measurement.

    Both engines take turns in one process, so that other load on the machine affects both.

    Args:
        student: The student that ``file`` was exported from.
        file: The exported file.
        threads: Numbers of threads.
        batches: Batch sizes.
        seconds: Time per pair of threads and batch size.

    Returns:
        The figures.

    Raises:
        RequestError: ``file`` is not a file of ``acq export``, or an engine does not run it.
    """
    raw = Engine(file).raw  # first, because it reports a wrong file
    with tempfile.TemporaryDirectory() as folder:
        floats = Path(folder) / "float.onnx"
        onnx.save(onnx_model(student, floating=True, raw_images=raw), floats)
        sizes = floats.stat().st_size, file.stat().st_size
        memories = _memory_mb(floats), _memory_mb(file)
        latencies = tuple(_latency(floats, file, count, batch, seconds) for count in threads for batch in batches)
    return Benchmark(*sizes, sizes[1] / sizes[0], *memories, latencies)


def _latency(floats: Path, integers: Path, threads: int, batch: int, seconds: float) -> Latency:
    engines = [Engine(file, threads=threads) for file in (floats, integers)]
    inputs = [_noise(engine, batch) for engine in engines]
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(_WARM_UP_RUNS):
        for engine, images in zip(engines, inputs, strict=True):
            engine.run(images)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < _WARM_UP_RUNS:
        for engine, images, taken in zip(engines, inputs, times, strict=True):
            start = time.perf_counter()
            engine.run(images)
            taken.append(1e3 * (time.perf_counter() - start))
    float_ms, integer_ms = (statistics.median(taken) for taken in times)
    return Latency(threads, batch, float_ms, integer_ms, integer_ms / float_ms)


def _noise(engine: Engine, batch: int) -> np.ndarray:
    """Images of noise in the form that the file takes."""
    (entrance,) = engine.session.get_inputs()
    noise = np.random.default_rng(0).standard_normal((batch, *entrance.shape[1:]), np.float32)
    return (noise * _PIXEL_STD + _PIXEL_MEAN).clip(0, 255).astype(np.uint8) if engine.raw else noise.astype(engine.kind)


def _memory_mb(file: Path) -> int:
    """Peak memory of a new process that loads ONNX Runtime and the file, and runs one image."""
    done = subprocess.run(
        [sys.executable, "-c", _LOAD_AND_RUN, str(file)], check=True, stdout=subprocess.PIPE, text=True
    )
    unit = 1 if sys.platform == "darwin" else 1024
    return round(int(done.stdout) * unit / 1e6)
