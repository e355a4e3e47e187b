"""`hksd estimate` against the searches that it forecasts: predicted / actual, of real commands.

Each case is estimated, searched, and estimated again in folders of their own, with no teacher cached, on a machine
that should be idle: whatever else runs slows one of them more than the other. The forecast is the mean of both
estimates.

    teacher seconds    training of the teacher and its attention estimators
    device seconds     training of all trials and of the teacher
    wall seconds       of the search, without the imports of the command itself

    python benchmarks/estimate.py --out benchmarks/results/estimate.json --root PATH_TO_CIFAR10
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import common

HOUR = 3600.0
CASES: dict[str, list[str]] = {
    "quickstart": ["--trials", "24"],
    "cifar10": [
        *("--trials", "8", "--set", "data.limit=3000", "--set", "teacher.epochs=4", "--set", "teacher.min_accuracy=0"),
        *("--set", "teacher.attention.epochs=2", "--set", "train.epochs=4"),
        *("--set", "search.scheduler.asha.grace_epochs=2"),
    ],
}
Figures = dict[str, float]


def command(*words: str) -> dict[str, Any]:
    """Run `hksd` with these words and return its JSON."""
    done = subprocess.run([sys.executable, "-m", "hksd_search.cli", *words, "--json"], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"hksd {' '.join(words)}: failed\n{done.stderr[-4000:]}")
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def predicted(space: str, words: list[str], runs: Path) -> dict[str, Any]:
    """The forecast of a search in seconds, with its low and high values."""
    told = command("estimate", space, *words, "--runs", str(runs))
    spans = {"device": told["device_hours"], "wall": told["wall_hours"]}
    return {
        "teacher_seconds": told["teacher_seconds"],
        **{f"{name}_seconds": span["likely"] * HOUR for name, span in spans.items()},
        "spans": {name: [span["low"] * HOUR, span["high"] * HOUR] for name, span in spans.items()},
        "expected_epochs": told["expected_epochs"],
        "peak_bytes": told["peak_bytes"],
        "seconds": told["seconds"],
    }


def actual(space: str, words: list[str], runs: Path) -> Figures:
    """What the search took."""
    told = command("search", space, *words, "--name", "one", "--runs", str(runs))
    facts = json.loads((runs / "one" / "search.json").read_text())
    teacher = float(facts["teacher"]["seconds"])
    return {"teacher_seconds": teacher, "device_seconds": told["device_s"] + teacher, "wall_seconds": told["wall_s"]}


def compare(space: str, words: list[str]) -> dict[str, Any]:
    """Estimate, search, estimate."""
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / name for name in ("before", "search", "after")]
        before = predicted(space, words, folders[0])
        found = actual(space, words, folders[1])
        after = predicted(space, words, folders[2])
    ratios = {key: statistics.mean([before[key], after[key]]) / value for key, value in found.items()}
    return {"space": space, "actual": found, "before": before, "after": after, "predicted / actual": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--root", help="CIFAR-10's files; without it only the quickstart is compared")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    rows = []
    for space in options.cases:
        if space == "cifar10" and options.root is None:
            continue
        root = ["--set", f"data.root={options.root}"] if space == "cifar10" else []
        rows.append(compare(space, [*CASES[space], *root]))
        print(common.rounded(rows[-1]), flush=True)
    common.save(options, rows=rows)


if __name__ == "__main__":
    main()
