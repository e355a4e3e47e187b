"""The thin layer between the ledger and Ray Tune: a searcher, a scheduler, the call of the tuner."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune.search import Searcher

from hksd import bounds
from hksd.config.networks import StudentConfig
from hksd.config.run import dump
from hksd.data import DataSet
from hksd.errors import RunError
from hksd.files import FULL
from hksd_search.backend import connect, failures, guards, nodes, packing
from hksd_search.backend.cluster import NODES_LOST, Cluster
from hksd_search.backend.failures import Failure
from hksd_search.backend.packing import Packing, Usage
from hksd_search.backend.ray_watch import RayWatch, Restart
from hksd_search.backend.schedulers import LedgerScheduler, mind, remove_checkpoints
from hksd_search.backend.trial import run_trial
from hksd_search.ending import Why
from hksd_search.ledger import Ledger
from hksd_search.space.settings import SearchConfig
from hksd_search.space.space import Space
from hksd_search.strategy.population import boundaries
from hksd_search.study.records import STRIKES, trial_folder
from hksd_search.study.storage import GONE


class LedgerSearcher(Searcher):  # type: ignore[misc]
    """Tune's view of the ledger. Holds no state of its own: the study has it, outside Tune's pickles.

    Args:
        ledger: of the search.
        folder: of the search; a worker that dies leaves its last words there.
        lost: why the worker of a trial was lost (see `LedgerScheduler`).
        places: how many trials there may be at this moment; None for no limit.
        cluster: nodes that come and go; None where all workers are on this machine.
        watch: knows whether Ray itself has died.
    """

    def __init__(
        self,
        ledger: Ledger,
        folder: Path,
        lost: dict[str, Failure],
        places: Callable[[], int] | None = None,
        cluster: Cluster | None = None,
        watch: RayWatch | None = None,
    ):
        super().__init__(metric="val_accuracy", mode="max")
        self.ledger: Ledger | None = ledger
        self.folder, self.longest = folder, 0.0  # seconds of an epoch
        # Workers that fail one after the other, before any trial reports, from which on all would fail.
        self.alike = 1 if cluster is None else STRIKES
        self.lost, self.faults = lost, 0  # faults of workers since the last report
        self.places: Callable[[], int] | None = places
        self.cluster: Cluster | None = cluster
        self.watch: RayWatch | None = watch
        self.numbers: dict[str, int] = {}
        self.gone: Counter[int] = Counter()  # nodes that a trial has lost since its last epoch

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "ledger": None, "watch": None, "places": None, "cluster": None}

    def suggest(self, trial_id: str) -> Any:
        """See ray.tune.search.Searcher."""
        assert self.ledger is not None
        mind(self.ledger, self.cluster)
        if self.places is not None and not self.ledger.stopping and len(self.ledger.live) >= self.places():
            return None
        assignment = self.ledger.next()
        if assignment is None:
            # A trial that runs may be lost and come back: asked again later.
            return None if self.ledger.live and not self.ledger.stopping else Searcher.FINISHED
        self.numbers[trial_id] = assignment.number
        fork = asdict(assignment.fork) if assignment.fork else {}
        told = {"number": assignment.number, "arm": assignment.arm or "", "fork": json.dumps(fork)}
        return {**told, "config": json.dumps(dump(assignment.config)), "longest": self.longest}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """See ray.tune.search.Searcher."""
        assert self.ledger is not None
        if "fault" not in result and "epoch" in result:
            number = self.numbers[trial_id]
            self.longest = max(self.longest, float(result["seconds"]))
            self.faults = 0
            self.gone.pop(number, None)
            self.ledger.report(number, unflatten(result))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """See ray.tune.search.Searcher."""
        assert self.ledger is not None
        result = result or {}
        if not error:
            self.on_trial_result(trial_id, result)
        number = self.numbers.pop(trial_id)
        if error:
            if self.watch is not None:
                self.watch.check()  # all workers die with Ray: no fault of their trials
            self._lost(number, self.lost.pop(trial_id, Failure(failures.DIED, fault=False)))
        elif result.get("kind") == "disk full":
            self.ledger.stop(Why.FAULT, f"the disk is full: {result['fault'].partition(': ')[2]}")
            self.ledger.put_back(number)
        elif result.get("kind") == "again":
            self.ledger.lost(number, result["fault"])
        elif result.get("kind") == "unfit node":
            self.ledger.stop(Why.UNFIT, result["fault"])
            self.ledger.put_back(number)
        else:
            self.ledger.finish(number, result.get("fault"))

    def _lost(self, number: int, failure: Failure) -> None:
        """A trial has lost its worker: by what it met, outside of the trial, or with its process."""
        assert self.ledger is not None
        if self.cluster is not None and (node := self.cluster.lost_node(failure)):
            self.gone[number] += 1
            self.ledger.lost(number, f"node {node} is gone", strike=self.gone[number] > NODES_LOST)
            return
        if not failure.fault:
            reason, strikes = guards.last_words(trial_folder(self.folder, number))
            self.ledger.lost(number, failure.reason if reason == failures.DIED else reason, strikes)
            return
        self.faults += 1
        if self.faults >= self.alike:
            self.ledger.stop(Why.FAULT, f"no worker can train a trial: {failure.reason}")
            self.ledger.put_back(number)
        else:
            self.ledger.lost(number, failure.reason, strike=False)

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


def pack(
    space: Space, student: StudentConfig, data: DataSet, cache_dir: Path, cluster: Cluster | None = None
) -> Packing:
    """Find out how many trials share a GPU (`backend.packing`), with a dry run where the space leaves it open.

    Args:
        space: the space.
        student: the largest student there will be.
        data: its images.
        cache_dir: folder of cached teachers.
        cluster: its nodes; the dry run waits for one with a GPU, which may have to be started first.

    Raises:
        UserError: see `Cluster.check`.
        RunError: see `Cluster.check`.
    """
    asked = space.search.resources

    def try_out() -> Usage:
        config = space.middle({"student": dump(student)})
        # Its process ends and leaves no memory occupied.
        run = ray.remote(num_cpus=asked.cpu, num_gpus=1, max_calls=1)(connect.at_home)
        begun = run.remote(str(Path.cwd()), packing.measured, config, data, cache_dir)
        try:
            if cluster is None:
                usage: Usage = ray.get(begun)
            else:
                with cluster.wanting(asked.cpu, 1):
                    usage = cluster.wait(begun)
        except RayError as error:
            raise RunError(f"the dry run on a GPU failed: {failures.failure(error).reason}") from error
        return usage

    if not packing.wants_gpu(space) or not isinstance(asked.gpu, str):
        gpus = False
    elif cluster is None:
        gpus = ray.cluster_resources().get("GPU", 0) >= 1
    else:
        gpus = cluster.has_gpus()
    found = packing.decide(asked.gpu, gpus, lambda: packing.trials_by_cpu(nodes.alive(), asked.cpu), try_out)
    if cluster is not None:
        cluster.check()  # what ended the wait for the dry run ends the search
    return found


class Places:
    """How many trials may run, or wait for a node, at this moment: `search.concurrent` at most.

    Args:
        search: the settings.
        gpu: GPUs of a trial.
        cluster: nodes that come and go; None for this machine.

    Raises:
        UserError: not even one trial fits on this machine.
    """

    def __init__(self, search: SearchConfig, gpu: float, cluster: Cluster | None = None):
        self.search, self.gpu, self.cluster = search, gpu, cluster
        self.fixed = 0
        if cluster is None:
            have = ray.cluster_resources()
            self.fixed = packing.trials_at_once(search, gpu, have.get("CPU", 0), have.get("GPU", 0))

    def __call__(self) -> int:
        """Trials at once, now."""
        if self.cluster is None:
            return self.fixed
        now = self.cluster.places(self.search.resources.cpu, self.gpu)
        return min(now, self.search.concurrent or now)


def tune_trials(
    ledger: Ledger,
    data: DataSet,
    folder: Path,
    cache_dir: Path,
    gpu: float = 0.0,
    trial: Callable[..., None] = run_trial,
    restart: Restart | None = None,
    cluster: Cluster | None = None,
) -> None:
    """Train what the ledger hands out until it hands out no more.

    Args:
        ledger: hands out trials.
        data: their images.
        folder: folder of the search.
        cache_dir: folder of cached teachers.
        gpu: GPUs of a trial.
        trial: what trains one; takes the arguments of `run_trial`.
        restart: what to do when Ray dies; None leaves it to Ray, which ends the process.
        cluster: nodes that come and go; None where all workers are on this machine.
    """
    fixed: dict[str, Any] = {"search": str(folder), "cache_dir": str(cache_dir), "home": str(Path.cwd()), "share": gpu}
    fixed["shared"] = json.dumps(dump(ledger.space.middle({})))
    fixed["keep"] = list(boundaries(ledger.space))
    fixed["mark"] = cluster and cluster.mark
    resources, places = ledger.space.search.resources, Places(ledger.space.search, gpu, cluster)
    memory = None if resources.memory_gb is None else int(resources.memory_gb * guards.GB)
    most = places() if cluster is None else bounds.CONCURRENT
    rules = guards.Rules(ledger.space.search.epoch_timeout, memory, most, resources.cpu)
    trainable = tune.with_resources(
        tune.with_parameters(trial, data=data, rules=rules, **fixed), {"cpu": resources.cpu, "gpu": gpu}
    )
    lost: dict[str, Failure] = {}
    watch = None
    if restart is not None:
        ledger.events.reported.append(restart.progress)
        watch = RayWatch(restart, lambda: ledger.stopping)
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=LedgerSearcher(ledger, folder, lost, places, cluster, watch),
            scheduler=LedgerScheduler(ledger, lost, cluster),
            num_samples=-1,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: str(trial.trial_id),
        ),
        run_config=tune.RunConfig(name="tune", storage_path=str(folder), verbose=0),
    )
    try:
        with (
            connect.pending_trials(most),
            nullcontext() if cluster is None else cluster.wanting(resources.cpu, gpu),
        ):
            tuner.fit()
    except Exception as error:  # Tune keeps files of its own, and turns what happened there into text
        full = guards.full(error) or any(os.strerror(number) in str(error) for number in FULL)
        gone = not ledger.storage.journal.there
        if not full and not gone and not (ledger.end and ledger.end.why >= Why.FAULT):
            raise
        ledger.stop(Why.FAULT, f"{folder}: {GONE}" if gone else f"the disk is full: {folder}")
    finally:
        if watch is not None:
            watch.close()
    if not ledger.stopping:  # the search is over: nobody is forked any more
        remove_checkpoints(folder)
