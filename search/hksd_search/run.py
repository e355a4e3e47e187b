"""A search from start to end: folder, data, teacher, trials, table, export; stopped cleanly, resumed.

Each phase returns what the next ones take: `look` reads and measures and writes nothing, `teach` makes the teacher,
`open_books` opens the study and MLflow, `train` trains, `close_books` writes down what came of it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

from hksd import data as datasets
from hksd.errors import RunError, Stopped, UserError
from hksd_search.backend import cluster as clusters
from hksd_search.backend import connect, guards, last_word, takeover, target
from hksd_search.backend.cluster import Cluster
from hksd_search.caps import Caps
from hksd_search.closing import close_books, concluded
from hksd_search.console import Display
from hksd_search.ending import Why
from hksd_search.interrupt import Interrupt, interruptible
from hksd_search.ledger import Events, Ledger
from hksd_search.phases import Books, Home, Seen, Taught
from hksd_search.session import IMAGES, SPACE_FILE, choose_folder, locked, resolved, write
from hksd_search.space import arms
from hksd_search.space.latency import latencies_of
from hksd_search.space.networks import look_at_networks
from hksd_search.space.preview import check_knowledge
from hksd_search.space.sizes import Meter, check_feasible, measure_ahead
from hksd_search.space.space import Space
from hksd_search.strategy import samplers, stopping, warm_start
from hksd_search.study import reading, trial_files
from hksd_search.study.reading import FACTS_FILE, SearchFolder, open_search
from hksd_search.summary import Outcome, facts_of, note_origin, parent_params, teacher_line
from hksd_search.teaching import TeacherFacts, make_teacher, with_teacher
from hksd_search.tracking import access
from hksd_search.tracking import address as addresses
from hksd_search.tracking import tracker as tracking


def search(
    space: Space,
    *,
    name: str,
    runs: Path,
    display: Display,
    resume: bool = False,
    address: str | None = None,
    tracking_uri: str | None = None,
    move_tracking: bool = False,
    tracking_later: bool = False,
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
        tracking_uri: MLflow store; None takes the one that the search remembers, else that of the environment
            (MLFLOW_TRACKING_URI), else the SQLite file below `runs`.
        move_tracking: another store than the remembered one is meant; all is written to it, and it is remembered.
        tracking_later: begin although the store cannot be used now; records are kept.
        warm: names of earlier searches below `runs` that a new one starts from.
        restart: where this process is the command's: further options for the one that takes its place when Ray dies.

    Raises:
        UserError: wrong space, name, data, folder, cluster or MLflow store.
        RunError: teacher too weak, or no trial ran to its end.
        Stopped: stopped by the user.
    """
    start = time.monotonic()
    folder = choose_folder(space, runs, name, resume)
    store = addresses.choose(folder, tracking_uri, move_tracking)
    home = Home(runs, folder, name, address, store)
    earlier = [open_search(runs, one) for one in warm]
    addresses.must_be_usable(store, folder, tracking_later, resume)
    with (
        addresses.secrets_hidden(),
        clusters.joined(address, runs, display.line, space.search.node_timeout) as cluster,
    ):
        seen = look(space, home, display, resume, cluster)
        with (
            guards.disk_full_explained(home.resume_command),
            locked(home.folder),
            interruptible(display, home.folder) as interrupt,
        ):
            addresses.remember(home.folder, store)
            taught = teach(seen, earlier, resume)
            interrupt.hold()
            books = open_books(seen, taught)
            done = False
            try:
                done = train(seen, books, interrupt, restart)
            finally:
                closed = close_books(seen, taught, books, done)
            return concluded(seen, books, closed, start)


def look(space: Space, home: Home, display: Display, resume: bool = False, cluster: Cluster | None = None) -> Seen:
    """Read the images, measure students, look at networks. Their faults come here, before anything is written."""
    data = datasets.load(space.middle({}).data, home.runs / IMAGES)
    shape = data.image_shape
    meter = Meter(shape, latencies_of(space.search, home.runs, shape, target.on_target), space.search.limits)
    if meter.latencies is not None:
        meter.latencies.facts()  # later, when trials are drawn, is too late to learn that there is no such target
    measure_ahead(space, meter, partial(display.step, unit="student"))
    largest = check_feasible(space, meter)
    look_at_networks(space, data, meter, largest, begun=resume)
    check_knowledge(space, shape)
    return Seen(space, home, display, data, meter, largest, cluster)


def teach(seen: Seen, earlier: Sequence[SearchFolder], resume: bool) -> Taught:
    """Make the teacher, take over what earlier searches know, and write down what the search begins with."""
    space, home, data, display = seen.space, seen.home, seen.data, seen.display
    write(home.folder / SPACE_FILE, resolved(space))
    try:
        teacher = _make_teacher(seen)
    except KeyboardInterrupt:
        raise Stopped(home.resume_command) from None
    taken = [warm_start.take(space, one, data.fingerprint, teacher.key) for one in earlier]
    facts = facts_of(space, home.name, data, teacher) | {
        "teaching": dict(teacher.knowledge),
        "warm_start": [one.facts() for one in taken],
    }
    facts["teacher"] |= {"seconds": teacher.seconds, "node": teacher.node}
    if home.address:
        facts["address"] = home.address
    if seen.meter.latencies:
        facts["latency"] = seen.meter.latencies.facts()
    if resume:
        with suppress(UserError):  # half a file, or none: it is written anew
            before = open_search(home.runs, home.name).facts
            facts |= {key: before[key] for key in ("space", "warm_start") if key in before}
            facts["teacher"]["seconds"] += before.get("teacher", {}).get("seconds", 0.0)
    write(home.folder / FACTS_FILE, json.dumps(facts, indent=1))
    note_origin(home.folder, space, data, teacher)
    remarks = [f"warning: {remark}" for remark in teacher.remarks]
    said = (teacher_line(facts["teacher"], teacher), *remarks, teacher.told, samplers.told(space))
    for line in (*said, stopping.description(space), *taken):
        display.line(str(line))
    return Taught(facts, taken)


def _make_teacher(seen: Seen) -> TeacherFacts:
    """Make the teacher here, or on a node of the cluster."""
    space, home, data, progress = seen.space, seen.home, seen.data, seen.display.teacher
    runs = with_teacher(arms.arms(space, seen.largest, data.image_size).values(), seen.middle)
    if seen.cluster is None:
        return make_teacher(runs, data, home.teachers, progress)
    from hksd_search.backend import packing, teacher_task

    gpu = packing.wants_gpu(space) and seen.cluster.has_gpus()
    return teacher_task.make(seen.cluster, runs, data, home.teachers, progress, space.search.resources.cpu, gpu)


def open_books(seen: Seen, taught: Taught) -> Books:
    """Open the study, then the parent run in MLflow, which nobody would close if the study could not be opened."""
    space, home, display, drop = seen.space, seen.home, seen.display, seen.space.search.max_drop
    if gone := trial_files.mend(home.folder):
        display.line(trial_files.told(gone))
    events, goal = Events(), None if drop is None else reading.target(taught.facts["teacher"]["accuracy"], drop)
    ledger = Ledger(space, home.folder.resolve(), seen.meter, seen.largest, events, goal, taught.taken)
    caps = Caps(ledger, taught.facts["teacher"]["seconds"])
    tracker = tracking.Tracker(home.store.uri, home.folder, home.name, default=home.store.default)  # the last to fail
    tracker.start_search(parent_params(space, taught.facts), resolved(space))
    events.started += [tracker.start_trial, display.started]
    events.moved += [tracker.trial_node]
    events.reported += [tracker.epoch, display.reported]
    events.ended += [tracker.end_trial, display.ended, partial(trial_files.tidy, home.folder)]
    display.take_over(ledger.records())
    for record in ledger.records():  # a process that died has not told MLflow that its trials wait
        if record.status == "interrupted" and str(record.number) in tracker.runs:
            tracker.end_trial(record)
    return Books(ledger, tracker, caps)


def train(seen: Seen, books: Books, interrupt: Interrupt, restart: Sequence[str] | None) -> bool:
    """Train all trials; an interrupt ends it quietly. Tells whether it came to its end by itself.

    Ray is imported only here, after its environment is set.
    """
    ledger = books.ledger
    try:
        interrupt.go()
        books.caps.look()
        if os.environ.pop(takeover.STOPPED, None):  # see `backend.ray_watch.Restart`
            raise KeyboardInterrupt
        if not ledger.wants_more():  # no Ray for nothing
            return True
        with nullcontext() if restart is None else last_word.spoken_for(seen.home.resume_command, "--json" in restart):
            _train_with_ray(seen, books, interrupt, restart)
    except KeyboardInterrupt:
        ledger.stop(Why.INTERRUPTED)
        return False
    except RunError as error:  # Ray does not start
        ledger.stop(Why.FAULT, str(error))
        return False
    finally:
        interrupt.hold()
    return True


def _train_with_ray(seen: Seen, books: Books, interrupt: Interrupt, restart: Sequence[str] | None) -> None:
    """Start Ray where it is not a cluster, train, and end Ray."""
    ledger, home = books.ledger, seen.home
    if seen.cluster is None:
        connect.prepare(None, ledger.space.search.resources.nice)
        connect.start_ray()
    from hksd_search.backend import tuning

    interrupt.ledger = ledger
    try:
        packing = tuning.pack(ledger.space, ledger.largest, seen.data, home.teachers, seen.cluster)
        if packing.reason:
            seen.display.line(packing.reason)
        books.caps.start(packing.gpu)
        watched = restart is not None and seen.cluster is None
        again = _restart(home, restart or (), interrupt) if watched else None
        folder = home.folder.resolve()
        tuning.tune_trials(ledger, seen.data, folder, home.teachers, packing.gpu, restart=again, cluster=seen.cluster)
    finally:
        interrupt.hold()
        if seen.cluster is not None:
            seen.cluster.close()
        connect.stop_ray()


def _restart(home: Home, extra: Sequence[str], interrupt: Interrupt) -> Any:
    """What resumes the search when Ray dies; a store that does not answer just then must not stand in its way."""
    from hksd_search.backend import ray_watch

    secret = {access.VARIABLE: home.store.uri} if access.has_secrets(home.store.uri) else {}
    return ray_watch.Restart(home.resume_command, [*extra, "--tracking-later"], secret, interrupt.heard)
