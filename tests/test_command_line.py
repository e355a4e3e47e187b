"""Every option of every command: nonsense is refused at once, by the name of the option, also with --json."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import typer.main

from hksd.errors import UserError
from hksd_search import cli
from hksd_search.backend import reach
from hksd_search.commands.options import changes
from hksd_search.study.reading import FACTS_FILE, open_search
from hksd_search.study.study import open_study

COMMANDS = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
ARGUMENTS = {
    **dict.fromkeys(("space", "estimate", "search", "teacher"), ("quickstart",)),
    **dict.fromkeys(("status", "confirm", "report", "export", "sync"), ("first",)),
    "logs": ("first", "0"),
    "train": ("crd",),
    "evaluate": ("out",),
    "import-study": ("old.db", "quickstart", "--as=old"),
    "methods": (),
    "doctor": (),
    "cluster": ("aws",),
}
TEXT = ["", " ", "a\nb", "\t", "\x1b[31m"]
NUMBER = [
    "",
    "x",
    "nan",
    ".nan",
    "inf",
    ".inf",
    "1e400",
    "true",
    "null",
    "-1",
    "1_000",
    "١",
    "2h",
    "5%",
    "1,5",
    "[1]",
    "1/2",
]
WHOLE = [*NUMBER, "1.5", "1e-300", str(10**30), "9" * 300, "0b1"]
FROM_1, ABOVE_0 = [*WHOLE, "0"], [*NUMBER, "0", "1e300"]
PATH = ["", " ", "a" * 300, "a/" * 2500, "~nouser/x"]
NAME = ["", " ", "a b", "-x", ".x", "a/b", "é", "a" * 300]
ADDRESS = [*NAME, "localhost", "127.0.0.1", "0.0.0.0", "10.0.0", "10.0.0.1:22", "::1"]
WORD = ["", " ", "a b", "-x", "a;b", "a\nb", "$(id)", "é", "a" * 300]
PLACE = ["", " ", "runs", "~", "/a b", "/a;b", "$HOME/runs", "/" + "a" * 300]
FILE = [*PATH, "not there", "not-there"]
# Option -> what it refuses, for all commands that have it.
REFUSED = {
    "--trials": FROM_1,
    "--concurrent": FROM_1,
    "--cpus": FROM_1,
    "--gpus": WHOLE,
    "--top": FROM_1,
    "--seeds": FROM_1,
    "--extend": FROM_1,
    "--samples": WHOLE,
    "--views": WHOLE,
    "--seed": WHOLE,
    "--trial": WHOLE,
    "--last": WHOLE,
    "--price": ABOVE_0,
    "--max-cost": ABOVE_0,
    "--max-device-hours": ABOVE_0,
    "--max-drop": [*NUMBER, "100.5"],
    "--arms": ["", "fixd", "Fixed", "null", "5"],
    "--split": ["", "train", "Test"],
    "--name": NAME,
    "--as": NAME,
    "--warm-start": NAME,
    "--runs": PATH,
    "--to": PATH,
    "--out": PATH,
    "--cluster": PATH,
    "--prices": PATH,
    "--address": TEXT,
    "--tracking-uri": TEXT,
    "--study": TEXT,
    "--head": ADDRESS,
    "--worker": ADDRESS,
    "--user": WORD,
    "--project": WORD,
    "--space": ["", " ", "a b", "-x", "a;b", "$(id)", "é", "a" * 300],
    "--image": WORD,
    "--key": FILE,
    "--source": FILE,
    "--venv": PLACE,
    "--shared": PLACE,
    "--python": ["", "3", "3.12", "2.7.18", "3.12.x", "python3"],
    "--max-workers": [*FROM_1, "1e9"],
    "--set": ["", "a", "=1", "a.=1", ".a=1", "seed=[", "seed=!!python/name:os.x", "a.b.c=1", "seed=x", "Seed=1"],
}
SPECIAL = {
    ("confirm", "--trials"): ["", "x", "-1", "1,,2", "1,1", "1;2", "1_0", "١", "[1]", "1.5"],
    ("evaluate", "--set"): ["", "a", "=1", "seed=["],  # the rest needs a student
}


class Said(NamedTuple):
    code: int
    out: str
    err: str
    seconds: float


def hksd(*words: str) -> Said:
    """Run the command inside this process; seconds are those of this process."""
    out, err, before, start = io.StringIO(), io.StringIO(), sys.argv, time.process_time()
    sys.argv = ["hksd", *words]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        sys.argv = before
    return Said(int(ended.value.code or 0), out.getvalue(), err.getvalue(), time.process_time() - start)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HKSD_RUNS", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def options(command: str) -> dict[str, bool]:
    """Names of the options of a command that take a value -> whether it may be given many times."""
    found = [one for one in COMMANDS[command].params if one.param_type_name == "option" and not one.is_flag]
    return {one.opts[0]: bool(one.multiple) for one in found}


def words(command: str, option: str) -> list[str]:
    """A command with the arguments that it must have, but for `option`."""
    return [command, *(word for word in ARGUMENTS[command] if not word.startswith(f"{option}="))]


ALL = [(command, option) for command in COMMANDS for option in options(command)]


@pytest.mark.parametrize(("command", "option"), ALL, ids=lambda value: value.strip("-"))
def test_what_an_option_cannot_be_is_refused_by_its_name_and_as_json(command: str, option: str) -> None:
    for value in SPECIAL.get((command, option), REFUSED[option]):
        said = hksd(*words(command, option), option, value, "--json")
        shown = f"{command} {option} {value[:60]!r}: {said}"
        assert said.code == 2, shown
        assert option in said.err, shown
        assert json.loads(said.out) == {"error": said.err.rstrip("\n"), "exit_code": 2}, shown
        assert "Traceback" not in said.err, shown
        assert len(said.err) < 900, shown
        assert said.seconds < 10, shown


@pytest.mark.parametrize(("command", "option"), ALL, ids=lambda value: value.strip("-"))
def test_an_option_without_its_value_or_given_twice_is_told(command: str, option: str, tmp_path: Path) -> None:
    said = hksd(*words(command, option), option)
    assert (said.code, said.out) == (2, "")
    assert said.err == f"error: Option '{option}' requires an argument; see `hksd {command} --help`\n"
    if options(command)[option]:
        return
    for twice in ([option, "1", option, "2"], [f"{option}=1", option, "2"]):
        said = hksd(*words(command, option), *twice)
        assert said.code == 2
        assert said.err == f"error: {option} stands twice (1 and 2); give it once\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--foo", "No such option: --foo; see `hksd --help`"),
        ("--json search quickstart", "No such option: --json; see `hksd --help`"),
        ("serch", "Did you mean 'search'"),
        ("search quickstart extra", "unexpected extra argument(s) (extra)"),
        ("search quickstart --trail 3", "--trials"),
        ("search quickstart --max-cost 5", "search (line 15, --max-cost): max_cost needs price"),
        ("search quickstart --price 2 --set search.price=3", "--set search.price=3 is lost"),
        ("search quickstart --extend 2 --trials 3", "--extend adds trials and --trials sets their number"),
        ("confirm first --top 2 --trials 3", "--top takes the best students and --trials names them"),
        ("estimate quickstart --prices p.yaml", "--prices: gives prices of the machines of a cluster; add --cluster"),
        ("estimate quickstart --cluster c.yaml --gpus 2", "leave out --cpus and --gpus"),
        ("estimate quickstart --cluster nowhere.yaml", "nowhere.yaml: cannot be read: No such file"),
        ("doctor --address auto", "--address is for the check of a cluster"),
        ("status runs/first", "runs/first is a path; give the name, first, and the folder by --runs"),
        ("search .", "unknown space or configuration '.'"),
        ("search runs/", "unknown space or configuration 'runs/'"),
        ("train ./folder.yaml/", "./folder.yaml/: a folder; give a .yaml file in it"),
        ("methods KDGAM", "did you mean 'kdgan'?"),
        ("methods " + "x" * 5000, "'" + "x" * 100 + "...'"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_told_in_one_line(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "folder.yaml").mkdir()
    said = hksd(*line.split(" "))
    assert said.code == 2
    assert message in said.err
    assert said.err.count("\n") == 1


def test_numbers_are_spelled_on_the_command_line_as_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    for spelled in ("1000", "1e3", "1000.0", "0x3E8", "+1000", "01000"):
        said = hksd("status", "first", "--last", spelled, "--runs", ".")
        assert "no search here" in said.err, said


def test_what_one_change_says_another_does_not_lose_unsaid() -> None:
    lost = [["a.b=1", "a.b=2"], ["a.b=1", "a={}"], ["a=1", "c=1", "a=null"]]
    for overrides in lost:
        with pytest.raises(UserError, match=r"is lost, for --set a.* comes after it; give one of them"):
            changes(overrides)
    kept = [["a.b=1", "a.b=1"], ["a={}", "a.b=1"], ["a.b=1", "a.bc=2"], []]
    for overrides in kept:
        assert len(changes(overrides)) == len(overrides)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("here", "must be auto or HOST:PORT"),
        ("10.0.0.5", "must be auto or HOST:PORT"),
        ("ray:/x:1", "must be auto or HOST:PORT"),
        ("127.0.0.1:0", "a port from 1 to 65535"),
        ("127.0.0.1:99999", "a port from 1 to 65535"),
        ("127.0.0.1:x", "must be auto or HOST:PORT"),
        ("no-such-machine.invalid:6379", "there is no machine of the name"),
        ("a" * 300 + ":6379", "there is no machine of the name"),
        (None, "no Ray cluster answers there (Connection refused)"),
    ],
)
def test_an_address_where_nothing_can_answer_is_told_before_anything_is_trained(
    address: str | None, message: str, tmp_path: Path, free_port: int
) -> None:
    for command in ("search", "estimate"):
        said = hksd(command, "quickstart", "--address", address or f"127.0.0.1:{free_port}")
        assert said.code == 2
        assert message in said.err
        assert said.err.startswith("error: --address ")
        assert said.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_an_address_where_something_listens_is_left_to_ray() -> None:
    for address in (None, "auto"):
        reach.must_answer(address)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for address in (f"127.0.0.1:{port}", f"localhost:{port}", f"ray://127.0.0.1:{port}"):
            reach.must_answer(address)


TEACHER = {"model": "resnet8", "accuracy": 0.5, "params": 5000, "mflops": 0.1}
# What stands in search.json -> what is said of it.
DAMAGED: dict[str, tuple[bytes | None, str]] = {
    "nothing": (b"", "no JSON"),
    "blanks": (b" \n", "no JSON"),
    "half of it": (b'{"name": "first", "teach', "no JSON"),
    "another format": (b"name: first\n", "no JSON"),
    "a mark of byte order": (b"\xef\xbb\xbf{}", "no JSON"),
    "UTF-16": ("{}".encode("utf-16"), "no text in UTF-8"),
    "bytes": (bytes(range(256)), "no text in UTF-8"),
    "thousands of lists": (b"[" * 200_000, "thousands of levels"),
    "thousands of sections": (b'{"a": ' * 200_000, "thousands of levels"),
    "a long number": (b'{"epochs": ' + b"9" * 5000 + b"}", "5000 digits"),
    "a list": (b"[]", "must be a section of keys (got [])"),
    "null": (b"null", "must be a section of keys (got nothing)"),
    "not a number": (b"NaN", "must be a section of keys (got nan)"),
    "a text for the teacher": (b'{"teacher": "resnet8"}', "teacher must be a section of keys"),
    "a teacher of nothing": (b'{"teacher": {}}', "teacher.model this key is required"),
    "an accuracy as text": (json.dumps({"teacher": {**TEACHER, "accuracy": "0.5"}}).encode(), "must be a number"),
    "an accuracy that is none": (json.dumps({"teacher": {**TEACHER, "accuracy": float("nan")}}).encode(), "accuracy"),
    "an accuracy in points": (json.dumps({"teacher": {**TEACHER, "accuracy": 50}}).encode(), "must be at most 1"),
    "truths for numbers": (json.dumps({"teacher": {**TEACHER, "params": True}}).encode(), "must be a whole number"),
    "unknown costs": (b'{"minimize": ["size"]}', "minimize[0] must be 'params'"),
    "unknown arms": (b'{"arms": "some"}', "arms must be 'fixed'"),
    "a drop without a teacher": (b'{"max_drop": 1.0}', "teacher is missing, which max_drop needs"),
    "a drop without a cost": (
        json.dumps({"max_drop": 1.0, "minimize": [], "teacher": TEACHER}).encode(),
        "minimize is missing, which max_drop needs",
    ),
    "a drop below nothing": (b'{"max_drop": -1}', "max_drop must be at least 0"),
    "a folder": (None, "cannot be read: Is a directory"),
}
READERS = {
    "status": [],
    "report": [],
    "export": [],
    "confirm": [],
    "sync": [],
    "search": ["digits.yaml", "--warm-start", "first"],
}
SPACE = """\
data: {name: digits}
teacher: {model: resnet8, epochs: 1}
student: {model: resnet8, width: {uniform: [0.5, 1]}}
terms: {ce: {}, kd: {}}
train: {epochs: 1}
search: {trials: 1}
"""


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_facts_of_a_search_are_told_by_every_command_that_reads_them_and_left_alone(
    kind: str, tmp_path: Path
) -> None:
    content, message = DAMAGED[kind]
    folder = tmp_path / "runs" / "first"
    folder.mkdir(parents=True)
    (tmp_path / "digits.yaml").write_text(SPACE)
    (folder / "study.journal").write_bytes(b"")
    file = folder / FACTS_FILE
    file.mkdir() if content is None else file.write_bytes(content)
    for command, arguments in READERS.items():
        said = hksd(command, *(arguments or ["first"]))
        assert said.code == 2, (command, said)
        assert f"first/{FACTS_FILE}: " in said.err, (command, said)
        assert message in said.err, (command, said)
        assert said.err.count("\n") == 1, (command, said)
        assert len(said.err) < 400, (command, said)
        assert file.is_dir() if content is None else file.read_bytes() == content
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["first"]


def test_facts_of_a_later_version_are_read_with_what_is_new_left_out(tmp_path: Path) -> None:
    facts = {"version": 99, "teacher": {**TEACHER, "colour": "red"}, "minimize": ["params"], "max_drop": 1, "x": []}
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / FACTS_FILE).write_text(json.dumps(facts))
    open_study(tmp_path / "first", ["val_accuracy"])
    assert open_search(tmp_path, "first").facts == facts


def test_a_fault_of_the_disk_that_nobody_explained_is_told_with_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught, cli._exit_codes(False):
        (tmp_path / "gone" / "file").read_text()
    assert caught.value.code == 1
    assert capsys.readouterr().err == f"failed: {tmp_path / 'gone' / 'file'}: No such file or directory\n"
