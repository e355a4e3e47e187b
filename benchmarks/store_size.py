"""Whether MLflow and our own commands still answer when thousands of runs are in the store.

A search of so many trials is made without training: the real ledger and tracker, each trial with the epochs of the
space `quickstart` and 15 figures an epoch, into a SQLite store. Then, over a real `mlflow server` with one worker:
`page` asks what the first view of MLflow's page asks (the newest runs of the experiment), `view` the trials of the
search by accuracy, both for 100 runs and for 1,000; `go_on` opens the search again as a resume does, until the store
has its first new record; `status` and `sync` are the commands. Times are medians, in seconds.

    python benchmarks/store_size.py --out benchmarks/results/store-size.json
    python benchmarks/store_size.py --runs 50 --out store.json
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import save
from servers import mlflow_server
from tracking_load import NAME, report

from hksd import data as datasets
from hksd_search.ledger import Events, Ledger
from hksd_search.space import space as spaces
from hksd_search.space.sizes import Meter, check_feasible
from hksd_search.tracking import access
from hksd_search.tracking.tracker import EXPERIMENT, Tracker


def fill(folder: Path, uri: str, trials: int) -> dict[str, float]:
    """Make a search of so many trials, and its runs in the store."""
    settings = [f"search.trials={trials}", "search.sampler=random", "search.scheduler=none", "search.arms=none"]
    space = spaces.load("quickstart", settings)
    meter = Meter(datasets.load(space.middle({}).data).image_shape)
    tracker = Tracker(uri, folder, NAME, default=True)
    tracker.start_search({"space": "quickstart"}, "train: {}\n")
    events = Events(started=[tracker.start_trial], reported=[tracker.epoch], ended=[tracker.end_trial])
    ledger = Ledger(space, folder, meter, check_feasible(space, meter), events)
    begun, epochs = time.perf_counter(), space.middle({}).train.epochs
    while (assignment := ledger.next()) is not None:
        for epoch in range(1, epochs + 1):
            ledger.report(assignment.number, report(epoch, epochs))
        ledger.finish(assignment.number, None)
    made = time.perf_counter()
    while not tracker.idle:
        time.sleep(0.1)
    tracker.end_search("FINISHED", {}, {"hksd.status": "complete"}, {})
    outcome = tracker.close()
    (folder / "search.json").write_text('{"name": "load", "minimize": [], "ended": null}')
    if outcome.unsent:
        raise SystemExit(f"{outcome.unsent} records were not taken: {outcome.problem}")
    return {"study_s": made - begun, "records": outcome.sent, "records_s": time.perf_counter() - begun}


def timed(act: Callable[[], Any], times: int) -> float:
    """Median seconds of a call, after one that does not count."""
    found = []
    for _ in range(times + 1):
        begun = time.perf_counter()
        act()
        found.append(time.perf_counter() - begun)
    return statistics.median(found[1:])


def looked_at(uri: str, times: int) -> dict[str, float]:
    """What the page of MLflow asks."""
    import requests
    from mlflow.tracking import MlflowClient

    experiment = MlflowClient(uri).get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    trials = f"tags.`hksd.search` = '{NAME}' AND tags.`hksd.kind` = 'trial'"
    views = {"page": ("", "attributes.start_time DESC"), "view": (trials, "metrics.`val/accuracy` DESC")}

    def ask(where: str, order: str, most: int) -> None:
        body = {"experiment_ids": [experiment.experiment_id], "filter": where, "order_by": [order], "max_results": most}
        answer = requests.post(f"{uri}/ajax-api/2.0/mlflow/runs/search", json=body, timeout=300)
        answer.raise_for_status()
        assert len(answer.json()["runs"]) > 0

    found = {}
    for name, (where, order) in views.items():
        for most in (100, 1000):
            found[f"{name}_{most}_s"] = timed(lambda: ask(where, order, most), times)  # noqa: B023 - called at once
    return found


def gone_on(folder: Path, uri: str) -> float:
    """Seconds until a search that is opened again has written to the store."""
    begun = time.perf_counter()
    tracker = Tracker(uri, folder, NAME, default=True)
    tracker.know_search({})
    tracker.end_search("FINISHED", {}, {"hksd.status": "complete"}, {})
    while not tracker.sent:
        time.sleep(0.01)
    spent = time.perf_counter() - begun
    tracker.close()
    return spent


def command(*words: str) -> None:
    """Call the command line as a user does."""
    subprocess.run([sys.executable, "-m", "hksd_search.cli", *words], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--runs", type=int, nargs="+", default=[500, 5000])
    parser.add_argument("--times", type=int, default=5, help="each question is asked")
    options = parser.parse_args()
    rows = []
    for count in options.runs:
        with tempfile.TemporaryDirectory(prefix="hksd-store-") as place:
            runs = Path(place)
            folder = runs / NAME
            folder.mkdir()
            store = access.store_uri(None, runs)
            row: dict[str, Any] = {"runs": count, **fill(folder, store, count)}
            row["store_mib"] = access.sqlite_file(store).stat().st_size / 2**20
            with mlflow_server(store, runs) as (uri, _):
                row |= looked_at(uri, options.times)
                row["go_on_server_s"] = gone_on(folder, uri)
            row["go_on_file_s"] = gone_on(folder, store)
            row["status_s"] = timed(lambda: command("status", NAME, "--runs", place), 1)
            row["sync_s"] = timed(lambda: command("sync", NAME, "--runs", place), 1)
            rows.append(row)
            print(row, flush=True)
    save(options, rows=rows)


if __name__ == "__main__":
    main()
