"""The thread that delivers records to a store: patient, in order, several at once where they come too fast.

A call costs a server of MLflow about as much processor time for one record as for several, and it has one core: with
one call a record, a few dozen a second are its limit. So records of one run that wait leave in one call. More threads
would not help: the server is what is busy.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

from hksd_search.tracking.access import reason_of
from hksd_search.tracking.line import Entry, Line
from hksd_search.tracking.spool import Spool
from hksd_search.tracking.store import Store

RETRY_S, FLUSH_S = 2.0, 20.0
LONGEST_FLUSH_S = 300.0  # a slow store that still takes records gets that long at the end
LAST_CALL_S = 15.0  # for a call that is under way when time is up; then it is left behind
log = logging.getLogger(__name__)


class Sender:
    """Delivers records in the background.

    Args:
        store: what they are written to.
        spool: file that keeps them meanwhile.

    Attributes:
        sent: records that have reached the store.
        problem: why records wait, or have waited last.
        closing: what ends the parent run, if nobody has.
        left: nobody waits for the thread any more.
    """

    def __init__(self, store: Store, spool: Spool):
        self.sent, self.left = 0, False
        self.problem: str | None = None
        self.closing: list[dict[str, Any]] = []
        self._store, self._spool, self._line = store, spool, Line()
        self._unsent: list[Entry] = []
        self._files: list[Entry] = []  # that wait until the figures are through
        self._current: list[Entry] = []  # is being sent
        self._turn = threading.Lock()  # over the four above
        self._deadline = self._limit = float("inf")
        self.thread = threading.Thread(target=self._work, name="tracking", daemon=True)

    @property
    def idle(self) -> bool:
        """Nothing waits, and nothing is under way."""
        return self._line.idle

    def put(self, entry: Entry) -> None:
        """Deliver a record in its turn."""
        self._line.put(entry)

    def close(self, longest: float | None = None) -> list[Mapping[str, Any]]:
        """Deliver what is left, for a limited time (at most `longest` seconds); gives what is still left, in order."""
        longest, last_call = longest or LONGEST_FLUSH_S, min(LAST_CALL_S, longest or LAST_CALL_S)
        self._limit = time.monotonic() + longest
        self._deadline = min(self._limit, time.monotonic() + FLUSH_S)
        self._line.end()
        while self.thread.is_alive() and (rest := self._deadline + last_call - time.monotonic()) > 0:
            self.thread.join(min(rest, 1.0))
        return self._take_back()

    def _take_back(self) -> list[Mapping[str, Any]]:
        """What has not been sent; the thread, should it still hang in a call, changes nothing of that."""
        with self._turn:
            self.left = self.thread.is_alive()
            left = [*self._unsent]
            if self.left:
                self.problem = self.problem or "a call has not ended after time was up"
                left += [*self._current, *self._line.rest(), *self._files]
            hangs = [entry for entry in self._current if self.left and entry.record["kind"] == "text"]
        left.sort(key=lambda entry: (entry in hangs, entry.line))  # a file whose store hangs holds no figures up
        return [entry.record for entry in left]

    # --- the thread

    def _work(self) -> None:
        while entries := self._line.take():
            with self._turn:
                self._current = entries
                blocked = bool(self._unsent)  # records stay in order: after one is given up, all are spooled
            left = entries if blocked else self._deliver(entries)
            with self._turn:
                if self.left:
                    return
                self._current = []
                if left and entries[0].record["kind"] == "text" and not blocked:
                    # Files lie in another store than figures, and must not hold those up.
                    self._files += [Entry(entry.record, self._spool.add(entry.record)) for entry in left]
                    left = []
                self._unsent += left
            kept = {entry.line for entry in left}
            self._spool.done(entry.line for entry in entries if entry.line not in kept)
        self._finish()

    def _finish(self) -> None:
        """Files that had to wait, and the end of a parent run that nobody has ended."""
        rest = [*self._files]
        if self.closing and not self._unsent and self._store.open_end:
            rest += [Entry(record, self._spool.add(record)) for record in self.closing]
        self._files = []
        for place, entry in enumerate(rest):
            with self._turn:
                self._current, self._files = [entry], rest[place + 1 :]
            left = [entry] if self._unsent else self._deliver([entry])
            with self._turn:
                if self.left:
                    return
                self._current, self._files = [], []
                self._unsent += left

    def _deliver(self, entries: list[Entry]) -> list[Entry]:
        """Send records of one run, again and again until they are taken or time is up; gives those that are left.

        A file is tried once. Of records that MLflow refuses, each is tried alone, so that none takes others with it.
        """
        records = [entry.record for entry in entries]
        file = records[0]["kind"] == "text"
        while time.monotonic() < self._deadline:
            ready = False
            try:
                self._store.connect()
                ready = True
                self._store.write(records)
                with self._turn:
                    if not self.left:  # else they count as unsent
                        self.sent += sum(record["kind"] != "look" for record in records)
                self._deadline = min(self._limit, max(self._deadline, time.monotonic() + FLUSH_S))
                return []
            except Exception as error:  # the store is another program's: whatever it raises, training goes on
                if self._store.mend(error):
                    continue
                reason = reason_of(error, self._store.uri)
                if ready and not file and self._store.refuses(error):
                    if len(entries) > 1:
                        return self._deliver_each(entries)
                    log.warning("MLflow refuses what stands in a record of run %s: %s", records[0]["run"], reason)
                    return []
                if self.problem != reason:
                    self.problem = reason
                    log.warning("MLflow cannot be written, records are kept and tried again: %s", reason)
                if file:
                    return entries
                time.sleep(RETRY_S)
        self.problem = self.problem or "there was no time left"
        return entries

    def _deliver_each(self, entries: list[Entry]) -> list[Entry]:
        left: list[Entry] = []
        for entry in entries:
            left += [entry] if left else self._deliver([entry])
        return left
