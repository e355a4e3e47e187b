"""The command line: help with examples, one JSON object, exit codes, and no stack trace for what a user can mend."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import typer.main
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from hksd import data as datasets
from hksd.config.run import from_tree
from hksd.fit import fit
from hksd.models.weights import read
from hksd_search import cli
from hksd_search.ledger import Ledger
from hksd_search.session import locked
from hksd_search.space import space as spaces
from hksd_search.space.sizes import Meter, check_feasible
from hksd_search.study.reading import FACTS_FILE
from hksd_search.study.records import read_records, trial_folder

COMMANDS = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
RUN: dict[str, Any] = {
    "data": {"name": "digits", "limit": 200, "validation": 0.25},
    "teacher": {"model": "resnet8", "width": 0.25, "epochs": 1, "batch_size": 64, "attention": {"epochs": 1}},
    "student": {"model": "resnet8", "width": 0.25},
    "terms": {"ce": {"weight": 1.0}},
    "train": {"epochs": 2, "batch_size": 64, "lr": 0.05, "device": "cpu"},
}
NETS = """
from torch import nn

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(4, classes)
    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))

def small(classes):
    return Net(classes)

def eleven():
    return Net(11)
"""
SEARCH = {
    **RUN,
    "student": {"model": "resnet8", "width": {"choice": [0.25, 0.5]}},
    "train": {**RUN["train"], "lr": {"log_uniform": [0.01, 0.1]}},
    "search": {"trials": 3},
}


class Said(NamedTuple):
    """What a command left: its exit code, and what it wrote."""

    code: int
    out: str
    err: str

    def json(self) -> dict[str, Any]:
        """The one JSON object on standard output."""
        lines = self.out.splitlines()
        assert len(lines) == 1, f"not one line on standard output: {self.out!r}"
        found = json.loads(lines[0], parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        assert isinstance(found, dict)
        return found


def hksd(*words: object) -> Said:
    """Run the command inside this process, as the entry point does."""
    out, err = io.StringIO(), io.StringIO()
    root, before = logging.getLogger(), sys.argv
    handlers, level = root.handlers[:], root.level
    sys.argv = ["hksd", *map(str, words)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        sys.argv, root.handlers[:] = before, handlers
        root.setLevel(level)
    return Said(int(ended.value.code or 0), out.getvalue(), err.getvalue())


def start(*words: object, cwd: Path | None = None, module: str = "hksd_search.cli") -> subprocess.Popen[str]:
    """Start the command as a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, words)],
        cwd=cwd,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell starts what runs in its background deaf to Ctrl-C, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # type: ignore[arg-type,return-value]
    )


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No command may depend on the working directory or the user's environment, or write into the repository."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HKSD_RUNS", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with run.yaml, distil.yaml (with a term that needs a teacher), space.yaml, and two useless folders."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "empty").mkdir()
    (folder / "mynets.py").write_text(NETS)
    (folder / "cut").mkdir()
    (folder / "cut" / "train.parquet").write_bytes(b"PAR1" + bytes(100))
    distil = {**RUN, "terms": {"ce": {}, "logits": {}}}
    for name, tree in {"run": RUN, "distil": distil, "space": SEARCH}.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return folder


@pytest.fixture(scope="module")
def trained(files: Path) -> Path:
    """Folder of a run of two epochs."""
    said = hksd("train", files / "run.yaml", "--out", files / "out", "--json")
    assert said.code == 0, said.err
    return files / "out"


@pytest.fixture(scope="module")
def runs(files: Path) -> Path:
    """A folder with the search `first`, of which one trial was really trained, one failed, one has not ended."""
    folder = files / "runs" / "first"
    folder.mkdir(parents=True)
    space = spaces.load(str(files / "space.yaml"))
    data = datasets.load(from_tree(RUN).data)
    shape = data.image_shape
    ledger = Ledger(space, folder, Meter(shape), check_feasible(space, Meter(shape)))
    first, second, third = (ledger.next() for _ in range(3))
    assert first is not None
    assert second is not None
    assert third is not None
    fit(
        first.config,
        data=data,
        out_dir=trial_folder(folder, first.number),
        on_epoch=lambda report: ledger.report(first.number, dataclasses.asdict(report)),
    )
    ledger.finish(first.number)
    ledger.finish(second.number, "NonFiniteLossError: the loss is not finite")
    teacher = {"model": "resnet8", "accuracy": 0.5, "params": 5000, "mflops": 0.1}
    (folder / FACTS_FILE).write_text(json.dumps({"name": "first", "minimize": [], "teacher": teacher}))
    return files / "runs"


# --- help


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_has_help_with_an_example_that_its_own_options_allow(name: str) -> None:
    said = hksd(name, "--help")
    assert said.code == 0
    assert said.err == ""
    assert hksd(name, "-h").out == said.out
    text = " ".join(said.out.replace("│", " ").split())
    example = re.search(rf"Example: (hksd {name}.*?)$", text)
    assert example is not None
    words = shlex.split(COMMANDS[name].epilog.split("`")[1])
    assert words[:2] == ["hksd", name]
    COMMANDS[name].make_context(name, words[2:]).close()
    for parameter in COMMANDS[name].params:
        assert parameter.name == "help" or getattr(parameter, "help", None), f"{parameter.name} is not explained"


def test_the_commands_of_the_design_are_there_and_each_is_described() -> None:
    said = hksd("--help")
    assert said.code == 0
    assert {
        "doctor",
        "methods",
        "space",
        "teacher",
        "train",
        "search",
        "status",
        "logs",
        "report",
        "export",
        "evaluate",
    } <= set(COMMANDS)
    for name, command in COMMANDS.items():
        assert re.search(rf"^\W*{name}\s+\w", said.out, re.MULTILINE), name
        assert command.help


def test_help_answers_without_loading_what_is_heavy() -> None:
    code = (
        "import sys; sys.argv = ['hksd', '--help']\n"
        "from hksd_search.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'optuna', 'mlflow', 'pandas', 'sklearn', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(str(sorted(heavy)) if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", [["serach"], ["train"], ["methods", "--jsn"], ["space", "x", "--samples", "y"]])
def test_a_wrong_command_line_exits_with_2_and_says_how_to_get_help(words: list[str]) -> None:
    said = hksd(*words)
    assert said.code == 2
    assert said.out == ""
    assert re.search(r"^error: .*; see `hksd.* --help`$", said.err.strip())
    assert "Traceback" not in said.err


# --- JSON


def test_methods_as_json_name_terms_models_and_data_sets() -> None:
    found = hksd("methods", "--json").json()
    assert {"ce", "kd", "logits", "squeeze", "adversarial"} <= found["terms"].keys()
    assert "resnet8" in found["models"]
    assert {"digits", "cifar10", "cifar100", "imagenet", "folder"} <= found["datasets"].keys()
    assert {"robust", "prune", "data_free"} == found["modes"].keys()
    said = hksd("methods")
    assert (said.code, said.err) == (0, "")
    for name in (*found["terms"], *found["modes"], *found["models"], *found["datasets"]):
        assert name in said.out
    for method in (*found["terms"].values(), *found["modes"].values()):
        assert method["source"] in said.out
        for knob in method["knobs"]:
            assert knob["description"], knob["name"]


def test_methods_with_names_show_the_knobs_of_these_alone() -> None:
    found = hksd("methods", "crd", "robust", "--json").json()["methods"]
    assert list(found) == ["crd", "robust"]
    assert found["crd"]["needs"] == ["embedding"]
    said = hksd("methods", "crd", "robust")
    assert (said.code, said.err) == (0, "")
    for method in found.values():
        for knob in method["knobs"]:
            assert knob["description"] in said.out
    assert "Hinton" not in said.out


def test_a_space_as_json_has_ranges_samples_and_the_share_within_its_limits(files: Path) -> None:
    limit = "search.limits.params=10000"
    found = hksd("space", files / "space.yaml", "--json", "--samples", 2, "--set", limit).json()
    assert list(found["ranges"]) == ["student.width", "train.lr"]
    assert len(found["samples"]) == 2
    assert 0.3 < found["share_within_limits"] < 0.7
    assert found["largest_student"]["width"] == 0.25
    assert (found["distinct"], found["problem"]) == (found["draws"], None)
    said = hksd("space", files / "space.yaml", "--set", limit)
    assert said.code == 0
    assert "student" in said.out
    assert "0.25 | 0.5" in said.out
    assert "Traceback" not in said.err


def test_a_space_is_shown_also_where_its_data_or_its_limits_are_not(files: Path) -> None:
    found = hksd("space", "cifar10", "--json").json()
    assert found["share_within_limits"] is None
    assert "data/cifar10" in found["problem"]
    assert found["samples"]
    found = hksd("space", files / "space.yaml", "--json", "--set", "search.limits.params=10").json()
    assert "impossible" in found["problem"]


@pytest.mark.parametrize("off", ["terms.ce.weight={choice: [1], off: 0.5}", "terms.ce.weight={choice: [1, 0]}"])
def test_a_space_is_shown_also_when_some_of_its_draws_make_no_run(off: str, files: Path) -> None:
    found = hksd("space", files / "space.yaml", "--json", "--set", off).json()
    assert len(found["samples"]) == 3
    assert 0.3 < found["share_within_limits"] < 0.7


def test_training_as_json_is_what_the_folder_holds(trained: Path, files: Path) -> None:
    said = hksd("train", files / "run.yaml", "--out", trained, "--json")
    found, kept = said.json(), json.loads((trained / "result.json").read_text())
    assert said.code == 0
    assert found["epochs"] == 2
    assert 0 <= found["val_accuracy"] <= 1
    for key in ("val_accuracy", "params", "mflops", "config_hash", "data_fingerprint", "history"):
        assert found[key] == kept[key]
    assert found["provenance"]["versions"]["torch"]


def test_evaluating_as_json_gives_the_accuracy_that_training_gave(trained: Path) -> None:
    result = json.loads((trained / "result.json").read_text())
    for target in (trained, trained / "config.yaml"):
        found = hksd("evaluate", target, "--json").json()
        assert found["accuracy"] == result["val_accuracy"]
        assert found["count"] == result["validation_images"]
        assert len(found["per_class"]) == len(found["classes"]) == 10
    said = hksd("evaluate", trained)
    assert (said.code, said.err) == (0, "")
    assert f"{result['val_accuracy']:.2%}" in said.out


def test_a_teacher_as_json_is_trained_once_and_then_read(files: Path) -> None:
    first = hksd("teacher", files / "distil.yaml", "--runs", files / "teachers-only", "--json").json()
    again = hksd("teacher", files / "space.yaml", "--runs", files / "teachers-only", "--json").json()
    assert (first["cached"], again["cached"]) == (False, True)
    assert first["key"] == again["key"]
    assert first["val_accuracy"] == again["val_accuracy"]
    assert Path(first["folder"]).is_dir()
    assert [path.name for path in (files / "teachers-only" / "teachers").iterdir()] == [first["key"]]


@pytest.mark.parametrize("words", [[], ["--json"]], ids=["text", "json"])
def test_a_remark_on_a_loaded_teacher_is_told_once_also_with_json(
    words: list[str], files: Path, trained: Path, tmp_path: Path
) -> None:
    student = yaml.safe_load((files / "run.yaml").read_text())["student"]
    keys = {**student, "checkpoint": str(trained / "student.safetensors"), "mean": [0.9], "std": [0.01]}
    tree = {**RUN, "teacher": {**keys, "expected_accuracy": 0.0}, "terms": {"ce": {}, "logits": {}}}
    (tmp_path / "loaded.yaml").write_text(yaml.safe_dump(tree))
    for _ in range(2):  # also from the cache
        said = hksd("teacher", "loaded.yaml", *words)
        assert said.code == 0, said.err
        assert (said.err if words else said.out + said.err).count(
            "trained on images of another normalisation; set"
        ) == 1


@pytest.mark.parametrize("command", ["space", "teacher", "estimate", "search", "train"])
def test_a_fault_of_a_network_of_ones_own_comes_with_key_and_line_from_every_command(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / f"ends_{command}.py").write_text("import sys; sys.exit(0)")
    student = {"model": f"ends_{command}:net", "width": 1.0}
    tree = {**(RUN if command == "train" else SEARCH), "student": student}
    (tmp_path / "own.yaml").write_text(text := yaml.safe_dump(tree, sort_keys=False))
    number = next(at for at, line in enumerate(text.splitlines(), 1) if f"ends_{command}:net" in line)
    said = hksd(command, "own.yaml")
    assert said.code == 2
    assert f"own.yaml: student.model (line {number}): ends_{command} cannot be imported: SystemExit" in said.err
    assert "Traceback" not in said.err
    if command == "train":
        said = hksd(command, "own.yaml", "--set", f"student.model=ends_{command}:other")
        assert f"own.yaml: student.model (--set): ends_{command} cannot be imported" in said.err


def test_weights_that_are_not_finite_are_not_measured(trained: Path, tmp_path: Path) -> None:
    for file in trained.iterdir():
        shutil.copy(file, tmp_path)
    weights = load_file(tmp_path / "student.safetensors")
    spoilt = next(name for name, value in weights.items() if value.is_floating_point())
    weights[spoilt].view(-1)[0] = float("nan")
    save_file(weights, tmp_path / "student.safetensors")
    said = hksd("evaluate", tmp_path, "--split", "test")
    assert said.code == 1
    assert said.err.startswith(f"failed: {tmp_path}/student.safetensors: weights that are NaN or infinite ({spoilt}")
    assert not (tmp_path / "test-openings.jsonl").exists()


def test_status_of_a_search_whose_process_is_gone_says_so_and_how_to_resume(runs: Path) -> None:
    found = hksd("status", "first", "--runs", runs, "--json").json()
    assert found["state"] == "stopped"
    assert found["trials"]["running"] == 0
    assert found["trials"]["interrupted"] == 1
    assert found["resume"].endswith("--resume")
    said = hksd("status", "first", "--runs", runs).out
    assert "no process runs this search" in said
    assert found["resume"] in said
    assert "running" not in said.replace("running:", "")


def test_a_search_that_is_at_its_teacher_has_a_status_too(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "early"
    folder.mkdir(parents=True)
    (folder / "space.yaml").write_text("search: {}\n")
    said = hksd("status", "early", "--runs", tmp_path / "runs")
    assert said.code == 0, said
    assert "no trial yet" in said.out
    assert "hksd search early" in said.out
    with locked(folder):
        found = hksd("status", "early", "--runs", tmp_path / "runs", "--json").json()
    assert (found["state"], found["records"]) == ("running", [])


def test_status_as_json_has_counts_and_records_also_while_a_search_runs(runs: Path) -> None:
    with locked(runs / "first"):
        found = hksd("status", "first", "--runs", runs, "--json").json()
        said = hksd("status", "first", "--runs", runs)
    assert found["state"] == "running"
    assert f"process {os.getpid()}" in found["process"]
    assert found["name"] == "first"
    assert found["best"] == 0
    assert {key: count for key, count in found["trials"].items() if count} == {"complete": 1, "failed": 1, "running": 1}
    assert [record["status"] for record in found["records"]] == ["complete", "failed", "running"]
    assert said.code == 0
    assert "1 complete, 1 failed, 1 running" in said.out
    assert "best student (trial 0)" in said.out
    assert "NonFiniteLossError" in said.out


def test_an_export_as_json_names_its_folder_which_can_be_evaluated_and_trained_again(runs: Path, files: Path) -> None:
    found = hksd("export", "first", "--runs", runs, "--to", files / "export", "--json").json()
    assert (found["name"], found["trial"], found["export"]) == ("first", 0, str(files / "export"))
    names = {path.name for path in (files / "export").iterdir()}
    assert names == {"best.yaml", "student.safetensors", "student.pt2", "card.md"}
    record = read_records(runs / "first")[0]
    assert hksd("evaluate", files / "export", "--json").json()["accuracy"] == record.val_accuracy
    again = hksd("train", files / "export" / "best.yaml", "--json").json()
    assert again["val_accuracy"] == record.val_accuracy


# --- what a user can mend


FOLDER = "data.name=folder"
# Name -> command line ({files} is the folder of the files) and what its message has to say.
MISTAKES: dict[str, tuple[str, str]] = {
    "unknown space": ("search quickstrat", "did you mean 'quickstart'?"),
    "unknown space to show": ("space nowhere", "known: arena"),
    "unknown run": ("train hksdd", "did you mean 'hksd'?"),
    "no such file": ("train nowhere/best.yaml", "nowhere/best.yaml: no such file"),
    "unknown key": ("train {files}/run.yaml --set train.lrr=1", "unknown key; did you mean 'lr'?"),
    "several faults": ("train {files}/run.yaml --set train.lr=x --set student.model=resnet9", "student.model"),
    "missing data": (f"train {{files}}/run.yaml --set {FOLDER} --set data.root=nowhere", "nowhere"),
    "no data in it": (f"train {{files}}/run.yaml --set {FOLDER} --set data.root={{files}}/empty", "empty"),
    "truncated parquet": (f"train {{files}}/run.yaml --set {FOLDER} --set data.root={{files}}/cut", "train.parquet"),
    "missing data of a search": (f"search {{files}}/space.yaml --set {FOLDER} --set data.root=nowhere", "nowhere"),
    "an override without value": ("train {files}/run.yaml --set train.epochs", "expected KEY.PATH=VALUE"),
    "an override through a value": ("train {files}/run.yaml --set train.epochs.x=1", "is a value, not a section"),
    "a range in a run": (
        "train {files}/run.yaml --set 'train.lr={uniform: [0.1, 0.2]}'",
        "ranges are for search spaces",
    ),
    "a space in place of a run": ("train {files}/space.yaml", "search space"),
    "a run in place of a space": ("search {files}/run.yaml", "required in a search space"),
    "a bad seed": ("train {files}/run.yaml --set seed=-1", "seed"),
    "a name with a slash": ("search {files}/space.yaml --name a/b", "'--name': 'a/b'"),
    "a name that climbs": ("search {files}/space.yaml --name ../b", "'--name': '../b'"),
    "a hidden name": ("search {files}/space.yaml --name .b", "'--name': '.b'"),
    "the name of the cache": ("search {files}/space.yaml --name teachers", "--name teachers"),
    "the name of the store": ("search {files}/space.yaml --name mlflow.db", "--name mlflow.db"),
    "resume without a name": ("search {files}/space.yaml --resume", "which search goes on?"),
    "resume of nothing": ("search {files}/space.yaml --resume --name none", "no search to go on with"),
    "an impossible limit": ("search {files}/space.yaml --set search.limits.params=9", "smallest reachable"),
    "a folder below a file": ("search {files}/space.yaml --name x --runs {files}/run.yaml/runs", "run.yaml/runs"),
    "an output below a file": ("train {files}/run.yaml --out {files}/run.yaml/out", "run.yaml/out"),
    "a cache below a file": ("teacher {files}/distil.yaml --runs {files}/run.yaml/runs", "run.yaml/runs"),
    "an unknown search": ("status nothing", "no such search"),
    "an export of nothing": ("export nothing", "no such search"),
    "no weights": ("evaluate {files}/run.yaml", "no student.safetensors here"),
    "no student": ("evaluate {files}/empty", "expected a folder with best.yaml or config.yaml"),
    "nothing to evaluate": ("evaluate nowhere", "nowhere"),
    "an unknown split": ("evaluate {files}/run.yaml --split train", "'--split': must be val or test (got 'train')"),
    "a GPU that is not there": ("train {files}/run.yaml --set train.device=cuda:99", "train.device=cuda:99"),
    "an unknown method": ("methods crdd", "did you mean 'crd'?"),
    "unlike numbers of stages": (
        "train {files}/distil.yaml --set student.model=vgg8 --set terms.fsp={}",
        "terms.fsp (--set): pairs the stages of both networks, but the student has 5 and the teacher has 3; set "
        "terms.fsp.stages: 3",
    ),
    "too many stages": (
        "train {files}/distil.yaml --set 'terms.nst={stages: 9}'",
        "terms.nst.stages=9, but the student has 3 and the teacher has 3 stage(s)",
    ),
    "a teacher without stages": (
        "train {files}/distil.yaml --set 'teacher={model: mynets:small}' --set terms.squeeze={}",
        "terms.squeeze (--set): compares stages, but the teacher shows none; name them in teacher.taps",
    ),
    "taps that do not exist": (
        "train {files}/distil.yaml --set 'teacher={model: mynets:small, taps: [bodi]}' --set terms.squeeze={}",
        "did you mean 'body'",
    ),
    "a teacher of other classes": (
        "train {files}/distil.yaml --set 'teacher={model: mynets:eleven}'",
        "mynets:eleven tells 11 classes apart, but the data has 10",
    ),
    "data-free with labels": (
        "train {files}/distil.yaml --set data_free={} --set terms.dkd={}",
        "terms.dkd needs labels",
    ),
    "data-free without an index": (
        "train {files}/distil.yaml --set data_free={} --set terms.kd={} --set terms.ce.weight=0 --set terms.crd={}",
        "terms.crd needs index and labels",
    ),
    "a descriptor without squeeze": (
        "train {files}/distil.yaml --set 'terms.adversarial={input: descriptor}' --set terms.squeeze.weight=0",
        "give terms.squeeze a weight above 0",
    ),
    "a missing teacher": ("train {files}/distil.yaml --set teacher.checkpoint=none.pt --runs {files}/r", "none.pt"),
}


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize(("line", "message"), MISTAKES.values(), ids=MISTAKES)
def test_what_a_user_can_mend_exits_with_2_and_says_what_without_a_stack_trace(
    line: str, message: str, as_json: bool, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(files)  # networks of a user's own
    words = [word.replace("{files}", str(files)) for word in shlex.split(line)]
    said = hksd(*words, *(["--json"] if as_json else []))
    assert said.code == 2, said
    assert "Traceback" not in said.err
    assert said.err.startswith("error:")
    assert message in said.err
    if as_json:
        found = said.json()
        assert found["exit_code"] == 2
        assert message in found["error"]
    else:
        assert said.out == ""
    assert list(tmp_path.iterdir()) == [], "it left something behind"


def test_all_faults_of_a_configuration_are_told_at_once_with_file_and_line(files: Path) -> None:
    lines = ["data: {name: digits}", "student: {model: resnet9}", "terms: {ce: {wieght: 1}}", "train: {}", ""]
    (files / "bad.yaml").write_text("\n".join(lines))
    said = hksd("train", files / "bad.yaml")
    assert said.code == 2
    for text in ("student.model (line 2)", "terms.ce.wieght (line 3)", "train.epochs"):
        assert f"{files / 'bad.yaml'}: {text}" in said.err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named(files: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    try:
        said = hksd("train", files / "run.yaml", "--out", locked)
        assert said.code == 2
        assert str(locked) in said.err
    finally:
        locked.chmod(0o700)


# --- runs that fail


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["teacher.min_accuracy=1.0"], "below teacher.min_accuracy 100.00%"),
        (["train.lr=1e12"], "the loss is not finite at epoch 1"),
    ],
)
def test_a_run_that_fails_exits_with_1_and_its_reason(overrides: list[str], message: str, files: Path) -> None:
    words = ["train", files / "distil.yaml", "--runs", files / "runs-of-failures"]
    words += [word for override in overrides for word in ("--set", override)]
    said = hksd(*words, "--json")
    assert said.code == 1
    assert said.json()["exit_code"] == 1
    assert message in said.json()["error"]
    assert said.json()["error"] in said.err
    assert said.json()["error"].startswith("failed: ")
    assert "Traceback" not in said.err


# --- training into a folder


def weights(folder: Path) -> dict[str, bytes]:
    """The weights of a student, as bytes (the file itself orders its header by chance)."""
    return {name: value.numpy().tobytes() for name, value in read(folder / "student.safetensors")[0].items()}


def history(said: Said) -> list[tuple[int, float, float]]:
    return [(epoch["epoch"], epoch["val_accuracy"], epoch["train_loss"]) for epoch in said.json()["history"]]


def test_training_into_the_same_folder_again_trains_nothing_and_says_the_same(trained: Path, files: Path) -> None:
    before = weights(trained)
    said = hksd("train", files / "run.yaml", "--out", trained, "--json")
    assert said.json()["resumed_at"] == 2
    assert weights(trained) == before
    said = hksd("train", files / "run.yaml", "--out", trained)
    assert said.code == 0
    assert f"{json.loads((trained / 'result.json').read_text())['val_accuracy']:.2%}" in said.out


def test_training_into_the_folder_of_another_run_is_refused(trained: Path, files: Path) -> None:
    config = (trained / "config.yaml").read_text()
    said = hksd("train", files / "run.yaml", "--out", trained, "--set", "train.lr=0.06")
    assert said.code == 2
    assert "other settings" in said.err
    assert (trained / "config.yaml").read_text() == config, "the folder describes another run than it holds"
    assert hksd("evaluate", trained).code == 0


def test_a_damaged_checkpoint_is_moved_aside_and_the_one_before_is_continued(files: Path, tmp_path: Path) -> None:
    words = ["train", files / "run.yaml", "--out", tmp_path / "out", "--json"]
    first = hksd(*words)
    before = weights(tmp_path / "out")
    checkpoint = tmp_path / "out" / "last.ckpt"
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(content)
    again = hksd(*words)
    assert again.code == 0
    assert again.json()["resumed_at"] == 1
    assert "last.ckpt.corrupt-1" in again.err
    assert (tmp_path / "out" / "last.ckpt.corrupt-1").read_bytes() == content
    assert history(again) == history(first)
    assert weights(tmp_path / "out") == before


def test_a_seed_decides_the_result(files: Path, tmp_path: Path) -> None:
    one, same, other = (
        hksd("train", files / "run.yaml", "--seed", seed, "--out", tmp_path / str(number), "--json")
        for number, seed in enumerate((1, 1, 2))
    )
    assert history(one) == history(same)
    assert history(one) != history(other)
    seeds = [yaml.safe_load((tmp_path / str(number) / "config.yaml").read_text())["seed"] for number in range(3)]
    assert seeds == [1, 1, 2]


def test_ctrl_c_ends_a_training_with_130_and_the_same_command_continues_it(files: Path, tmp_path: Path) -> None:
    words = [
        "train",
        files / "run.yaml",
        "--out",
        tmp_path / "out",
        "--set",
        "train.epochs=100",
        "--set",
        "data.limit=100",
    ]
    process = start(*words)
    assert process.stdout is not None
    said = ""
    while "epoch 2/100" not in said:
        line = process.stdout.readline()
        assert line, process.communicate()
        said += line
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "everything is saved. Resume with:\n  hksd train" in err
    again = hksd(*words, "--json")
    assert again.code == 0
    assert 2 <= again.json()["resumed_at"] < 100
    assert [epoch for epoch, *_ in history(again)] == list(range(1, 101))


# --- the test split, and where results live


def test_every_opening_of_the_test_split_is_written_down(trained: Path) -> None:
    openings = trained / "test-openings.jsonl"
    assert not openings.exists()
    hksd("evaluate", trained)
    assert not openings.exists()
    for number in (1, 2):
        found = hksd("evaluate", trained, "--split", "test", "--json").json()
        assert found["split"] == "test"
        lines = [json.loads(line) for line in openings.read_text().splitlines()]
        assert len(lines) == number
        assert all(re.match(r"\d{4}-\d\d-\d\dT", line["opened"]) for line in lines)


def test_a_class_without_test_images_has_no_accuracy_and_the_json_stays_json(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0)
    for part, classes in {"train": "abc", "test": "ab"}.items():
        for name in classes:
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(8):
                image = pixels.integers(0, 256, (8, 8), dtype=np.uint8)
                Image.fromarray(image).save(tmp_path / part / name / f"{number}.png")
    tree = {**RUN, "data": {"name": "folder", "root": str(tmp_path), "validation": 0.25}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**tree, "train": {**RUN["train"], "epochs": 1}}))
    assert hksd("train", tmp_path / "run.yaml", "--out", tmp_path / "out").code == 0
    found = hksd("evaluate", tmp_path / "out", "--split", "test", "--json").json()
    assert [accuracy is None for accuracy in found["per_class"]] == [False, False, True]
    said = hksd("evaluate", tmp_path / "out", "--split", "test")
    assert said.code == 0
    assert "nan" not in said.out


def test_runs_are_where_the_option_says_then_where_the_environment_says(
    runs: Path, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hksd("status", "first").code == 2
    monkeypatch.setenv("HKSD_RUNS", str(runs))
    assert hksd("status", "first").code == 0
    assert hksd("status", "first", "--runs", tmp_path).code == 2
    monkeypatch.delenv("HKSD_RUNS")
    monkeypatch.chdir(runs.parent)
    assert hksd("status", "first").code == 0


# --- as a process


def test_the_installed_command_and_the_module_exit_alike(tmp_path: Path) -> None:
    process = start("space", "nowhere", "--json", cwd=tmp_path)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert json.loads(out)["exit_code"] == 2
    assert "Traceback" not in err
    script = Path(sys.executable).parent / "hksd"
    if script.exists():
        done = subprocess.run([script, "--help"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0
        assert "hksd search quickstart" in done.stdout


def test_a_reader_that_goes_away_is_no_stack_trace(tmp_path: Path) -> None:
    process = start("methods", cwd=tmp_path)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    complaint = process.stderr.read()
    process.wait(timeout=60)
    assert "Traceback" not in complaint
    assert "Exception ignored" not in complaint
