"""A cluster on machines that are there already: they join, and a search uses them."""

from __future__ import annotations

import json

import pytest
from launcher import Cluster
from searches import SMALL, First

pytestmark = pytest.mark.cluster


def test_every_machine_joins_the_cluster(cluster: Cluster) -> None:
    assert cluster.nodes(3) == [machine.address for machine in cluster.machines]


class TestFirstSearch:
    """A search by `ray exec` from the laptop."""

    def test_ends_well_with_the_number_of_trials_that_was_asked_for(self, cluster: Cluster, first: First) -> None:
        assert first.code == 0, first.text
        complete = [record for record in cluster.facts("first").records if record.status == "complete"]
        assert [record.epoch for record in complete] == [6] * 6

    def test_study_store_and_folder_agree_and_every_epoch_is_there_once(self, cluster: Cluster, first: First) -> None:
        cluster.facts("first").must_agree()

    def test_trains_on_every_worker_and_not_on_the_head(self, cluster: Cluster, first: First) -> None:
        assert first.places == {machine.name for machine in cluster.workers}, first.text

    def test_the_run_of_a_trial_says_on_which_machine_it_trained(self, cluster: Cluster, first: First) -> None:
        runs = cluster.facts("first").children.values()
        assert {run.data.tags["hksd.node"] for run in runs} == {machine.name for machine in cluster.workers}

    def test_the_teacher_is_trained_on_a_worker(self, cluster: Cluster, first: First) -> None:
        facts = json.loads((cluster.runs / "first" / "search.json").read_text())
        assert facts["teacher"]["node"] in {machine.name for machine in cluster.workers}


def test_a_folder_of_runs_that_nodes_do_not_share_is_refused_before_anything_is_trained(whole: Cluster) -> None:
    search = whole.start(f"search quickstart --runs own --name apart --trials 2 --address auto {SMALL}")
    assert search.wait(60) == 2, search.text
    assert "not shared" in search.text and "HKSD_RUNS" in search.text
    assert not list((whole.head.home / "own").glob("teachers/*/teacher.safetensors"))


def test_a_search_whose_driver_is_killed_goes_on_from_another_machine(whole: Cluster) -> None:
    search = whole.start(f"search quickstart --name killed --trials 3 --address auto {SMALL} --set train.epochs=20")
    search.wait_until(lambda: whole.checkpoints("killed") >= 2)
    assert whole.head.signal("bin/hksd search")
    assert search.wait(30) != 0
    before = whole.facts("killed").children
    again = whole.start("search killed --resume --address auto", on=whole.workers[0])
    again.must_end_well()
    facts = whole.facts("killed")
    facts.must_agree()
    assert [record.epoch for record in facts.records if record.status == "complete"] == [20] * 3
    assert before and {number: facts.children[number].info.run_id for number in before} == {
        number: run.info.run_id for number, run in before.items()
    }
