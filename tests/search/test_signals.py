"""What signals do: to a search, to a single run, and what a trial hears of it."""

from __future__ import annotations

import io
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from hksd_search import interrupt as interrupts
from hksd_search.backend import stop_file
from hksd_search.backend.stop_file import STOP_FILE, told_to_stop
from hksd_search.console import Display
from hksd_search.interrupt import Interrupt, Stop, interruptible, stoppable

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM)


@pytest.fixture
def interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Interrupt]:
    """The handler of a search whose trials train; it gives them an hour, so that no timer ends this test."""
    monkeypatch.setattr(interrupts, "GRACE", 3600.0)
    with interruptible(Display(Console(file=io.StringIO()), 1), tmp_path) as handler:
        ledger: Any = SimpleNamespace(stopping=False, stop=lambda why: setattr(ledger, "stopping", True))
        handler.ledger = ledger
        yield handler


def test_a_signal_is_heard_once_also_where_no_handler_has_run(interrupt: Interrupt) -> None:
    assert not interrupt.heard()
    signal.raise_signal(signal.SIGALRM)
    assert not interrupt.heard()
    heard = []
    # The handler in C has run when the next line does; that in Python only between two lines of the main thread.
    interrupt.ledger = SimpleNamespace(stopping=False, stop=lambda why: heard.append(interrupt.heard()))  # type: ignore
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        interrupt.hurried = False
        signal.raise_signal(number)
    assert heard == [True] * 3
    assert not interrupt.heard()


def test_before_there_are_trials_every_signal_stops_a_search_at_once(interrupt: Interrupt) -> None:
    interrupt.ledger = None
    for number in (signal.SIGINT, signal.SIGTERM):
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)


def test_ctrl_c_lets_trials_finish_their_epoch_and_the_second_one_does_not(interrupt: Interrupt) -> None:
    signal.raise_signal(signal.SIGINT)
    assert interrupt.ledger is not None
    assert interrupt.ledger.stopping
    assert not interrupt.stop_file.exists()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("after_ctrl_c", [False, True])
def test_sigterm_tells_the_trials_and_waits_for_them_with_a_limit_also_after_ctrl_c(
    after_ctrl_c: bool, interrupt: Interrupt, tmp_path: Path
) -> None:
    told = told_to_stop(tmp_path)
    assert not told()
    if after_ctrl_c:
        signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGTERM)
    assert interrupt.ledger is not None
    assert interrupt.ledger.stopping
    assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
    assert told_to_stop(tmp_path)()
    for number in SIGNALS:  # the timer, or an impatient user
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    interrupt.disarm()
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_a_search_takes_back_what_the_one_before_told_its_trials_and_gives_the_signals_back(tmp_path: Path) -> None:
    (tmp_path / STOP_FILE).touch()
    before = [signal.getsignal(number) for number in SIGNALS]
    with interruptible(Display(Console(file=io.StringIO()), 1), tmp_path):
        assert not told_to_stop(tmp_path)()
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_trial_that_asks_after_every_step_looks_at_the_disk_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(stop_file, "time", SimpleNamespace(monotonic=lambda: now))
    told = told_to_stop(tmp_path)
    assert not told()
    (tmp_path / STOP_FILE).touch()
    assert not told()
    now += stop_file.LOOK_EVERY
    assert told()


def test_a_single_run_is_asked_to_end_once_it_listens_and_stopped_by_the_second_signal() -> None:
    said: list[str] = []
    before = signal.getsignal(signal.SIGINT)
    with stoppable(lambda: said.append("stopping")) as stop:
        assert isinstance(stop, Stop)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)  # nothing to save yet
        assert not stop.asked()
        signal.raise_signal(signal.SIGTERM)
        assert stop.asked()
        assert said == ["stopping"]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_a_signal_that_the_shell_has_a_process_ignore_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stoppable(lambda: None):
            assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_while_the_books_are_opened_waits_for_that_and_a_second_one_does_not(interrupt: Interrupt) -> None:
    interrupt.hold()
    signal.raise_signal(signal.SIGTERM)
    assert interrupt.ledger is not None
    assert not interrupt.ledger.stopping
    with pytest.raises(KeyboardInterrupt):
        interrupt.go()
    interrupt.hold()
    signal.raise_signal(signal.SIGHUP)
    interrupt.ledger = None
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGHUP)
