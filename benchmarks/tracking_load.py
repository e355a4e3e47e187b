"""How many trials one MLflow server takes: every trial reports an epoch a second through the tracker of a search.

A real `mlflow server` with one worker, on loopback, over SQLite or PostgreSQL; the tracker is that of `hksd search`,
each report has 15 figures, and all trials report in the same moment, which is the worst case. `lag_s` is the time from
the report of an epoch until the call that wrote it has returned; `behind` counts records that wait when the last epoch
is reported; `once` counts the trials of which every figure of every epoch is in the store exactly once. With
`--against` another checkout of the project takes turns with this one.

    python benchmarks/tracking_load.py --out benchmarks/results/tracking-load.json
    python benchmarks/tracking_load.py --store postgresql --against PATH_TO_ANOTHER_CHECKOUT --out load.json
    python benchmarks/tracking_load.py --trials 8 --epochs 5 --interval 0.2 --out load.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from common import save
from servers import mlflow_server, postgresql

from hksd.config.run import dump
from hksd_search.space import space as spaces
from hksd_search.study.records import Assignment, Record
from hksd_search.tracking.tracker import EXPERIMENT, Tracker

HERE = Path(__file__).resolve()
NAME = "load"
TERMS = ("ce", "kd", "squeeze", "attention_transfer", "adversarial")
DIAGNOSTICS = ("adversarial/discriminator_loss", "adversarial/weight", "squeeze/level")
FIGURES = 7 + len(TERMS) + len(DIAGNOSTICS)


def report(epoch: int, epochs: int) -> dict[str, Any]:
    """The report of an epoch, made up; `hksd.run.outcome.EpochReport`."""
    return {
        "epoch": epoch,
        "epochs": epochs,
        "val_accuracy": epoch / epochs,
        "val_loss": 1.0,
        "train_accuracy": 0.5,
        "train_loss": 1.0,
        "terms": dict.fromkeys(TERMS, 1.0),
        "diagnostics": dict.fromkeys(DIAGNOSTICS, 0.5),
        "lr": 0.1,
        "seconds": 1.0,
        "images_per_s": 100.0,
    }


class Watch:
    """Sees when values have reached the server, and counts calls.

    Attributes:
        lags: seconds from the time of a value of accuracy until the call that wrote it has returned.
        calls: requests to the server.
        last: when the last such call has returned.
    """

    def __init__(self) -> None:
        import requests
        from mlflow.tracking import MlflowClient

        self.lags: list[float] = []
        self.calls, self.last = 0, 0.0
        log_batch, send = MlflowClient.log_batch, requests.Session.send

        def watched(client: Any, run: str, metrics: Any = (), *more: Any, **others: Any) -> Any:
            done = log_batch(client, run, metrics, *more, **others)
            self.last = time.time()
            self.lags += [self.last - metric.timestamp / 1000 for metric in metrics if metric.key == "val/accuracy"]
            return done

        def counted(session: Any, request: Any, **others: Any) -> Any:
            self.calls += 1
            return send(session, request, **others)

        MlflowClient.log_batch, requests.Session.send = watched, counted  # type: ignore[method-assign]


def measure(uri: str, folder: Path, trials: int, epochs: int, interval: float) -> dict[str, Any]:
    """Track a search of trials that only report, and say how the store kept up."""
    watch = Watch()
    config = spaces.load("quickstart", []).middle({})
    costs = {"params": 10000.0, "mflops": 1.0}
    tracker = Tracker(uri, folder, NAME)
    tracker.start_search({"space": "quickstart"}, "train: {}\n")
    while tracker.sent < 2:  # until MLflow is imported and the experiment is there
        time.sleep(0.1)
    spent, begun = time.process_time(), time.time()
    for number in range(trials):
        tracker.start_trial(Assignment(number, config, None, costs))
    for epoch in range(1, epochs + 1):
        time.sleep(max(0.0, begun + epoch * interval - time.time()))
        for number in range(trials):
            tracker.epoch(number, report(epoch, epochs))
    reported = time.time()
    told = 2 + trials * (1 + epochs)
    behind = told - tracker.sent
    for number in range(trials):
        tracker.end_trial(Record(number, "complete", None, dump(config), costs, epochs, 1.0, float(epochs), None))
    tracker.end_search("FINISHED", {"trials/complete": float(trials)}, {"hksd.status": "complete"}, {})
    outcome = tracker.close()
    closed = time.time()
    lags = sorted(watch.lags)
    return {
        "records": outcome.sent + outcome.unsent,
        "unsent": outcome.unsent,
        "records_per_s": outcome.sent / (closed - begun),
        "offered_per_s": trials / interval,
        "behind": behind,
        "lag_s": {"median": statistics.median(lags), "p99": lags[int(len(lags) * 0.99)], "largest": lags[-1]},
        "close_s": closed - reported,
        "calls": watch.calls,
        "client_cpu_s": time.process_time() - spent,
        **counted(uri, trials, epochs),
    }


def counted(uri: str, trials: int, epochs: int) -> dict[str, int]:
    """What a store has of the search: its trials, those that are finished, those with every figure exactly once."""
    from mlflow.tracking import MlflowClient

    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "300"  # this is no part of what is measured
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    where = f"tags.`hksd.search` = '{NAME}' AND tags.`hksd.kind` = 'trial'"
    runs = client.search_runs([experiment.experiment_id], where, max_results=trials + 100)
    whole = list(range(1, epochs + 1))

    def is_whole(run: Any) -> bool:
        keys = [key for key in run.data.metrics if key not in ("params", "mflops")]
        steps = ([p.step for p in client.get_metric_history(run.info.run_id, key)] for key in keys)
        return len(keys) == FIGURES and all(sorted(found) == whole for found in steps)

    return {
        "runs": len(runs),
        "finished": sum(run.info.status == "FINISHED" for run in runs),
        "once": sum(map(is_whole, runs)),
    }


def side(name: str, checkout: Path, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure one checkout of the project against servers of its own."""
    folder.mkdir()
    folder.chmod(0o755)
    search = folder / "search"
    search.mkdir()
    with ExitStack() as stack:
        base = f"sqlite:///{folder / 'mlflow.db'}"
        store = stack.enter_context(postgresql(folder)) if options.store == "postgresql" else base
        uri, server = stack.enter_context(mlflow_server(store, folder))
        before = server.processor_seconds()
        words = [sys.executable, str(HERE), "--uri", uri, "--folder", str(search), "--trials", str(options.trials)]
        words += ["--epochs", str(options.epochs), "--interval", str(options.interval)]
        path = os.pathsep.join([str(checkout / "search"), str(checkout)])
        done = subprocess.run(words, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{name}: failed\n{done.stderr}")
        return {"side": name, **json.loads(done.stdout), "server_cpu_s": server.processor_seconds() - before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--trials", type=int, default=64, help="at once")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between two reports of a trial")
    parser.add_argument("--store", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--against", type=Path, help="another checkout of the project, which takes turns with this one")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--uri", help=argparse.SUPPRESS)  # measure here, against this server
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.uri:
        print(json.dumps(measure(options.uri, options.folder, options.trials, options.epochs, options.interval)))
        return
    if options.out is None:
        parser.error("--out is missing")
    sides = {"this": HERE.parent.parent} | ({"other": options.against.resolve()} if options.against else {})
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="hksd-load-") as place:
        Path(place).chmod(0o755)  # a database may be another user's
        for turn in range(options.rounds):
            for name in list(sides) if turn % 2 == 0 else reversed(list(sides)):
                rows.append(side(name, sides[name], options, Path(place) / f"{turn}-{name}"))
                print(json.dumps(rows[-1]), flush=True)
    save(options, store=options.store, trials=options.trials, epochs=options.epochs, rows=rows)


if __name__ == "__main__":
    main()
