"""Latency of students: measured once, an objective and a limit like other costs, on this machine or on another."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from hksd.config.networks import StudentConfig
from hksd.deploy import latency
from hksd.deploy.latency import Latency
from hksd.errors import RunError, UserError
from hksd.models.size import size_of
from hksd_search.backend import connect
from hksd_search.backend.target import known_targets, on_target
from hksd_search.ledger import Ledger
from hksd_search.space.latency import FOLDER, Latencies, latencies_of
from hksd_search.space.ranges import evenly
from hksd_search.space.settings import LatencySettings
from hksd_search.space.sizes import HALVINGS, MEASURED, Meter, check_feasible, measure_ahead, within
from hksd_search.space.space import Space

Make = Callable[..., Any]
SETTINGS = LatencySettings(runs=10)
SMALL = StudentConfig(model="resnet8", width=0.25)


class Spy:
    """Counts real measurements."""

    def __init__(self) -> None:
        self.measure, self.count = latency.measure, 0

    def __call__(self, *arguments: Any) -> Latency:
        self.count += 1
        return self.measure(*arguments)


@pytest.fixture(autouse=True, scope="module")
def translated_once() -> Iterator[None]:
    """Networks stand in for each other: for images of one shape one network alone is written as ONNX, and once."""

    @functools.cache
    def known(image: tuple[tuple[str, int], ...]) -> bytes:
        return untrained(SMALL.spec(), **dict(image))

    untrained = latency.untrained
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "untrained", lambda spec, **image: known(tuple(image.items())))
        yield


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Spy:
    spy = Spy()
    monkeypatch.setattr(latency, "measure", spy)
    return spy


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of searches whose latencies tests share, as searches do."""
    return tmp_path_factory.mktemp("runs")


def stored(runs: Path) -> list[Path]:
    return sorted((runs / FOLDER).glob("*.json"))


# --- measured once


def test_what_one_search_measured_another_does_not_measure_again(
    tmp_path: Path, shape: dict[str, int], measured: Spy
) -> None:
    first = Latencies(tmp_path, SETTINGS, shape, on_target)
    found = first.get(SMALL)
    assert first.get(SMALL) is found
    assert Latencies(tmp_path, SETTINGS, shape, on_target).get(SMALL) == found
    assert (measured.count, len(stored(tmp_path))) == (1, 1)
    assert found.runs == 10


@pytest.mark.parametrize(
    "changed",
    [
        {"settings": LatencySettings(runs=10, threads=2)},
        {"settings": LatencySettings(runs=20)},
        {"shape": {"in_channels": 3, "classes": 10, "image_size": 8}},
        {"network": StudentConfig(model="resnet8", width=0.3)},
    ],
    ids=["threads", "runs", "images", "network"],
)
def test_another_protocol_shape_or_network_is_another_latency(
    changed: dict[str, Any], runs: Path, shape: dict[str, int], measured: Spy
) -> None:
    Latencies(runs, SETTINGS, shape, on_target).get(SMALL)
    before = measured.count
    settings, images = changed.get("settings", SETTINGS), changed.get("shape", shape)
    found = Latencies(runs, settings, images, on_target).get(changed.get("network", SMALL))
    assert measured.count == before + 1
    assert (found.threads, found.runs) == (settings.threads, settings.runs)


def test_a_network_whose_code_has_changed_is_measured_again(
    tmp_path: Path, shape: dict[str, int], measured: Spy, monkeypatch: pytest.MonkeyPatch
) -> None:
    Latencies(tmp_path, SETTINGS, shape, on_target).get(SMALL)
    size = size_of(SMALL.spec(), **shape)
    grown = dataclasses.replace(size, flops=size.flops + 2)
    monkeypatch.setattr("hksd_search.space.latency.size_of", lambda *_, **__: grown)
    Latencies(tmp_path, SETTINGS, shape, on_target).get(SMALL)
    assert measured.count == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[:-20],
        lambda text: "[]",
        lambda text: text.replace("median_ms", "median"),
        lambda text: text.replace('"median_ms": ', '"median_ms": -'),
        lambda text: text.replace('"median_ms": ', '"median_ms": NaN, "_": '),
        lambda text: text.replace("resnet8", "resnet9"),
    ],
    ids=["empty", "cut", "other", "key", "negative", "nan", "of another"],
)
def test_a_damaged_file_is_measured_again_and_mended(
    damage: Callable[[str], str],
    runs: Path,
    shape: dict[str, int],
    measured: Spy,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    Latencies(runs, SETTINGS, shape, on_target).get(SMALL)
    own = next(path for path in stored(runs) if json.loads(path.read_text())["of"]["network"]["width"] == 0.25)
    copy = tmp_path / FOLDER / own.name
    copy.parent.mkdir()
    for path in stored(runs):
        (copy.parent / path.name).write_text(damage(path.read_text()))
    before = measured.count
    found = Latencies(tmp_path, SETTINGS, shape, on_target).get(SMALL)
    assert measured.count == before + 1
    assert "damaged; the latency is measured again" in caplog.text
    assert Latencies(tmp_path, SETTINGS, shape, on_target).get(SMALL) == found
    assert measured.count == before + 1


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, shape: dict[str, int]) -> None:
    (tmp_path / FOLDER).write_text("")
    with pytest.raises(UserError, match=f"{FOLDER}: cannot be written: "):
        Latencies(tmp_path, SETTINGS, shape, on_target).get(SMALL)


# --- limits and objectives


@pytest.fixture
def meter_of(runs: Path, shape: dict[str, int]) -> Callable[[Space], Meter]:
    """meter_of(space): measures as a search of that space does."""
    return lambda space: Meter(shape, latencies_of(space.search, runs, shape, on_target), space.search.limits)


@pytest.fixture
def latency_space(make_space: Make) -> Callable[..., Space]:
    """latency_space(limits): four students, searched for accuracy and latency."""

    def make(**limits: float) -> Space:
        settings = {"trials": 6, "minimize": ["latency_ms"], "limits": limits, "latency": {"runs": 10}}
        return make_space(search=settings)  # type: ignore[no-any-return]

    return make


def latencies(space: Space, meter: Meter) -> dict[StudentConfig, float]:
    """Latency of every student of `latency_space`."""
    students = [StudentConfig(model=m, width=w) for m in ("resnet8", "resnet14") for w in (0.25, 0.5)]
    return {student: meter.costs(student)["latency_ms"] for student in students}


def test_latency_is_measured_only_where_it_is_asked_for(
    make_space: Make, meter_of: Callable[[Space], Meter], measured: Spy
) -> None:
    assert set(meter_of(make_space()).costs(SMALL)) == {"params", "mflops", "peak_memory_mb"}
    for search in ({"minimize": ["latency_ms"]}, {"limits": {"latency_ms": 5}}):
        costs = meter_of(make_space(search=search)).costs(SMALL)
        assert 0 < costs["latency_ms"] <= costs["latency_p95_ms"]
    tight = make_space(search={"minimize": ["latency_ms"], "limits": {"params": 10}})
    before = measured.count
    assert "latency_ms" not in meter_of(tight).costs(SMALL)
    assert measured.count == before


def test_trials_are_worth_the_latency_of_their_students_and_none_is_above_the_limit(
    latency_space: Make, meter_of: Callable[[Space], Meter], train: Make, tmp_path: Path
) -> None:
    found = latencies(latency_space(), meter_of(latency_space()))
    limit = sorted(found.values())[2]
    space = latency_space(latency_ms=limit)
    meter = meter_of(space)
    largest = check_feasible(space, meter)
    fast = [student for student, value in found.items() if value <= limit]
    assert largest == max(fast, key=lambda student: meter.costs(student)["params"])
    ledger = Ledger(space, tmp_path, meter, largest)
    while (assignment := ledger.next()) is not None:
        assert assignment.costs["latency_ms"] == found[assignment.config.student] <= limit
        train(ledger, assignment, (0.1, 0.2, 0.3))
    for record, trial in zip(ledger.records(), ledger.study.get_trials(deepcopy=False), strict=True):
        if record.status == "complete":
            assert trial.values == [0.3, record.costs["latency_ms"]]
            assert record.flat()["latency_p95_ms"] >= record.costs["latency_ms"]
        else:
            assert record.status == "duplicate" or (record.reason or "").startswith("outside the limits: latency_ms ")


def test_a_resumed_trial_keeps_the_latency_that_it_was_given_out_with(
    latency_space: Make, meter_of: Callable[[Space], Meter], tmp_path: Path, shape: dict[str, int]
) -> None:
    space = latency_space()
    largest = check_feasible(space, meter_of(space))
    ledger = Ledger(space, tmp_path, meter_of(space), largest)
    before = ledger.next()
    ledger.interrupt()
    elsewhere = Meter(shape, Made(tmp_path, shape, lambda student: 1000.0))
    again = Ledger(space, tmp_path, elsewhere, largest).next()
    assert before is not None and again is not None and again.resumed
    assert again.costs == before.costs


def test_an_impossible_limit_on_latency_is_named_with_the_smallest_that_can_be_reached(
    latency_space: Make, meter_of: Callable[[Space], Meter]
) -> None:
    space = latency_space(latency_ms=1e-6, params=1_000_000)
    meter = meter_of(space)
    least = min(latencies(space, meter).values())
    with pytest.raises(UserError, match=r"limits\.params = 1e\+06 is possible alone") as caught:
        check_feasible(space, meter)
    assert f"limits.latency_ms = 1e-06 is impossible: the smallest reachable is {least:g} (resnet" in str(caught.value)


def test_few_students_are_all_measured_ahead(
    make_space: Make, meter_of: Callable[[Space], Meter], shape: dict[str, int], tmp_path: Path
) -> None:
    told: list[tuple[str, int, int]] = []
    search = {"minimize": ["latency_ms"]}
    for width, count in ((BASE_WIDTHS, 4), ({"choice": [x / 100 for x in range(1, 34)]}, 0), (CONTINUOUS, 0)):
        space = make_space(student={"width": width}, search=search)
        made = Made(tmp_path, shape, lambda student: 1.0)
        measure_ahead(space, Meter(shape, made), lambda *facts: told.append(facts))
        assert len(made.asked) == count
    assert told == [("measuring latency", done, 4) for done in (1, 2, 3, 4)]


# --- the largest student, of latencies that are made up

BASE_WIDTHS, CONTINUOUS = {"choice": [0.25, 0.5]}, {"uniform": [0.25, 2.0]}


class Made(Latencies):
    """Made-up latencies; remembers for which students it was asked."""

    def __init__(self, runs: Path, shape: dict[str, int], of: Callable[[StudentConfig], float]):
        super().__init__(runs, SETTINGS, shape, on_target)
        self.of, self.asked = of, set[Any]()

    def get(self, network: Any) -> Latency:
        self.asked.add(network)
        value = self.of(network)
        return Latency(value, value, 10, 1, "made up", "made up")


@pytest.mark.parametrize(
    ("student", "at_most"),
    [
        ({"model": {"choice": ["resnet8", "resnet14"]}, "width": CONTINUOUS}, 2 * (HALVINGS + 2)),
        ({"model": {"choice": ["resnet8", "resnet14"]}, "width": {**CONTINUOUS, "step": 0.25}}, 2 * (HALVINGS + 2)),
        ({"model": {"choice": ["resnet8", "resnet14"]}, "width": {"choice": [0.25, 0.5, 1.0, 1.5]}}, 8),
        ({"model": "resnet8", "width": {"choice": [x / 100 for x in range(25, 95)]}}, MEASURED),
        ({"model": "resnet8", "width": CONTINUOUS, "descriptor_dim": {"int": [4, 64]}}, HALVINGS + 2),
        ({"model": "resnet8", "width": CONTINUOUS, "descriptor_dim": {"choice": list(range(4, 16))}}, MEASURED),
    ],
    ids=["range", "steps", "choices", "many choices", "two ranges", "many ranges"],
)
@pytest.mark.parametrize("limit", [1.06, 1.8, 10.0])
def test_the_largest_student_keeps_a_limit_on_latency_nearly_used_up_with_few_measurements(
    limit: float, student: dict[str, Any], at_most: int, make_space: Make, shape: dict[str, int], tmp_path: Path
) -> None:
    space = make_space(student=student, search={"limits": {"latency_ms": limit, "params": 500_000}})
    made = Made(tmp_path, shape, lambda student: 1.0 + size_of(student.spec(), **shape).params / 100_000)
    meter = Meter(shape, made, space.search.limits)
    largest = check_feasible(space, meter)
    costs = meter.costs(largest)
    assert within(space.search.limits, costs) == []
    assert len(made.asked) <= at_most
    free = Meter(shape).sizes(
        check_feasible(make_space(student=student, search={"limits": {"params": 500_000}}), Meter(shape))
    )
    reachable = min(free["params"], (limit - 1.0) * 100_000)
    assert costs["params"] > 0.3 * reachable
    if limit == 10.0:
        assert costs["params"] == free["params"]
        assert len(made.asked) == 1


def test_of_many_things_some_are_left_first_and_last_among_them() -> None:
    assert evenly([1, 2, 3], 3) == [1, 2, 3]
    few = evenly(range(1000), 7)
    assert (len(few), few[0], few[-1]) == (7, 0, 999)


# --- targets


def test_a_target_without_a_cluster_is_an_error_before_anything_is_measured(
    tmp_path: Path, shape: dict[str, int]
) -> None:
    there = Latencies(tmp_path, LatencySettings(target="board"), shape, on_target)
    with pytest.raises(
        UserError, match=r"search\.latency\.target: no node has the resource 'board' \(there are: local\)"
    ):
        there.facts()


@pytest.fixture
def cluster() -> Iterator[None]:
    """A Ray with one node, whose custom resource is called board."""
    connect.prepare(None)
    ray.init(
        num_cpus=1, resources={"board": 1}, include_dashboard=False, _node_ip_address="127.0.0.1", logging_level=40
    )
    yield
    ray.shutdown()


def test_a_target_is_a_node_of_the_cluster_and_an_unknown_one_is_told_with_those_there_are(
    cluster: None, tmp_path: Path, shape: dict[str, int]
) -> None:
    found = Latencies(tmp_path, LatencySettings(target="board", runs=10), shape, on_target)
    assert found.get(SMALL).median_ms > 0
    assert found.facts()["target"] == json.loads(stored(tmp_path)[0].read_text())["of"]["target"] == "board"
    wrong = Latencies(tmp_path, LatencySettings(target="bord"), shape, on_target)
    with pytest.raises(UserError, match=r"'bord'; did you mean 'board'\? \(there are: local, board\)"):
        wrong.get(SMALL)
    with pytest.raises(RunError, match=r"search\.latency\.target: 'board' cannot measure: .*Expecting value"):
        on_target("board", json.loads, "no-such-word")


def test_resources_of_rays_own_are_no_targets() -> None:
    assert known_targets({"CPU": 4, "GPU": 1, "memory": 1, "node:10.0.0.1": 1, "accelerator_type:A10": 1, "pi": 1}) == [
        "pi"
    ]
