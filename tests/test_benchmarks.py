"""The benchmarks: both sides compute the same, each file runs with its shortest options and writes what it promises."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from hksd.config.run import RunConfig
from hksd.data import DataSet
from hksd.data.augment import batches_of
from hksd.models.taps import Out, TapShapes
from hksd.run.objective import Objective

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
# Runs a benchmark as a file is run, but its processes are forked: each would import torch anew.
FORKING = """
import runpy, sys
from pathlib import Path

sys.argv = sys.argv[1:]
sys.path.insert(0, str(Path(sys.argv[0]).parent))
import common, hksd.fit, reference
common.START = "fork"
runpy.run_path(sys.argv[0], run_name="__main__")
"""
FACTS = {"command", "versions", "hardware", "git", "load_average"}
TERMS: dict[str, dict[str, Any]] = {
    "ce": {"weight": 0.1},
    "kd": {"weight": 0.9, "temperature": 4.0},
    "attention_transfer": {},
}


@pytest.fixture(scope="module")
def benchmark() -> Iterator[Callable[[str], ModuleType]]:
    """benchmark(name): a file of the folder as a module; the files find each other as they do when they are run."""
    sys.path.append(str(BENCHMARKS))
    yield importlib.import_module
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """run(file, *options): what a benchmark writes that runs in a process of its own."""

    def call(file: str, *options: str) -> dict[str, Any]:
        out = tmp_path / "results" / "found.json"
        command = [sys.executable, "-c", FORKING, str(BENCHMARKS / file), "--out", str(out), *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return written(out)

    return call


@pytest.fixture
def run_here(benchmark: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """run_here(file, *options): exit code of a benchmark that starts no processes, so that it can run inside this."""

    def call(file: str, *options: str) -> int:
        monkeypatch.setattr(sys, "argv", [str(BENCHMARKS / file), *options])
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0

    return call


def written(out: Path) -> dict[str, Any]:
    """The file of a benchmark, which has its facts and names no place of this machine."""
    found: dict[str, Any] = json.loads(out.read_text())
    assert found.keys() >= FACTS
    assert str(out.parent) not in found["command"]
    return found


def test_the_reference_has_the_losses_of_hksd(
    benchmark: Callable[[str], ModuleType],
    make_config: Callable[..., RunConfig],
    make_taps: Callable[..., tuple[TapShapes, Out]],
) -> None:
    config = make_config(terms=TERMS)
    (mine, student), (goals, teacher) = make_taps(), make_taps(channels=(8, 16, 24), seed=1)
    labels = torch.tensor([0, 4, 2])
    known = Out(teacher.logits.detach(), teacher.embedding.detach(), [m.detach() for m in teacher.stages])
    plain = benchmark("reference").PlainLosses(config)(student, known, labels, 0.0)
    total, _ = Objective(config.terms, mine, goals, 1)(student, known, labels, 0.0)
    gradients = [torch.autograd.grad(loss, [student.logits, student.stages[0]]) for loss in (plain, total)]
    assert plain.item() == pytest.approx(total.item(), rel=1e-5)
    for first, second in zip(*gradients, strict=True):
        assert torch.allclose(first, second, rtol=1e-4, atol=1e-6)


def test_the_reference_sees_the_images_of_hksd(
    benchmark: Callable[[str], ModuleType], make_config: Callable[..., RunConfig], digits: DataSet
) -> None:
    config = make_config()
    reference = benchmark("reference").Reference(config, digits, None)
    images, labels = next(iter(reference.judged(digits.validation)))
    batch = next(
        iter(batches_of(digits.validation, digits, config.data, torch.device("cpu"), augment=False).plain(512))
    )
    assert torch.allclose(images, batch.images, atol=1e-5)
    assert torch.equal(labels, batch.labels)


def test_a_process_has_the_variables_it_is_given_and_its_fault_ends_the_benchmark(
    benchmark: Callable[[str], ModuleType],
) -> None:
    common = benchmark("common")
    faulty = "{}[__import__('os').environ['HKSD_KERNELS']]"
    with pytest.raises(SystemExit, match="KeyError: '0'"):
        common.alone(eval, faulty, environment=common.STOCK)
    assert os.getenv("HKSD_KERNELS") is None


def test_gains_are_those_of_equal_seeds_at_a_level_that_all_reach(benchmark: Callable[[str], ModuleType]) -> None:
    def row(side: str, seed: int, rate: float, *trials: tuple[float, bool, float]) -> dict[str, Any]:
        keys = ("val_accuracy", "complete", "device_s")
        found = [{**dict(zip(keys, trial, strict=True)), "ended": 10.0 * i} for i, trial in enumerate(trials, 1)]
        best = max(trial[0] for trial in trials if trial[1])
        times = {"wall_s": 10.0 * len(trials), "device_s": sum(trial[2] for trial in trials)}
        return {"side": side, "seed": seed, "trials_per_hour": rate, **times, "best": best, "trials": found}

    rows = [
        row("ours", 0, 300.0, (0.8, True, 2.0), (0.9, True, 2.0)),
        row("theirs", 0, 100.0, (0.95, False, 3.0), (0.7, True, 5.0), (0.85, True, 4.0)),
        row("theirs", 1, 50.0, (0.85, True, 8.0)),
        row("ours", 1, 300.0, (0.9, True, 2.0)),
    ]
    level, (ours, theirs) = benchmark("search_speed").table(rows, ["ours", "theirs"])
    assert level == 0.85
    assert (ours["device_s_to_level"], theirs["device_s_to_level"]) == (3.0, 10.0)
    assert theirs["trials_per_hour_gain"] == pytest.approx((3 + 6) / 2)
    assert theirs["device_s_to_level_gain"] == pytest.approx((12 / 4 + 8 / 2) / 2)
    assert ours["trials_per_hour_gain"] == 1


def test_step_writes_a_row_for_every_side_with_its_ratio_to_the_reference(run: Callable[..., dict[str, Any]]) -> None:
    few = ["--images", "64", "--rounds", "1", "--workers", "0"]
    found = run("step.py", "--pairs", "resnet8:resnet8", "--terms", "kd+at", "--batch", "64", "--threads", "1", *few)
    assert [row["side"] for row in found["rows"]] == ["reference", "float32, live", "bfloat16, live", "cached"]
    for row in found["rows"]:
        assert row["images_per_cpu_s"] > 0
        assert row["images_per_s_ratio"] > 0
    assert found["rows"][0]["images_per_cpu_s_ratio"] == 1
    assert found["rows"][-1]["build_cpu_s_per_view"] is not None


def test_accuracy_writes_the_difference_of_the_sides_with_its_interval(
    run: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    short = ["data.limit=200", "teacher.epochs=1", "teacher.model=resnet8", "train.epochs=1"]
    overrides = [word for value in short for word in ("--set", value)]
    runs = str(tmp_path / "runs")
    found = run("accuracy.py", "--runs", runs, "--lrs", "0.1", "--seeds", "1", "--jobs", "2", *overrides)
    assert {line["side"] for line in found["table"]} == {"reference", "float32, live", "as it comes"}
    assert all(0 <= line["test_accuracy"]["mean"] <= 1 and line["device_s"]["n"] == 1 for line in found["table"])
    assert found["differences"]["as it comes - reference"].keys() >= {"mean", "half_95", "n"}


def test_samplers_writes_what_each_has_found_and_by_how_much_it_is_above_tpe(
    run_here: Callable[..., int], tmp_path: Path
) -> None:
    out = tmp_path / "results" / "found.json"
    few = ["--cases", "four numbers", "--samplers", "tpe", "random", "--seeds", "2"]
    assert run_here("samplers.py", "--out", str(out), *few) == 0
    found = written(out)
    lines = {(line["sampler"], line["after"]): line for line in found["table"]}
    assert lines.keys() == set(itertools.product(("tpe", "random"), (15, 30)))
    for (sampler, _), line in lines.items():
        assert line["n"] == line["above_tpe"]["n"] == 2
        assert 0 < line["mean"] < 1
        assert sampler != "tpe" or line["above_tpe"]["mean"] == 0


@pytest.mark.slow
def test_search_speed_writes_what_both_searches_took(run: Callable[..., dict[str, Any]]) -> None:
    short = ["teacher.epochs=1", "teacher.model=resnet8", "teacher.min_accuracy=0", "teacher.attention.epochs=1"]
    short += ["train.epochs=1", "search.scheduler.asha.grace_epochs=1", "terms.adversarial.warmup_epochs=0"]
    overrides = [word for value in short for word in ("--set", value)]
    found = run("search_speed.py", "--trials", "2", "--seeds", "1", "--sides", "hksd", "stock", *overrides)
    assert [line["side"] for line in found["table"]] == ["hksd", "stock"]
    for line in found["table"]:
        assert line["trials_per_hour"] > 0
        assert line["device_s"] >= line["device_s_to_level"] > 0
    assert [len(row["trials"]) for row in found["rows"]] == [2, 2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_gpu_says_that_there_is_none(run_here: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here("gpu.py", "--root", "nowhere", "--out", "nothing.json") == 2
    assert "needs a CUDA GPU" in capsys.readouterr().err


@pytest.mark.slow
def test_tracking_load_counts_every_figure_of_every_trial_once(run: Callable[..., dict[str, Any]]) -> None:
    few = ["--trials", "3", "--epochs", "2", "--interval", "0.1", "--against", str(BENCHMARKS.parent)]
    found = run("tracking_load.py", *few)
    assert [row["side"] for row in found["rows"]] == ["this", "other"]
    for row in found["rows"]:
        assert (row["records"], row["unsent"]) == (2 + 3 * (1 + 2 + 1) + 2, 0)
        assert (row["runs"], row["finished"], row["once"]) == (3, 3, 3)
        assert 0 < row["lag_s"]["median"] <= row["lag_s"]["largest"]


@pytest.mark.slow
def test_store_size_asks_a_store_as_the_page_and_the_commands_do(run: Callable[..., dict[str, Any]]) -> None:
    found = run("store_size.py", "--runs", "4", "--times", "1")
    (row,) = found["rows"]
    assert row["records"] == 2 + 4 * (2 + 6) + 2
    assert all(row[key] > 0 for key in ("page_100_s", "view_1000_s", "go_on_server_s", "status_s", "sync_s"))
