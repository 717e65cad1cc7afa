from __future__ import annotations

import os
import signal
import threading

import pytest

from acq.runs.signals import stop_requested


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_recorded(number: int) -> None:
    """The first signal interrupts nothing, the answer becomes True, and the old handler is restored at the end."""
    before = signal.getsignal(number)
    with stop_requested() as stopping:
        assert not stopping()
        send(number)
        assert stopping()
        assert stopping()
    assert signal.getsignal(number) == before


def test_a_second_signal_acts_as_before() -> None:
    """A user who presses Ctrl-C twice does not want to wait."""
    with stop_requested() as stopping:
        send(signal.SIGINT)
        assert stopping()
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_handlers_are_restored_after_an_error() -> None:
    """Both handlers are those of before, also a custom one."""
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with pytest.raises(ZeroDivisionError), stop_requested():
            raise ZeroDivisionError
        send(signal.SIGTERM)
        assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_each_block_starts_without_a_request() -> None:
    """A stop of an earlier run does not stop the next one."""
    with stop_requested():
        send(signal.SIGINT)
    with stop_requested() as stopping:
        assert not stopping()


def test_other_threads_are_not_interrupted() -> None:
    """Outside the main thread the answer is False and no handler changes."""
    answers: list[bool] = []
    before = signal.getsignal(signal.SIGINT)

    def work() -> None:
        with stop_requested() as stopping:
            answers.append(stopping())
            answers.append(signal.getsignal(signal.SIGINT) is before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert answers == [False, True]


def test_every_signal_is_recorded_under_torchrun() -> None:
    """With ``once=False`` a second signal stops nothing either."""
    with stop_requested(once=False) as stopping:
        send(signal.SIGINT)
        send(signal.SIGINT)
        assert stopping()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
