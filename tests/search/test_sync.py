"""`hksd sync` sends what was kept, once; the end of a search writes each of its parts whatever becomes of others."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from rich.console import Console
from typer.testing import CliRunner

from hksd.errors import RunError, UserError
from hksd_search import cli, closing, console
from hksd_search.closing import Steps
from hksd_search.ending import Why
from hksd_search.ledger import Events, Ledger
from hksd_search.session import locked
from hksd_search.study.records import read_records
from hksd_search.tracking import known, sender
from hksd_search.tracking.tracker import EXPERIMENT, SPOOL_FILE, Tracker, waiting

Make = Callable[..., Any]
AWAY = "http://127.0.0.1:9"  # nobody listens


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of a search; a tracker gives up soon."""
    for name, seconds in (("FLUSH_S", 0.3), ("RETRY_S", 0.1)):
        monkeypatch.setattr(sender, name, seconds)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "runs" / "first").mkdir(parents=True)
    return tmp_path / "runs" / "first"


@pytest.fixture
def other(empty_store: Path, tmp_path: Path) -> str:
    """Another store than the one that is away."""
    return f"sqlite:///{shutil.copy(empty_store, tmp_path / 'other.db')}"


@pytest.fixture
def searched(folder: Path, make_space: Make, open_ledger: Make, train: Make) -> Callable[[str], Ledger]:
    """searched(uri): a search of two trials that has ended, tracked there."""

    def go(uri: str) -> Ledger:
        tracker = Tracker(uri, folder, "first")
        tracker.start_search({"space": "small"}, "x")
        events = Events([tracker.start_trial], [tracker.epoch], [tracker.end_trial])
        ledger: Ledger = open_ledger(make_space(search={"trials": 2, "arms": "none"}), events, folder)
        while (assignment := ledger.next()) is not None:
            train(ledger, assignment, (0.1, 0.2, 0.3))
        (folder / "search.json").write_text(json.dumps({"name": "first", "ended": None}))
        tracker.end_search("FINISHED", {"trials/complete": 2.0}, {"hksd.status": "complete"}, {"trials.csv": "a"})
        tracker.close()
        return ledger

    return go


def hksd(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(cli.app, [str(word) for word in words])
    return done.exit_code, done.output


def sync(folder: Path, *more: str) -> tuple[int, dict[str, Any]]:
    code, out = hksd("sync", "first", "--runs", folder.parent, "--json", *more)
    return code, json.loads(out.splitlines()[-1]) if "{" in out else {"out": out}


def stored(uri: str) -> list[Run]:
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def must_have_all(uri: str, folder: Path, metric: str | None = "loss/ce") -> None:
    """A store has the search and its trials once, ended, whole."""
    client, runs = MlflowClient(tracking_uri=uri), stored(uri)
    (parent,) = [run for run in runs if run.data.tags["hksd.kind"] == "search"]
    assert parent.info.status == "FINISHED"
    assert parent.data.params.get("space") == "small" or metric is None
    trials = {int(run.data.tags["hksd.trial"]): run for run in runs if run is not parent}
    assert len(runs) == len(trials) + 1
    assert trials.keys() == {record.number for record in read_records(folder)}
    for run in trials.values():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.info.status == "FINISHED"
        for name in ("val/accuracy", *([metric] if metric else [])):
            assert [point.step for point in client.get_metric_history(run.info.run_id, name)] == [1, 2, 3]


def test_a_spool_is_sent_to_another_store_once_and_the_search_stays_there(
    folder: Path, searched: Make, other: str
) -> None:
    searched(AWAY)
    assert waiting(folder) == 2 + 2 * 5 + 3
    code, said = sync(folder)
    assert code == 1
    assert waiting(folder) == 15
    code, said = sync(folder, "--tracking-uri", other)
    assert (code, said["sent"], said["unsent"], said["moved_from"]) == (0, 15, 0, AWAY)
    assert not (folder / SPOOL_FILE).exists()
    must_have_all(other, folder)
    code, said = sync(folder)
    assert (code, said["sent"], said["unsent"], said["store"]) == (0, 0, 0, other)
    must_have_all(other, folder)


def test_a_spool_in_any_order_begins_with_its_parent(folder: Path, searched: Make, other: str) -> None:
    searched(AWAY)
    lines = (folder / SPOOL_FILE).read_text().splitlines(keepends=True)
    (folder / SPOOL_FILE).write_text("".join([*lines[1:], lines[0]]))
    assert sync(folder, "--tracking-uri", other)[0] == 0
    must_have_all(other, folder)


def test_a_spool_without_any_start_is_completed_from_the_study(folder: Path, searched: Make, other: str) -> None:
    searched(AWAY)
    lines = (folder / SPOOL_FILE).read_text().splitlines(keepends=True)
    (folder / SPOOL_FILE).write_text("".join(line for line in lines if json.loads(line)["kind"] != "start"))
    assert sync(folder, "--tracking-uri", other)[0] == 0
    must_have_all(other, folder, metric=None)


def test_a_search_that_has_reached_a_store_is_filled_whole_into_another(
    folder: Path, searched: Make, other: str, empty_store: Path, tmp_path: Path
) -> None:
    first = f"sqlite:///{shutil.copy(empty_store, tmp_path / 'first.db')}"
    searched(first)
    assert waiting(folder) == 0
    assert sync(folder, "--tracking-uri", other)[0] == 0
    must_have_all(other, folder, metric=None)
    before = known.read(folder)
    assert before is not None
    assert before.leads_to(other, folder.parent)
    assert sync(folder, "--tracking-uri", first)[0] == 0  # and back: its runs there are found again
    must_have_all(first, folder)


def test_a_wrong_store_and_a_search_at_work_are_refused_and_nothing_is_lost(
    folder: Path, searched: Make, other: str
) -> None:
    searched(AWAY)
    spool = (folder / SPOOL_FILE).read_text()
    assert sync(folder, "--tracking-uri", "htp://x")[0] == 2
    with locked(folder):
        code, said = sync(folder, "--tracking-uri", other)
    assert code == 2
    assert "another process" in str(said)
    assert (folder / SPOOL_FILE).read_text() == spool


def test_the_run_of_a_search_that_was_killed_is_ended(
    folder: Path, make_space: Make, open_ledger: Make, train: Make, other: str
) -> None:
    tracker = Tracker(other, folder, "first")
    tracker.start_search({}, "x")
    ledger = open_ledger(make_space(search={"trials": 2, "arms": "none"}), Events([tracker.start_trial]), folder)
    ledger.next()
    assert tracker.close().unsent == 0  # as a kill leaves it: nobody has ended it
    code, said = sync(folder)
    assert (code, said["unsent"]) == (0, 0)
    (parent,) = [run for run in stored(other) if run.data.tags["hksd.kind"] == "search"]
    assert parent.info.status == "KILLED"
    assert sync(folder)[1]["sent"] == 0


# --- the end


def test_a_step_that_fails_takes_no_other_with_it_and_a_fault_of_ours_is_raised_last() -> None:
    steps, done = Steps(), []

    def fail(error: BaseException) -> None:
        raise error

    assert steps.do("one", lambda: fail(UserError("it cannot be")), None) is None
    assert steps.do("two", lambda: 5, 0) == 5
    steps.do("three", lambda: fail(OSError(28, "No space left on device")), None)
    assert steps.faults == ["one: it cannot be", "three: [Errno 28] No space left on device"]
    steps.end()
    steps.do("four", lambda: fail(KeyError("a bug")), None)
    steps.do("five", lambda: done.append(5), None)
    assert done == [5]
    with pytest.raises(KeyError):
        steps.end()


def test_the_end_of_a_search_whose_student_cannot_be_exported_has_everything_else(
    folder: Path, searched: Make, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, display = searched(AWAY), console.Display(Console(file=io.StringIO()), 2)
    (folder / SPOOL_FILE).unlink()

    def fail(*_: Any, **__: Any) -> None:
        raise UserError("it cannot be captured")

    monkeypatch.setattr(closing, "export_trial", fail)
    tracker = Tracker(other, folder, "first")
    tracker.start_search({"space": "small"}, "x")
    store = SimpleNamespace(plain=other)
    home = SimpleNamespace(folder=folder, name="first", resume_command="hksd search first --resume", store=store)
    seen: Any = SimpleNamespace(home=home, display=display, data=None)
    caps = SimpleNamespace(cut_short=lambda: False)
    facts: dict[str, Any] = {"name": "first", "minimize": [], "max_drop": None, "arms": "none"}
    books: Any = SimpleNamespace(ledger=ledger, tracker=tracker, caps=caps)
    closed = closing.close_books(seen, SimpleNamespace(facts=facts, taken=[]), books, True)  # type: ignore[arg-type]
    assert closed.faults == ["the student cannot be exported: it cannot be captured"]
    assert {"search.json", "trials.csv", "report.html"} <= {file.name for file in folder.iterdir()}
    (parent,) = [run for run in stored(other) if run.data.tags["hksd.kind"] == "search"]
    assert parent.info.status == "FINISHED"
    with pytest.raises(
        RunError, match=r"it cannot be captured\. The trials are complete.*`hksd export first`"
    ) as caught:
        closing.concluded(seen, books, closed, 0.0)
    told = caught.value.facts["tracking"]
    assert (told["uri"], told["unsent"], told["problem"], told["resend"]) == (other, 0, None, None)


def test_what_mlflow_has_not_got_at_the_end_is_said_with_its_number_and_what_sends_it(
    folder: Path, searched: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger, out = searched(AWAY), io.StringIO()
    display = console.Display(Console(file=out, width=300), 2)
    (folder / SPOOL_FILE).unlink()
    tracker = Tracker(AWAY, folder, "first")
    tracker.start_search({"space": "small"}, "x")
    home = SimpleNamespace(
        folder=folder, name="first", resume_command="hksd search first --resume", store=SimpleNamespace(plain=AWAY)
    )
    seen: Any = SimpleNamespace(home=home, display=display, data=None)
    ledger.stop(Why.INTERRUPTED)
    caps = SimpleNamespace(cut_short=lambda: False)
    facts: dict[str, Any] = {"name": "first", "minimize": [], "max_drop": None, "arms": "none"}
    books: Any = SimpleNamespace(ledger=ledger, tracker=tracker, caps=caps)
    closed = closing.close_books(seen, SimpleNamespace(facts=facts, taken=[]), books, False)  # type: ignore[arg-type]
    send = f"hksd sync first --runs {folder.parent}"
    assert closed.sent.unsent == waiting(folder) > 0
    assert f"warning: {closed.sent.unsent} record(s) did not reach MLflow" in out.getvalue()
    assert f"sent by `{send}`" in out.getvalue()
    with pytest.raises(SystemExit), cli._exit_codes(as_json=True):
        closing.concluded(seen, books, closed, 0.0)
    ended = json.loads(capsys.readouterr().out)
    assert ended["exit_code"] == 130
    assert (ended["tracking"]["unsent"], ended["tracking"]["resend"]) == (closed.sent.unsent, send)
    assert closed.sent.problem
    code, said = hksd("status", "first", "--runs", folder.parent)
    assert code == 0
    assert f"MLflow may lack {closed.sent.unsent} record(s) of it; `{send}` sends them" in said
    code, said = hksd("status", "first", "--runs", folder.parent, "--json")
    assert (json.loads(said)["unsent"], json.loads(said)["resend"]) == (closed.sent.unsent, send)
