"""A search from start to end: folder, data, teacher, trials, table, export; stopped cleanly, resumed."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path

from hksd import data as datasets
from hksd import loop
from hksd.data import DataSet
from hksd.errors import RunError, Stopped, UserError
from search import arms, guards, ray_env, stopping, tracking
from search.budgets import Budget
from search.console import Display
from search.costs import Meter, check_feasible, measure_ahead
from search.guards import disk_full_explained
from search.latency import connected, latencies_of
from search.report.report import table_csv
from search.report.sections import TABLE_FILE
from search.results import FACTS_FILE, export_trial, open_search, target
from search.sampling import samplers, warm_start
from search.sampling.preview import check_knowledge
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
from search.summary import (
    Outcome,
    facts_of,
    finish_tracking,
    note_origin,
    outcome,
    parent_params,
    teacher_line,
)
from search.teaching import Teaching, make_teacher, with_teacher


def search(
    space: Space,
    *,
    name: str,
    runs: Path,
    display: Display,
    resume: bool = False,
    address: str | None = None,
    tracking_uri: str | None = None,
    warm: Sequence[str] = (),
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
        warm: names of earlier searches below `runs` that a new one starts from.
        restart: where this process is the command's: further options for the one that takes its place when Ray dies.

    Raises:
        UserError: wrong space, name, data, folder or cluster.
        RunError: teacher too weak, or no trial ran to its end.
        Stopped: stopped by the user.
    """
    start = time.monotonic()
    folder = choose_folder(space, runs, name, resume)
    earlier = [open_search(runs, one) for one in warm]
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
            wanted = with_teacher(arms.arms(space, largest, data.image_size).values(), space.middle({}))
            teacher, seconds = make_teacher(wanted, data, (runs / TEACHERS).resolve(), display.teacher)
        except KeyboardInterrupt:
            raise Stopped(resume_command) from None
        teaching = Teaching(space.middle({}), data, teacher, (runs / TEACHERS).resolve())
        facts = facts_of(space, name, data, teacher) | {"teaching": teaching.facts()}
        facts["teacher"]["seconds"] = seconds
        if meter.latencies:
            facts["latency"] = meter.latencies.facts()
        taken = [warm_start.take(space, one, data.fingerprint, teacher.key) for one in earlier]
        facts["warm_start"] = [one.facts() for one in taken]
        if resume:
            with suppress(UserError):  # half a file, or none: it is written anew
                before = open_search(runs, name).facts
                facts |= {key: before[key] for key in ("space", "warm_start") if key in before}
                facts["teacher"]["seconds"] += before.get("teacher", {}).get("seconds", 0.0)
        write(folder / FACTS_FILE, json.dumps(facts, indent=1))
        note_origin(folder, space, data, teacher)
        display.line(teacher_line(facts["teacher"], teacher))
        display.line(str(teaching))
        for text in (samplers.told(space), stopping.description(space), *map(str, taken)):
            display.line(text)
        uri = tracking.store(tracking_uri, runs)
        tracker = tracking.Tracker(uri, folder, name)
        tracker.start_search(parent_params(space, facts), resolved(space))
        events = Events(
            started=[tracker.start_trial, display.started],
            reported=[tracker.epoch, display.reported],
            ended=[tracker.end_trial, display.ended],
        )
        drop = space.search.max_drop
        goal = None if drop is None else target(teacher.accuracy, drop)
        ledger = Ledger(space, folder.resolve(), meter, largest, events, goal, taken)
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
            interrupted = ledger.stopping and ledger.ended is None
            ended = ledger.ended if caps.cut_short() else None
            why = "interrupted" if interrupted else "exhausted" if ledger.exhausted else ended
            write(folder / FACTS_FILE, json.dumps(facts | {"ended": why}, indent=1))
            found = open_search(runs, name)
            write(folder / TABLE_FILE, table_csv(found.records))
            status = "KILLED" if interrupted else "FAILED" if found.best is None else status
            where = export_trial(found, data=data) if status == "FINISHED" else None
            sent = finish_tracking(tracker, found, status, display, where, ended)
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
        return outcome(found, start, where, ended, {"uri": uri, "experiment": tracker.experiment_id, **asdict(sent)})


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

    tuning.start_ray(address)
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
