"""A search from start to end: folder, data, teacher, trials, table, export; stopped cleanly, resumed."""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hksd import budget, loop
from hksd import data as datasets
from hksd import teacher as teachers
from hksd.config import StudentConfig, dump, flatten
from hksd.data import DataSet
from hksd.errors import RunError, Stopped, UserError
from hksd.export import CARD_FILE, Row
from hksd.provenance import provenance
from hksd.teacher import Teacher
from search import arms, guards, ray_env, stopping, tracking
from search.budgets import Budget
from search.console import Display, relative
from search.costs import Meter, check_feasible, measure_ahead
from search.guards import disk_full_explained
from search.latency import connected, latencies_of
from search.records import Record
from search.results import FACTS_FILE, SearchFolder, counts, export_trial, open_search, target
from search.sampling import check_knowledge
from search.searcher import Events, Ledger
from search.session import (
    IMAGES,
    SPACE_FILE,
    TEACHERS,
    Interrupt,
    choose_folder,
    how_to_resume,
    interruptible,
    locked,
    resolved,
    write,
)
from search.space import Space
from search.teaching import Teaching

TABLE_FILE = "trials.csv"


@dataclass(frozen=True)
class Outcome:
    """What a search ends with.

    Attributes:
        name: name of the search.
        trials: number of trials by status.
        best: facts of the best trial.
        arms: facts of the arms by name.
        verdict: what came of `search.max_drop`, in words.
        front: facts of the trials on the front, when there are several objectives.
        rows: the comparison table.
        wall_s: seconds since the start of this call.
        device_s: seconds of training of all trials.
        export: folder of the exported student.
        ended: the cap (``max_device_hours``, ``max_cost``) that ended it early, or None.
        tracking: store, experiment, records sent and unsent.
    """

    name: str
    trials: dict[str, int]
    best: dict[str, Any]
    arms: dict[str, Any]
    verdict: str | None
    front: list[dict[str, Any]]
    rows: list[Row]
    wall_s: float
    device_s: float
    export: str
    ended: str | None
    tracking: dict[str, Any]


def search(
    space: Space,
    *,
    name: str,
    runs: Path,
    display: Display,
    resume: bool = False,
    address: str | None = None,
    tracking_uri: str | None = None,
    restart: Sequence[str] | None = None,
) -> Outcome:
    """Run a search to its end.

    Args:
        space: what to search.
        name: name of the search; its folder is `runs` / `name`.
        runs: folder of all searches.
        display: where progress is shown.
        resume: continue the search of that name.
        address: Ray cluster; None starts a private Ray here.
        tracking_uri: MLflow store; None takes the SQLite file below `runs`.
        restart: where this process is the command's: further options for the one that takes its place when Ray dies.

    Raises:
        UserError: wrong space, name, data, folder or cluster.
        RunError: teacher too weak, or no trial ran to its end.
        Stopped: stopped by the user.
    """
    start = time.monotonic()
    folder = choose_folder(space, runs, name, resume)
    # Faults of data and limits come before the folder of the search is made.
    data = datasets.load(space.middle({}).data, runs / IMAGES)
    meter = Meter(shape := loop.image_shape(data), latencies_of(space.search, runs, shape), space.search.limits)
    with connected(meter.latencies, address):
        measure_ahead(space, meter, partial(display.step, unit="student"))
        largest = check_feasible(space, meter)
    check_knowledge(space, loop.image_shape(data))
    resume_command = how_to_resume(name, runs, address, tracking_uri)
    with disk_full_explained(resume_command), locked(folder), interruptible(display, folder) as interrupt:
        write(folder / SPACE_FILE, resolved(space))
        try:
            teacher, seconds = _teacher(space, largest, data, runs, display)
        except KeyboardInterrupt:
            raise Stopped(resume_command) from None
        teaching = Teaching(space.middle({}), data, teacher, (runs / TEACHERS).resolve())
        facts = _facts(space, name, data, teacher) | {"teaching": teaching.facts()}
        facts["teacher"]["seconds"] = seconds
        if meter.latencies:
            facts["latency"] = meter.latencies.facts()
        if resume:
            with suppress(UserError):  # half a file, or none: it is written anew
                earlier = open_search(runs, name).facts
                facts["space"] = earlier.get("space", facts["space"])
                facts["teacher"]["seconds"] += earlier.get("teacher", {}).get("seconds", 0.0)
        write(folder / FACTS_FILE, json.dumps(facts, indent=1))
        display.line(_teacher_line(facts["teacher"], teacher))
        display.line(str(teaching))
        display.line(stopping.description(space))
        uri = tracking.store(tracking_uri, runs)
        tracker = tracking.Tracker(uri, folder, name)
        tracker.start_search(_parent_params(space, facts), resolved(space))
        events = Events(
            started=[tracker.start_trial, display.started],
            reported=[tracker.epoch, display.reported],
            ended=[tracker.end_trial, display.ended],
        )
        drop = space.search.max_drop
        goal = None if drop is None else target(teacher.accuracy, drop)
        ledger = Ledger(space, folder.resolve(), meter, largest, events, goal)
        display.take_over(ledger.records())
        interrupt.ledger = ledger
        caps = Budget(ledger, facts["teacher"]["seconds"])
        status = "FAILED"
        try:
            resuming = None if restart is None else (resume_command, restart)
            _train(ledger, caps, data, folder, runs, address, display, interrupt, resuming)
            status = "FINISHED"
        except KeyboardInterrupt:
            ledger.stopping, ledger.ended = True, None
        finally:
            if ledger.live:
                ledger.interrupt()
            ledger.storage.journal.release()
            display.close()
            found = open_search(runs, name)
            write(folder / TABLE_FILE, table_csv(found.records))
            interrupted = ledger.stopping and ledger.ended is None
            ended = ledger.ended if caps.cut_short() else None
            status = "KILLED" if interrupted else "FAILED" if found.best is None else status
            where = export_trial(found, data=data) if status == "FINISHED" else None
            sent = _finish_tracking(tracker, found, status, display, where, ended)
        if ledger.trouble:
            raise RunError(guards.how_to_go_on(ledger.trouble, resume_command))
        if interrupted:
            raise Stopped(resume_command)
        if where is None and ended:
            raise RunError(f"no trial ran to its end: {caps.explain(resume_command)}")
        if where is None:
            reasons = sorted({r.reason for r in found.records if r.status == "failed" and r.reason})
            raise RunError(f"no trial ran to its end: {'; '.join(reasons) or 'all were stopped early'}")
        if ledger.exhausted:
            display.line("the space is exhausted: every further draw was outside the limits or trained already")
        if ended:
            display.line(caps.explain(resume_command))
        return _outcome(found, start, where, ended, {"uri": uri, "experiment": tracker.experiment_id, **asdict(sent)})


def _teacher(
    space: Space, largest: StudentConfig, data: DataSet, runs: Path, display: Display
) -> tuple[Teacher, float]:
    """The teacher of the search, and how long it was trained; a published run of an arm may want own estimators."""
    begun, trained = time.monotonic(), False

    def on_progress(what: str, epoch: int, epochs: int, accuracy: float) -> None:
        nonlocal trained
        trained = True
        display.teacher(what, epoch, epochs, accuracy)

    wanted = [config for config in arms.arms(space, largest).values() if config.terms.teacher_needs]
    prepare = partial(teachers.prepare, data=data, cache_dir=(runs / TEACHERS).resolve(), on_progress=on_progress)
    teacher = [prepare(config) for config in (*wanted, space.middle({}))][-1]
    return teacher, time.monotonic() - begun if trained else 0.0


def _train(
    ledger: Ledger,
    caps: Budget,
    data: DataSet,
    folder: Path,
    runs: Path,
    address: str | None,
    display: Display,
    interrupt: Interrupt,
    resuming: tuple[str, Sequence[str]] | None,
) -> None:
    """Start Ray and train; Ray is imported only here, after its environment is set."""
    ray_env.prepare(address)
    from search import ray_watch, tuning

    try:
        tuning.start_ray(address)
    except SystemExit:  # while it starts, Ray answers SIGTERM itself
        raise KeyboardInterrupt from None
    interrupt.install()
    try:
        teachers_at = (runs / TEACHERS).resolve()
        packing = tuning.pack(ledger.space, ledger.largest, data, teachers_at)
        if packing.reason:
            display.line(packing.reason)
        caps.start(packing.gpu)
        restart = None if resuming is None or address else ray_watch.Restart(*resuming, display.line)
        tuning.tune_trials(ledger, data, folder.resolve(), teachers_at, packing.gpu, restart=restart)
    finally:
        interrupt.disarm()
        tuning.stop_ray()


def _outcome(found: SearchFolder, start: float, where: Path, ended: str | None, seen: dict[str, Any]) -> Outcome:
    best = found.best
    assert best is not None
    return Outcome(
        name=found.name,
        trials=counts(found.records),
        best=_public(best),
        arms={name: _public(record) for name in found.arm_names() if (record := found.arm(name))},
        verdict=found.verdict(),
        front=[_public(record) for record in found.front()] if found.facts["minimize"] else [],
        rows=found.rows(),
        wall_s=time.monotonic() - start,
        device_s=sum(record.seconds for record in found.records),
        export=str(where),
        ended=ended,
        tracking=seen,
    )


def _public(record: Record) -> dict[str, Any]:
    return {
        "trial": record.number,
        "status": record.status,
        "val_accuracy": record.val_accuracy,
        **record.costs,
        "config": record.config,
    }


def _facts(space: Space, name: str, data: DataSet, teacher: Teacher) -> dict[str, Any]:
    settings = space.middle({}).teacher
    assert settings is not None
    size = budget.size(settings, **loop.image_shape(data))
    return {
        "name": name,
        "space": space.name,
        "minimize": list(space.search.minimize),
        "max_drop": space.search.max_drop,
        "arms": space.search.arms,
        "limits": dump(space.search.limits),
        "epochs": space.tree["train"]["epochs"],
        "data": {
            "name": data.name,
            "train": len(data.train),
            "validation": len(data.validation),
            "fingerprint": data.fingerprint,
        },
        "teacher": {
            "model": settings.model,
            "accuracy": teacher.accuracy,
            "params": size.params,
            "mflops": size.mflops,
            "attention_accuracy": list(teacher.attention_accuracy),
            "key": teacher.key,
        },
        "provenance": provenance(),
    }


def _teacher_line(facts: Mapping[str, Any], teacher: Teacher) -> str:
    levels = ", ".join(f"{value:.2%}" for value in facts["attention_accuracy"])
    return (
        f"teacher {facts['model']}{' (cached)' if teacher.cached else ''}: validation {facts['accuracy']:.2%}, "
        f"{facts['params']:,} parameters" + (f"; its squeezed vectors, level 1-3: {levels}" if levels else "")
    )


def _parent_params(space: Space, facts: Mapping[str, Any]) -> dict[str, str]:
    data, teacher = facts["data"], facts["teacher"]
    ranges = {".".join(map(str, path)): str(spread) for path, spread in space.ranges.items()}
    return {
        "space": space.name,
        "data": data["name"],
        "data.train": str(data["train"]),
        "data.validation": str(data["validation"]),
        "data.fingerprint": data["fingerprint"],
        "teacher": teacher["model"],
        "teacher.accuracy": str(teacher["accuracy"]),
        "teacher.knowledge": facts["teaching"]["knowledge"],
        "precision": facts["teaching"]["precision"],
        **{f"search.{key}": json.dumps(value) for key, value in dump(space.search).items()},
        **{f"range.{key}": value for key, value in ranges.items()},
    }


def _finish_tracking(
    tracker: tracking.Tracker,
    found: SearchFolder,
    status: str,
    display: Display,
    export: Path | None,
    ended: str | None,
) -> tracking.Outcome:
    """Close the parent run with figures, table and card; say when records could not be delivered."""
    best = found.best
    metrics = {f"trials/{key}": float(value) for key, value in counts(found.records).items()}
    tags = {"hksd.status": {"FINISHED": "complete", "KILLED": "interrupted"}.get(status, "failed")}
    tags["hksd.ended"] = ended or ""  # also where an earlier session set it
    if best is not None:
        metrics |= {
            "best/val_accuracy": best.val_accuracy or 0.0,
            "best/params": float(best.params or 0),
            "best/mflops": best.mflops or 0.0,
        }
        tags |= {"hksd.best": best.label}
    texts = {TABLE_FILE: table_csv(found.records)}
    if export is not None:
        texts["card.md"] = (export / CARD_FILE).read_text()
    tracker.end_search(status, metrics, tags, texts)
    outcome = tracker.close()
    if outcome.unsent:
        display.line(
            f"warning: {outcome.unsent} record(s) did not reach MLflow ({outcome.problem}); they are kept in "
            f"{relative(found.folder / tracking.SPOOL_FILE)} and sent when the search is resumed"
        )
    return outcome


def table_csv(records: list[Record]) -> str:
    """All trials as CSV, one a line, with their configuration flattened."""
    facts = [{name: value for name, value in record.flat().items() if name != "config"} for record in records]
    configs = [flatten(record.config or {}) for record in records]
    keys = sorted({key for flat in configs for key in flat})
    names = [*dict.fromkeys(name for fact in facts for name in fact), *keys]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, restval="")
    writer.writeheader()
    writer.writerows({**fact, **flat} for fact, flat in zip(facts, configs, strict=True))
    return buffer.getvalue()
