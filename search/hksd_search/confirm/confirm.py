"""A confirmation: the best students of a search and its arms, trained again over new seeds, on the test split once.

In order: every run that is missing is trained (`confirm.retrain`), then the test split is opened and the opening
recorded, then everything that has no test score yet is scored in one go. What is there stays: a second call continues
a killed one, more seeds or other students add what is missing, and where nothing is missing nothing is opened.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape

from hksd import data as datasets
from hksd.config.run import dump
from hksd.data import DataSet
from hksd.errors import RunError, Stopped, UserError
from hksd.provenance import provenance
from hksd.teacher import prepare as teachers
from hksd.teacher.teacher import Teacher
from hksd_search.backend import cluster as clusters
from hksd_search.backend import connect
from hksd_search.backend.cluster import Cluster
from hksd_search.confirm import contenders, scores, verdicts
from hksd_search.confirm.contenders import Contender, Run, runs_of
from hksd_search.confirm.files import FOLDER, text, write_files
from hksd_search.confirm.log import log_confirmation
from hksd_search.confirm.scores import TEACHER, Scores
from hksd_search.console import Display, how_to_send, percent, relative
from hksd_search.interrupt import Interrupt, interruptible
from hksd_search.session import IMAGES, SPACE_FILE, TEACHERS, locked
from hksd_search.space import space as spaces
from hksd_search.space.space import Space
from hksd_search.study import openings
from hksd_search.study.reading import SearchFolder, open_search


@dataclass(frozen=True)
class Request:
    """What to confirm.

    Attributes:
        name: name of the search.
        runs: folder of all searches.
        top: number of students.
        seeds: number of seeds.
        trials: numbers of the students, in place of the best.
        address: Ray cluster; None starts a private Ray here.
    """

    name: str
    runs: Path
    top: int = 3
    seeds: int = 5
    trials: tuple[int, ...] = ()
    address: str | None = None

    @property
    def command(self) -> str:
        """The command that does this."""
        words = ["hksd", "confirm", self.name, "--seeds", str(self.seeds)]
        words += ["--trials", ",".join(map(str, self.trials))] if self.trials else ["--top", str(self.top)]
        words += [] if self.runs == Path("runs") else ["--runs", relative(self.runs)]
        words += ["--address", self.address] if self.address else []
        return shlex.join(words)


def confirm(request: Request, display: Display) -> dict[str, Any]:
    """Confirm students of a search; returns what `confirm.json` holds.

    Raises:
        UserError: no such search, nothing to confirm, data without a test split, data or teacher that have changed.
        RunError: no run has ended.
        Stopped: by the user; everything is saved.
    """
    search = open_search(request.runs, request.name)
    students = contenders.students(search, request.top, request.trials)
    confirmation = Confirmation(request, search, students, display)
    folder = confirmation.folder
    with locked(folder, "confirming this search"), interruptible(display, folder) as interrupt:
        try:
            confirmation.train(interrupt)
            confirmation.open_test()
        except KeyboardInterrupt:
            raise Stopped(request.command) from None
        facts = confirmation.facts()
        write_files(folder, facts)
        sent = log_confirmation(search.folder, folder, search.name, facts, text(facts))
        if sent is not None and sent.unsent:
            display.line(
                f"warning: {sent.unsent} record(s) did not reach MLflow ({sent.problem}); they are kept and sent by "
                f"`{how_to_send(search.folder)}`, or the next confirmation of this search"
            )
    return facts


class Confirmation:
    """A confirmation under way.

    Args:
        request: what to confirm.
        search: the search.
        students: its students to confirm.
        display: where progress is shown.

    Raises:
        UserError: data without a test split, or other data than the search had.
    """

    def __init__(self, request: Request, search: SearchFolder, students: Sequence[Contender], display: Display):
        self.request, self.search, self.display = request, search, display
        self.space: Space = spaces.load(str(search.folder / SPACE_FILE))
        self.middle = self.space.middle({})
        self.cache_dir = (request.runs / TEACHERS).resolve()
        self.data: DataSet = datasets.load(self.middle.data, request.runs / IMAGES)
        datasets.check_test(self.middle.data)
        before = search.facts.get("data", {}).get("fingerprint")
        if before not in (None, self.data.fingerprint):
            raise UserError(
                f"{search.name}: the images have changed since the search ({before}, now {self.data.fingerprint})"
            )
        self.folder = search.folder.resolve() / FOLDER
        self.students, self.arms = list(students), contenders.arms(search)
        self.seeds = contenders.new_seeds(self.middle.seed, request.seeds)
        self.runs = {
            contender.who: runs_of(contender, self.seeds, self.folder) for contender in (*self.students, *self.arms)
        }
        self.faults: dict[str, str] = {}
        self.trained, self.opened = 0, False
        self._teacher: Teacher | None = None

    @property
    def every_run(self) -> list[Run]:
        """All runs, seed by seed, so that what is there when it is interrupted is in pairs."""
        return [run for runs in zip(*self.runs.values(), strict=True) for run in runs]

    def teacher(self) -> Teacher:
        """The teacher of the search, from the cache.

        Raises:
            UserError: it is not the one of the search.
        """
        if self._teacher is None:
            display = self.display
            self._teacher = teachers.prepare(
                self.middle, self.data, cache_dir=self.cache_dir, on_progress=display.teacher
            )
            before = self.search.facts.get("teacher", {}).get("key")
            if before not in (None, self._teacher.key):
                raise UserError(f"{self.search.name}: the teacher has changed since the search; restore it first")
        return self._teacher

    def train(self, interrupt: Interrupt) -> None:
        """Train what has not run to its end; a run that failed for good is not tried again."""
        left = []
        for run in self.every_run:
            if run.result(self.data.fingerprint) is None:
                fault = run.failure()
                if fault is None:
                    left.append(run)
                else:
                    self.faults[run.key] = fault
        self.display.line(
            f"{len(self.students)} student(s) and {len(self.arms)} arm(s), {len(self.seeds)} seed(s): "
            f"{len(self.every_run)} runs, {len(left)} to train"
        )
        if left:
            self.teacher()
            self._train_with_ray(left, interrupt)

    def _train_with_ray(self, left: Sequence[Run], interrupt: Interrupt) -> None:
        """Start Ray, or take that of the cluster, and train."""
        request, settings = self.request, self.space.search
        with clusters.joined(request.address, request.runs, self.display.line, settings.node_timeout) as cluster:
            if cluster is None:
                connect.prepare(None, settings.resources.nice)
                connect.start_ray()
            interrupt.install()
            try:
                self._train_on(left, cluster)
            finally:
                connect.stop_ray()

    def _train_on(self, left: Sequence[Run], cluster: Cluster | None) -> None:
        """Train; Ray is imported only here, after its environment is set."""
        from hksd_search.backend import tuning
        from hksd_search.backend.trial import Workplace
        from hksd_search.confirm import retrain

        jobs = {retrain.Job(run.key, json.dumps(dump(run.config)), str(run.folder)): run for run in left}

        def on_end(job: retrain.Job, ended: retrain.Ended) -> None:
            self._ended(jobs[job], ended.fault, ended.warnings, len(left))

        def on_stop() -> None:
            self.display.line("stopping: each run finishes its step and is saved (Ctrl-C again stops now)")

        largest = max((*self.students, *self.arms), key=lambda one: one.record.params or 0)
        packing = tuning.pack(self.space, largest.config.student, self.data, self.cache_dir, cluster)
        if packing.reason:
            self.display.line(packing.reason)
        place = Workplace(str(self.cache_dir), str(Path.cwd()), json.dumps(dump(self.middle)), packing.gpu)
        with nullcontext() if cluster is None else cluster.wanting(self.space.search.resources.cpu, packing.gpu):
            retrain.train_all(list(jobs), self.data, self.space, place, self.folder, on_end, on_stop, cluster)

    def _ended(self, run: Run, fault: str | None, warnings: Sequence[str], total: int) -> None:
        """Show how a run ended."""
        self.trained += 1
        for said in set(warnings) - self.display.warned:
            self.display.warned.add(said)
            self.display.line(escape(f"warning: {said}"))
        result = run.result(self.data.fingerprint)
        if result is None:
            self.faults[run.key] = fault = fault or f"no result in {run.folder}: does every node see that folder?"
        outcome = f"validation {percent(result['val_accuracy'])}" if result else f"failed: {fault}"
        self.display.line(escape(f"[{self.trained}/{total}] {run.name}: {outcome}"))

    def open_test(self) -> None:
        """Open the test split, once everything is trained, for what has no score on it yet.

        Raises:
            RunError: no run has ended.
        """
        ended = [run for run in self.every_run if run.result(self.data.fingerprint) is not None]
        if not ended:
            reasons = "; ".join(sorted(set(self.faults.values())))
            raise RunError(f"no run has ended, so the test split stays closed: {reasons}")
        known = scores.read(self.folder, ended)
        pending = [run for run in ended if run.key not in known]
        if pending or TEACHER not in known:
            teacher = None if TEACHER in known else self.teacher().model

            def on_scored(done: int) -> None:
                self.display.step("scoring on the test split", done, len(pending), unit="student")

            scores.add(self.folder, known, pending, teacher, self.middle, self.data, on_scored)
            self.opened = True

    def facts(self) -> dict[str, Any]:
        """Everything that is known now, as `confirm.json` holds it."""
        known = scores.read(self.folder, self.every_run)
        by_who = {who: self._scored(runs, known) for who, runs in self.runs.items()}
        students, arms = ([by_who[one.who] for one in kind] for kind in (self.students, self.arms))
        teacher = self.search.facts.get("teacher", {})
        found = verdicts.figures(students, arms, known[TEACHER]["accuracy"])
        found["notes"] += [
            f'The arm "{name}" is left out: it has not run to its end in the search.'
            for name in contenders.unfinished_arms(self.search)
        ]
        if not arms:
            found["notes"].append("There is no arm to compare with, so nothing is said of what distillation brought.")
        return {
            "search": self.search.name,
            "seeds": self.seeds,
            "trained_now": self.trained,
            "opened_now": self.opened,
            "test_openings": openings.count(self.search.folder),
            "test_images": known[TEACHER]["count"],
            "validation_images": len(self.data.validation),
            "teacher": {
                "model": teacher.get("model"),
                "params": teacher.get("params"),
                "mflops": teacher.get("mflops"),
                "val_accuracy": teacher.get("accuracy"),
                "familiar": teacher.get("familiar", False),
                "test_accuracy": known[TEACHER]["accuracy"],
            },
            **found,
            "runs": [self._row(run, known) for run in self.every_run],
            "data_fingerprint": self.data.fingerprint,
            "provenance": provenance(),
        }

    def _scored(self, runs: Sequence[Run], known: Scores) -> verdicts.Scored:
        results = {run.config.seed: run.result(self.data.fingerprint) for run in runs}
        return verdicts.Scored(
            runs[0].contender,
            val={seed: result["val_accuracy"] for seed, result in results.items() if result},
            test={run.config.seed: known[run.key]["accuracy"] for run in runs if run.key in known},
            failed={run.config.seed: self.faults[run.key] for run in runs if run.key in self.faults},
        )

    def _row(self, run: Run, known: Scores) -> dict[str, Any]:
        result, score = run.result(self.data.fingerprint) or {}, known.get(run.key, {})
        return {
            "run": run.key,
            "name": run.contender.name,
            "trial": run.contender.record.number,
            "arm": run.contender.record.arm,
            "seed": run.config.seed,
            "status": "complete" if result else "failed",
            "val_accuracy": result.get("val_accuracy"),
            **{f"test_{name}": score.get(name) for name in ("accuracy", "nll", "ece")},
            "seconds": result.get("seconds"),
            "config_hash": result.get("config_hash"),
            "reason": self.faults.get(run.key),
        }
