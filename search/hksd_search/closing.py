"""The end of a search: export, table, report and the run in MLflow, each written whatever becomes of the others."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from hksd.errors import RunError, Stopped, UserError
from hksd_search.backend import guards
from hksd_search.console import how_to_send
from hksd_search.ending import Why
from hksd_search.export import export_trial
from hksd_search.phases import Books, Closed, Seen, Taught
from hksd_search.report.report import table_csv
from hksd_search.report.sections import TABLE_FILE
from hksd_search.session import write
from hksd_search.study.reading import FACTS_FILE, SearchFolder
from hksd_search.summary import Outcome, finish_tracking, outcome

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass
class Steps:
    """Steps of which none takes the others with it.

    Attributes:
        faults: what could not be done, in words, in the order of the steps.
        errors: the exceptions behind `faults`.
        broken: the first fault that is no message for people; raised by `end`.
    """

    faults: list[str] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)
    broken: BaseException | None = None

    def do(self, what: str, step: Callable[[], T], otherwise: T) -> T:
        """Take a step; `otherwise` where it fails, which is remembered as what could not be done."""
        try:
            return step()
        except (UserError, RunError, OSError) as error:
            text = str(error).strip() or type(error).__name__
            self.faults.append(f"{what}: {text}")
            self.errors.append(error)
        except KeyboardInterrupt as error:  # once is enough to leave a step out, and ends the search after the others
            self.broken = error
        except Exception as error:
            log.warning("%s: %s: %s; the rest of the end is written first", what, type(error).__name__, error)
            self.broken = self.broken or error
        return otherwise

    def end(self) -> None:
        """Raise what was no message for people, now that everything else is written."""
        if self.broken is not None:
            raise self.broken


def close_books(seen: Seen, taught: Taught, books: Books, done: bool) -> Closed:
    """Put what runs back, write export, table and report, and end the parent run; none of them loses the others."""
    ledger, home, steps = books.ledger, seen.home, Steps()
    if ledger.live:
        steps.do("what runs cannot be put back", ledger.interrupt, None)
    ledger.storage.journal.release()
    seen.display.close()
    cap = books.caps.reached if books.caps.cut_short() else None
    ended = ledger.end.why if ledger.end else None
    interrupted = ended is not None and ended >= Why.INTERRUPTED
    why = "interrupted" if interrupted else "exhausted" if ended is Why.EXHAUSTED else cap
    facts = taught.facts | {"ended": why}
    found = SearchFolder(home.name, home.folder, ledger.records(), facts)
    finished = done and found.best is not None and not interrupted
    export = None
    if finished:  # first: it is what people came for
        export = steps.do("the student cannot be exported", partial(export_trial, found, data=seen.data), None)
    if ledger.storage.journal.there:  # else a folder would begin in its place that is no search
        noted, table = home.folder / FACTS_FILE, home.folder / TABLE_FILE
        steps.do("the end cannot be noted", lambda: write(noted, json.dumps(facts, indent=1)), None)
        steps.do("the table cannot be written", lambda: write(table, table_csv(found.records)), None)
    status = "FINISHED" if finished else "KILLED" if interrupted else "FAILED"
    sent = finish_tracking(books.tracker, found, status, seen.display, export, cap, report=finished)
    steps.end()
    if full := next(filter(guards.full, steps.errors), None):
        raise full
    return Closed(found, interrupted, cap, export, sent, steps.faults)


def concluded(seen: Seen, books: Books, closed: Closed, start: float) -> Outcome:
    """What came of it; what it raises tells those who read JSON of MLflow, too.

    Args:
        seen: the search.
        books: its books.
        closed: how they were closed.
        start: when it began, on the monotonic clock.

    Raises:
        RunError: no trial ran to its end, or none could go on, or something of the end could not be written.
        UserError: a node of the cluster is not fit for the work.
        Stopped: by the user.
    """
    told = {"uri": seen.home.store.plain, "experiment": books.tracker.experiment_id, **asdict(closed.sent)}
    told["resend"] = how_to_send(closed.found.folder) if closed.sent.unsent else None
    try:
        where = _must_have_ended_well(seen, books, closed)
    except (RunError, UserError, Stopped) as error:
        error.facts = {"tracking": told}
        raise
    return outcome(closed.found, start, where, closed.cap, told)


def _must_have_ended_well(seen: Seen, books: Books, closed: Closed) -> Path:
    """Say how it ended, and give the folder of the exported student."""
    end, resume_command, say = books.ledger.end, seen.home.resume_command, seen.display.line
    if end and end.why >= Why.FAULT:
        gone = not books.ledger.storage.journal.there
        kind = UserError if end.why is Why.UNFIT else RunError
        raise kind(guards.how_to_go_on(end.text, resume_command, gone))
    if closed.interrupted:
        raise Stopped(resume_command)
    if closed.found.best is None or not (closed.export or closed.faults):
        reasons = sorted({r.reason for r in closed.found.records if r.status == "failed" and r.reason})
        why = books.caps.explain(resume_command) if closed.cap else "; ".join(reasons) or "all were stopped early"
        raise RunError(f"no trial ran to its end: {why}")
    if end and end.why is Why.EXHAUSTED:
        say("the space is exhausted: every further draw was outside the limits or trained already")
    if closed.cap:
        say(books.caps.explain(resume_command))
    if closed.faults or closed.export is None:
        raise RunError(
            f"{'; '.join(closed.faults)}. The trials are complete and everything else is written; when that is mended, "
            f"`hksd export {seen.home.name}` and `hksd report {seen.home.name}` write what is missing"
        )
    return closed.export
