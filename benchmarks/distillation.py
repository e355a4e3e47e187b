"""What distillation brings on CIFAR-10: the same student with and without a teacher, over seeds.

Each run is `hksd train` in a process of its own. Learning rates are tried on every side, since one rate for all would
flatter whoever it suits; the rate of a row is chosen by the mean validation accuracy over its seeds, so the figures are
optimistic by the same choice on every side. The test split is not opened.

    python benchmarks/distillation.py --root PATH_TO_CIFAR10 --out benchmarks/results/distillation.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

SIDES: dict[str, dict[str, Any]] = {
    "no distillation": {"ce": {"weight": 1.0}},
    "standard KD": {"ce": {"weight": 0.1}, "kd": {"weight": 0.9, "temperature": 4.0}},
    "preset hksd": {"ce": {}, "logits": {}, "squeeze": {"depth": 2}, "adversarial": {"warmup_epochs": 4}},
}


def train(config: dict[str, Any], seed: int, runs: Path) -> dict[str, Any]:
    """Train once through the command line and return its JSON."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(config, file)
        file.flush()
        command = [
            sys.executable,
            "-m",
            "hksd_search.cli",
            "train",
            file.name,
            "--seed",
            str(seed),
            "--runs",
            str(runs),
            "--json",
        ]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="CIFAR-10 in any of the three layouts")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="cache of the teacher")
    parser.add_argument("--limit", type=int, default=10000)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lrs", type=float, nargs="+", default=[0.2, 0.4])
    options = parser.parse_args()
    base = {
        "data": {"name": "cifar10", "root": options.root, "limit": options.limit, "validation": 0.2},
        "teacher": {"model": "resnet26", "epochs": 30, "lr": 0.2, "attention": {"epochs": 8}},
        "student": {"model": "resnet8"},
    }
    rows, facts, start = [], {}, time.time()
    for seed in range(options.seeds):  # seeds outermost, so that every side meets the same hours of the machine
        for lr in options.lrs:
            for side, terms in SIDES.items():
                config = {**base, "terms": terms, "train": {"epochs": options.epochs, "lr": lr}}
                result = train(config, seed, options.runs)
                facts = result["provenance"]
                rows.append(
                    {
                        "side": side,
                        "lr": lr,
                        "seed": seed,
                        "val_accuracy": result["val_accuracy"],
                        "seconds": result["seconds"],
                        "params": result["params"],
                    }
                )
                print(
                    f"{time.time() - start:6.0f} s  {side}, lr {lr}, seed {seed}: {result['val_accuracy']:.4f}",
                    flush=True,
                )
                table = summarise(rows)
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(
                    json.dumps(
                        {
                            "command": "python benchmarks/distillation.py --root PATH " + " ".join(sys.argv[3:]),
                            "provenance": facts,
                            "config": {
                                **base,
                                "data": {**base["data"], "root": "PATH"},
                                "train": {"epochs": options.epochs},
                            },
                            "table": table,
                            "rows": rows,
                        },
                        indent=1,
                    )
                    + "\n"
                )
    for line in table:
        print(line)


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds for each side and learning rate."""
    table = []
    for side in SIDES:
        for lr in sorted({row["lr"] for row in rows}):
            values = [row["val_accuracy"] for row in rows if (row["side"], row["lr"]) == (side, lr)]
            if values:
                spread = statistics.stdev(values) if len(values) > 1 else None
                table.append({"side": side, "lr": lr, "mean": statistics.mean(values), "std": spread, "n": len(values)})
    return table


if __name__ == "__main__":
    main()
