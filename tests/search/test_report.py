"""The report: its numbers are those of the records, nothing on it is markup of others, and every state has one."""

from __future__ import annotations

import csv
import json
import random
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from hksd.errors import UserError
from hksd_search.commands import report as command
from hksd_search.console import Display
from hksd_search.report import figures, findings, knobs, report, sections
from hksd_search.report.knobs import Drawn
from hksd_search.session import resolved
from hksd_search.space.arms import ARMS, NO_DISTILLATION
from hksd_search.study.reading import FACTS_FILE, SearchFolder, open_search
from hksd_search.study.records import Record, Status

Make = Callable[..., Any]
EVIL = "<script>alert('x')</script> & \"quoted\""
FACTS: dict[str, Any] = {
    "name": "first",
    "space": "small",
    "minimize": [],
    "max_drop": None,
    "epochs": 3,
    "data": {"name": "digits", "train": 300, "validation": 200, "fingerprint": "5ce2952290041d01"},
    "teacher": {"model": "resnet20", "accuracy": 0.9, "params": 400_000, "mflops": 3.0, "attention_accuracy": [0.5]},
    "teaching": {"precision": "float32"},
    "provenance": {
        "versions": {"python": "3.11", "hksd": "0.1.0"},
        "hardware": {"processor": "a processor", "cores": 2, "gpus": [], "kernels": True, "system": "Linux"},
        "git": {"commit": "abc", "dirty": True},
    },
}
CONFIRMED = {"n": 2, "mean": 0.8, "std": 0.01, "low": 0.71, "high": 0.89}


def made(number: int, status: Status = "complete", accuracy: float = 0.5, **fields: Any) -> Record:
    costs = {"params": 1000.0 + number % 7, "mflops": 1.5}
    record = Record(number, status, None, None, costs, 3, accuracy, 2.0, None, {1: accuracy / 2, 2: accuracy})
    return replace(record, **fields)


@pytest.fixture
def search(tmp_path: Path, make_space: Make, open_ledger: Make, train: Make) -> Callable[..., SearchFolder]:
    """search(trials, facts, **sections): a search on disk; each trial is the accuracies of its epochs, or a reason."""

    def make(trials: list[Any], facts: dict[str, Any] | None = None, **parts: Any) -> SearchFolder:
        space, folder = make_space(**parts), tmp_path / "first"
        folder.mkdir()
        ledger = open_ledger(space, folder=folder)
        for trial in trials:
            assignment = ledger.next()
            if isinstance(trial, str):
                train(ledger, assignment, (0.1,), reason=trial)
            elif trial is not None:  # else it goes on
                train(ledger, assignment, trial)
        (folder / "space.yaml").write_text(resolved(space))
        given = {**FACTS, "minimize": list(space.search.minimize), "arms": space.search.arms, **(facts or {})}
        (folder / FACTS_FILE).write_text(json.dumps(given))
        return open_search(tmp_path, "first")

    return make


def page_of(search: SearchFolder) -> tuple[str, ET.Element]:
    """The text of the page, and the page as a tree: it is well-formed XML too."""
    where = report.write_report(search)
    assert where.page == search.folder / "report.html"
    head, _, rest = where.page.read_text().partition("\n")
    assert head == "<!doctype html>"
    root = ET.fromstring(rest)
    body = root.find("body")
    assert body is not None
    return " ".join("".join(body.itertext()).split()), root


def headings(root: ET.Element) -> list[str]:
    return ["".join(element.itertext()) for element in root.iter("h2")]


GOOD, BETTER, STOPPED = (0.3, 0.5, 0.6), (0.4, 0.6, 0.7), (0.2,)


# --- every state of a search


def test_a_search_that_ended_has_every_section(search: Make) -> None:
    text, root = page_of(search([GOOD, BETTER, STOPPED, EVIL, GOOD, BETTER, (0.5, 0.6, 0.8), STOPPED]))
    assert headings(root) == [
        "Comparison",
        "Accuracy against size",
        "Progress",
        "Which knobs mattered",
        "Failures and refused draws",
        "The best student's configuration",
        "Facts",
        "Trials",
    ]
    assert "80.00% validation accuracy" in text
    assert "10.00 points below the teacher (90.00%, 400,000 parameters)" in text
    assert f"Against {NO_DISTILLATION} +20.00 points (40 of 200 images)" in text
    assert "It ended with its 8 trials trained." in text
    assert "`hksd confirm first`" not in text
    assert "hksd confirm first trains it again" in text
    assert "below 20 the importance of a knob would be noise" in text
    assert "abc with changes" in text


def test_a_search_that_has_only_begun_has_a_report(search: Make) -> None:
    text, root = page_of(search([]))
    assert "No trial has run to its end, so there is no best student yet." in text
    assert "No trial has been trained yet." in text
    assert "not trained yet" in text
    assert not list(root.iter("svg"))


def test_a_search_without_a_complete_trial_says_so(search: Make) -> None:
    text, root = page_of(search([STOPPED, "out of memory"]))
    assert "No trial has run to its end" in text
    assert "out of memory" in text
    assert "The best student's configuration" not in headings(root)


def test_a_search_that_runs_or_was_killed_says_how_it_stands(search: Make) -> None:
    text, _ = page_of(search([GOOD, None, None]))
    assert "It has not ended: 2 trials run, or ran when it was killed." in text


@pytest.mark.parametrize(
    ("why", "said"),
    [
        ("max_cost", "It ended because search.max_cost was reached, with 2 trials trained of 8."),
        ("exhausted", "It ended because its space was exhausted"),
        ("interrupted", "It was interrupted with 2 trials trained of 8, and can be resumed."),
        (None, "It has not come to its end: 2 trials are trained of 8."),
    ],
)
def test_the_report_says_why_a_search_ended(why: str | None, said: str, search: Make) -> None:
    assert said in page_of(search([GOOD, BETTER], {"ended": why}))[0]


def test_a_search_without_arms_is_compared_with_the_teacher_alone(search: Make) -> None:
    text, root = page_of(search([GOOD, BETTER], search={"trials": 8, "sampler": "random", "arms": "none"}))
    assert len(next(root.iter("table")).findall("tbody/tr")) == 2
    assert "arm:" not in text
    assert "arms" not in text.partition("Comparison")[0]


def test_a_search_of_several_objectives_names_its_front_and_its_verdict(search: Make) -> None:
    options = {"trials": 8, "sampler": "random", "minimize": ["params"]}
    found = search([GOOD, BETTER, GOOD], {"max_drop": 25.0}, search=options)
    text, _ = page_of(found)
    numbers = ", ".join(str(r.number) for r in found.front())
    assert f"Accuracy was traded against params: no trial beats trial{'s' * (len(found.front()) > 1)} {numbers}" in text
    assert "The smallest student within 25 points of the teacher is trial" in text


def test_a_search_of_an_older_version_lacks_what_it_did_not_write(search: Make) -> None:
    found = search([GOOD, BETTER])
    (found.folder / "space.yaml").write_text("of: another version")
    (found.folder / FACTS_FILE).unlink()
    old = open_search(found.folder.parent, "first")
    old = replace(old, records=[replace(r, costs={}) for r in old.records])
    text, root = page_of(old)
    assert "The best student is trial 1" in text
    assert "Accuracy against size" not in headings(root)
    strange = replace(old, records=[replace(r, config={"student": {"model": "resnet8"}}) for r in old.records])
    assert "The comparison cannot be made" in page_of(strange)[0]


def test_the_report_of_a_confirmation_shows_its_sentences_and_intervals(search: Make) -> None:
    found = search([GOOD, BETTER])
    student = {"name": "trial 1", "trial": 1, "arm": None, "model": "resnet8", "params": 1000, "mflops": 1.0}
    measured = {"search_val_accuracy": 0.7, "val_accuracy": CONFIRMED, "test_accuracy": CONFIRMED, "failed": {}}
    difference = {"n": 2, "mean": 1.5, "std": 0.1, "low": 0.6, "high": 2.4, "p": 0.03, "p_holm": 0.03}
    facts = {
        "seeds": [1000, 1001],
        "test_openings": 2,
        "teacher": {"model": "resnet20", "params": 9, "val_accuracy": 0.9, "test_accuracy": 0.85},
        "students": [{**student, **measured, "against": {NO_DISTILLATION: difference}}],
        "arms": [],
        "sentences": [f"Trial 1 is better. {EVIL}"],
        "notes": [],
    }
    (found.folder / "confirm").mkdir()
    (found.folder / "confirm" / "confirm.json").write_text(json.dumps(facts))
    text, root = page_of(found)
    assert "Confirmation on the test split" in headings(root)
    for said in (
        "Trial 1 is better. " + EVIL,
        "71.00 to 89.00",
        "80.00% ± 1.00",
        "opened 2 times",
        "confirmation below",
    ):
        assert said in text
    (found.folder / "confirm" / "confirm.json").write_text("{")
    with pytest.raises(UserError, match=r"confirm\.json: damaged"):
        report.write_report(found)
    display = Display(Console(quiet=True), 0)
    assert report.at_end(found, display) == {}, "the end of a search outlives its report"


def test_the_command_says_where_it_wrote_and_what_it_found(search: Make, capsys: pytest.CaptureFixture[str]) -> None:
    found = search([GOOD, BETTER])
    to = found.folder / "elsewhere"
    command.report("first", to=to, runs=found.folder.parent, as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert (said["report"], said["table"]) == (str(to / "report.html"), str(to / "trials.csv"))
    assert said["summary"] == report.html(found)[0]
    assert Path(said["report"]).exists()
    assert not (found.folder / "report.html").exists()
    (blocked := found.folder / "a file").touch()
    with pytest.raises(UserError, match="a file: cannot be made"):
        command.report("first", to=blocked, runs=found.folder.parent)


# --- what others wrote


def test_nothing_that_others_wrote_becomes_markup(search: Make) -> None:
    found = search([GOOD, EVIL, BETTER], {"space": EVIL, "data": {**FACTS["data"], "name": EVIL}})
    found.facts["teacher"]["model"] = EVIL
    text, root = page_of(found)
    assert text.count(EVIL) >= 4
    assert not {"script", "img", "a", "link", "iframe"} & {element.tag for element in root.iter()}
    assert all(not name.startswith("on") for element in root.iter() for name in element.attrib)
    assert "http" not in (found.folder / "report.html").read_text().replace("http-equiv", "")


def test_the_address_of_the_store_has_no_password(search: Make) -> None:
    found = search([GOOD])
    known = {"uri": "https://user:secret@mlflow.example:443/x", "experiment": "7", "runs": {}}
    (found.folder / "mlflow.json").write_text(json.dumps(known))
    text, _ = page_of(found)
    assert "https://user:***@mlflow.example:443/x/#/experiments/7" in text
    assert "secret" not in text


# --- numbers

records_of = st.lists(
    st.tuples(
        st.sampled_from(["complete", "pruned", "failed", "running", "interrupted", "rejected", "duplicate"]),
        st.integers(0, 1000),
        st.sampled_from([None, *ARMS]),
    ),
    max_size=15,
).map(
    lambda rows: [
        made(number, status, accuracy / 1000, arm=arm, reason=EVIL if status == "failed" else None)
        for number, (status, accuracy, arm) in enumerate(rows)
    ]
)


@given(records=records_of)
def test_the_table_of_trials_holds_the_numbers_of_the_records(records: list[Record]) -> None:
    found = SearchFolder("first", Path("nowhere"), records, FACTS)
    cells: dict[str, list[str]] = {}
    for row in ET.fromstring(f"<x>{''.join(sections.trials(found))}</x>").iter("tr"):
        number, *others = ["".join(cell.itertext()) for cell in row.findall("td")] or [""]
        cells |= {number: others} if number else {}
    drawn = [r for r in records if r.status not in ("rejected", "duplicate")]
    assert set(cells) == {str(r.number) for r in drawn}
    for r in drawn:
        _, status, _, accuracy, params, *_ = cells[str(r.number)]
        assert (status, accuracy, params) == (r.status, f"{r.val_accuracy:.2%}", f"{r.params:,}")
    if found.best is not None:
        assert next(iter(cells)) == str(found.best.number)


@given(records=records_of)
def test_every_record_set_can_be_drawn(records: list[Record]) -> None:
    found = SearchFolder("first", Path("nowhere"), records, FACTS)
    drawn = [figures.accuracy_against_size(found), figures.progress(found), figures.learning_curves(found)]
    for one in drawn:
        if one is not None:
            ET.fromstring(one.chart.svg(one.title))
    assert (drawn[0] is None) == (found.best is None)
    for sentence in findings.summary(found, 20):
        assert sentence[0].isupper() or sentence[0].isdigit()
        assert sentence.endswith(".")


def test_the_comparison_holds_accuracy_and_costs_of_each_network_and_its_points_to_the_teacher(search: Make) -> None:
    found = search([GOOD, STOPPED, BETTER])
    rows = [["".join(c.itertext()) for c in row] for row in ET.fromstring(sections.comparison(found)[0]).iter("tr")]
    header, teacher, best, plain, kd, *_ = rows
    assert header[:6] == ["network", "model", "accuracy", "points to teacher", "parameters", "MFLOPs"]
    assert teacher[2:5] == ["90.00%", "-", "400,000"]
    assert found.best is not None
    assert best[2:5] == ["70.00%", "-20.00", f"{found.best.params:,}"]
    assert float(best[header.index("memory, MB")]) == pytest.approx(found.best.costs["peak_memory_mb"], rel=0.01)
    assert plain[2:4] == ["60.00%", "-30.00"]
    assert kd[2:4] == ["-", "-"], "it was stopped early"


def test_progress_names_the_trial_that_reached_the_best(search: Make) -> None:
    found = figures.progress(search([GOOD, STOPPED, BETTER, GOOD, GOOD]))
    assert found is not None
    assert (
        found.title
        == "The highest accuracy, 70.00%, came with trial 2, number 3 of the 5 trained; the 2 after it did not raise it"
    )


def test_the_table_of_all_trials_reads_back(search: Make) -> None:
    found = search([GOOD, EVIL, BETTER])
    report.write_report(found, to := found.folder / "deep" / "down")
    with (to / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_accuracy"]) for row in rows] == [0.6, 0.1, 0.7]
    assert rows[1]["reason"] == EVIL
    assert rows[0]["train.epochs"] == "3"


def test_refused_draws_are_counted_by_their_reason() -> None:
    records = [
        made(0, "rejected", reason="outside the limits: params 300 > 200"),
        made(1, "rejected", reason="outside the limits: params 1.5e+06 > 200"),
        made(2, "duplicate", reason="the same configuration as trial 0"),
        made(3, "failed", reason="why"),
        made(4, "failed", reason="why"),
    ]
    counted = [("outside the limits: params > 200", 2), ("the same configuration as an earlier trial", 1)]
    assert findings.refusals(records) == counted
    assert findings.failures(records) == [("why", [3, 4])]


def test_a_line_begins_where_it_comes_above_the_axis() -> None:
    assert figures.visible([(1, 0.0), (2, 0.4), (3, 0.6)], 0.5) == [pytest.approx((2.5, 0.5)), (3, 0.6)]
    assert figures.visible([(1, 0.6), (2, 0.4)], 0.5) == [(1, 0.6), (2, 0.4)]
    assert figures.visible([(1, 0.1)], 0.5) == []


def test_a_few_low_values_do_not_squeeze_the_rest() -> None:
    scale = figures.window([0.1, *[0.9 + number / 1000 for number in range(20)]], [0.95])
    assert 0.8 < scale.low < 0.9
    assert scale.high > 0.95


# --- knobs


def test_a_term_that_is_drawn_absent_is_a_knob_of_two_values(search: Make) -> None:
    found = search([GOOD] * 8, search={"trials": 8, "sampler": "random", "arms": "none"})
    by_name = {knob.name: knob for knob in knobs.knobs(found.folder, found.records)}
    config = {r.number: r.config or {} for r in found.records}
    kd = by_name["terms.kd"]
    assert kd.choices == ("off", "on")
    assert {n: "on" if config[n]["terms"].get("kd") else "off" for n in kd.values} == kd.values
    assert all(config[n]["train"]["lr"] == value for n, value in by_name["train.lr"].values.items())
    assert by_name["train.lr"].log
    assert set(by_name["terms.kd.weight"].values) < set(kd.values)


def test_the_knob_that_matters_has_the_highest_importance_and_few_trials_give_none() -> None:
    rng = random.Random(0)
    lr = {n: rng.uniform(0.01, 0.3) for n in range(40)}
    model = {n: rng.choice(["a", "b"]) for n in range(40)}
    drawn = [Drawn("lr", lr, log=True), Drawn("model", model, ("a", "b")), Drawn("rare", {3: 1.0, 4: 2.0})]
    accuracies = {n: 0.5 + 0.3 * (model[n] == "b") + 0.1 * lr[n] for n in range(40)}
    shares = knobs.importances(drawn, accuracies)
    assert set(shares) == {"lr", "model"}, "of those that all trials have"
    assert shares["model"] > 0.8 > shares["lr"]
    assert sum(shares.values()) <= 1 + 1e-9
    assert shares == knobs.importances(drawn, accuracies)
    together = {n: 0.5 + 0.3 * ((model[n] == "b") == (lr[n] > 0.155)) for n in range(40)}
    assert sum(knobs.importances(drawn, together).values()) < 0.8, "what knobs explain only together counts for none"
    assert knobs.importances(drawn, {n: accuracies[n] for n in range(knobs.FEWEST - 1)}) == {}
    assert knobs.importances(drawn, dict.fromkeys(range(40), 0.5)) == {}


# --- many trials


def test_what_is_drawn_and_listed_of_many_trials_is_bounded() -> None:
    rng = random.Random(0)
    curve = dict.fromkeys(range(1, 21), 0.5)
    status: tuple[Status, ...] = ("complete", "pruned")
    records = [made(n, status[n % 2], rng.random(), accuracies=curve) for n in range(5000)]
    found = SearchFolder("first", Path("nowhere"), records, FACTS)
    values = {r.number: rng.random() for r in records if r.status == "complete"}
    parts = [sections.knobs(found, [Drawn(f"knob {n}", values) for n in range(40)]), sections.trials(found)]
    drawn = [figures.accuracy_against_size(found), figures.progress(found), figures.learning_curves(found)]
    svgs = [one.chart.svg(one.title) for one in drawn if one]
    assert sum(map(len, svgs)) + sum(len("".join(part)) for part in parts) < 1_000_000
    assert all("are drawn" in one.caption for one in drawn if one)
    for svg in svgs[:2]:
        assert svg.count("h0") + svg.count("<circle") <= figures.MOST_DOTS + 50
    assert svgs[2].count('class="line') <= figures.MOST_CURVES + 1
    assert "The first 24 of 40 knobs are drawn." in parts[0][1]
    assert "The first 200 of 5,000 trials" in parts[1][0]


def test_importances_of_many_trials_are_computed_from_some(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    values = {n: rng.random() for n in range(3000)}
    monkeypatch.setattr(knobs, "TREES", 4)
    assert knobs.importances([Drawn("lr", values)], values) == {"lr": pytest.approx(1.0, abs=0.05)}


def test_the_teacher_is_said_to_know_the_images_perhaps_where_it_was_loaded(search: Make) -> None:
    found = search([GOOD])
    assert "may have been trained on" not in dict(sections.facts(found, None))["teacher"]
    loaded = replace(found, facts={**found.facts, "teacher": {**found.facts["teacher"], "familiar": True}})
    assert "measured on images that it may have been trained on" in dict(sections.facts(loaded, None))["teacher"]
