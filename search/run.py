"""A search from start to end: folder, data, teacher, trials, table, export; stopped cleanly, resumed."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from hksd import data as datasets
from hksd import loop
from hksd.errors import RunError, Stopped, UserError
from search import arms, guards, ray_env, stopping, tracking
from search.budgets import Budget
from search.console import Display
from search.costs import Meter, check_feasible, measure_ahead
from search.guards import disk_full_explained
from search.latency import connected, latencies_of
from search.report.report import table_csv
from search.report.sections import TABLE_FILE
from search.results import FACTS_FILE, SearchFolder, export_trial, open_search, target
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
    place = Place(runs, choose_folder(space, runs, name, resume), name, address, tracking_uri)
    earlier = [open_search(runs, one) for one in warm]
    under_way = _Search(space, place, display)
    with (
        disk_full_explained(place.resume_command),
        locked(place.folder),
        interruptible(display, place.folder) as interrupt,
    ):
        under_way.teach(earlier, resume)
        under_way.open_books()
        interrupt.ledger = under_way.ledger
        try:
            under_way.train(interrupt, restart)
        finally:
            under_way.close_books()
        return under_way.outcome(start)


@dataclass(frozen=True)
class Place:
    """Where a search takes place.

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


class _Search:
    """A search under way: taught, its books opened, trained, its books closed, in that order.

    Faults of data and limits come here, before anything is written.
    """

    def __init__(self, space: Space, place: Place, display: Display):
        self.space, self.place, self.display = space, place, display
        self.data = datasets.load(space.middle({}).data, place.runs / IMAGES)
        shape = loop.image_shape(self.data)
        self.meter = Meter(shape, latencies_of(space.search, place.runs, shape), space.search.limits)
        with connected(self.meter.latencies, place.address):
            measure_ahead(space, self.meter, partial(display.step, unit="student"))
            self.largest = check_feasible(space, self.meter)
        check_knowledge(space, shape)
        self.done = False

    def teach(self, earlier: Sequence[SearchFolder], resume: bool) -> None:
        """Make the teacher, take over what earlier searches know, and write down what the search begins with."""
        space, folder, middle, display = self.space, self.place.folder, self.space.middle({}), self.display
        write(folder / SPACE_FILE, resolved(space))
        try:
            wanted = with_teacher(arms.arms(space, self.largest, self.data.image_size).values(), middle)
            teacher, seconds = make_teacher(wanted, self.data, self.place.teachers, display.teacher)
        except KeyboardInterrupt:
            raise Stopped(self.place.resume_command) from None
        teaching = Teaching(middle, self.data, teacher, self.place.teachers)
        self.taken = [warm_start.take(space, one, self.data.fingerprint, teacher.key) for one in earlier]
        self.facts = facts_of(space, self.place.name, self.data, teacher) | {
            "teaching": teaching.facts(),
            "warm_start": [one.facts() for one in self.taken],
        }
        self.facts["teacher"]["seconds"] = seconds
        if self.meter.latencies:
            self.facts["latency"] = self.meter.latencies.facts()
        if resume:
            with suppress(UserError):  # half a file, or none: it is written anew
                before = open_search(self.place.runs, self.place.name).facts
                self.facts |= {key: before[key] for key in ("space", "warm_start") if key in before}
                self.facts["teacher"]["seconds"] += before.get("teacher", {}).get("seconds", 0.0)
        write(folder / FACTS_FILE, json.dumps(self.facts, indent=1))
        note_origin(folder, space, self.data, teacher)
        said = (teacher_line(self.facts["teacher"], teacher), teaching, samplers.told(space))
        for line in (*said, stopping.description(space), *self.taken):
            display.line(str(line))

    def open_books(self) -> None:
        """Open the study and the parent run in MLflow."""
        space, place, display, drop = self.space, self.place, self.display, self.space.search.max_drop
        self.uri = tracking.store(place.tracking_uri, place.runs)
        self.tracker = tracking.Tracker(self.uri, place.folder, place.name)
        self.tracker.start_search(parent_params(space, self.facts), resolved(space))
        events = Events(
            started=[self.tracker.start_trial, display.started],
            reported=[self.tracker.epoch, display.reported],
            ended=[self.tracker.end_trial, display.ended],
        )
        goal = None if drop is None else target(self.facts["teacher"]["accuracy"], drop)
        self.ledger = Ledger(space, place.folder.resolve(), self.meter, self.largest, events, goal, self.taken)
        self.caps = Budget(self.ledger, self.facts["teacher"]["seconds"])
        display.take_over(self.ledger.records())

    def train(self, interrupt: Interrupt, restart: Sequence[str] | None) -> None:
        """Train all trials; an interrupt ends it quietly.

        Ray is imported only here, after its environment is set.
        """
        ledger, place = self.ledger, self.place
        ray_env.prepare(place.address)
        from search import ray_watch, tuning

        try:
            tuning.start_ray(place.address)
            interrupt.install()
            try:
                packing = tuning.pack(ledger.space, ledger.largest, self.data, place.teachers)
                if packing.reason:
                    self.display.line(packing.reason)
                self.caps.start(packing.gpu)
                watched = restart is not None and not place.address
                again = ray_watch.Restart(place.resume_command, restart or (), self.display.line) if watched else None
                folder = place.folder.resolve()
                tuning.tune_trials(ledger, self.data, folder, place.teachers, packing.gpu, restart=again)
            finally:
                interrupt.disarm()
                tuning.stop_ray()
            self.done = True
        except KeyboardInterrupt:
            ledger.stopping, ledger.ended = True, None

    def close_books(self) -> None:
        """Put what runs back, write table, export and report, and end the parent run."""
        ledger, folder = self.ledger, self.place.folder
        if ledger.live:
            ledger.interrupt()
        ledger.storage.journal.release()
        self.display.close()
        self.interrupted = ledger.stopping and ledger.ended is None
        self.ended = ledger.ended if self.caps.cut_short() else None
        why = "interrupted" if self.interrupted else "exhausted" if ledger.exhausted else self.ended
        write(folder / FACTS_FILE, json.dumps(self.facts | {"ended": why}, indent=1))
        self.found = open_search(self.place.runs, self.place.name)
        write(folder / TABLE_FILE, table_csv(self.found.records))
        finished = self.done and self.found.best is not None and not self.interrupted
        self.export = export_trial(self.found, data=self.data) if finished else None
        status = "FINISHED" if finished else "KILLED" if self.interrupted else "FAILED"
        self.sent = finish_tracking(self.tracker, self.found, status, self.display, self.export, self.ended)

    def outcome(self, start: float) -> Outcome:
        """What came of it.

        Args:
            start: when it began, on the monotonic clock.

        Raises:
            RunError: no trial ran to its end, or none could go on.
            Stopped: by the user.
        """
        ledger, resume_command = self.ledger, self.place.resume_command
        if ledger.trouble:
            raise RunError(guards.how_to_go_on(ledger.trouble, resume_command))
        if self.interrupted:
            raise Stopped(resume_command)
        if self.export is None:
            reasons = sorted({r.reason for r in self.found.records if r.status == "failed" and r.reason})
            why = self.caps.explain(resume_command) if self.ended else "; ".join(reasons) or "all were stopped early"
            raise RunError(f"no trial ran to its end: {why}")
        if ledger.exhausted:
            self.display.line("the space is exhausted: every further draw was outside the limits or trained already")
        if self.ended:
            self.display.line(self.caps.explain(resume_command))
        seen = {"uri": self.uri, "experiment": self.tracker.experiment_id, **asdict(self.sent)}
        return outcome(self.found, start, self.export, self.ended, seen)
