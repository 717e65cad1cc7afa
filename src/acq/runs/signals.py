"""Ctrl-C and SIGTERM as a question that the loop asks between steps, so that what is saved is whole."""

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
    """Within the block the first signal is remembered and a second one acts as it did before; all are remembered
    unless ``once``, since torchrun sends another after Ctrl-C and kills who does not end.

    Outside the main thread, where Python delivers no signals, the answer is always False.
    """
    asked = False
    before: dict[int, Any] = {}

    def remember(number: int, _: FrameType | None) -> None:
        nonlocal asked
        asked = True
        if once:
            signal.signal(number, before[number])

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, remember) for number in _SIGNALS}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
