"""What a search costs beside its training, and how that grows with the number of trials.

Each size is a search in a process of its own with the real ledger, Tune, MLflow tracker and display, over the space
`quickstart`; only the training is replaced: a trial reports its epochs, one by default, and returns. Whatever the
search then takes is overhead. With `--at-once` Ray is told that this machine has so many cores, so that many trials run
at once, each in a process of its own. `wall_s_per_trial` is wall time times trials at once, per trial;
`cpu_s_per_trial` counts the processor time of the driver, its workers and Ray, and hardly depends on other load;
`first` and `last` are wall time times trials at once over the first and last tenth of the trials.

    python benchmarks/scale.py --out benchmarks/results/scale.json
    python benchmarks/scale.py --trials 10 100 --samplers random --export --out /tmp/scale.json
    python benchmarks/scale.py --trials 200 1000 --samplers tpe --at-once 64 --epochs 10 --pause 1 --out /tmp/scale.json
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from hksd import data as datasets
from hksd import models
from hksd.config.run import from_tree
from hksd.fit import WEIGHTS_FILE
from hksd.models import weights
from hksd.provenance import provenance
from hksd.run.outcome import EpochReport
from hksd_search.backend import connect
from hksd_search.backend.connect import start_ray, stop_ray
from hksd_search.console import Display
from hksd_search.export import export_trial
from hksd_search.ledger import Events, Ledger
from hksd_search.report.report import table_csv
from hksd_search.space import space as spaces
from hksd_search.space.sizes import Meter, check_feasible
from hksd_search.study.reading import FACTS_FILE, counts, open_search
from hksd_search.study.records import trial_folder
from hksd_search.tracking import access
from hksd_search.tracking import tracker as tracking

NAME = "scale"


def trivial(epochs: int, pause: float) -> Callable[..., None]:
    """A trial that reports epochs, each after a pause; an inner function, since those travel to workers by value."""

    def trial(assignment: dict[str, Any], **_: Any) -> None:
        from ray import tune

        lr = json.loads(assignment["config"])["train"]["lr"]
        report = EpochReport(
            epoch=epochs,
            epochs=epochs,
            val_accuracy=0.5 + lr % 0.01 * 10,  # a fixed function of the configuration
            val_loss=1.0,
            train_accuracy=0.5,
            train_loss=1.0,
            terms={"ce": 1.0},
            diagnostics={},
            lr=lr,
            seconds=0.0,
            images_per_s=0.0,
        )
        for epoch in range(1, epochs + 1):
            time.sleep(pause)
            tune.report({"number": assignment["number"], **asdict(report), "epoch": epoch})

    return trial


def processor_seconds() -> tuple[float, float]:
    """Processor time of this process, and of this process with all that it started and that still runs (Linux)."""
    parents, seconds = {}, {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended since
            continue
        pid = int(entry.parent.name)
        parents[pid], seconds[pid] = int(fields[1]), (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def mine(pid: int | None) -> bool:
        while pid is not None and pid != os.getpid():
            pid = parents.get(pid)
        return pid is not None

    return time.process_time(), sum(spent for pid, spent in seconds.items() if mine(pid))


def resident_mib() -> float:
    """Memory of this process (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def measure(trials: int, sampler: str, options: argparse.Namespace, keep: str | None) -> dict[str, Any]:
    """Run one search without training and say what it cost."""
    connect.prepare(None)
    if options.at_once:
        os.sched_getaffinity = lambda pid: set(range(options.at_once))  # whom Ray's start asks
    from hksd_search.backend import tuning

    runs = Path(keep or tempfile.mkdtemp(prefix="hksd-scale-"))
    folder = runs / NAME
    folder.mkdir(parents=True)
    settings = [f"search.trials={trials}", f"search.sampler={sampler}", "search.scheduler=none"]
    settings.append(f"train.epochs={options.epochs}")
    space = spaces.load("quickstart", [*settings, "terms.adversarial.warmup_epochs=0", "train.device=cpu"])
    data = datasets.load(space.middle({}).data)
    meter = Meter(data.image_shape)
    largest = check_feasible(space, meter)
    (folder / FACTS_FILE).write_text(json.dumps({"name": NAME, "minimize": []}))
    ends: list[float] = []
    with (folder / "output.txt").open("w") as output:
        display = Display(Console(file=output), trials)
        tracker = tracking.Tracker(access.store_uri(None, runs), folder, NAME)
        tracker.start_search({}, "")
        events = Events(
            started=[tracker.start_trial, display.started],
            reported=[tracker.epoch, display.reported],
            ended=[tracker.end_trial, display.ended, lambda r: ends.append(time.perf_counter())],
        )
        ledger = Ledger(space, folder.resolve(), meter, largest, events)
        begin = time.perf_counter()
        start_ray(None)
        ray_s = time.perf_counter() - begin
        concurrent_trials = tuning.Places(space.search, 0.0)()
        mine, everybody = processor_seconds()
        begin = time.perf_counter()
        trial = trivial(options.epochs, options.pause)
        tuning.tune_trials(ledger, data, folder.resolve(), runs / "teachers", trial=trial)
        trained = time.perf_counter()
        everybody = processor_seconds()[1] - everybody  # before the workers are gone
        found = open_search(runs, NAME)
        (folder / "trials.csv").write_text(table_csv(found.records))
        best = found.best
        assert best is not None
        if options.export:
            config = from_tree(best.config or {})
            student = models.make(config.student.spec(), **data.image_shape)
            weights.save(trial_folder(folder, best.number) / WEIGHTS_FILE, student, {})
            export_trial(found, data=data)
        tracker.end_search("FINISHED", {}, {}, {})
        sent = tracker.close()
        end = time.perf_counter()
        mine = processor_seconds()[0] - mine
        memory = resident_mib()
        stop_ray()
    words = [sys.executable, "-m", "hksd_search.cli", "status", NAME, "--runs", str(runs)]
    asked = time.perf_counter()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    status_s = time.perf_counter() - asked
    tenth = max(1, len(ends) // 10)
    row = {
        "trials": trials,
        "sampler": sampler,
        "export": options.export,
        "at_once": concurrent_trials,
        "epochs": options.epochs,
        "counts": counts(found.records),
        "ray_s": ray_s,
        "first_trial_s": ends[0] - begin,
        "wall_s": end - begin,
        "wall_s_per_trial": (end - begin) * concurrent_trials / trials,
        "first": (ends[tenth] - ends[0]) * concurrent_trials / tenth if len(ends) > tenth else None,
        "last": (ends[-1] - ends[-tenth - 1]) * concurrent_trials / tenth if len(ends) > tenth else None,
        "after_the_last_trial_s": end - trained,
        "cpu_s_per_trial": everybody / trials,
        "driver_cpu_s_per_trial": mine / trials,
        "driver_rss_mib": memory,
        "journal_mib": size_of(folder / "study.journal") / 2**20,
        "mlflow_mib": size_of(runs / "mlflow.db") / 2**20,
        "tune_mib": size_of(folder / "tune") / 2**20,
        "tune_files": sum(file.is_file() for file in (folder / "tune").rglob("*")),
        "status_s": status_s,
        "unsent": sent.unsent,
    }
    if keep is None:
        shutil.rmtree(runs)
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for people."""
    keys = ("trials", "sampler", "wall_s_per_trial", "cpu_s_per_trial", "driver_cpu_s_per_trial", "first", "last")
    keys += ("first_trial_s", "after_the_last_trial_s", "driver_rss_mib", "journal_mib", "mlflow_mib", "tune_mib")
    keys += ("status_s",)
    lines = ["| " + " | ".join(keys) + " |", "|---" * len(keys) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(str(row[key]) for key in keys) + " |" for row in rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--trials", type=int, nargs="+", default=[10, 100, 1000, 5000])
    parser.add_argument("--samplers", nargs="+", default=["random", "tpe"], choices=["random", "tpe"])
    parser.add_argument("--at-once", type=int, default=0, help="trials at once; 0: one a core")
    parser.add_argument("--epochs", type=int, default=1, help="that each trial reports")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds before each report")
    parser.add_argument("--export", action="store_true", help="export the best student at the end of each search")
    parser.add_argument("--keep", help="keep the folders of the searches below this one")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for trials in options.trials:
        for sampler in options.samplers:
            keep = str(Path(options.keep) / f"{sampler}-{trials}") if options.keep else None
            with concurrent.futures.ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                rows.append(pool.submit(measure, trials, sampler, options, keep).result())
            print(json.dumps(rows[-1]), flush=True)
            content = {"command": " ".join(["python", *sys.argv]), "provenance": provenance(), "rows": rows}
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(content, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
