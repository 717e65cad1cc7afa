"""What integers are worth on this machine: a file of integers against the same network in floating point."""

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

_WARM = 3
_LOAD_AND_RUN = """
import resource, sys
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
engine = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
entrance = engine.get_inputs()[0]
kind = numpy.uint8 if entrance.type == "tensor(uint8)" else numpy.float32
engine.run(None, {entrance.name: numpy.zeros((1, *entrance.shape[1:]), kind)})
try:  # on Linux the figure of getrusage outlives exec: it would be the parent's
    print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
except (OSError, StopIteration):
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@dataclass(frozen=True)
class Latency:
    """Median milliseconds a batch, floating point and integers taken in turn, and integers over floating point."""

    threads: int
    batch: int
    float_ms: float
    integer_ms: float
    ratio: float


@dataclass(frozen=True)
class Benchmark:
    """Sizes of both files in bytes, the most memory that a process holds that runs one image in MB, and latencies."""

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
    """Measure ``file``, exported from ``student``, against a file of floats that is written for the purpose.

    Both engines live in this process and take turns, so that whatever else the machine does befalls both; ``seconds``
    is how long each pair of threads and batch is measured.
    """
    raw = Engine(file).raw  # before anything else, since it tells what is wrong with the file
    with tempfile.TemporaryDirectory() as folder:
        floats = Path(folder) / "float.onnx"
        onnx.save(onnx_model(student, floating=True, raw_images=raw), floats)
        sizes = floats.stat().st_size, file.stat().st_size
        memories = _memory_mb(floats), _memory_mb(file)
        latencies = tuple(_latency(floats, file, count, batch, seconds) for count in threads for batch in batches)
    return Benchmark(*sizes, sizes[1] / sizes[0], *memories, latencies)


def _latency(floats: Path, integers: Path, threads: int, batch: int, seconds: float) -> Latency:
    engines = [Engine(file, threads=threads) for file in (floats, integers)]
    fed = [_fed(engine, batch) for engine in engines]
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(_WARM):
        for engine, images in zip(engines, fed, strict=True):
            engine.run(images)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < _WARM:
        for engine, images, taken in zip(engines, fed, times, strict=True):
            start = time.perf_counter()
            engine.run(images)
            taken.append(1e3 * (time.perf_counter() - start))
    float_ms, integer_ms = (statistics.median(taken) for taken in times)
    return Latency(threads, batch, float_ms, integer_ms, integer_ms / float_ms)


def _fed(engine: Engine, batch: int) -> np.ndarray:
    """Noise, in the form that the file takes."""
    (entrance,) = engine.session.get_inputs()
    noise = np.random.default_rng(0).standard_normal((batch, *entrance.shape[1:]), np.float32)
    return (noise * 64 + 128).clip(0, 255).astype(np.uint8) if engine.raw else noise


def _memory_mb(file: Path) -> int:
    """Peak memory of a new process that holds ONNX Runtime alone, loads the file and runs one image."""
    done = subprocess.run(
        [sys.executable, "-c", _LOAD_AND_RUN, str(file)], check=True, stdout=subprocess.PIPE, text=True
    )
    unit = 1 if sys.platform == "darwin" else 1024
    return round(int(done.stdout) * unit / 1e6)
