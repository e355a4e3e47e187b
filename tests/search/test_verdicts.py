"""The words of a confirmation: a gain that is none is called none, and what is missing is said."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from hksd.config.run import from_tree
from hksd_search.confirm import verdicts
from hksd_search.confirm.contenders import Contender
from hksd_search.confirm.files import opened, text
from hksd_search.confirm.verdicts import Scored, figures
from hksd_search.space.arms import NO_DISTILLATION, STANDARD_KD
from hksd_search.study.records import Record

Make = Callable[..., Any]
NOISE = (0.002, -0.001, 0.004, -0.003, 0.001)


@pytest.fixture
def scored(make_tree: Make) -> Callable[..., Scored]:
    """scored("trial 7" | name of an arm, test accuracies): a contender, its runs on the seeds 1000, 1001, ..."""

    def make(name: str, test: list[float], failed: Mapping[int, str] | None = None, width: float = 0.25) -> Scored:
        number = int(name.removeprefix("trial ")) if name.startswith("trial") else 0
        config = from_tree(make_tree(student={"model": "resnet8", "width": width}))
        costs = {"params": 1000 * width, "mflops": 1.0}
        arm = None if name.startswith("trial") else name
        record = Record(number, "complete", arm, {}, costs, 3, 0.95, 1.0, None)
        by_seed = dict(enumerate(test, 1000))
        return Scored(Contender(record, config), val=by_seed, test=by_seed, failed=failed or {})

    return make


def sentences(student: Scored, arm: Scored, teacher: float = 0.99) -> str:
    return "\n".join(figures([student], [arm], teacher)["sentences"])


def around(mean: float, scale: float = 1.0) -> list[float]:
    return [mean + scale * noise for noise in NOISE]


def test_a_gain_within_the_noise_is_called_no_significant_gain(scored: Make) -> None:
    said = sentences(scored("trial 7", [0.91, 0.90, 0.92, 0.89, 0.91]), scored(NO_DISTILLATION, around(0.903, 3)))
    assert "Distillation brought no significant gain in trial 7: +0.12 points over no distillation" in said
    assert "95 % interval -" in said
    assert "n = 5." in said
    assert "p = 0." in said


def test_a_gain_beyond_the_noise_is_called_significant_and_a_loss_is_called_a_loss(scored: Make) -> None:
    better, worse = scored("trial 7", around(0.92, 2)), scored(NO_DISTILLATION, around(0.90))
    assert "Distillation brought a significant gain in trial 7: +2." in sentences(better, worse)
    loser, plain = scored("trial 7", around(0.90, 2)), scored(NO_DISTILLATION, around(0.92))
    assert "Distillation brought a significant loss in trial 7: -1.9" in sentences(loser, plain)


def test_other_arms_are_named_as_they_are(scored: Make) -> None:
    found = sentences(scored("trial 7", around(0.92, 2)), scored(STANDARD_KD, around(0.90)))
    assert "Trial 7 is significantly better than standard KD: +2." in found
    found = sentences(scored("trial 7", around(0.9, 2)), scored(STANDARD_KD, around(0.9)))
    assert "Trial 7 is not significantly better than standard KD" in found


def test_one_seed_gives_no_interval_and_says_so(scored: Make) -> None:
    student, arm = scored("trial 7", [0.92]), scored(NO_DISTILLATION, [0.90])
    found = figures([student], [arm], 0.99)
    assert "Trial 7: +2.00 points over no distillation on one seed" in found["sentences"][0]
    assert "no interval and no test" in found["sentences"][0]
    (facts,) = found["students"]
    assert facts["test_accuracy"] == {"n": 1, "mean": 0.92, "std": None, "low": None, "high": None}
    assert facts["against"][NO_DISTILLATION]["p"] is None
    assert facts["recovered_gap"]["share"] is None


def test_equal_differences_on_all_seeds_are_no_proof(scored: Make) -> None:
    said = sentences(scored("trial 7", [0.92, 0.93]), scored(NO_DISTILLATION, [0.90, 0.91]))
    assert "+2.00 points over no distillation on each of 2 seeds; values without spread" in said
    assert "p =" not in said.splitlines()[0]


def test_a_failed_run_is_named_and_takes_its_pair_out(scored: Make) -> None:
    student, arm = scored("trial 7", around(0.92, 2)), scored(NO_DISTILLATION, around(0.9))
    del student.test[1001]
    student = Scored(student.contender, student.val, student.test, {1001: "the loss is not finite"})
    found = figures([student], [arm], 0.99)
    assert found["students"][0]["test_accuracy"]["n"] == 4
    assert found["students"][0]["against"][NO_DISTILLATION]["n"] == 4
    assert found["arms"][0]["test_accuracy"]["n"] == 5
    assert "Trial 7, seed 1001 failed and is left out: the loss is not finite" in found["notes"]


def test_without_a_common_seed_nothing_is_compared(scored: Make) -> None:
    student = Scored(scored("trial 7", []).contender, {}, {}, {1000: "died"})
    found = figures([student], [scored(NO_DISTILLATION, [0.9])], 0.99)
    assert "cannot be compared" in found["sentences"][0]
    assert found["students"][0]["against"] == {NO_DISTILLATION: None}
    assert found["students"][0]["test_accuracy"] is None


def test_holm_corrects_for_the_students_and_the_sentence_says_so(scored: Make) -> None:
    arm = scored(NO_DISTILLATION, around(0.9))
    some = [scored(f"trial {n}", around(0.9 + n / 1000, 2 + n)) for n in (1, 2, 3)]
    alone, together = figures(some[:1], [arm], 0.99), figures(some, [arm], 0.99)
    one, three = (found["students"][0]["against"][NO_DISTILLATION] for found in (alone, together))
    assert one["p"] == one["p_holm"] == three["p"]
    assert three["p_holm"] > three["p"]
    assert "Holm" not in alone["sentences"][0]
    assert "(Holm, 3 students)" in together["sentences"][0]


def test_the_recovered_gap_is_told_or_undefined(scored: Make) -> None:
    student, arm = scored("trial 7", around(0.92, 2)), scored(NO_DISTILLATION, around(0.90))
    assert "Trial 7 recovered 5" in sentences(student, arm, teacher=0.94)
    assert "undefined: the teacher is not significantly better" in sentences(student, arm, teacher=0.89)


def test_the_fall_from_the_search_to_the_test_split_is_told(scored: Make) -> None:
    found = figures([scored("trial 7", [0.90, 0.91])], [], 0.99)
    assert found["students"][0]["test_change_points"] == pytest.approx(-4.5)
    assert "95.00% of trial 7 on validation; over the new seeds it is 90.50% (-4.50 points)" in found["sentences"][-1]


def test_students_of_another_size_than_the_arms_are_named(scored: Make) -> None:
    arm = scored(NO_DISTILLATION, around(0.9))
    assert figures([scored("trial 7", around(0.9, 2))], [arm], 0.99)["notes"] == []
    (note,) = figures([scored("trial 7", around(0.9, 2), width=0.5)], [arm], 0.99)["notes"]
    assert "Trial 7 is resnet8 w0.5 (500 parameters), the arms are resnet8 w0.25 (250)" in note


def test_a_search_without_arms_gets_means_and_no_comparison(scored: Make) -> None:
    found = figures([scored("trial 7", around(0.9))], [], 0.99)
    assert found["students"][0]["against"] == {}
    assert found["students"][0]["recovered_gap"] is None
    assert found["students"][0]["test_accuracy"]["n"] == 5


@pytest.mark.parametrize(
    ("p", "shown"), [(0.31, "p = 0.31"), (0.0004, "p < 0.001"), (1.0, "p = 1"), (0.042, "p = 0.042")]
)
def test_p_values_are_shown_as_people_write_them(p: float, shown: str) -> None:
    assert verdicts.shown_p(p) == shown


def test_the_text_holds_every_number_and_warns_of_a_split_opened_twice(scored: Make) -> None:
    found = figures([scored("trial 7", around(0.92, 2))], [scored(NO_DISTILLATION, around(0.90))], 0.94)
    teacher = {"model": "resnet20", "params": 2000, "mflops": 3.0, "val_accuracy": 0.95, "test_accuracy": 0.94}
    facts = {"search": "first", "seeds": [1000], "test_images": 50, "validation_images": 40, "teacher": teacher}
    facts |= {**found, "test_openings": 1}
    said = text(facts)
    for part in ("94.00%", "92.12% ± 0.54", "| trial 7", "+2.0", "opened once", found["sentences"][0]):
        assert part in said, part
    rows = [line for line in said.splitlines() if line.startswith("|")]
    assert {len(row) for row in rows[:4]} == {len(rows[0])}, "columns are aligned"
    assert "opened 2 times" in opened(facts | {"test_openings": 2})
    assert opened(facts | {"test_openings": 2}).startswith("Warning")
