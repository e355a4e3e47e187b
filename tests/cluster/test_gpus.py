"""Where trials are put on a cluster whose workers have GPUs, as far as Ray can be told that they have.

No GPU is there; what is checked is which machine a trial is put on, and which GPU it is told to use.
"""

from __future__ import annotations

from collections import Counter

import onprem
import pytest
from launcher import Cluster
from searches import SMALL

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
SPY = """
import os, socket
from hksd.models import build

def student(classes, in_channels, width, image_size):
    if os.environ.get("CUDA_VISIBLE_DEVICES") is not None:  # of a trial: the driver has none
        with open(os.path.join(os.path.dirname(__file__), "seen"), "a") as file:
            print(socket.gethostname(), os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"], file=file)
    return build("resnet8", classes=classes, in_channels=in_channels, width=width, image_size=image_size)
"""


@pytest.fixture(scope="module")
def gpus(cluster: Cluster) -> Cluster:
    """The cluster, each worker with two processors and one GPU."""
    (cluster.laptop.home / ".hksd" / "cluster.env").write_text(onprem.NODES % "--num-cpus=2 --num-gpus=1")
    for machine in cluster.machines:
        machine.mend()
        if not machine.on:
            machine.start()
    cluster.up()
    assert len(cluster.nodes(3)) == 3
    return cluster


def placed(cluster: Cluster, name: str, share: float) -> tuple[Counter[str], set[tuple[str, str]]]:
    """The most trials at once on each worker, and machine and GPU of every trial, of a search of six."""
    folder = cluster.runs / f"code-{name}"
    folder.mkdir()
    (folder / "spy.py").write_text(SPY)
    options = (
        f"--name {name} --trials 6 --address auto {SMALL.replace('student.model=resnet8', 'student.model=spy:student')}"
    )
    options += f" --set train.epochs=8 --set search.resources.gpu={share}"
    search = cluster.start(f"search quickstart {options}", folder=f"~/runs/{folder.name}")
    most = Counter[str]()
    while search.process.poll() is None:
        for machine in cluster.workers:
            most[machine.name] = max(most[machine.name], cluster.trials_on(machine))
    search.must_end_well()
    facts = cluster.facts(name)
    facts.must_agree()
    assert [record.epoch for record in facts.records if record.status == "complete"] == [8] * 6
    lines = (folder / "seen").read_text().splitlines()
    return most, {(line.split()[0], line.split()[2]) for line in lines}


def test_two_trials_of_half_a_gpu_share_the_gpu_of_each_worker(gpus: Cluster) -> None:
    most, places = placed(gpus, "halves", 0.5)
    assert most == {"one": 2, "two": 2}
    assert places == {("one", "0"), ("two", "0")}


def test_trials_of_a_whole_gpu_have_one_each_and_spread_over_the_workers(gpus: Cluster) -> None:
    most, places = placed(gpus, "whole", 1)
    assert most == {"one": 1, "two": 1}
    assert places == {("one", "0"), ("two", "0")}
