"""`hksd search` against the search that one writes with Ray Tune, Optuna and MLflow alone (`stock_search.py`).

Both are real commands with the same space, data, teacher (trained before), number of trials, seeds and cores, one core
per trial, one after the other on an idle machine. Nothing but the teacher is warm: what `hksd search` stores of the
teacher's knowledge it computes within the measured time. The limits of the space are lifted, because the other side has
none. Sides: ``hksd``, ``stock``, and ``stock, reused`` with worker processes that are reused (not Tune's default).

    trials per hour    trials / wall-clock time of the whole command
    device seconds     training time of all trials (validation included)
    ... to the level   training time of the trials that ended until the best validation accuracy of a whole trial
                       reached the level that all searches of the table reach

    python benchmarks/search_speed.py --out benchmarks/results/search.json
    python benchmarks/search_speed.py --space cifar10 --trials 12 --out benchmarks/results/search-cifar10.json \\
        --set data.root=PATH --set data.limit=5000 --set teacher.epochs=15 --set train.epochs=8 \\
        --set search.scheduler.asha.grace_epochs=3
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
from common import STOCK

HERE = Path(__file__).resolve().parent
SIDES: dict[str, list[str]] = {"hksd": [], "stock": [], "stock, reused": ["--reuse"]}
NO_LIMITS = ["search.limits.params=null", "search.limits.mflops=null"]
Trial = dict[str, Any]  # val_accuracy, complete, device_s, ended (time since the epoch)


def prepare(name: str, overrides: list[str], runs: str) -> float:
    """Train the teacher of a space, or find it; returns its validation accuracy."""
    from hksd import data as datasets
    from hksd.teacher import prepare as teachers
    from hksd_search.space import space as spaces

    middle = spaces.load(name, overrides).middle({})
    return teachers.prepare(middle, datasets.load(middle.data), cache_dir=Path(runs) / "teachers").accuracy


def run(side: str, options: argparse.Namespace, seed: int, runs: Path) -> tuple[float, list[Trial]]:
    """Run one search as a command; returns its wall-clock time and its trials by the time of their end."""
    words = ["--runs", str(runs), "--trials", str(options.trials)]
    given = [*NO_LIMITS, *options.set, f"search.seed={seed}"]
    for override in {one.partition("=")[0]: one for one in given}.values():  # of one key, the last
        words += ["--set", override]
    if side == "hksd":
        command = [sys.executable, "-m", "hksd_search.cli", "search", options.space, "--name", "one", "--json", *words]
        environment = dict(os.environ)
    else:
        script = str(HERE / "stock_search.py")
        command = [sys.executable, script, options.space, "--mlflow", options.mlflow, *SIDES[side], *words]
        environment = {**os.environ, **STOCK}
    start = time.time()
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    wall = time.time() - start
    if done.returncode:
        raise SystemExit(f"{side}, seed {seed}: failed\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    trials = recorded(runs / "one") if side == "hksd" else json.loads(done.stdout.splitlines()[-1])
    return wall, [{**trial, "ended": trial["ended"] - start} for trial in trials]


def recorded(folder: Path) -> list[Trial]:
    """The trials in the study of `hksd search`."""
    import optuna

    from hksd_search.study.records import STUDY_NAME, open_storage, record_of

    study = optuna.load_study(study_name=STUDY_NAME, storage=open_storage(folder))
    found = []
    for trial in study.get_trials(deepcopy=False):
        entry = record_of(trial)
        if entry.status in ("complete", "pruned") and trial.datetime_complete is not None:
            found.append(
                {
                    "val_accuracy": entry.val_accuracy,
                    "complete": entry.status == "complete",
                    "device_s": entry.seconds,
                    "ended": trial.datetime_complete.timestamp(),
                }
            )
    return sorted(found, key=lambda entry: entry["ended"])


def best(trials: list[Trial]) -> float:
    """Best validation accuracy of a trial that ran to its end."""
    return max((trial["val_accuracy"] for trial in trials if trial["complete"]), default=0.0)


def to_level(trials: list[Trial], level: float) -> dict[str, float]:
    """Device seconds and wall-clock seconds until a whole trial reached `level`."""
    spent = 0.0
    for trial in trials:
        spent += trial["device_s"]
        if trial["complete"] and trial["val_accuracy"] >= level:
            return {"device_s_to_level": spent, "wall_s_to_level": trial["ended"]}
    raise AssertionError("the level is one that every search reaches")


def table(rows: list[dict[str, Any]], sides: list[str]) -> tuple[float, list[dict[str, Any]]]:
    """The common level; for every side medians over the seeds, and how many times better the first side is.

    A gain is the median over the seeds of the two searches with that seed: more trials, or less time.
    """
    level = min(best(row["trials"]) for row in rows)
    for row in rows:
        row |= to_level(row["trials"], level)
    of = {side: [row for row in rows if row["side"] == side] for side in sides}
    lines = []
    for side in sides:
        line: dict[str, Any] = {"side": side, "seeds": len(of[side])}
        line["best"] = statistics.median(row["best"] for row in of[side])
        for key in ("trials_per_hour", "wall_s", "device_s", "device_s_to_level", "wall_s_to_level"):
            line[key] = statistics.median(row[key] for row in of[side])
            ratios = [mine[key] / first[key] for mine, first in by_seed(of[side], of[sides[0]])]
            line[f"{key}_gain"] = statistics.median(1 / r if key == "trials_per_hour" else r for r in ratios)
        lines.append(line)
    return level, lines


def by_seed(*rows: list[dict[str, Any]]) -> list[tuple[dict[str, Any], ...]]:
    """Rows of several sides, those of the same seed together (seeds take turns in the order of the sides)."""
    return list(zip(*(sorted(part, key=lambda row: row["seed"]) for part in rows), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--space", default="quickstart")
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES), help="gains are those of the first")
    parser.add_argument("--mlflow", choices=["callback", "trial", "none"], default="callback", help="stock's tracking")
    parser.add_argument("--runs", type=Path, help="folder that keeps the teacher; default a temporary one")
    parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="change the space")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        runs = options.runs or Path(scratch) / "teacher"
        accuracy = common.alone(prepare, options.space, [*NO_LIMITS, *options.set], str(runs))
        # Copied before any search adds to it, so that every search starts with the teacher and no more.
        warm = Path(scratch) / "warm"
        shutil.copytree(runs / "teachers", warm / "teachers", ignore=shutil.ignore_patterns("views"))
        for seed in range(options.seeds):
            for side in options.sides if seed % 2 == 0 else reversed(options.sides):
                fresh = Path(scratch) / "fresh"
                shutil.copytree(warm, fresh)
                wall, trials = run(side, options, seed, fresh)
                shutil.rmtree(fresh)
                row = {"side": side, "seed": seed, "wall_s": wall, "trials_per_hour": 3600 * len(trials) / wall}
                rows.append({**row, "device_s": sum(t["device_s"] for t in trials), "best": best(trials)})
                print(common.rounded(rows[-1]), flush=True)
                rows[-1]["trials"] = trials
        level, lines = table(rows, options.sides)
    common.save(options, teacher_val_accuracy=accuracy, mlflow=options.mlflow, level=level, table=lines, rows=rows)
    for line in lines:
        print(common.rounded(line))


if __name__ == "__main__":
    main()
