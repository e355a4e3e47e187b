"""The MLflow server of a cluster's head, really started: one, and guarded by the password that searches have."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from hksd_search.cluster import files

SCRIPT = files.PARTS / "start_mlflow.sh"
PASSWORD = "a password of the tests"
READ = "/api/2.0/mlflow/experiments/search?max_results=1"
WRITE = "/api/2.0/mlflow/experiments/create"


def start_mlflow(home: Path, port: int, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HKSD_MLFLOW_HOST": "127.0.0.1",
        "HKSD_MLFLOW_PORT": str(port),
        "HKSD_MLFLOW_WAIT": "150",
        **more,
    }
    return subprocess.run(["bash", str(SCRIPT)], env=environment, capture_output=True, text=True, timeout=180)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def mlflow_on_head(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[tuple[Path, int]]:
    home, port = tmp_path_factory.mktemp("head"), free_port()
    (home / "mlflow").mkdir()
    (home / ".hksd").mkdir()
    (home / ".hksd" / "mlflow_password").write_text(PASSWORD)
    shutil.copy(empty_store, home / "mlflow" / "mlflow.db")  # making its tables takes seconds
    done = start_mlflow(home, port)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"http://127.0.0.1:{port}"
    leader = int((home / "mlflow" / "pid").read_text())
    yield home, port
    os.killpg(leader, signal.SIGTERM)
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return
        time.sleep(0.1)
    os.killpg(leader, signal.SIGKILL)


def status_for(port: int, host: str = "localhost:1", path: str = READ, password: str | None = PASSWORD) -> int:
    """What the server answers: to a request for the experiments, or for a new one."""
    body = json.dumps({"name": f"of {time.time_ns()}"}).encode() if path == WRITE else None
    request = Request(f"http://127.0.0.1:{port}{path}", body, {"Host": host, "Content-Type": "application/json"})
    if password is not None:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"hksd:{password}".encode()).decode())
    try:
        with urlopen(request, timeout=60) as reply:
            return int(reply.status)
    except HTTPError as error:
        return error.code


def test_a_second_start_of_mlflow_finds_the_first(mlflow_on_head: tuple[Path, int]) -> None:
    home, port = mlflow_on_head
    first_pid = (home / "mlflow" / "pid").read_text()
    again = start_mlflow(home, port)
    assert (again.returncode, again.stdout.strip()) == (0, f"http://127.0.0.1:{port}")
    assert "already running" in again.stderr
    assert (home / "mlflow" / "pid").read_text() == first_pid


def test_mlflow_survives_the_end_of_its_session_in_a_group_of_its_own(mlflow_on_head: tuple[Path, int]) -> None:
    leader = int((mlflow_on_head[0] / "mlflow" / "pid").read_text())
    assert os.getpgid(leader) == os.getsid(leader) == leader


def test_mlflow_answers_nodes_and_tunnels_and_no_other_host_name(mlflow_on_head: tuple[Path, int]) -> None:
    _, port = mlflow_on_head
    assert status_for(port, f"127.0.0.1:{port}") == 200
    assert status_for(port, "localhost:5000") == 200
    assert status_for(port, "evil.example") == 403


@pytest.mark.parametrize("path", [READ, WRITE], ids=["read", "write"])
def test_mlflow_asks_everybody_for_the_password(mlflow_on_head: tuple[Path, int], path: str) -> None:
    _, port = mlflow_on_head
    assert status_for(port, path=path, password=None) == 401
    assert status_for(port, path=path, password="another password") == 401
    assert status_for(port, path=path) == 200


def test_the_password_is_in_no_command_and_in_no_file_that_others_may_read(mlflow_on_head: tuple[Path, int]) -> None:
    home, _ = mlflow_on_head
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [command for command in commands if PASSWORD.encode() in command]
    assert (home / ".hksd" / "mlflow_password").stat().st_mode & 0o777 == 0o600
    open_files = [path for path in (home / "mlflow").iterdir() if path.is_file() and path.stat().st_mode & 0o077]
    assert open_files == [home / "mlflow" / "mlflow.db"]  # which the test copied there
    assert not [
        path for path in (home / "mlflow").iterdir() if path.is_file() and PASSWORD.encode() in path.read_bytes()
    ]


SEND = """
import sys
from pathlib import Path
from hksd.errors import UserError
from hksd_search.tracking import address, examine
from hksd_search.tracking.tracker import Tracker
from mlflow.tracking import MlflowClient
uri, folder = sys.argv[1], Path(sys.argv[2]) / "first"
folder.mkdir(exist_ok=True)
trouble = examine.examine(uri)
print("trouble:", trouble and trouble.text)
if not trouble:
    tracker = Tracker(uri, folder, "first")
    tracker.start_search({"a": "1"}, "b: 2\\n")
    sent = tracker.close()
    print("left:", sent.unsent, sent.problem)
    client = MlflowClient(tracking_uri=uri)
    found = client.search_runs([e.experiment_id for e in client.search_experiments()])
    print("runs:", [run.data.tags["hksd.search"] for run in found])
"""


def test_the_tracker_of_a_search_writes_with_the_password_of_the_environment_and_is_told_without(
    mlflow_on_head: tuple[Path, int],
    child: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uri = f"http://127.0.0.1:{mlflow_on_head[1]}"
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD", raising=False)
    out, err = child(SEND, uri, tmp_path).communicate(timeout=180)
    assert "MLFLOW_TRACKING_USERNAME" in out, err
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "hksd")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    out, err = child(SEND, uri, tmp_path).communicate(timeout=180)
    assert out.splitlines() == ["trouble: None", "left: 0 None", "runs: ['first']"], err


def test_a_server_with_another_password_than_that_of_the_file_is_an_error(
    mlflow_on_head: tuple[Path, int], tmp_path: Path
) -> None:
    home, port = mlflow_on_head
    (tmp_path / "password").write_text("another password")
    done = start_mlflow(home, port, HKSD_MLFLOW_PASSWORD=str(tmp_path / "password"))
    assert done.returncode == 1
    assert "has another password for hksd" in done.stderr


def test_a_password_that_mlflow_would_refuse_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("short")
    done = start_mlflow(tmp_path, free_port(), HKSD_MLFLOW_PASSWORD=str(tmp_path / "password"))
    assert done.returncode == 1
    assert "12 characters or more" in done.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_mlflow_refuses_to_listen_on_every_interface(tmp_path: Path, host: str) -> None:
    done = start_mlflow(tmp_path, free_port(), HKSD_MLFLOW_HOST=host)
    assert done.returncode == 1
    assert "refusing to listen on every interface" in done.stderr


def test_a_port_of_another_program_is_an_error(tmp_path: Path) -> None:
    class NotMlflow(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), NotMlflow) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        done = start_mlflow(tmp_path, server.server_port)
        server.shutdown()
    assert done.returncode == 1
    assert "taken by something that is not MLflow" in done.stderr
