"""Ctrl-C and SIGTERM as a question that the training loop asks between steps, so that the saved state is whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_requested(*, once: bool = True) -> Iterator[Callable[[], bool]]:
    """Record signals inside the block instead of stopping, and yield the question whether one has arrived.

    Python delivers signals to the main thread only. In another thread no handler changes and the answer is False.

    Args:
        once: Record only the first signal, so that a second one stops at once. Pass False under torchrun: it sends
            further signals after Ctrl-C, and kills processes that do not end.
    """
    requested = False
    before: dict[int, Any] = {}

    def remember(number: int, _: FrameType | None) -> None:
        nonlocal requested
        requested = True
        if once:
            signal.signal(number, before[number])

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, remember) for number in _SIGNALS}
    try:
        yield lambda: requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
