"""The end of a cluster."""

from __future__ import annotations

import onprem
import pytest
from launcher import Cluster

pytestmark = pytest.mark.cluster


def left(cluster: Cluster) -> list[str]:
    """Processes of Ray, MLflow or hksd on any machine."""
    lines = [line for machine in cluster.machines if machine.on for line in machine.processes().values()]
    return [line[:100] for line in lines if any(word in line for word in ("ray", "mlflow", "hksd"))]


def test_ray_down_and_the_documented_command_leave_nothing_running_on_any_machine(cluster: Cluster) -> None:
    assert left(cluster)
    cluster.down()
    file = cluster.laptop.shell(f"cat {cluster.file}").stdout
    cluster.laptop.shell(onprem.stop_command(file), timeout=90)
    assert left(cluster) == []
