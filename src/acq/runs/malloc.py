"""Keep freed memory for the next step instead of handing it back to the system and asking for it again."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h


def hand_back_freed_memory() -> bool:
    """Give the system what was freed and kept: between phases, whose tensors differ in size and share no blocks.

    True if there was something to give, False where the C library has no such call.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return False
    return bool(trim(0))


def keep_freed_memory(largest: int = 1 << 30) -> bool:
    """Tell the C library to serve blocks of up to ``largest`` bytes from memory that the process already has.

    A training step frees and takes the same large tensors again and again; by default glibc returns such blocks to
    the system, which clears every page anew: a fifth of a step's time. Peak memory stays as it is. True if it was
    done, False where the C library has no such setting (macOS, Windows, musl).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1) and mallopt(_MMAP_THRESHOLD, largest))
