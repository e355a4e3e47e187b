"""One search from start to end with the real parts, and what can be done with it afterwards."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from mlflow.tracking import MlflowClient
from safetensors import safe_open

from hksd import models
from hksd.config.run import from_tree, load

Make = Callable[..., Any]
NAME = "first"
ONE_OF = {
    "kd": {"kd": {"weight": {"log_uniform": [0.5, 2]}}},
    "review": {"review": {"weight": {"log_uniform": [0.1, 1]}, "channels": 8}},
    "crd": {"crd": {"weight": {"log_uniform": [0.1, 1]}, "negatives": 64, "dims": 8}},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, write_space: Make) -> Path:
    """Working directory with space.yaml: every fourth learning rate makes a trial fail, a width breaks the limits.

    In arena.yaml, for the same teacher, the method itself is a choice, with modes.
    """
    folder = tmp_path_factory.mktemp("end to end")  # with blanks, as people's folders have
    write_space(
        folder / "space.yaml",
        student={"width": {"choice": [0.25, 0.5, 2.0]}},
        train={"lr": {"choice": [0.1, 0.05, 0.2, 1.0e9]}},
        search={
            "trials": 8,
            "arms": "fixed",
            "limits": {"params": 25_000},
            "scheduler": {"asha": {"grace_epochs": 1}},
            "concurrent": 2,
        },
    )
    write_space(
        folder / "arena.yaml",
        terms={"one_of": ONE_OF},
        prune={"strength": {"log_uniform": [1e-5, 1e-3]}},
        train={"epochs": 1},
        search={"trials": 8, "seed": 5},
    )
    return folder


@pytest.fixture(scope="module")
def runs(place: Path) -> Path:
    return place / "my runs"


@pytest.fixture(scope="module")
def first(place: Path, runs: Path, hksd: Make) -> dict[str, Any]:
    """What the first search said."""
    program = hksd("search", "space.yaml", "--name", NAME, "--runs", runs, "--json", cwd=place)
    assert program.process.returncode == 0, program.err
    assert "Traceback" not in program.err
    assert program.left() == [], "processes are left"
    return program.json()


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file below a folder, but for what only reading it touches."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def test_the_result_keeps_the_contract_of_the_command_line(first: dict[str, Any], runs: Path, facts: Make) -> None:
    assert first["name"] == NAME
    assert first["trials"].keys() == {"complete", "pruned", "failed", "rejected", "duplicate"}
    assert sum(first["trials"][key] for key in ("complete", "pruned", "failed")) == 8
    assert first["trials"]["rejected"] >= 1
    assert {"trial", "val_accuracy", "params", "mflops", "config"} <= first["best"].keys()
    assert list(first["arms"]) == ["no distillation", "standard KD", "attention transfer", "paper preset"]
    assert first["device_s"] > 0
    assert first["wall_s"] > 0
    assert Path(first["export"]).is_dir()
    whole = [record for record in facts(runs, NAME).records if record.status == "complete"]
    assert first["best"]["val_accuracy"] == max(record.val_accuracy for record in whole)
    assert first["best"]["params"] <= 25_000


def test_study_store_and_folder_agree_and_nothing_runs(first: dict[str, Any], runs: Path, facts: Make) -> None:
    found = facts(runs, NAME)
    found.must_agree()
    assert len(found.children) == 8
    for status, count in first["trials"].items():
        assert sum(record.status == status for record in found.records) == count
    assert found.parent.info.status == "FINISHED"
    assert found.parent.data.metrics["best/val_accuracy"] == first["best"]["val_accuracy"]
    with (runs / NAME / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["number"]), row["status"]) for row in rows] == [(r.number, r.status) for r in found.records]


def test_every_trial_that_ran_to_its_end_has_its_weights_and_its_result(
    first: dict[str, Any], runs: Path, facts: Make
) -> None:
    whole = [record for record in facts(runs, NAME).records if record.status == "complete"]
    for record in whole:
        trial = runs / NAME / "trials" / f"{record.number:03d}"
        assert (trial / "student.safetensors").exists()
        result = json.loads((trial / "result.json").read_text())
        assert (result["val_accuracy"], result["params"]) == (record.val_accuracy, record.params)
        assert record.seconds == pytest.approx(result["seconds"])


def test_the_files_of_the_search_are_in_the_store(
    first: dict[str, Any], runs: Path, facts: Make, tmp_path: Path
) -> None:
    found = facts(runs, NAME)
    client = MlflowClient(tracking_uri=found.uri)
    for name in ("space.yaml", "trials.csv", "card.md", "report.html"):
        assert Path(client.download_artifacts(found.parent.info.run_id, name, str(tmp_path))).stat().st_size > 0


def test_the_arms_are_trained_to_the_end_with_the_largest_student_within_the_limits(first: dict[str, Any]) -> None:
    for arm in first["arms"].values():
        assert arm["status"] == "complete"
        student = arm["config"]["student"]
        assert (student["model"], student["width"], student["descriptor_dim"]) == ("resnet8", 0.5, None)
    assert first["arms"]["no distillation"]["config"]["terms"].keys() == {"ce"}


def test_a_trial_that_fails_has_its_reason_everywhere_and_the_search_goes_on(
    first: dict[str, Any], runs: Path, facts: Make
) -> None:
    found = facts(runs, NAME)
    failed = [record for record in found.records if record.status == "failed"]
    assert failed
    assert failed[0].number < found.trained[-1].number
    for record in failed:
        assert record.config["train"]["lr"] == 1e9
        assert record.reason.startswith("NonFiniteLossError: the loss is not finite at epoch 1, step ")
        assert found.children[record.number].data.tags["hksd.reason"] == record.reason
        assert "Traceback" in (runs / NAME / "trials" / f"{record.number:03d}" / "fault.txt").read_text()


def test_nothing_outside_the_limits_was_trained(first: dict[str, Any], runs: Path, facts: Make) -> None:
    found = facts(runs, NAME)
    assert all(record.params <= 25_000 for record in found.trained)
    rejected = [record for record in found.records if record.status == "rejected"]
    assert all("params" in record.reason for record in rejected)


def test_best_yaml_repeats_the_accuracy_of_its_trial_in_a_fresh_process_with_a_fresh_teacher(
    first: dict[str, Any], place: Path, hksd: Make, inside: Make
) -> None:
    best = Path(first["export"]) / "best.yaml"
    again = hksd("train", best, "--runs", place / "other runs", "--json", cwd=place)
    assert again.process.returncode == 0, again.err
    assert again.json()["val_accuracy"] == first["best"]["val_accuracy"]
    assert yaml.safe_load(best.read_text()) == first["best"]["config"]
    _, measured, _ = inside("evaluate", first["export"], "--json", cwd=place)
    assert json.loads(measured)["accuracy"] == first["best"]["val_accuracy"]


def test_the_export_holds_the_student_and_nothing_that_only_training_needs(first: dict[str, Any]) -> None:
    width = first["best"]["config"]["student"]["width"]
    student = models.build("resnet8", in_channels=1, classes=10, image_size=8, width=width)
    expected = {name: tuple(value.shape) for name, value in student.state_dict().items()}
    with safe_open(Path(first["export"]) / "student.safetensors", framework="pt") as file:
        shapes = {name: tuple(file.get_tensor(name).shape) for name in file.keys()}  # noqa: SIM118
    assert shapes == expected
    assert sum(value.numel() for value in student.parameters()) == first["best"]["params"]
    program = torch.export.load(Path(first["export"]) / "student.pt2")
    size = sum(value.numel() for value in program.state_dict.values())
    assert size <= sum(value.numel() for value in student.state_dict().values()) + 2  # mean and deviation
    for count in (1, 5):
        assert program.module()(torch.rand(count, 1, 8, 8)).shape == (count, 10)


def test_status_says_what_the_search_said(first: dict[str, Any], place: Path, runs: Path, inside: Make) -> None:
    status = json.loads(inside("status", NAME, "--runs", runs, "--json", cwd=place)[1])
    assert status["best"] == first["best"]["trial"]
    assert {key: status["trials"][key] for key in first["trials"]} == first["trials"]
    assert status["trials"]["running"] == status["trials"]["interrupted"] == 0


def test_another_trial_can_be_exported(
    first: dict[str, Any], place: Path, runs: Path, inside: Make, tmp_path: Path
) -> None:
    arm = first["arms"]["no distillation"]
    words = ["export", NAME, "--trial", arm["trial"], "--to", tmp_path / "arm", "--runs", runs, "--json"]
    assert json.loads(inside(*words, cwd=place)[1])["trial"] == arm["trial"]
    assert yaml.safe_load((tmp_path / "arm" / "best.yaml").read_text()) == arm["config"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["space.yaml", "--name", NAME], "exists already"),
        (["space.yaml", "--name", NAME, "--resume", "--set", "train.batch_size=32"], "the space has changed"),
        (["space.yaml", "--name", NAME, "--resume", "--set", "search.limits.params=30000"], "the space has changed"),
    ],
)
def test_a_search_is_neither_overwritten_nor_mixed_with_another(
    words: list[str], message: str, first: dict[str, Any], place: Path, runs: Path, inside: Make
) -> None:
    before = snapshot(runs)
    code, out, err = inside("search", *words, "--runs", runs, cwd=place)
    assert (code, out) == (2, "")
    assert message in err
    assert snapshot(runs) == before


def test_a_finished_search_that_is_resumed_says_the_same_and_trains_nothing(
    first: dict[str, Any], place: Path, runs: Path, hksd: Make, facts: Make
) -> None:
    before = snapshot(runs / NAME / "trials")
    program = hksd("search", "space.yaml", "--name", NAME, "--runs", runs, "--resume", "--json", cwd=place)
    assert program.process.returncode == 0, program.err
    assert program.seconds < 60
    again = program.json()
    assert {key: again[key] for key in ("name", "trials", "best", "arms", "export")} == {
        key: first[key] for key in ("name", "trials", "best", "arms", "export")
    }
    assert snapshot(runs / NAME / "trials") == before
    facts(runs, NAME).must_agree()


def test_a_second_search_takes_the_teacher_from_the_cache_and_does_not_need_the_store(
    first: dict[str, Any], place: Path, runs: Path, hksd: Make
) -> None:
    before, teachers = snapshot(runs / NAME), snapshot(runs / "teachers")
    words = ["--runs", runs, "--trials", 5, "--tracking-uri", "http://127.0.0.1:9"]  # where nobody listens
    refused = hksd("search", "arena.yaml", *words, cwd=place)
    assert refused.process.returncode == 2
    assert "nobody listens" in refused.err
    words.append("--tracking-later")
    program = hksd("search", "arena.yaml", *words, cwd=place)
    assert program.process.returncode == 0, program.err
    assert "(cached)" in program.out
    assert "training the teacher" not in program.out
    after = snapshot(runs / "teachers")
    assert {file: after.get(file) for file in teachers} == teachers
    # Its methods want to know one thing of the teacher that those of the first search did not: no file else is new.
    assert {Path(file).name for file in after.keys() - teachers.keys()} <= {"0000.embedding.safetensors"}
    assert snapshot(runs / NAME) == before
    other = second(runs)
    assert other.startswith("arena-")
    # The store is away: the search says so, keeps the records, and is none the worse.
    assert "did not reach MLflow" in program.out
    spool = [json.loads(line) for line in (runs / other / "tracking-spool.jsonl").read_text().splitlines()]
    assert sum(record["kind"] == "start" for record in spool) == 6
    assert (runs / other / "export" / "best.yaml").exists()


def second(runs: Path) -> str:
    """Name of the search over methods."""
    (other,) = {path.name for path in runs.iterdir() if (path / "study.journal").exists()} - {NAME}
    return other


def test_a_search_over_methods_draws_trains_logs_exports_and_goes_on(
    place: Path, runs: Path, hksd: Make, facts: Make
) -> None:
    name = second(runs)  # of the test above
    words = ["--runs", runs, "--tracking-uri", f"sqlite:///{runs / 'mlflow.db'}", "--json"]
    refused = hksd("search", name, "--extend", "3", *words, cwd=place)
    assert refused.process.returncode == 2
    assert "--move-tracking" in refused.err
    program = hksd("search", name, "--extend", "3", *words, "--move-tracking", cwd=place)
    assert program.process.returncode == 0, program.err
    assert sum(program.json()["trials"][status] for status in ("complete", "pruned", "failed")) == 8
    found = facts(runs, name)
    found.must_agree()
    drawn = [record for record in found.records if record.config and not record.arm]
    methods = [set(from_tree(record.config).terms) & set(ONE_OF) for record in drawn]
    assert all(len(chosen) == 1 for chosen in methods)
    assert len({frozenset(chosen) for chosen in methods}) > 1
    assert load(runs / name / "export" / "best.yaml").prune is not None
    # What the first part could not send has reached the store.
    assert len(found.children) == program.json()["trials"]["complete"]
    assert all("prune/sparsity" in run.data.metrics for run in found.children.values())
