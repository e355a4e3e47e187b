"""What a confirmation found: its figures, and the sentences that say what they mean.

Accuracies are shares from 0 to 1; differences are percentage points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hksd_search.confirm.contenders import Contender
from hksd_search.confirm.statistics import ALPHA, Difference, Gap, Mean, holm, mean_of, paired, recovered_gap
from hksd_search.space.arms import NO_DISTILLATION


@dataclass(frozen=True)
class Scored:
    """The runs of a contender, by seed.

    Attributes:
        contender: what was trained.
        val: validation accuracy of each run that ended.
        test: test accuracy of each of these.
        failed: why each other run failed.
    """

    contender: Contender
    val: Mapping[int, float]
    test: Mapping[int, float]
    failed: Mapping[int, str]

    @property
    def name(self) -> str:
        """Name for people."""
        return self.contender.name


def figures(students: Sequence[Scored], arms: Sequence[Scored], teacher: float) -> dict[str, Any]:
    """All figures of a confirmation as plain values.

    Args:
        students: the students, best of the search first.
        arms: the arms.
        teacher: test accuracy of the teacher.

    Returns:
        ``students`` and ``arms`` with their means, the students' differences to each arm and their recovered gaps;
        ``sentences`` that say the same; ``notes`` on what is missing.
    """
    differences = {arm.name: _differences(students, arm) for arm in arms}
    plain = next((arm for arm in arms if arm.name == NO_DISTILLATION), None)
    gaps = [_gap(student, plain, teacher) if plain else None for student in students]
    found: list[dict[str, Any]] = []
    sentences: list[str] = []
    for i, (student, gap) in enumerate(zip(students, gaps, strict=True)):
        against = {arm: row[i] for arm, row in differences.items()}
        found.append(
            _facts(student)
            | {"against": {arm: _flat(*pair) for arm, pair in against.items()}}
            | {"recovered_gap": asdict(gap) if gap else None}
        )
        sentences += [verdict(student.name, arm, *pair, len(students)) for arm, pair in against.items()]
        sentences += [_gap_sentence(student.name, gap)] if gap else []
        sentences += _drop_sentence(student)
    return {
        "students": found,
        "arms": [_facts(arm) for arm in arms],
        "sentences": sentences,
        "notes": [*_failures([*students, *arms]), *_sizes(students, plain)],
    }


Tested = tuple[Difference | None, float | None]  # a difference in points (None: no seed in common), Holm's p value


def _differences(students: Sequence[Scored], arm: Scored) -> list[Tested]:
    """The differences of all students to one arm; Holm's family is the students."""
    found: list[Difference | None] = []
    for student in students:
        seeds = _common(student, arm)
        pair = [student.test[seed] for seed in seeds], [arm.test[seed] for seed in seeds]
        found.append(_points(paired(*pair)) if seeds else None)
    return list(zip(found, holm([one.p if one else None for one in found]), strict=True))


def _common(one: Scored, other: Scored) -> list[int]:
    """Seeds on which both ended."""
    return [seed for seed in one.test if seed in other.test]


def _points(found: Difference) -> Difference:
    values = (found.mean, found.std, found.low, found.high)
    mean, std, low, high = (None if value is None else 100 * value for value in values)
    assert mean is not None
    return Difference(found.n, mean, std, low, high, found.p)


def _flat(difference: Difference | None, adjusted: float | None) -> dict[str, Any] | None:
    return None if difference is None else asdict(difference) | {"p_holm": adjusted}


def _gap(student: Scored, plain: Scored, teacher: float) -> Gap:
    seeds = _common(student, plain)
    if not seeds:
        return Gap(None, None, None, "no seed on which both students ended")
    return recovered_gap([student.test[seed] for seed in seeds], [plain.test[seed] for seed in seeds], teacher)


def _facts(scored: Scored) -> dict[str, Any]:
    record = scored.contender.record
    val, test = (mean_of(list(values.values())) if values else None for values in (scored.val, scored.test))
    before = record.val_accuracy
    return {
        "name": scored.name,
        "folder": scored.contender.who,
        "trial": record.number,
        "arm": record.arm,
        "model": scored.contender.model,
        "params": record.params,
        "mflops": record.mflops,
        "search_val_accuracy": before,
        "val_accuracy": asdict(val) if val else None,
        "test_accuracy": asdict(test) if test else None,
        "val_change_points": _change(val, before),
        "test_change_points": _change(test, before),
        "failed": dict(scored.failed),
    }


def _change(mean: Mean | None, before: float | None) -> float | None:
    return None if mean is None or before is None else 100 * (mean.mean - before)


# --- words


def shown_p(p: float) -> str:
    """A p value as people write it."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}" if p < 0.995 else "p = 1"


def verdict(student: str, arm: str, difference: Difference | None, adjusted: float | None, family: int) -> str:
    """Say in words what the difference (points) of a student to an arm means.

    Args:
        student: name of the student.
        arm: name of the arm.
        difference: student - arm; None where no seed has both.
        adjusted: p value after Holm's correction.
        family: number of students that were tested against this arm.
    """
    if difference is None:
        return f"{_upper(student)} and {arm}: there is no seed on which both ended, so they cannot be compared."
    gain = f"{difference.mean:+.2f} points {'against' if difference.mean < 0 else 'over'} {arm}"
    if difference.n == 1:
        return (
            f"{_upper(student)}: {gain} on one seed; one seed gives no interval and no test, so this shows nothing yet."
        )
    if difference.p is None or adjusted is None:
        return (
            f"{_upper(student)}: {gain} on each of {difference.n} seeds; values without spread give no interval "
            "and no test, so take more seeds."
        )
    proof = f"{difference.low:.2f} to {difference.high:.2f}, {shown_p(adjusted)}"
    proof = f"95 % interval {proof}{f' (Holm, {family} students)' if family > 1 else ''}, n = {difference.n}"
    return f"{_claim(student, arm, difference.mean, adjusted)}: {gain}, {proof}."


def _claim(student: str, arm: str, mean: float, p: float) -> str:
    significant, more = p < ALPHA, mean > 0
    if arm == NO_DISTILLATION:
        if significant:
            return f"Distillation brought a significant {'gain' if more else 'loss'} in {student}"
        return f"Distillation brought no significant gain in {student}"
    if significant:
        return f"{_upper(student)} is significantly {'better' if more else 'worse'} than {arm}"
    return f"{_upper(student)} is not significantly better than {arm}"


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _gap_sentence(student: str, gap: Gap) -> str:
    if gap.share is None or gap.low is None or gap.high is None:
        return f"The share of the gap to the teacher that {student} recovered is undefined: {gap.reason}."
    return (
        f"{_upper(student)} recovered {100 * gap.share:.0f} % of the gap between no distillation and the teacher "
        f"(95 % interval {100 * gap.low:.0f} to {100 * gap.high:.0f} %)."
    )


def _drop_sentence(student: Scored) -> list[str]:
    before = student.contender.record.val_accuracy
    if not student.test or before is None:
        return []
    val, test = mean_of(list(student.val.values())).mean, mean_of(list(student.test.values())).mean
    lost_val, lost_test = 100 * (val - before), 100 * (test - before)
    return [
        f"The search saw {before:.2%} of {student.name} on validation; over the new seeds it is {val:.2%} "
        f"({lost_val:+.2f} points) on validation and {test:.2%} ({lost_test:+.2f} points) on test."
    ]


def _failures(all_scored: Sequence[Scored]) -> list[str]:
    return [
        f"{_upper(scored.name)}, seed {seed} failed and is left out: {reason}"
        for scored in all_scored
        for seed, reason in scored.failed.items()
    ]


def _sizes(students: Sequence[Scored], plain: Scored | None) -> list[str]:
    """Say where a student and the arms are different networks: their difference is then one of size as well."""
    if plain is None:
        return []
    notes = []
    for student in students:
        mine, theirs = student.contender, plain.contender
        if mine.config.student != theirs.config.student:
            notes.append(
                f"{_upper(student.name)} is {mine.model} ({mine.record.params:,} parameters), the arms are "
                f"{theirs.model} ({theirs.record.params:,}): their difference is one of size as well."
            )
    return notes
