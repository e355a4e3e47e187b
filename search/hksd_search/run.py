"""A search from start to end: folder, data, teacher, trials, table, export; stopped cleanly, resumed.

Each phase returns what the next ones take: `look` reads and measures and writes nothing, `teach` makes the teacher,
`open_books` opens the study and MLflow, `train` trains, `close_books` writes down what came of it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hksd import data as datasets
from hksd.config.run import RunConfig, StudentConfig
from hksd.data import DataSet
from hksd.errors import RunError, Stopped, UserError
from hksd_search.backend import connect, guards, target
from hksd_search.caps import Caps
from hksd_search.console import Display
from hksd_search.ending import Why
from hksd_search.export import export_trial
from hksd_search.interrupt import Interrupt, interruptible
from hksd_search.ledger import Events, Ledger
from hksd_search.report.report import table_csv
from hksd_search.report.sections import TABLE_FILE
from hksd_search.session import IMAGES, SPACE_FILE, TEACHERS, choose_folder, how_to_resume, locked, resolved, write
from hksd_search.space import arms
from hksd_search.space.latency import latencies_of
from hksd_search.space.preview import check_knowledge
from hksd_search.space.sizes import Meter, check_feasible, measure_ahead
from hksd_search.space.space import Space
from hksd_search.strategy import samplers, stopping, warm_start
from hksd_search.strategy.warm_start import Taken
from hksd_search.study import reading, trial_files
from hksd_search.study.reading import FACTS_FILE, SearchFolder, open_search
from hksd_search.summary import Outcome, facts_of, finish_tracking, note_origin, outcome, parent_params, teacher_line
from hksd_search.teaching import Teaching, make_teacher, with_teacher
from hksd_search.tracking import access
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
    home = Home(runs, choose_folder(space, runs, name, resume), name, address, tracking_uri)
    earlier = [open_search(runs, one) for one in warm]
    seen = look(space, home, display)
    with (
        guards.disk_full_explained(home.resume_command),
        locked(home.folder),
        interruptible(display, home.folder) as interrupt,
    ):
        taught = teach(seen, earlier, resume)
        interrupt.hold()
        books = open_books(seen, taught)
        done = False
        try:
            done = train(seen, books, interrupt, restart)
        finally:
            closed = close_books(seen, taught, books, done)
        return concluded(seen, books, closed, start)


@dataclass(frozen=True)
class Home:
    """Where a search lives.

    Attributes:
        runs: folder of all searches.
        folder: its own.
        name: its name.
        address: Ray cluster, or None.
        tracking_uri: MLflow store as the user gave it, or None.
    """

    runs: Path
    folder: Path
    name: str
    address: str | None
    tracking_uri: str | None

    @property
    def teachers(self) -> Path:
        """Folder of cached teachers."""
        return (self.runs / TEACHERS).resolve()

    @property
    def resume_command(self) -> str:
        """What continues the search."""
        return how_to_resume(self.name, self.runs, self.address, self.tracking_uri)


@dataclass(frozen=True)
class Seen:
    """What a search knows before it writes anything.

    Attributes:
        space: what to search.
        home: where.
        display: where progress is shown.
        data: its images.
        meter: measures students.
        largest: the largest student within the limits.
    """

    space: Space
    home: Home
    display: Display
    data: DataSet
    meter: Meter
    largest: StudentConfig

    @property
    def middle(self) -> RunConfig:
        """The run in the middle of the space, which stands for the others."""
        return self.space.middle({})


@dataclass(frozen=True)
class Taught:
    """The teacher stage.

    Attributes:
        facts: what is known of the search before its first trial, for `search.json`.
        taken: what is taken over from earlier searches.
    """

    facts: dict[str, Any]
    taken: list[Taken]


@dataclass(frozen=True)
class Books:
    """What is written down while trials train.

    Attributes:
        ledger: the study.
        tracker: MLflow.
        uri: its store.
        caps: what the search may cost.
    """

    ledger: Ledger
    tracker: tracking.Tracker
    uri: str
    caps: Caps


@dataclass(frozen=True)
class Closed:
    """The search as its books have it at its end.

    Attributes:
        found: the search as others read it.
        interrupted: it goes on some day.
        cap: the cap that ended it early, or None.
        export: folder of the exported student; None where there is none to export, or not yet.
        sent: what reached MLflow.
    """

    found: SearchFolder
    interrupted: bool
    cap: str | None
    export: Path | None
    sent: tracking.Sent


def look(space: Space, home: Home, display: Display) -> Seen:
    """Read the images and measure students. Faults of data and limits come here, before anything is written."""
    data = datasets.load(space.middle({}).data, home.runs / IMAGES)
    shape = data.image_shape
    meter = Meter(shape, latencies_of(space.search, home.runs, shape, target.on_target), space.search.limits)
    with target.connected(meter.latencies, home.address):
        measure_ahead(space, meter, partial(display.step, unit="student"))
        largest = check_feasible(space, meter)
    check_knowledge(space, shape)
    return Seen(space, home, display, data, meter, largest)


def teach(seen: Seen, earlier: Sequence[SearchFolder], resume: bool) -> Taught:
    """Make the teacher, take over what earlier searches know, and write down what the search begins with."""
    space, home, data, display = seen.space, seen.home, seen.data, seen.display
    write(home.folder / SPACE_FILE, resolved(space))
    try:
        wanted = with_teacher(arms.arms(space, seen.largest, data.image_size).values(), seen.middle)
        teacher, seconds = make_teacher(wanted, data, home.teachers, display.teacher)
    except KeyboardInterrupt:
        raise Stopped(home.resume_command) from None
    teaching = Teaching(seen.middle, data, teacher, home.teachers)
    taken = [warm_start.take(space, one, data.fingerprint, teacher.key) for one in earlier]
    facts = facts_of(space, home.name, data, teacher) | {
        "teaching": teaching.facts(),
        "warm_start": [one.facts() for one in taken],
    }
    facts["teacher"]["seconds"] = seconds
    if seen.meter.latencies:
        facts["latency"] = seen.meter.latencies.facts()
    if resume:
        with suppress(UserError):  # half a file, or none: it is written anew
            before = open_search(home.runs, home.name).facts
            facts |= {key: before[key] for key in ("space", "warm_start") if key in before}
            facts["teacher"]["seconds"] += before.get("teacher", {}).get("seconds", 0.0)
    write(home.folder / FACTS_FILE, json.dumps(facts, indent=1))
    note_origin(home.folder, space, data, teacher)
    said = (teacher_line(facts["teacher"], teacher), teaching, samplers.told(space))
    for line in (*said, stopping.description(space), *taken):
        display.line(str(line))
    return Taught(facts, taken)


def open_books(seen: Seen, taught: Taught) -> Books:
    """Open the study and the parent run in MLflow."""
    space, home, display, drop = seen.space, seen.home, seen.display, seen.space.search.max_drop
    uri = access.store_uri(home.tracking_uri, home.runs)
    tracker = tracking.Tracker(uri, home.folder, home.name)
    tracker.start_search(parent_params(space, taught.facts), resolved(space))
    events = Events(
        started=[tracker.start_trial, display.started],
        reported=[tracker.epoch, display.reported],
        ended=[tracker.end_trial, display.ended, partial(trial_files.tidy, home.folder)],
    )
    if gone := trial_files.mend(home.folder):
        display.line(trial_files.told(gone))
    goal = None if drop is None else reading.target(taught.facts["teacher"]["accuracy"], drop)
    ledger = Ledger(space, home.folder.resolve(), seen.meter, seen.largest, events, goal, taught.taken)
    display.take_over(ledger.records())
    for record in ledger.records():  # a process that died has not told MLflow that its trials wait
        if record.status == "interrupted" and str(record.number) in tracker.runs:
            tracker.end_trial(record)
    return Books(ledger, tracker, uri, Caps(ledger, taught.facts["teacher"]["seconds"]))


def train(seen: Seen, books: Books, interrupt: Interrupt, restart: Sequence[str] | None) -> bool:
    """Train all trials; an interrupt ends it quietly. Tells whether it came to its end by itself.

    Ray is imported only here, after its environment is set.
    """
    ledger = books.ledger
    try:
        interrupt.go()
        books.caps.look()
        if os.environ.pop(connect.STOPPED, None):  # see `backend.ray_watch.Restart`
            raise KeyboardInterrupt
        if not ledger.wants_more():  # no Ray for nothing
            return True
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
    """Start Ray, train, and end Ray."""
    ledger, home = books.ledger, seen.home
    connect.prepare(home.address, ledger.space.search.resources.nice)
    from hksd_search.backend import ray_watch, tuning

    connect.start_ray(home.address)
    interrupt.ledger = ledger
    try:
        packing = tuning.pack(ledger.space, ledger.largest, seen.data, home.teachers)
        if packing.reason:
            seen.display.line(packing.reason)
        books.caps.start(packing.gpu)
        watched = restart is not None and not home.address
        again = ray_watch.Restart(home.resume_command, restart or (), seen.display.line) if watched else None
        folder = home.folder.resolve()
        tuning.tune_trials(
            ledger, seen.data, folder, home.teachers, packing.gpu, restart=again, private=not home.address
        )
    finally:
        interrupt.hold()
        connect.stop_ray()


def close_books(seen: Seen, taught: Taught, books: Books, done: bool) -> Closed:
    """Put what runs back, write table, export and report, and end the parent run."""
    ledger, home = books.ledger, seen.home
    if ledger.live:
        ledger.interrupt()
    ledger.storage.journal.release()
    seen.display.close()
    cap = books.caps.reached if books.caps.cut_short() else None
    ended = ledger.end.why if ledger.end else None
    interrupted = ended in (Why.INTERRUPTED, Why.FAULT)
    why = "interrupted" if interrupted else "exhausted" if ended is Why.EXHAUSTED else cap
    write(home.folder / FACTS_FILE, json.dumps(taught.facts | {"ended": why}, indent=1))
    found = open_search(home.runs, home.name)
    write(home.folder / TABLE_FILE, table_csv(found.records))
    finished = done and found.best is not None and not interrupted
    export = export_trial(found, data=seen.data) if finished else None
    status = "FINISHED" if finished else "KILLED" if interrupted else "FAILED"
    sent = finish_tracking(books.tracker, found, status, seen.display, export, cap)
    return Closed(found, interrupted, cap, export, sent)


def concluded(seen: Seen, books: Books, closed: Closed, start: float) -> Outcome:
    """What came of it.

    Args:
        seen: the search.
        books: its books.
        closed: how they were closed.
        start: when it began, on the monotonic clock.

    Raises:
        RunError: no trial ran to its end, or none could go on.
        Stopped: by the user.
    """
    end, resume_command, say = books.ledger.end, seen.home.resume_command, seen.display.line
    if end and end.why is Why.FAULT:
        raise RunError(guards.how_to_go_on(end.text, resume_command))
    if closed.interrupted:
        raise Stopped(resume_command)
    if closed.export is None:
        reasons = sorted({r.reason for r in closed.found.records if r.status == "failed" and r.reason})
        why = books.caps.explain(resume_command) if closed.cap else "; ".join(reasons) or "all were stopped early"
        raise RunError(f"no trial ran to its end: {why}")
    if end and end.why is Why.EXHAUSTED:
        say("the space is exhausted: every further draw was outside the limits or trained already")
    if closed.cap:
        say(books.caps.explain(resume_command))
    told = {"uri": books.uri, "experiment": books.tracker.experiment_id, **asdict(closed.sent)}
    return outcome(closed.found, start, closed.export, closed.cap, told)
