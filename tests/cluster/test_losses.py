"""What a search loses of its cluster while it runs, and goes on without."""

from __future__ import annotations

import signal
import time

import pytest
from launcher import Cluster
from searches import SMALL, Search

pytestmark = pytest.mark.cluster
OUTAGE_S = 60.0


def begun(cluster: Cluster, name: str, trials: int = 3, epochs: int = 30) -> Search:
    """A search of which two trials have a checkpoint; one trains on the first worker, which will be lost."""
    options = (
        f"--name {name} --trials {trials} --address auto {SMALL} --set train.epochs={epochs} --set train.batch_size=16"
    )
    search = cluster.start(f"search quickstart {options}")
    search.wait_until(lambda: cluster.checkpoints(name) >= 2 and bool(cluster.trials_on(cluster.workers[0])))
    return search


def runs(cluster: Cluster, name: str) -> dict[int, str]:
    """The run of each trial in the store."""
    return {number: run.info.run_id for number, run in cluster.facts(name).children.items()}


def places(cluster: Cluster, name: str) -> list[set[str]]:
    """The machines on which each trial has trained."""
    return [set(run.data.tags["hksd.node"].split(", ")) for run in cluster.facts(name).children.values()]


def must_be_whole(cluster: Cluster, name: str, before: dict[int, str], trials: int = 3, epochs: int = 30) -> None:
    """All trials came to their end, in the runs that they had before, with every epoch once."""
    facts = cluster.facts(name)
    facts.must_agree()
    assert [record.epoch for record in facts.records if record.status == "complete"] == [epochs] * trials
    assert len(before) >= 2 and before.items() <= runs(cluster, name).items()


def test_a_trial_whose_machine_loses_its_power_goes_on_on_another_one(whole: Cluster) -> None:
    search = begun(whole, "power", epochs=15)
    before = runs(whole, "power")
    whole.workers[0].kill()
    search.must_end_well()
    must_be_whole(whole, "power", before, epochs=15)
    assert {"one", "two"} in places(whole, "power")


@pytest.mark.slow
def test_a_trial_whose_machine_is_cut_off_goes_on_on_another_one(whole: Cluster) -> None:
    search = begun(whole, "cable")
    before = runs(whole, "cable")
    whole.workers[0].cut()
    time.sleep(OUTAGE_S)
    whole.workers[0].mend()
    search.must_end_well()
    must_be_whole(whole, "cable", before)
    assert {"one", "two"} in places(whole, "cable")


@pytest.mark.slow
def test_a_worker_that_is_told_to_end_gives_its_trial_back(whole: Cluster) -> None:
    search = begun(whole, "notice")
    before = runs(whole, "notice")
    assert whole.workers[0].signal("raylet/raylet", signal.SIGTERM)
    search.must_end_well()
    must_be_whole(whole, "notice", before)
    assert {"one", "two"} in places(whole, "notice")


@pytest.mark.slow
def test_a_search_whose_mlflow_is_gone_for_a_minute_has_every_record_in_the_end(whole: Cluster) -> None:
    search = begun(whole, "outage", trials=4, epochs=60)
    before = runs(whole, "outage")
    assert whole.head.signal("mlflow")
    time.sleep(OUTAGE_S)
    assert search.process.poll() is None, f"it was through too early:\n{search.text}"
    whole.head.shell("bash ~/hksd-cluster/start_mlflow.sh", timeout=150)
    search.must_end_well()
    if "hksd sync" in search.text:  # it was through before the server answered again, and says what to do then
        whole.start("sync outage").must_end_well()
    must_be_whole(whole, "outage", before, trials=4, epochs=60)


@pytest.mark.slow
def test_a_search_whose_head_starts_anew_goes_on_after_another_ray_up(whole: Cluster) -> None:
    search = begun(whole, "reboot")
    before = runs(whole, "reboot")
    whole.head.reboot()
    assert search.wait(60) != 0
    whole.up()
    assert len(whole.nodes(3, 150)) == 3
    again = whole.start("search reboot --resume --address auto")
    again.must_end_well()
    must_be_whole(whole, "reboot", before)
