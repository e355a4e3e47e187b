"""What the machines of a cluster say to a machine of their network that has neither the key nor the token."""

from __future__ import annotations

import doors
import onprem
import pytest
from launcher import Cluster
from machines import Machine
from searches import First

pytestmark = pytest.mark.cluster

METRICS = "HTTP 200 to every GET"
OPEN = {  # and nothing else: what a security group has to keep to the cluster
    ("agent", METRICS),
    ("autoscaler", METRICS),
    ("dashboard", METRICS),
    ("MLflow", "HTTP 200 to GET /health"),
}
CLOSED = {"GCS", "raylet", "Ray client server", "agent", "agent for runtime environments", "search", "trial", "sshd"}


def test_no_other_port_than_the_known_ones_answers_without_the_token(first: First) -> None:
    assert {door.owner for door in first.doors} >= CLOSED, doors.table(first.doors)
    assert {(door.owner, door.says) for door in first.doors if door.open} <= OPEN, doors.table(first.doors)


def test_the_table_of_the_docs_names_every_door(first: First) -> None:
    told = (onprem.ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    untold = [row for row in doors.table(first.doors).splitlines() if row not in told]
    assert not untold, "\n".join(untold)


def test_the_dashboard_is_not_reachable_from_the_network(first: First) -> None:
    assert ("head", "dashboard", "8265", "loopback", "not reachable", False) in first.doors


NODES = (
    "from ray._raylet import GcsClient; print(len(GcsClient(address='10.77.0.11:6379').get_all_node_info()), 'nodes')"
)


def test_who_has_the_token_gets_in_and_nobody_else(first: First, cluster: Cluster, stranger: Machine) -> None:
    token = (cluster.laptop.home / ".hksd" / "auth_token").read_text()
    inside = stranger.shell(f'RAY_AUTH_MODE=token RAY_AUTH_TOKEN={token} python -c "{NODES}"')
    assert inside.stdout == "3 nodes\n"
    for way in ("RAY_AUTH_MODE=disabled", f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN={'0' * 64}"):
        outside = stranger.shell(f'{way} python -c "{NODES}"', check=False)
        assert outside.returncode == 1 and "InvalidAuthToken" in outside.stderr, outside
