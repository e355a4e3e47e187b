"""The thin layer between the ledger and Ray Tune: a searcher, a scheduler, the call of the tuner."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from ray.tune.search import Searcher

from hksd.config import dump
from hksd.data import DataSet
from hksd.errors import UserError
from search import packing
from search.packing import Packing, Usage
from search.searcher import Ledger
from search.space import Space
from search.trial import run_trial

DIED = "the worker process died (killed, or out of memory)"


class LedgerSearcher(Searcher):  # type: ignore[misc]
    """Tune's view of the ledger. Holds no state of its own: the study has it, outside Tune's pickles."""

    def __init__(self, ledger: Ledger):
        super().__init__(metric="val_accuracy", mode="max")
        self.ledger: Ledger | None = ledger
        self.numbers: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "ledger": None}

    def suggest(self, trial_id: str) -> Any:
        """See ray.tune.search.Searcher."""
        assert self.ledger is not None
        assignment = self.ledger.next()
        if assignment is None:
            # A trial that runs may be lost and come back: asked again later.
            return None if self.ledger.live and not self.ledger.stopping else Searcher.FINISHED
        self.numbers[trial_id] = assignment.number
        return {"number": assignment.number, "config": json.dumps(dump(assignment.config)), "arm": assignment.arm or ""}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """See ray.tune.search.Searcher."""
        assert self.ledger is not None
        if "fault" not in result and "epoch" in result:
            self.ledger.report(self.numbers[trial_id], unflatten(result))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """See ray.tune.search.Searcher."""
        assert self.ledger is not None
        result = result or {}
        if not error:
            self.on_trial_result(trial_id, result)
        number = self.numbers.pop(trial_id)
        self.ledger.finish(number, DIED if error else result.get("fault"))

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save."""
        Path(checkpoint_path).write_text("the study has the state\n")

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""


def unflatten(result: dict[str, Any]) -> dict[str, Any]:
    """Undo Tune's flattening of the nested parts of an epoch report (``terms/kd``, ``diagnostics/adversarial/...``)."""
    nested: dict[str, Any] = {"terms": {}, "diagnostics": {}}
    for key, value in result.items():
        section, slash, name = key.partition("/")
        if slash and section in nested:
            nested[section][name] = value
        elif key not in nested:
            nested[key] = value
    return nested


class Halving(AsyncHyperBandScheduler):  # type: ignore[misc]
    """Successive halving that lets arms run to the end, and ends everything after its epoch once the ledger stops.

    A trial's last epoch is never answered with a stop: the trial still has its weights to write.
    """

    def __init__(self, ledger: Ledger, epochs: int):
        settings = ledger.space.search
        asha, grace = settings.scheduler.asha, settings.grace_epochs(epochs)
        super().__init__(
            time_attr="epoch",
            metric="val_accuracy",
            mode="max",
            max_t=epochs,
            grace_period=grace,
            reduction_factor=asha.reduction_factor if asha else 4,
            stop_last_trials=False,
        )
        self.ledger: Ledger | None = ledger
        self.epochs, self.on = epochs, asha is not None and grace < epochs

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "ledger": None}

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """See ray.tune.schedulers.TrialScheduler; Ray's own looks through all trials of the search at each event."""
        return next((trial for trial in tune_controller.get_live_trials() if trial.status == Trial.PENDING), None)

    def _counts(self, trial: Any, result: dict[str, Any]) -> bool:
        """Whether a result takes part in the halving."""
        return self.on and "fault" not in result and not trial.config["arm"]

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """See ray.tune.schedulers.TrialScheduler."""
        if "fault" in result or result.get("epoch", 0) >= self.epochs:
            return str(TrialScheduler.CONTINUE)
        if self.ledger is not None and self.ledger.stopping:
            return str(TrialScheduler.STOP)
        if not self._counts(trial, result):
            return str(TrialScheduler.CONTINUE)
        return str(super().on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """See ray.tune.schedulers.TrialScheduler."""
        if self._counts(trial, result):
            super().on_trial_complete(tune_controller, trial, result)

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: a resumed search starts its rungs anew."""
        Path(checkpoint_path).write_text("")

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""


def start_ray(address: str | None = None) -> None:
    """Connect to a cluster, or start a private Ray on this machine (after `search.ray_env.prepare`).

    Raises:
        UserError: there is no cluster at `address`.
    """
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address is None:
        cores = len(os.sched_getaffinity(0))
        ray.init(num_cpus=cores, include_dashboard=False, _node_ip_address="127.0.0.1", **common)
        return
    try:
        ray.init(address=address, **common)
    except ConnectionError as error:
        raise UserError(f"--address {address}: no Ray cluster answers there") from error


def stop_ray() -> None:
    """Leave the cluster, or end the private Ray."""
    ray.shutdown()


def pack(ledger: Ledger, data: DataSet, cache_dir: Path) -> Packing:
    """Find out how many trials share a GPU (`search.packing`), with a dry run where the space leaves it open."""
    space, have = ledger.space, ray.cluster_resources()

    def try_out() -> Usage:
        config = space.middle({"student": dump(ledger.largest)})
        run = ray.remote(num_gpus=1, max_calls=1)(packing.measured)  # its process ends and leaves no memory occupied
        usage: Usage = ray.get(run.remote(config, data, cache_dir))
        return usage

    wanted = str(space.tree["train"].get("device", "auto")) != "cpu"
    cpus = int(have.get("CPU", 0) // space.search.resources.cpu)
    return packing.chosen(space.search.resources.gpu, wanted, have.get("GPU", 0), cpus, try_out)


def concurrent_trials(space: Space, gpu: float) -> int:
    """Trials at once, each with that many GPUs: what the resources allow, at most `search.concurrent`.

    Raises:
        UserError: not even one trial fits.
    """
    have, resources = ray.cluster_resources(), space.search.resources
    fit = int(have.get("CPU", 0) // resources.cpu)
    if gpu:
        fit = min(fit, int(have.get("GPU", 0) / gpu + 1e-9))
    if fit < 1:
        raise UserError(
            f"search.resources: a trial wants {resources.cpu} CPU(s) and {gpu:g} GPU(s), "
            f"there are {have.get('CPU', 0):g} and {have.get('GPU', 0):g}"
        )
    return min(fit, space.search.concurrent or fit)


def tune_trials(
    ledger: Ledger,
    data: DataSet,
    folder: Path,
    cache_dir: Path,
    epochs: int,
    gpu: float = 0.0,
    trial: Callable[..., None] = run_trial,
) -> None:
    """Train what the ledger hands out until it hands out no more.

    Args:
        ledger: hands out trials.
        data: their images.
        folder: folder of the search.
        cache_dir: folder of cached teachers.
        epochs: epochs of every trial.
        gpu: GPUs of a trial.
        trial: what trains one; takes the arguments of `run_trial`.
    """
    fixed = {"search": str(folder), "cache_dir": str(cache_dir), "home": str(Path.cwd()), "share": gpu}
    fixed["shared"] = json.dumps(dump(ledger.space.middle({})))
    trainable = tune.with_resources(
        tune.with_parameters(trial, data=data, **fixed), {"cpu": ledger.space.search.resources.cpu, "gpu": gpu}
    )
    concurrent = concurrent_trials(ledger.space, gpu)
    # All workers start together. When one starts alone and another comes free meanwhile, Tune hands that one over and
    # takes the start back, over and over: with short trials only one worker ever trains.
    os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", str(concurrent))
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=LedgerSearcher(ledger),
            scheduler=Halving(ledger, epochs),
            num_samples=-1,
            max_concurrent_trials=concurrent,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(name="tune", storage_path=str(folder), verbose=0),
    )
    tuner.fit()
