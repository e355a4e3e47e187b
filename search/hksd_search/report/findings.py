"""What a search found, in words: pure functions of its folder, whose numbers all come from its records and facts."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from hksd.config.run import from_tree
from hksd.errors import UserError
from hksd_search.console import percent
from hksd_search.space.arms import NO_DISTILLATION
from hksd_search.study import openings
from hksd_search.study.reading import TRAINED, SearchFolder, counts
from hksd_search.study.records import Record
from hksd_search.study.records import label as label_of

HOUR = 3600.0  # seconds
_CAPS = ("max_device_hours", "max_cost")


def summary(search: SearchFolder, planned: int | None) -> list[str]:
    """The search in a few sentences: what was searched, who won, against what, why it ended.

    Args:
        search: the search.
        planned: trials that it was to train, or None where that is not known.
    """
    parts = [_searched(search), _won(search), _gain(search), search.verdict(), _front(search), ended(search, planned)]
    return [_sentence(part) for part in parts if part]


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _searched(search: SearchFolder) -> str:
    facts, tally = search.facts, counts(search.records)
    teacher, data = facts.get("teacher"), facts.get("data")
    about = f" for a student of {teacher['model']}" if teacher else ""
    about += f" on {data['name']}" if data else ""
    about += f", {facts['epochs']} epochs a trial" if "epochs" in facts else ""
    trained = sum(tally[status] for status in TRAINED)
    others: Counter[str] = Counter(r.status for r in search.records if r.status in ("running", "interrupted"))
    states: dict[str, int] = {
        "complete": tally["complete"],
        "stopped early": tally["pruned"],
        "failed": tally["failed"],
        **others,
    }
    shown = ", ".join(f"{count:,} {state}" for state, count in states.items() if count)
    refused = tally["rejected"] + tally["duplicate"]
    hours = sum(r.seconds for r in search.records) / HOUR
    return (
        f"the search {search.name} looked{about}. {trained:,} {_plural(trained, 'trial')} ended"
        + (f" ({shown})" if shown else "")
        + (f" in {duration(hours)} of training" if hours else "")
        + (
            f"; {refused:,} {_plural(refused, 'draw')} {'was' if refused == 1 else 'were'} refused untrained"
            * bool(refused)
        )
    )


def _won(search: SearchFolder) -> str:
    best, teacher = search.best, search.facts.get("teacher")
    if best is None:
        return "no trial has run to its end, so there is no best student yet"
    text = (
        f"the best student is trial {best.number}, {described(best)}: {percent(best.val_accuracy)} validation accuracy"
    )
    text += f" with {best.params:,} parameters" if best.params else ""
    if not teacher:
        return text
    lost = 100 * (teacher["accuracy"] - (best.val_accuracy or 0.0))
    text += f", {abs(lost):.2f} points {'below' if lost >= 0 else 'above'} the teacher ({percent(teacher['accuracy'])}"
    text += f", {teacher['params']:,} parameters)"
    if best.params and teacher["params"] > best.params:
        text += f", which is {teacher['params'] / best.params:.1f} times as large"
    return text


def _gain(search: SearchFolder) -> str | None:
    """What the winner gained over the arms that ran to their end, in points and in images."""
    best = search.best
    if best is None:
        return None
    arms = [(name, search.arm(name)) for name in search.arm_names()]
    ended = [(name, arm) for name, arm in arms if arm is not None and arm.status == "complete"]
    if not ended:
        return "no arm ran to its end, so what distillation brought is not known" if search.arm_names() else None
    if best.arm:
        itself = f'that student is itself an arm, "{best.arm}": no drawn trial was better'
        return "; ".join(text for text in (itself, _against(search, best, ended)) if text)
    return _against(search, best, ended)


def _against(search: SearchFolder, best: Record, arms: Sequence[tuple[str, Record]]) -> str:
    images = (search.facts.get("data") or {}).get("validation")
    parts = []
    for name, arm in arms:
        if arm.number == best.number:
            continue
        gain = (best.val_accuracy or 0.0) - (arm.val_accuracy or 0.0)
        count = f" ({round(abs(gain) * images):,} of {images:,} images)" if images and name == NO_DISTILLATION else ""
        parts.append(f"{name} {100 * gain:+.2f} points{count}")
    return f"against {', against '.join(parts)}" if parts else ""


def _front(search: SearchFolder) -> str | None:
    minimize = search.facts.get("minimize") or []
    if not minimize or search.best is None:
        return None
    front = search.front()
    numbers = ", ".join(str(r.number) for r in front[:20]) + (", ..." if len(front) > 20 else "")
    return (
        f"accuracy was traded against {' and '.join(minimize)}: no trial beats "
        f"{_plural(len(front), 'trial')} {numbers} in all of them"
    )


def ended(search: SearchFolder, planned: int | None) -> str:
    """Why a search ended, or that it has not.

    Args:
        search: the search; `facts["ended"]` tells where it was cut short, in searches that noted it.
        planned: trials that it was to train, or None where that is not known.
    """
    why, trained = search.facts.get("ended"), sum(r.status in TRAINED for r in search.records)
    running = sum(r.status == "running" for r in search.records)
    if running:
        return f"it has not ended: {running} {_plural(running, 'trial')} run, or ran when it was killed"
    if why in _CAPS:
        return f"it ended because search.{why} was reached, with {trained} trials trained" + _of(planned)
    if why == "exhausted":
        return "it ended because its space was exhausted: every further draw was outside the limits or trained already"
    if planned is not None and trained >= planned:
        return f"it ended with its {planned:,} trials trained"
    if why == "interrupted":
        return f"it was interrupted with {trained} trials trained{_of(planned)}, and can be resumed"
    return f"it has not come to its end: {trained} trials are trained{_of(planned)}"


def _of(planned: int | None) -> str:
    return "" if planned is None else f" of {planned}"


def caveats(search: SearchFolder, confirmed: bool) -> list[str]:
    """What a reader has to keep in mind: chance, selection, unequal tries, openings of the test split.

    Args:
        search: the search.
        confirmed: its best student was trained again over new seeds.
    """
    best = search.best
    found = []
    if best is not None:
        tries = counts(search.records)["complete"]
        chance = _standard_error(best.val_accuracy, (search.facts.get("data") or {}).get("validation"))
        text = (
            f"each accuracy is that of one seed on the validation split{chance}, which also chose the best of {tries:,}"
        )
        cure = (
            "the confirmation below has a better one"
            if confirmed
            else (f"`hksd confirm {search.name}` trains it again over new seeds and opens the test split")
        )
        found.append(f"{text} complete {_plural(tries, 'trial')}: the number flatters the winner, and {cure}")
        if search.arm_names() and search.facts.get("arms") != "tuned":
            found.append("the arms were not tuned: each had one try, with the largest student within the limits")
    opened = openings.count(search.folder)
    if opened > 1:
        found.append(f"the test split was opened {opened} times, so what is read off it is less than new")
    return [_sentence(text) for text in found]


def _standard_error(accuracy: float | None, images: int | None) -> str:
    """The standard error of a share p of n images, sqrt(p (1 - p) / n)."""
    if not images or accuracy is None:
        return ""
    error = 100 * math.sqrt(accuracy * (1 - accuracy) / images)
    return f" ({images:,} images, so a standard error of {error:.1f} points)"


def described(record: Record) -> str:
    """The student of a trial and its terms, without the number: ``resnet8 w0.50 d2 ce+kd``."""
    return label(record).partition(" ")[2] or "of an unknown configuration"


def label(record: Record) -> str:
    """`Record.label`, also of a configuration that another version wrote and this one cannot read."""
    if not record.config:
        return f"{record.number:03d}"
    try:
        return label_of(record.number, from_tree(record.config))
    except UserError:
        return f"{record.number:03d} {(record.config.get('student') or {}).get('model', '?')}"


def remark(record: Record) -> str:
    """Arm and reason of a trial."""
    return "; ".join(text for text in (f"arm: {record.arm}" if record.arm else "", record.reason or "") if text)


def failures(records: Sequence[Record]) -> list[tuple[str, list[int]]]:
    """Why trials failed, with the numbers of the trials, the most frequent reason first."""
    found: dict[str, list[int]] = {}
    for record in records:
        if record.status == "failed":
            found.setdefault(record.reason or "no reason was recorded", []).append(record.number)
    return sorted(found.items(), key=lambda item: -len(item[1]))


def refusals(records: Sequence[Record]) -> list[tuple[str, int]]:
    """Why draws were refused, and how often; reasons that differ by the size of the student alone count as one."""
    found: Counter[str] = Counter()
    for record in records:
        if record.status == "duplicate":
            found["the same configuration as an earlier trial"] += 1
        elif record.status == "rejected":
            found[re.sub(r"(\w+) [\d.e+-]+ > ", r"\1 > ", record.reason or "no reason was recorded")] += 1
    return found.most_common()


def duration(hours: float) -> str:
    """A time as people read it."""
    seconds = hours * HOUR
    return f"{hours:.1f} h" if hours >= 1 else f"{seconds / 60:.0f} min" if seconds >= 100 else f"{seconds:.0f} s"


def cost(name: str, costs: Mapping[str, Any]) -> str:
    """A cost of a student as it stands in a table."""
    value = costs.get(name)
    return "-" if value is None else f"{value:,.0f}" if name == "params" else f"{value:.3g}"


def _plural(count: int, noun: str) -> str:
    return noun if count == 1 else f"{noun}s"
