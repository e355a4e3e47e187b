"""What a search loses of its cluster while it runs, and goes on without."""

from __future__ import annotations

import pytest
from launcher import Cluster
from searches import SMALL, Search

pytestmark = pytest.mark.cluster
EPOCHS = 40


def begun(cluster: Cluster, name: str, trials: int = 3) -> Search:
    """A search of which two trials have a checkpoint, one on each worker."""
    options = f"--trials {trials} --address auto {SMALL} --set train.epochs={EPOCHS}"
    search = cluster.start(f"search quickstart --name {name} {options}")
    search.wait_until(lambda: cluster.checkpoints(name) >= 2 and all(map(cluster.trials_on, cluster.workers)))
    return search


def must_be_whole(cluster: Cluster, name: str, trials: int = 3) -> None:
    """All trials came to their end, in one run each, with every epoch once."""
    facts = cluster.facts(name)
    facts.must_agree()
    assert [record.epoch for record in facts.trained if record.status == "complete"] == [EPOCHS] * trials


def test_a_trial_whose_machine_loses_its_power_goes_on_on_another_one_in_the_same_run(whole: Cluster) -> None:
    search = begun(whole, "power")
    before = {number: run.info.run_id for number, run in whole.facts("power").children.items()}
    whole.workers[0].kill()
    search.must_end_well()
    must_be_whole(whole, "power")
    after = {number: run.info.run_id for number, run in whole.facts("power").children.items()}
    assert len(before) == 2 and before.items() <= after.items()
