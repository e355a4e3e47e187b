"""Clusters that really run, on machines out of namespaces of the kernel.

`make test-cluster` and `make test-cloud` ask for them; a run of all tests leaves them out.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path

import doors
import image
import needs
import onprem
import pytest
from cloud import SWITCH, Cloud
from doors import Door
from launcher import Cluster
from machines import Machine, Network
from searches import SMALL, First

HERE = Path(__file__).resolve().parent
ORDER = ("test_machines", "test_onprem", "test_doors", "test_losses", "test_gpus", "test_down", "test_cloud")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave clusters out unless a marker or a path asks for them; put the tests in order, many share a cluster."""
    mine = [item for item in items if HERE in item.path.parents]
    by_path = any(Path(word.partition("::")[0]).resolve().is_relative_to(HERE) for word in config.args)
    if not by_path and not re.search(r"\b(cluster|cloud)\b", config.option.markexpr):
        items[:] = [item for item in items if item not in mine]
        config.hook.pytest_deselected(items=mine)
        return
    mine.sort(key=lambda item: ORDER.index(item.path.stem))
    items[:] = [item for item in items if item not in mine] + mine


@pytest.fixture(scope="session")
def allowed() -> None:
    """Skip where machines cannot be made."""
    if lacking := needs.missing():
        pytest.skip(f"clusters need {'; '.join(lacking)}")


@pytest.fixture(scope="session")
def network(allowed: None) -> Iterator[Network]:
    """A network for the cluster on premises."""
    with Network() as made:
        yield made


@pytest.fixture(scope="session")
def cluster(network: Network) -> Cluster:
    """A head and two workers of one processor each, after `ray up`, with a shared folder of runs."""
    made = onprem.machines(network)
    made.up()
    return made


@pytest.fixture(scope="session")
def stranger(cluster: Cluster, network: Network) -> Machine:
    """A machine of the cluster's network that has neither the key nor the token."""
    return onprem.desk(network, "stranger", onprem.STRANGER, image.parts(network.folder / "image"), {})


@pytest.fixture(scope="session")
def cloud() -> Iterator[Cloud]:
    """An account at the imitation of AWS, prepared as the docs say; nothing runs there yet."""
    if lacking := needs.missing(cloud=True):
        pytest.skip(f"the imitation of AWS needs {'; '.join(lacking)}")
    with Network(SWITCH) as made:
        found = Cloud(made, onprem.desk)
        yield found
        found.close()


@pytest.fixture
def whole(cluster: Cluster) -> Cluster:
    """The cluster with all of its nodes, whatever happened to them in a test before."""
    for machine in cluster.machines:
        machine.mend()
        if not machine.on:
            machine.start()
    if len(cluster.nodes(3, 5)) < 3:
        cluster.up()
    assert len(cluster.nodes(3)) == 3
    return cluster


@pytest.fixture(scope="session")
def first(cluster: Cluster, stranger: Machine) -> First:
    """The first search, `first`, of six trials, by `ray exec` from the laptop."""
    search = cluster.exec(f"hksd search quickstart --name first --trials 6 --address auto {SMALL} --set train.epochs=6")
    places, found = set[str](), list[Door]()
    while search.process.poll() is None:
        training = [machine for machine in cluster.machines if cluster.trials_on(machine)]
        places |= {machine.name for machine in training}
        if len(training) > 1 and not found:
            found = doors.survey(cluster.machines, stranger)
        time.sleep(0.3)
    return First(search.wait(), search.text, places, found)
