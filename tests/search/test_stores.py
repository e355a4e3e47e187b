"""A store that takes nothing is refused before anything is trained, with the cure; a search stays with its store."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from hksd.errors import UserError
from hksd_search.backend import takeover
from hksd_search.backend.ray_watch import Restart
from hksd_search.session import how_to_resume
from hksd_search.tracking import access, address, examine, known, sender
from hksd_search.tracking.address import Address
from hksd_search.tracking.examine import Kind
from hksd_search.tracking.known import Known
from hksd_search.tracking.tracker import RUNS_FILE, SPOOL_FILE, Tracker

Make = Callable[..., Any]
SECRET = "kept-secret"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE", "DATABRICKS_HOST", "DATABRICKS_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Folder of a search."""
    (tmp_path / "runs" / "first").mkdir(parents=True)
    return tmp_path / "runs" / "first"


def serve(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server that does that with each connection; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def work() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=[connection], daemon=True).start()

        threading.Thread(target=work, daemon=True).start()
        yield listener.getsockname()[1]


def reply(status: str, kind: str, body: str) -> Callable[[socket.socket], None]:
    """Answer every request with that."""

    def answer(connection: socket.socket) -> None:
        with connection:
            connection.recv(65536)
            head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
            connection.sendall(f"{head}\r\n{body}".encode())

    return answer


def drip(connection: socket.socket) -> None:
    """A byte a tenth of a second, and never an end."""
    with connection:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
        try:
            while True:
                connection.sendall(b" ")
                time.sleep(0.1)
        except OSError:
            return


# --- addresses that can never be


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("./mlruns", "is a folder: MLflow 3 does not write to folders any more; give a SQLite file"),
        ("file:///tmp/mlruns", "mlflow migrate-filestore"),
        ("runs/mlflow.db", "did you mean sqlite:///runs/mlflow.db?"),
        ("localhost:5000", "did you mean http://localhost:5000?"),
        ("127.0.0.1:5000", "did you mean http://127.0.0.1:5000?"),
        ("http:/host:5000", "did you mean http://host:5000?"),
        ("htp://127.0.0.1:5000", "unknown scheme htp://; did you mean 'http://'?"),
        ("postgres://host/base", "did you mean postgresql://?"),
        ("http://", "names no host"),
        ("http://host:70000", "is no web address"),
        ("sqlite://runs/mlflow.db", "did you mean sqlite:///runs/mlflow.db?"),
        ("sqlite:///:memory:", "is no file, so nothing of it would stay"),
    ],
)
def test_an_address_that_can_never_be_is_told_with_the_one_that_was_meant(uri: str, said: str, tmp_path: Path) -> None:
    trouble = examine.examine(access.store_uri(uri, tmp_path))
    assert trouble is not None
    assert trouble.kind is Kind.WRONG
    assert said in trouble.text


def test_a_database_whose_driver_is_missing_is_told_what_to_install() -> None:
    if importlib.util.find_spec("psycopg2"):
        pytest.skip("the driver is here")
    trouble = examine.examine("postgresql+psycopg2://user@127.0.0.1/base")
    assert trouble is not None
    assert "pip install psycopg2-binary" in trouble.text


# --- files


def test_a_store_that_is_not_there_yet_and_one_that_is_can_be_used(empty_store: Path, tmp_path: Path) -> None:
    assert examine.examine(f"sqlite:///{tmp_path}/new/mlflow.db") is None
    assert not (tmp_path / "new").exists()
    before = shutil.copy(empty_store, tmp_path / "mlflow.db").read_bytes()
    assert examine.examine(f"sqlite:///{tmp_path}/mlflow.db") is None
    assert (tmp_path / "mlflow.db").read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["mlflow.db"]


def changed(file: Path, *commands: str) -> None:
    with closing(sqlite3.connect(file)) as base, base:
        for command in commands:
            base.execute(command)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("text", "no SQLite database"),
        ("other", "is a database of something else (tables: users"),
        ("newer", "was made by a newer MLflow"),
        ("older", "was made by an older MLflow"),
        ("folder", "is a folder; give a file in it"),
        ("below a file", "is no folder"),
    ],
)
def test_a_file_that_is_no_store_is_refused_and_left_as_it_is(
    name: str, said: str, empty_store: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mlflow.db"
    if name == "text":
        file.write_text("not a database, but long enough to be taken for one\n" * 9)
    elif name == "other":
        changed(file, "CREATE TABLE users (name)")
    elif name == "folder":
        file.mkdir()
    elif name == "below a file":
        file.write_text("no folder")
        file /= "mlflow.db"
    else:
        shutil.copy(empty_store, file)
        old = next(iter(examine._revisions().values()))
        changed(file, f"UPDATE alembic_version SET version_num = '{'ffffffffffff' if name == 'newer' else old}'")
    before = file.read_bytes() if file.is_file() else b""
    trouble = examine.examine(f"sqlite:///{file}")
    assert trouble is not None
    assert trouble.kind is Kind.REFUSES
    assert said in trouble.text
    assert before == (file.read_bytes() if file.is_file() else b"")


@pytest.mark.parametrize("there", [True, False])
def test_a_store_on_a_file_system_that_is_read_only_is_refused(there: bool, empty_store: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    if there:
        shutil.copy(empty_store, place / "mlflow.db")
    for words in (["mount", "--bind", place, place], ["mount", "-o", "remount,ro,bind", place]):
        if subprocess.run(words, capture_output=True).returncode:
            pytest.skip("no permission to mount")
    try:
        trouble = examine.examine(f"sqlite:///{place}/mlflow.db")
    finally:
        subprocess.run(["umount", "-l", place], check=True)
    assert trouble is not None
    assert trouble.kind is Kind.REFUSES
    assert "cannot be written" in trouble.text


def test_a_store_that_another_process_writes_to_at_the_moment_can_be_used(empty_store: Path, tmp_path: Path) -> None:
    file = shutil.copy(empty_store, tmp_path / "mlflow.db")
    with closing(sqlite3.connect(file, isolation_level=None)) as base:
        base.execute("BEGIN EXCLUSIVE")
        assert examine.examine(f"sqlite:///{file}") is None


# --- what answers at a port


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        (reply("200 OK", "text/html", "<html>a page</html>"), Kind.REFUSES, "something else than MLflow"),
        (reply("200 OK", "application/json", "{}"), Kind.REFUSES, "something else than MLflow"),
        (reply("404 Not Found", "text/html", "<html>not here</html>"), Kind.REFUSES, "something else than MLflow"),
        (reply("404 Not Found", "application/json", '{"detail": "Not Found"}'), Kind.REFUSES, "something else"),
        (reply("401 Unauthorized", "text/plain", "who are you"), Kind.REFUSES, "MLFLOW_TRACKING_USERNAME"),
        (reply("403 Forbidden", "text/plain", "no"), Kind.REFUSES, "refuses this user"),
        (reply("503 Service Unavailable", "text/plain", "later"), Kind.AWAY, "is not ready"),
        (lambda connection: connection.close(), Kind.AWAY, ""),
        (lambda connection: connection.sendall(b"SSH-2.0-OpenSSH\r\n"), Kind.REFUSES, "something else than MLflow"),
        (drip, Kind.AWAY, "has not answered in 1 s"),
    ],
    ids=["page", "json", "404", "json 404", "401", "403", "503", "hangs up", "ssh", "drips"],
)
def test_what_answers_at_a_port_is_told_apart(answer: Any, kind: Kind, said: str) -> None:
    patience = 1 if answer is drip else 30
    for port in serve(answer):
        trouble = examine.examine(f"http://user:{SECRET}@127.0.0.1:{port}", patience)
        assert trouble is not None
        assert (trouble.kind, said in trouble.text) == (kind, True), trouble
        assert SECRET not in examine.say(f"http://user:{SECRET}@127.0.0.1:{port}", trouble)


def test_nobody_at_a_port_and_a_host_that_is_not_known_are_away() -> None:
    for uri, said in (("http://127.0.0.1:9", "nobody listens"), ("http://no.such.host.invalid", "unknown host")):
        trouble = examine.examine(uri)
        assert trouble is not None
        assert (trouble.kind, said in trouble.text) == (Kind.AWAY, True), trouble


def test_the_end_does_not_wait_for_a_server_that_drips(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("FLUSH_S", 0.3), ("LAST_CALL_S", 0.3), ("RETRY_S", 0.1)):
        monkeypatch.setattr(sender, name, seconds)
    for port in serve(drip):
        tracker = Tracker(f"http://127.0.0.1:{port}", folder, "first")
        tracker.start_search({}, "x")
        time.sleep(0.5)
        tracker.end_search("FINISHED", {}, {}, {"a": "b"})
        begin = time.monotonic()
        outcome = tracker.close()
        assert time.monotonic() - begin < 3
    assert (outcome.sent, outcome.unsent) == (0, 5)
    assert "has not ended" in str(outcome.problem)
    kept = [json.loads(line) for line in (folder / SPOOL_FILE).read_text().splitlines()]
    assert [record["kind"] for record in kept] == ["start", "text", "text", "metrics", "end"]


# --- which store


def test_a_new_search_takes_what_is_given_then_the_environment_then_its_own_file(folder: Path) -> None:
    environment = {"MLFLOW_TRACKING_URI": "http://two:1"}
    own = f"sqlite:///{folder.parent.resolve()}/mlflow.db"
    assert address.choose(folder, "http://one:1", environment=environment) == Address("http://one:1")
    assert address.choose(folder, None, environment=environment) == Address("http://two:1")
    assert address.choose(folder, None, environment={}) == Address(own, default=True)


def test_a_search_that_goes_on_stays_with_its_store_and_takes_secrets_from_wherever_they_are(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = f"http://user:{SECRET}@host:5000"
    address.remember(folder, Address(whole))
    assert SECRET not in (folder / RUNS_FILE).read_text()
    assert address.choose(folder, None, environment={}).uri == "http://host:5000"
    assert address.choose(folder, whole, environment={}).uri == whole
    assert address.choose(folder, None, environment={"MLFLOW_TRACKING_URI": whole}).uri == whole
    assert address.choose(folder, "http://host:5000/", environment={"MLFLOW_TRACKING_URI": whole}).uri == whole
    assert not caplog.messages
    assert address.choose(folder, None, environment={"MLFLOW_TRACKING_URI": "http://b:1"}).uri == "http://host:5000"
    assert "stays in its store" in caplog.text


@pytest.mark.parametrize("given", ["", "  "])
def test_an_empty_address_is_not_taken_for_none(given: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--tracking-uri is empty: give an address"):
        address.choose(tmp_path / "runs" / "new", given, environment={})


def test_another_address_is_refused_with_both_and_the_option_that_moves(folder: Path) -> None:
    address.remember(folder, Address("http://one:1"))
    with pytest.raises(UserError, match=r"http://two:2: this search is tracked in http://one:1.*--move-tracking"):
        address.choose(folder, f"http://user:{SECRET}@two:2", environment={})
    assert address.choose(folder, "http://two:2", move=True, environment={}).before == "http://one:1"
    with pytest.raises(UserError, match="where to"):
        address.choose(folder, None, move=True, environment={})


def test_the_default_store_moves_with_the_folder_of_the_searches(folder: Path, tmp_path: Path) -> None:
    address.remember(folder, address.choose(folder, None, environment={}))
    known.write(folder, Known(f"sqlite:///{folder.parent}/mlflow.db", True, "1", {"search": "a"}))
    moved = folder.parent.rename(tmp_path / "elsewhere") / "first"
    store = address.choose(moved, None, environment={})
    assert store.uri == f"sqlite:///{tmp_path.resolve()}/elsewhere/mlflow.db"
    remembered = known.read(moved)
    assert remembered is not None
    assert remembered.leads_to(store.uri, moved.parent)


@pytest.mark.parametrize(
    ("uri", "plain"),
    [
        (f"http://user:{SECRET}@host:5000/x", "http://host:5000/x"),
        (f"https://{SECRET}@host", "https://host"),
        (f"postgresql+psycopg2://user:{SECRET}@host/base", "postgresql+psycopg2://user@host/base"),
        (f"postgresql://host/base?user=a&password={SECRET}", "postgresql://host/base?user=a"),
        (f"http://host/?token={SECRET}", "http://host/"),
        (f"http://user:{SECRET}@[host", "http://[host"),
        ("sqlite:////a b/mlflow.db", "sqlite:////a b/mlflow.db"),
    ],
)
def test_secrets_are_taken_out_of_an_address(uri: str, plain: str) -> None:
    assert access.without_secrets(uri) == plain
    assert SECRET not in access.reason_of(Exception(f"API request to {uri} failed"), uri)


def test_secrets_reach_neither_the_environment_of_others_nor_the_command_that_resumes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:{SECRET}@host")
    with address.secrets_hidden():
        assert "MLFLOW_TRACKING_URI" not in os.environ
    assert SECRET in os.environ["MLFLOW_TRACKING_URI"]
    assert how_to_resume("first", Path("runs"), None) == "hksd search first --resume"


def test_a_search_that_takes_the_place_of_another_gets_secrets_by_its_environment_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put_in_place: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda *given: put_in_place.append(given))
    whole = f"http://user:{SECRET}@host"
    restart = Restart(how_to_resume("first", Path("runs"), None), ["--tracking-later"], {access.VARIABLE: whole})
    restart("raylet")
    ((_, words, environment),) = put_in_place
    assert SECRET not in " ".join(words)
    assert environment[access.VARIABLE] == whole


@pytest.mark.parametrize("heard", [True, False])
def test_a_signal_that_comes_with_the_death_of_ray_stops_the_search_that_takes_its_place(
    heard: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_place: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda *given: put_in_place.append(given))
    Restart("hksd search first --resume", [], heard=lambda: heard)("raylet")
    ((_, _, environment),) = put_in_place
    assert (takeover.STOPPED in environment) == heard


LOOKS_AT_ITSELF = """
import sys
from hksd_search.tracking import address
from pathlib import Path
import os
address.off_the_command_line(sys.argv[1] if "@" in sys.argv[1] else None)
print(Path("/proc/self/cmdline").read_text().replace("\\0", " "))
print(os.environ["MLFLOW_TRACKING_URI"])
"""


def test_a_password_on_the_command_line_is_taken_off_it(tmp_path: Path) -> None:
    (tmp_path / "look.py").write_text(LOOKS_AT_ITSELF)
    uri = f"http://user:{SECRET}@host:1"
    done = subprocess.run([sys.executable, tmp_path / "look.py", uri], capture_output=True, text=True, check=True)
    command, environment = done.stdout.splitlines()
    assert SECRET not in command
    assert command.split()[-1] == "http://host:1"
    assert environment == uri
