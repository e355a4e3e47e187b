"""What machines cost: prices, the machines of a file for `ray up`, a quote of them, and the hours of nodes so far."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from hksd.errors import UserError
from hksd_search.estimate.forecast import Span
from hksd_search.money import fleet as fleets
from hksd_search.money import prices as price_files
from hksd_search.money.fleet import Fleet
from hksd_search.money.node_hours import HOUR, Bill, Rate, Stay, bill, rates
from hksd_search.money.prices import Price, Prices
from hksd_search.money.quote import needed, quote

ROOT = Path(__file__).resolve().parents[2]
PRICES = Prices(
    machines={
        "aws": {
            "us-west-2": {
                "m6i.xlarge": Price(on_demand=0.25, cpus=4, gpus=0),
                "g5.xlarge": Price(on_demand=1.0, spot=0.5, cpus=4, gpus=1),
                "g6.xlarge": Price(on_demand=0.75, cpus=4, gpus=1),
            }
        }
    }
)
TREE: dict[str, Any] = {
    "max_workers": 4,
    "idle_timeout_minutes": 6,
    "provider": {"type": "aws", "region": "us-west-2"},
    "head_node_type": "head",
    "available_node_types": {
        "spare": {"max_workers": 1, "node_config": {"InstanceType": "g5.xlarge"}, "resources": {}},
        "head": {"resources": {"CPU": 0}, "node_config": {"InstanceType": "m6i.xlarge"}},
        "fast": {
            "max_workers": 3,
            "priority": 10,
            "node_config": {"InstanceType": "g5.xlarge", "InstanceMarketOptions": {"MarketType": "spot"}},
        },
    },
}


def made(change: Callable[[dict[str, Any]], Any] = lambda tree: None) -> Fleet:
    tree = copy.deepcopy(TREE)
    change(tree)
    return fleets.of_tree(tree, "c.yaml", PRICES)


def test_every_figure_that_comes_with_hksd_has_a_source_and_a_date_and_no_spot_price_is_made_up() -> None:
    shipped = price_files.known()
    found = [price for regions in shipped.machines.values() for there in regions.values() for price in there.values()]
    assert found
    for price in found:
        assert price.source
        assert re.fullmatch(r"20\d\d-\d\d-\d\d", price.date)
        assert price.on_demand is not None
        assert price.cpus
        assert price.gpus is not None
        assert price.spot is None


def test_all_machines_of_the_projects_own_cluster_have_a_price() -> None:
    prices = price_files.known()
    found = fleets.read(ROOT / "cluster.yaml", prices)
    assert [kind.machine for kind in found.kinds if fleets.Fleet.price(found, kind, prices).on_demand is None] == []
    assert found.head.machine == "m6i.xlarge"
    assert found.head.cpu == 0
    assert all(kind.gpu == 1 for kind in found.workers)
    assert {kind.spot for kind in found.workers} == {True, False}


def test_ones_own_prices_come_first_figure_by_figure(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("machines: {aws: {us-west-2: {g5.xlarge: {spot: 0.4}, big.one: {on_demand: 9}}}}\n")
    known = price_files.known(file)
    mine = known.find("aws", "us-west-2", "g5.xlarge")
    assert mine is not None
    assert (mine.spot, mine.on_demand, mine.gpus, mine.source) == (0.4, 1.006, 1, str(file))
    other = known.find("aws", "us-west-2", "g6.xlarge")
    assert other is not None
    assert other.on_demand == 0.8048
    file.write_text("currency: EUR\nmachines: {aws: {us-west-2: {g5.xlarge: {spot: 0.4}}}}\n")
    assert price_files.known(file).find("aws", "us-west-2", "g6.xlarge") is None, "dollars are no euros"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "machines: {aws: {us-west-2: {g5.xlarge: {spott: 1}}}}",
            "spott (line 1): unknown key; did you mean 'spot'? (allowed",
        ),
        ("machines: {aws: {us-west-2: {g5.xlarge: {spot: -1}}}}", "spot (line 1): must be at least 0"),
        ("machines: {aws: {us-west-2: {g5.xlarge: {spot: dear}}}}", "spot (line 1): must be a number"),
        ("machines: {aws: {us-west-2: 5}}", "machines.aws.us-west-2 (line 1): must be a section of keys"),
        ("machine: {}", "unknown key; did you mean 'machines'?"),
        ("machines: {}", "machines: has no price"),
        ("machines: {aws: {us-west-2: {g5.xlarge: }}}", "machines.aws.us-west-2.g5.xlarge (line 1): must be a section"),
        ("currency: EUR", "machines: this key is required"),
    ],
)
def test_a_file_of_prices_that_is_wrong_is_told_with_its_key_path(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text + "\n")
    with pytest.raises(UserError) as told:
        price_files.known(file)
    assert message in str(told.value)


def test_the_head_comes_first_and_workers_as_ray_starts_them() -> None:
    found = made()
    assert [kind.name for kind in found.kinds] == ["head", "fast", "spare"]
    assert [(kind.spot, kind.cpu, kind.gpu) for kind in found.workers] == [(True, 4, 1), (False, 4, 1)]
    assert found.whole() == [(found.workers[0], 3), (found.workers[1], 1)]
    assert found.resources() == (16, 4)


def test_nodes_that_are_always_up_are_counted_whatever_their_priority() -> None:
    found = made(lambda tree: tree["available_node_types"]["spare"].update(min_workers=1) or tree.update(max_workers=2))
    assert [(kind.name, count) for kind, count in found.whole()] == [("fast", 1), ("spare", 1)]
    assert [(kind.name, count) for kind, count in needed(found, 1, 1, 1)] == [("fast", 1), ("spare", 1)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree.pop("provider"), "provider: this key is required"),
        (lambda tree: tree["provider"].update(type="local"), "provider.type: machines of local have no prices"),
        (lambda tree: tree.update(head_node_type="haed"), "head_node_type: haed is none of available_node_types; did"),
        (lambda tree: tree.update(max_workers="many"), "max_workers: must be a number from 0 (got 'many')"),
        (lambda tree: tree.update(max_workers=1.5), "max_workers: must be a whole number"),
        (lambda tree: tree["available_node_types"].update(fast=5), "available_node_types.fast: must be a mapping"),
        (
            lambda tree: tree["available_node_types"]["fast"]["node_config"].pop("InstanceType"),
            "available_node_types.fast.node_config.InstanceType: this key is required",
        ),
        (
            lambda tree: tree["available_node_types"]["fast"]["node_config"].update(InstanceType="g5.xlarg"),
            "available_node_types.fast: what it has is not known: write resources: {CPU: .., GPU: ..}, or g5.xlarg in "
            "us-west-2; did you mean 'g5.xlarge'?; give it with --prices FILE, which says "
            "`machines: {aws: {us-west-2: {g5.xlarg: {cpus: 4, gpus: 1, on_demand: 1.0}}}}`",
        ),
    ],
)
def test_a_file_of_a_cluster_that_is_wrong_is_told_with_its_key_path(
    change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    with pytest.raises(UserError) as told:
        made(change)
    assert str(told.value).startswith("c.yaml: ")
    assert message in str(told.value)


@pytest.mark.parametrize("text", ["", "5", "[1]", "a: [", "a: !!python/name:os.x 1", "a: 1\n" * 100_000, "\xff"])
def test_what_is_no_file_of_a_cluster_is_told_without_a_trace(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"c\.yaml"):
        fleets.read(tmp_path / "c.yaml", PRICES)


def test_the_file_for_google_cloud_is_read_too() -> None:
    tree = {
        **TREE,
        "provider": {"type": "gcp", "region": "us-central1"},
        "available_node_types": {
            "head": {"resources": {"CPU": 0, "GPU": 0}, "node_config": {"machineType": "e2-standard-4"}},
            "l4": {
                "resources": {"CPU": 4, "GPU": 1},
                "max_workers": 2,
                "node_config": {"machineType": "zones/a/g2-standard-4", "scheduling": {"provisioningModel": "SPOT"}},
            },
        },
    }
    found = fleets.of_tree(tree, "c.yaml", PRICES)
    (worker,) = found.workers
    assert (worker.machine, worker.spot, worker.gpu) == ("g2-standard-4", True, 1)
    lacking = quote(found, PRICES, needed(found, 1, 1, 1.0), Span(1, 1, 1), 0).lacking
    assert [text.partition(" in ")[0] for text in lacking] == [
        "on demand price of e2-standard-4",
        "on demand price of g2-standard-4",
        "spot price of g2-standard-4",
    ]


def test_as_many_nodes_are_counted_as_the_trials_at_once_fill() -> None:
    found = made()
    for at_once, gpu, counts in ((1, 1.0, [1]), (3, 1.0, [3]), (4, 1.0, [3, 1]), (9, 1.0, [3, 1]), (8, 0.25, [2])):
        assert [count for _, count in needed(found, at_once, 1, gpu)] == counts, (at_once, gpu)
    assert [count for _, count in needed(found, 5, 2, 0.0)] == [3], "by cores: two trials a node"


def test_a_trial_that_fits_on_no_node_is_told() -> None:
    with pytest.raises(UserError, match=r"c\.yaml: available_node_types: .*no node has room for one"):
        needed(made(), 1, 8, 1.0)


def test_hours_and_money_are_those_of_the_nodes_while_they_are_up() -> None:
    found = made()
    made_quote = quote(found, PRICES, needed(found, 4, 1, 1.0), Span(1.0, 2.0, 4.0), teacher_hours=0.5)
    head, fast, spare = made_quote.lines
    assert head.hours.likely == 2
    assert fast.hours.likely == pytest.approx(2 + 2 * 1.5 + 3 * 0.1), "one makes the teacher, three idle for 6 min"
    assert spare.hours.likely == pytest.approx(1.5 + 0.1)
    hours = 2 + 3 + 0.3 + 1.6
    on_demand, spot, asked = made_quote.total("on_demand"), made_quote.total("spot"), made_quote.total("asked")
    assert on_demand is not None
    assert spot is not None
    assert asked is not None
    assert on_demand.likely == pytest.approx(0.25 * 2 + 1.0 * hours)
    assert spot.likely == pytest.approx(0.25 * 2 + 0.5 * hours), "the head is no spot machine"
    assert asked.likely == pytest.approx(0.25 * 2 + 0.5 * fast.hours.likely + 1.0 * spare.hours.likely)
    assert on_demand.low < on_demand.likely < on_demand.high
    assert made_quote.lacking == ()


def test_money_of_which_a_part_is_not_known_is_not_known_and_says_how_to_give_it() -> None:
    found = made(lambda tree: tree["available_node_types"]["fast"]["node_config"].update(InstanceType="g6.xlarge"))
    made_quote = quote(found, PRICES, needed(found, 1, 1, 1.0), Span(1, 1, 1), 0)
    assert made_quote.total("on_demand") is not None
    assert made_quote.total("spot") is None
    assert made_quote.total("asked") is None
    assert made_quote.lacking == (
        "spot price of g6.xlarge in us-west-2; give it with --prices FILE, which says "
        "`machines: {aws: {us-west-2: {g6.xlarge: {spot: 1.0}}}}`",
    )
    assert made_quote.facts()["total"]["spot"] is None


def test_a_machine_that_is_known_in_another_region_only_says_where() -> None:
    prices = price_files.known()
    assert "g5.xlarge in eu-west-9; it is known in us-west-2, us-east-1; give it" in prices.lack(
        "aws", "eu-west-9", "g5.xlarge", "on_demand: 1.0"
    )


@pytest.mark.parametrize("variant", ["aws", "gcp"])
def test_the_files_that_hksd_writes_itself_can_be_read(variant: str, tmp_path: Path) -> None:
    from hksd_search.cluster.files import Asked, compose

    made_file = tmp_path / "c.yaml"
    made_file.write_text(compose(variant, Asked(project="mine" if variant == "gcp" else None), ROOT, "3.12.3"))
    found = fleets.read(made_file, price_files.known())
    assert found.workers
    assert needed(found, 2, 1, 1.0)


# --- hours so far


def test_a_node_is_counted_from_when_it_came_until_it_went_or_now() -> None:
    stays = [Stay("h1", 0.0, 2 * HOUR), Stay("h2", HOUR), Stay("h3", 9 * HOUR)]
    assert bill(stays, lambda stay: Rate(2.0), now=3 * HOUR) == Bill(4.0, 8.0)


def test_a_node_that_is_told_twice_counts_once() -> None:
    stays = [Stay("h1", 0.0, HOUR), Stay("h1", 0.0, HOUR), Stay("h1", HOUR / 2, 2 * HOUR), Stay("h1", 3 * HOUR)]
    assert bill(stays, lambda stay: Rate(1.0), now=4 * HOUR) == Bill(3.0, 3.0)


@given(
    some.lists(
        some.tuples(some.sampled_from("abc"), some.floats(0, 50), some.one_of(some.none(), some.floats(0, 90))),
        max_size=12,
    )
)
def test_no_node_costs_more_than_it_can_have_been_up_and_none_less_than_nothing(stays: Any) -> None:
    now = 60.0
    found = bill([Stay(*stay) for stay in stays], lambda stay: Rate(1.0), now)
    assert 0 <= found.hours * HOUR <= now * len({name for name, *_ in stays}) + 1e-9
    assert found.money == pytest.approx(found.hours)


def test_the_price_of_a_node_is_that_of_its_node_type_else_of_what_it_has() -> None:
    rate = rates(made(), PRICES)
    assert rate(Stay("h", 0, kind="fast")) == Rate(0.5)
    assert rate(Stay("h", 0, kind="spare")) == Rate(1.0)
    assert rate(Stay("h", 0, kind="head")) == Rate(0.25)
    assert rate(Stay("h", 0, cpu=0, gpu=0)) == Rate(0.25)
    assert rate(Stay("h", 0, cpu=4, gpu=1)) == Rate(1.0, at_most=True), "spot or not: the dearer one"
    assert rate(Stay("h", 0, cpu=64)) == Rate(None)


def test_a_spot_machine_without_a_spot_price_costs_at_most_what_it_costs_on_demand() -> None:
    fleet = made(lambda tree: tree["available_node_types"]["fast"]["node_config"].update(InstanceType="g6.xlarge"))
    rate = rates(fleet, PRICES)
    assert rate(Stay("h", 0, kind="fast")) == Rate(0.75, at_most=True)
    found = bill([Stay("h", 0, HOUR, kind="fast"), Stay("x", 0, HOUR, cpu=64)], rate, now=2 * HOUR)
    assert found == Bill(2.0, 0.75, 1.0, ("x",), at_most=True)
