"""Memory of the process: how the C library reuses it, and how much was used at most."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h


def keep_freed_memory(largest: int = 1 << 30) -> bool:
    """Make the C library keep freed blocks in the process for the next request.

    A training step frees and requests the same large tensors again and again. By default glibc returns such blocks to
    the system, which must clear every page at the next request. That costs a fifth of a step's time. Peak memory does
    not change.

    Args:
        largest: The largest block that is kept, in bytes.

    Returns:
        True if the C library has this setting; False on macOS, Windows and musl.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1) and mallopt(_MMAP_THRESHOLD, largest))


def hand_back_freed_memory() -> bool:
    """Return the freed blocks that ``keep_freed_memory`` keeps to the system.

    Call it between two phases whose tensors differ in size and cannot share blocks.

    Returns:
        True if blocks were returned; False if there were none, or if the C library has no such call.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return False
    return bool(trim(0))


def peak_memory_mb(device: torch.device) -> int | None:
    """Return the most memory in use so far, in MB (10^6 bytes).

    Args:
        device: With a CUDA device the figure is the tensors' memory on it; otherwise it is the process's memory.

    Returns:
        The peak, or None where the system does not report it (Windows).
    """
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e6)
    peak = _process_peak()
    return None if peak is None else round(peak / 1e6)


def _process_peak() -> int | None:
    """Bytes, or None where the system does not report them."""
    try:  # Linux; the figure of getrusage below would include the parent process before exec
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    except (OSError, StopIteration):
        pass
    try:
        import resource  # Windows has no such module
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # macOS reports bytes, other systems kibibytes
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
