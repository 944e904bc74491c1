"""What a signal does to a process; whole runs are in tests/faults/test_signals.py."""

import os
import signal
import threading

import pytest

from alignkit.signals import KEPT, Handler, Stopped, current, cut_short, handled, is_told, resumable


def test_work_ends_where_it_stands_with_the_shells_code() -> None:
    with pytest.raises(Stopped) as stopped, handled():
        signal.raise_signal(signal.SIGINT)
    assert stopped.value.code == 130


def test_who_waits_is_told_once_and_goes_on(capfd: pytest.CaptureFixture[str]) -> None:
    with handled() as handler:
        handler.is_waiting, handler.promise = True, "saving"
        assert not is_told()
        signal.raise_signal(signal.SIGTERM)
        handler.told(signal.SIGINT)
        assert is_told()
    assert handler.number == signal.SIGTERM
    assert capfd.readouterr().err == "SIGTERM: saving; once more to stop at once\n"


def test_only_what_nothing_depends_on_is_cut_short() -> None:
    done = []
    with handled() as handler:
        handler.is_waiting = True
        with cut_short():
            signal.raise_signal(signal.SIGTERM)
            done.append("drawing")
        done.append("step")
        with cut_short():
            done.append("after it was told")
        assert handler.is_waiting
    assert done == ["step", "after it was told"]
    with pytest.raises(Stopped), handled(), cut_short():
        signal.raise_signal(signal.SIGTERM)


def test_an_error_within_what_may_be_cut_short_is_an_error() -> None:
    with handled() as handler:
        handler.is_waiting = True
        with pytest.raises(ValueError, match="drawing"), cut_short():
            raise ValueError("drawing")
        assert handler.is_waiting


def test_every_handler_is_given_back() -> None:
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in signals]
    with handled() as handler:
        handler.handle(signal.SIGUSR1)
        assert all(signal.getsignal(number) is handler for number in signals)
        assert current() is handler
    assert [signal.getsignal(number) for number in signals] == before
    assert current() is None
    assert signal.set_wakeup_fd(-1) == -1
    for thread in threading.enumerate():
        if thread.name == "signals":
            thread.join(5)
            assert not thread.is_alive()


def test_what_is_ignored_stays_so() -> None:
    """As of a command that a shell runs in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with handled():
            signal.raise_signal(signal.SIGINT)
            assert not is_told()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_thread_leaves_signals_to_the_main_one() -> None:
    found: list[Handler | None] = []

    def work() -> None:
        with handled():
            found.append(current())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None]


def test_what_goes_on_when_called_again_says_so() -> None:
    with pytest.raises(Stopped) as stopped, handled(), resumable():
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.__notes__ == [KEPT]
