"""The repository's file for AWS, as it is but for three lines, against an imitation of AWS."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import launcher
import pytest
from books import Facts
from cloud import IMAGE, OWN_ADDRESS, Cloud
from launcher import PROJECT, Cluster
from searches import SMALL

pytestmark = pytest.mark.cloud
FILE = "~/cluster.yaml"
IDLE_S = 30


@dataclass
class Story:
    """What was seen of a cluster in a cloud, from `ray up` to the end of its first search.

    Attributes:
        differs: lines of the file that differ from the repository's.
        workers: instances of workers before the search.
        code: exit code of `ray exec` of the search.
        text: what it said.
        trained: names of the machines that were seen training a trial.
        reclaimed: name of the one that was taken back while it trained.
        came: names of all workers that there have been, in their order.
        facts: what study, store and folder say of the search.
    """

    differs: list[str] = field(default_factory=list)
    workers: int = -1
    code: int = -1
    text: str = ""
    trained: set[str] = field(default_factory=set)
    reclaimed: str = ""
    came: list[str] = field(default_factory=list)
    facts: Facts | None = None


@pytest.fixture(scope="module")
def cluster(cloud: Cloud) -> Cluster:
    """The cluster of the file, after `ray up`."""
    python = "$(python -c 'import platform; print(platform.python_version())')"
    idle = f"sed -i 's/^idle_timeout_minutes: 10 /idle_timeout_minutes: {IDLE_S / 60} /'"
    write = f"cd {PROJECT} && hksd cluster aws --image {IMAGE} --python {python} > {FILE} && {idle} {FILE}"
    cloud.laptop.shell(write)
    launcher.ray_up(cloud.laptop, FILE)
    (head,) = cloud.running("head")
    return Cluster(cloud.laptop, FILE, head, [], cloud.shared)


@pytest.fixture(scope="module")
def story(cloud: Cloud, cluster: Cluster) -> Iterator[Story]:
    """A search of four trials, two at once, that loses a machine as soon as there are two with a trial."""
    seen = Story(workers=len(cloud.instances("worker")))
    lines = cloud.laptop.shell(f"diff {FILE} {PROJECT}/cluster.yaml", check=False).stdout.splitlines()
    seen.differs = [line[1:].split()[0] + " " + line[1:].split()[1] for line in lines if line.startswith(">")]
    options = f"{SMALL} --set search.concurrent=2 --set train.epochs=20 --set train.batch_size=16"
    search = cluster.exec(f"hksd search quickstart --name cloud --trials 4 --address auto {options}")
    while search.process.poll() is None:
        workers = cloud.running("worker")
        training = [machine for machine in workers if cluster.trials_on(machine)]
        seen.came += [machine.name for machine in workers if machine.name not in seen.came]
        seen.trained |= {machine.name for machine in training}
        if not seen.reclaimed and len(training) > 1 and cluster.checkpoints("cloud") > 1:
            seen.reclaimed = training[0].name
            cloud.terminate(training[0])
        time.sleep(0.3)
    seen.code, seen.text = search.wait(), search.text
    assert seen.code == 0, seen.text
    seen.facts = cluster.facts("cloud")
    yield seen


def test_the_file_is_the_one_of_the_repository_but_for_image_python_and_patience(story: Story) -> None:
    assert story.differs == ["image: &image", "idle_timeout_minutes: 10", "- bash", "- bash"]


def test_workers_come_from_none_because_a_search_waits_for_them(story: Story) -> None:
    assert story.workers == 0
    assert len(story.came) >= 2, story.text


def test_every_trial_ends_well_with_every_epoch_once(story: Story) -> None:
    assert story.facts is not None
    story.facts.must_agree()
    assert [record.epoch for record in story.facts.records if record.status == "complete"] == [20] * 4


def test_trials_run_on_several_workers_and_not_on_the_head(story: Story, cluster: Cluster) -> None:
    assert story.facts is not None
    nodes = [set(run.data.tags["hksd.node"].split(", ")) for run in story.facts.children.values()]
    assert story.trained <= set.union(*nodes) <= set(story.came)
    assert len(story.trained) >= 2 and cluster.head.name not in story.trained


def test_the_trial_of_a_machine_that_was_taken_back_goes_on_on_another_and_a_new_machine_comes(story: Story) -> None:
    assert story.facts is not None and story.reclaimed, story.text
    nodes = [run.data.tags["hksd.node"].split(", ") for run in story.facts.children.values()]
    assert [one for one in nodes if story.reclaimed in one and len(one) > 1], nodes
    assert len(story.came) >= 3, "no machine came in its place"


def test_workers_are_spot_machines_with_the_role_of_workers(story: Story, cloud: Cloud) -> None:
    workers = [*cloud.instances("worker"), *cloud.instances("worker", "terminated")]
    assert {worker.get("InstanceLifecycle") for worker in workers} == {"spot"}
    assert {worker["InstanceType"] for worker in workers} == {"g6.xlarge"}


def test_idle_workers_end(story: Story, cloud: Cloud) -> None:
    deadline = time.monotonic() + IDLE_S + 120
    while (left := cloud.instances("worker")) and time.monotonic() < deadline:
        time.sleep(1)
    assert not left
    assert len(cloud.instances("head")) == 1


def test_ssh_is_not_open_to_the_world(story: Story, cloud: Cloud) -> None:
    groups = cloud.ask("ec2", "describe_security_groups")["SecurityGroups"]
    used = {group["GroupId"] for one in cloud.instances() for group in one["SecurityGroups"]}
    mine = [group for group in groups if group["GroupId"] in used]
    ranges = [r["CidrIp"] for group in mine for rule in group["IpPermissions"] for r in rule["IpRanges"]]
    assert mine and ranges == [OWN_ADDRESS]
    assert not [rule for group in mine for rule in group["IpPermissions"] if rule["Ipv6Ranges"]]


def test_ray_down_leaves_no_instance(story: Story, cloud: Cloud, cluster: Cluster) -> None:
    cluster.down()
    assert cloud.listed("running") == cloud.listed("pending") == cloud.listed("stopped") == []
    assert len(cloud.listed("terminated")) == len(story.came) + 1
