"""The Ray trainable: a run configuration -> `hksd.fit.fit`, one report per epoch.

The trial owns its folder (checkpoints, log of its fault, weights); Tune sees reports only. Worker processes are
reused, so nothing here or below may keep state between trials.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import traceback
from collections.abc import Callable, Container, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune

from hksd.config.run import RunConfig, from_tree
from hksd.data import DataSet
from hksd.device import process
from hksd.fit import fit
from hksd.run import checkpoint
from hksd.run.outcome import EpochReport, OnEpoch
from hksd_search.backend import fitness, gpu, guards
from hksd_search.backend.shared_folder import Mark
from hksd_search.backend.stop_file import told_to_stop
from hksd_search.study import trial_log
from hksd_search.study.records import trial_folder
from hksd_search.study.trial_log import FAULT_FILE as FAULT_FILE


class Warnings(logging.Handler):
    """Keeps what a trial warns of, for its reports: people look at the driver, not at the logs of workers.

    Args:
        folder: of the trial, whose log has it too; None for a run without one.
    """

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__(logging.WARNING)
        self.folder = folder
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Take a message."""
        self.texts.append(record.getMessage())
        if self.folder is not None:
            trial_log.note(self.folder, f"warning: {record.getMessage()}")


@contextmanager
def listening(folder: Path | None = None) -> Iterator[Warnings]:
    """Catch what hksd warns of; see `Warnings`."""
    log, warnings = logging.getLogger("hksd"), Warnings(folder)
    log.addHandler(warnings)
    log.propagate = False
    try:
        yield warnings
    finally:
        log.removeHandler(warnings)
        log.propagate = True


@dataclass(frozen=True)
class Workplace:
    """Where a worker process trains, and what it shares with others.

    Attributes:
        cache_dir: folder of cached teachers.
        home: working directory of the search, to which the paths of the configuration are relative and in which
            networks of the user's own may lie; Ray has put the worker elsewhere.
        shared: a run in the middle of the space (JSON text), which stands for the others.
        share: share of a GPU that the run may use, 0 for none.
    """

    cache_dir: str
    home: str
    shared: str
    share: float = 0.0

    def train(
        self,
        config: RunConfig,
        data: DataSet,
        out: Path,
        on_epoch: OnEpoch | None = None,
        should_stop: Callable[[], bool] | None = None,
        keep: Container[int] = (),
        guard: AbstractContextManager[object] = nullcontext(),  # noqa: B008 - holds nothing
    ) -> None:
        """Train `config` into the folder `out`; the process is afterwards as it was (see `hksd.fit.fit`).

        Training, and no wait for a GPU, happens inside `guard`.
        """

        def train() -> None:
            middle = from_tree(json.loads(self.shared))
            with guard:
                fit(
                    config,
                    data=data,
                    out_dir=out,
                    cache_dir=Path(self.cache_dir),
                    on_epoch=on_epoch,
                    should_stop=should_stop,
                    shared=middle,
                    keep=keep,
                )

        with process.restored(config.seed):  # networks are also built, and looked at, before and after the training
            if Path(self.home).is_dir():  # not on a node of a cluster that shares no files
                os.chdir(self.home)
            gpu.guarded(train, config, self.share)


def run_trial(
    assignment: dict[str, Any],
    *,
    data: DataSet,
    search: str,
    cache_dir: str,
    home: str,
    shared: str,
    share: float = 0.0,
    keep: Container[int] = (),
    rules: guards.Rules = guards.Rules(),  # noqa: B008 - frozen
    mark: Mark | None = None,
) -> None:
    """Train one assignment.

    A fault ends the trial, not the search: it is reported as the metrics ``fault`` and ``kind`` (`guards.Kind`), with
    the stack trace in the trial's folder. A trial that is told to stop is saved and ends without a report. One that
    breaks the rules ends with its process (`guards.Guard`).

    Args:
        assignment: ``number``, ``config`` (JSON text of the run configuration), ``arm`` (its name or ``""``), ``fork``
            (JSON text of the fields of a `study.records.Fork`, or of an empty mapping), and ``longest`` (seconds of
            the longest epoch of the trials before; may be missing).
        data: images, from Ray's object store.
        search: folder of the search.
        cache_dir: see `Workplace`.
        home: see `Workplace`.
        shared: see `Workplace`.
        share: see `Workplace`.
        keep: epochs whose checkpoint others may go on from; that of an arm nobody does.
        rules: how long an epoch may take, and how much memory the trial may hold.
        mark: in the folder that all nodes of a cluster share.
    """
    if mark is not None and (why := fitness.not_shared(mark, write=False)):
        unfit = {"fault": why, "kind": "unfit node"}
        tune.report({"number": assignment["number"], "epoch": 0, "val_accuracy": 0.0, **unfit})
        return
    out = trial_folder(Path(search), assignment["number"])
    fork = json.loads(assignment.get("fork", "{}"))
    epoch, begun = 0, False

    def on_epoch(report: EpochReport) -> None:
        nonlocal epoch, begun
        epoch = report.epoch
        told: dict[str, Any] = {"warnings": warnings.texts} if warnings.texts else {}
        if fork and epoch <= fork["epoch"] and not begun:
            told["anew"] = True  # what its parent has trained already
        begun = False
        guard.rest()  # a report waits for the driver
        tune.report({"number": assignment["number"], **dataclasses.asdict(report), **told})
        guard.watch(report.seconds)

    model, guard = "", guards.Guard(out, rules, assignment.get("longest", 0.0))
    with listening(out) as warnings:
        try:
            trial_log.note(
                out, f"{'goes on' if (out / checkpoint.LAST).exists() else 'begins'} in process {os.getpid()}"
            )
            config = from_tree(json.loads(assignment["config"]))
            model = config.student.model
            stop = told_to_stop(Path(search))
            if fork:
                begun = checkpoint.fork(out, trial_folder(Path(search), fork["parent"]), fork["epoch"])
            mine = () if assignment.get("arm") else keep
            Workplace(cache_dir, home, shared, share).train(config, data, out, on_epoch, stop, mine, guard)
            trial_log.note(out, f"leaves off after epoch {epoch} of {config.train.epochs}")
        except Exception as error:  # whatever a trial meets, the search goes on
            with contextlib.suppress(OSError):
                out.mkdir(parents=True, exist_ok=True)
                (out / FAULT_FILE).write_text(traceback.format_exc())
            trial_log.note(out, f"fault: {type(error).__name__}: {error}")
            fault = {"fault": f"{type(error).__name__}: {error}", "kind": guards.kind(error, model)}
            tune.report({"number": assignment["number"], "epoch": epoch, "val_accuracy": 0.0, **fault})
