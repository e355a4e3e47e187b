"""A search as one writes it with Ray Tune, Optuna and MLflow alone: the other side of `search_speed.py`.

`OptunaSearch` (TPE, its defaults) draws from the same define-by-run space, `ASHAScheduler` stops early with the
settings of the space, and the trial is the plain loop of `reference.py` with a live float32 teacher. Losses are hksd's
own term modules, so both sides minimise the same sums. One core and one thread per trial, images and teacher handed to
the trials through the object store, Tune's other settings as they come. MLflow by Ray's `MLflowLoggerCallback`
(``callback``), or by one run that each trial writes (``trial``), into a SQLite file. Only whole trials save weights.

    HKSD_KERNELS=0 python benchmarks/stock_search.py quickstart --runs RUNS

prints one JSON object; RUNS/teachers keeps the teacher.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}

import mlflow
import optuna
import ray
import torch
from ray import tune
from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from reference import Reference
from torch import Tensor, nn

from hksd import data as datasets
from hksd.config.run import RunConfig
from hksd.data import DataSet
from hksd.models.taps import Out, TappedNet
from hksd.run.objective import Objective
from hksd.teacher import prepare as teachers
from hksd.teacher.teacher import Teacher
from hksd.terms.base import Setting
from hksd_search.space import space as spaces
from hksd_search.space.space import Space
from hksd_search.strategy.stopping import grace_epochs

EXPERIMENT = "stock"


class TermLosses(nn.Module):
    """The terms of a run as they are, for `Reference`."""

    def __init__(self, config: RunConfig, data: DataSet, teacher: TappedNet, student: TappedNet):
        super().__init__()
        self.objective = Objective(config.terms, student.shapes, teacher.shapes, config.train.epochs)
        self.objective.meet(Setting(torch.from_numpy(data.train.labels.copy()), teacher))

    def joint_parameters(self) -> list[nn.Parameter]:
        """What is trained with the student."""
        return self.objective.joint_parameters()

    def forward(self, student: Out, teacher: Out | None, labels: Tensor, epoch: float) -> Tensor:
        """The weighted sum; games make their own step first."""
        self.objective.own_steps(student, teacher, labels, epoch)
        total: Tensor = self.objective(student, teacher, labels, epoch)[0]
        return total


def trial(drawn: dict[str, Any], *, space: Space, data: DataSet, teacher: Teacher, uri: str | None) -> None:
    """Train one draw, one report per epoch."""
    config = space.draw(optuna.trial.FixedTrial(drawn))
    run = Reference(
        config,
        data,
        teacher.model,
        attention=teacher.attention,
        losses=lambda student: TermLosses(config, data, teacher.model, student),
    )
    if uri:
        mlflow.set_tracking_uri(uri)
        mlflow.set_experiment(EXPERIMENT)
        mlflow.start_run()
        mlflow.log_params(drawn)
    start = time.perf_counter()
    for epoch in range(1, config.train.epochs + 1):
        figures = run.train_epoch()
        report = {
            "val_accuracy": run.accuracy(),
            "train_loss": figures.loss.mean,
            "train_accuracy": figures.top1.mean,
            "seconds": time.perf_counter() - start,
            "ended": time.time(),
        }
        if uri:
            mlflow.log_metrics(report, step=epoch)
        if epoch < config.train.epochs:
            tune.report(report)
            continue
        with tempfile.TemporaryDirectory() as folder:
            torch.save(run.student.state_dict(), Path(folder) / "student.pt")
            tune.report(report, checkpoint=tune.Checkpoint.from_directory(folder))
    if uri:
        mlflow.end_run()


def search(space: Space, runs: Path, trials: int, cores: int, logging: str, reuse: bool) -> list[dict[str, Any]]:
    """Run the search; returns one entry per trial, by the time of its end."""
    middle, settings = space.middle({}), space.search
    data = datasets.load(middle.data)
    teacher = teachers.prepare(middle, data, cache_dir=runs / "teachers")
    uri = f"sqlite:///{runs.resolve()}/stock.db"
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment(EXPERIMENT)  # makes the file before trials write to it
    epochs, asha = middle.train.epochs, settings.scheduler.asha
    scheduler = None
    if asha is not None:
        grace = grace_epochs(space)
        scheduler = ASHAScheduler(max_t=epochs, grace_period=grace, reduction_factor=asha.reduction_factor)
    given = {"space": space, "data": data, "teacher": teacher, "uri": uri if logging == "trial" else None}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ray.init(num_cpus=cores, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        callback = MLflowLoggerCallback(tracking_uri=uri, experiment_name=EXPERIMENT)
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(trial, **given), {"cpu": 1}),
            tune_config=tune.TuneConfig(
                metric="val_accuracy",
                mode="max",
                search_alg=OptunaSearch(partial(drawn, space), metric="val_accuracy", mode="max", seed=settings.seed),
                scheduler=scheduler,
                num_samples=trials,
                reuse_actors=reuse,
            ),
            run_config=tune.RunConfig(
                name="stock",
                storage_path=str(runs.resolve()),
                verbose=0,
                callbacks=[callback] if logging == "callback" else [],
            ),
        )
        results = tuner.fit()
    finally:
        ray.shutdown()
    found = [
        {
            "val_accuracy": result.metrics["val_accuracy"],
            "complete": result.metrics["training_iteration"] >= epochs,
            "device_s": result.metrics["seconds"],
            "ended": result.metrics["ended"],
        }
        for result in results
        if result.metrics and "val_accuracy" in result.metrics
    ]
    return sorted(found, key=lambda entry: entry["ended"])


def drawn(space: Space, draw: optuna.Trial) -> None:
    """Suggest every parameter of the space; the trial reads them by name."""
    space.draw(draw)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("space")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--trials", type=int, help="default those of the space")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--mlflow", choices=["callback", "trial", "none"], default="callback")
    parser.add_argument(
        "--reuse", action="store_true", help="TuneConfig.reuse_actors (Tune's default: a process per trial)"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE")
    options = parser.parse_args()
    space = spaces.load(options.space, options.set)
    options.runs.mkdir(parents=True, exist_ok=True)
    trials = options.trials or space.search.trials
    found = search(space, options.runs, trials, options.cores, options.mlflow, options.reuse)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
