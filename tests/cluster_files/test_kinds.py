"""The files for `ray up` keep their promises, seen without a cloud and without network; what breaks one is noticed."""

from __future__ import annotations

import json
import re
import socket
import sys
from collections.abc import Callable
from typing import Any

import cluster_rules as rules
import pytest
import yaml
from cluster_rules import ROOT, Config, Rule

from hksd_search.cluster import files

ASKED = {
    "aws": files.Asked(),
    "local": files.Asked(head="10.0.0.1", workers=("10.0.0.2", "10.0.0.3"), user="me"),
    "gcp": files.Asked(project="a-project"),
}
RULES = {
    "aws": rules.EVERY_FILE + rules.EVERY_CLOUD + rules.AWS,
    "local": rules.EVERY_FILE + rules.LOCAL,
    "gcp": rules.EVERY_FILE + rules.EVERY_CLOUD + rules.GCP,
}
PAIRS = [(variant, rule) for variant in RULES for rule in RULES[variant]]


def text_of(variant: str) -> str:
    return files.compose(variant, ASKED[variant], ROOT, "3.11.7")


def parsed(variant: str) -> Config:
    return yaml.safe_load(text_of(variant))


GONE = object()


def put(path: str, value: Any) -> Callable[[Config], None]:
    def change(config: Config) -> None:
        *parents, last = path.split("/")
        for key in parents:
            config = config[int(key) if isinstance(config, list) else key]
        config[last] = value
        if value is GONE:
            del config[last]

    return change


def drop(path: str) -> Callable[[Config], None]:
    return put(path, GONE)


def say(key: str, old: str, new: str) -> Callable[[Config], None]:
    def change(config: Config) -> None:
        assert any(old in command for command in config[key])
        config[key] = [command.replace(old, new) for command in config[key]]

    return change


SPOT = "available_node_types/gpu_spot_g6"
GOOGLE = "available_node_types/gpu_spot_l4/node_config"
BREAKAGES: list[tuple[str, Rule, str, Callable[[Config], None]]] = [
    ("aws", rules.ray_accepts_the_file, "misspelt top key", put("max_wrokers", 4)),
    ("aws", rules.ray_accepts_the_file, "no head type", drop("head_node_type")),
    ("aws", rules.ray_accepts_the_file, "head type of another name", put("head_node_type", "boss")),
    ("aws", rules.ray_accepts_the_file, "misspelt auth key", put("auth/ssh_usr", "ubuntu")),
    ("aws", rules.ray_accepts_the_file, "misspelt node type key", put(f"{SPOT}/max_worker", 4)),
    ("aws", rules.ray_accepts_the_file, "a command that is no list", put("setup_commands", "pip install")),
    ("aws", rules.ray_accepts_the_file, "a word for a number", put("max_workers", "four")),
    ("aws", rules.ray_accepts_the_file, "more minimum than maximum", put(f"{SPOT}/min_workers", 9)),
    ("aws", rules.ray_accepts_the_file, "docker without a name", put("docker", {"image": "rayproject/ray:2.60.0-gpu"})),
    ("aws", rules.nothing_is_left_to_rays_defaults, "no set-up commands", drop("setup_commands")),
    (
        "aws",
        rules.nothing_is_open_to_the_world,
        "open dashboard",
        say("head_start_ray_commands", "127.0.0.1", "0.0.0.0"),
    ),
    (
        "aws",
        rules.nothing_is_open_to_the_world,
        "Ray's default",
        say("head_start_ray_commands", "--dashboard-host", "--x"),
    ),
    (
        "aws",
        rules.nothing_is_open_to_the_world,
        "workers open to the world",
        put("provider/security_group/IpPermissions", [{"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]),
    ),
    ("aws", rules.every_node_is_set_up_by_the_script, "a worker as it is", put("worker_setup_commands", [])),
    (
        "aws",
        rules.every_node_is_set_up_by_the_script,
        "token mode off at start",
        say("worker_start_ray_commands", "ray start", "RAY_AUTH_MODE=disabled ray start"),
    ),
    ("aws", rules.scripts_and_secrets_are_copied, "token not copied", put("file_mounts", {"~/x": "./hksd"})),
    (
        "aws",
        rules.scripts_and_secrets_are_copied,
        "no such script",
        say("head_setup_commands", "set_up.sh", "setup.sh"),
    ),
    (
        "aws",
        rules.mlflow_is_started_by_the_script_that_guards_it,
        "no script",
        say("head_start_ray_commands", "start_mlflow", "start"),
    ),
    (
        "aws",
        rules.mlflow_is_started_by_the_script_that_guards_it,
        "a server without a log-in",
        say("head_start_ray_commands", "bash ~/hksd-cluster/start_mlflow.sh", "mlflow server"),
    ),
    (
        "aws",
        rules.nothing_is_reported_home,
        "usage statistics",
        say("head_start_ray_commands", "--disable-usage-stats", ""),
    ),
    (
        "aws",
        rules.versions_are_pinned_to_the_dot,
        "another ray",
        say("head_setup_commands", "ray==2.60.0", "ray==2.61.0"),
    ),
    ("aws", rules.versions_are_pinned_to_the_dot, "any ray", say("worker_setup_commands", "ray==2.60.0", "")),
    ("aws", rules.versions_are_pinned_to_the_dot, "another hksd", say("worker_setup_commands", "hksd==", "hksd==9.")),
    (
        "aws",
        rules.versions_are_pinned_to_the_dot,
        "some Python",
        say("head_setup_commands", "python==3.12.3", "python==3.12"),
    ),
    ("aws", rules.file_mounts_exist_and_are_small, "a folder that is not there", put("file_mounts", {"~/x": "./gone"})),
    ("aws", rules.file_mounts_exist_and_are_small, "the whole project", put("file_mounts", {"~/hksd": "."})),
    (
        "aws",
        rules.file_mounts_exist_and_are_small,
        "an exclude that drops hksd/data",
        put("rsync_exclude", ["**/data"]),
    ),
    ("aws", rules.the_number_of_workers_is_capped, "no cap", drop("max_workers")),
    ("aws", rules.the_number_of_workers_is_capped, "a type above the cap", put(f"{SPOT}/max_workers", 99)),
    ("aws", rules.the_head_runs_no_trial, "the head offers a CPU", put("available_node_types/head/resources/CPU", 4)),
    ("aws", rules.the_head_runs_no_trial, "the head offers all", put("available_node_types/head/resources", {})),
    ("aws", rules.workers_begin_at_zero, "a worker always on", put(f"{SPOT}/min_workers", 1)),
    ("aws", rules.workers_are_spot_first, "less spot", drop(f"{SPOT}/node_config/InstanceMarketOptions")),
    ("aws", rules.workers_are_spot_first, "on demand first", put("available_node_types/gpu_on_demand/priority", 99)),
    (
        "aws",
        rules.workers_are_spot_first,
        "on demand as often",
        put("available_node_types/gpu_on_demand/max_workers", 4),
    ),
    ("aws", rules.workers_are_spot_first, "no fallback", drop("available_node_types/gpu_on_demand")),
    ("aws", rules.workers_are_spot_first, "two types of one priority", put(f"{SPOT}/priority", 20)),
    ("aws", rules.idle_machines_end, "no idle timeout", drop("idle_timeout_minutes")),
    ("aws", rules.idle_machines_end, "idle for a day", put("idle_timeout_minutes", 1440)),
    ("aws", rules.idle_machines_end, "stopped, not terminated", drop("provider/cache_stopped_nodes")),
    (
        "aws",
        rules.workers_have_a_gpu_that_works,
        "no look at the GPU",
        say("worker_setup_commands", "torch.cuda", "torch"),
    ),
    (
        "aws",
        rules.ec2_accepts_every_machine,
        "misspelt machine key",
        put(f"{SPOT}/node_config/InstanceTyp", "g5.xlarge"),
    ),
    ("aws", rules.ec2_accepts_every_machine, "unknown type", put(f"{SPOT}/node_config/InstanceType", "g5.xlarg")),
    (
        "aws",
        rules.ec2_accepts_every_machine,
        "misspelt nested key",
        put(f"{SPOT}/node_config/MetadataOptions/HttpToken", "required"),
    ),
    (
        "aws",
        rules.ec2_accepts_every_machine,
        "disk size in words",
        put(f"{SPOT}/node_config/BlockDeviceMappings", [{"Ebs": "150 GB"}]),
    ),
    ("aws", rules.all_machines_have_one_image, "no image", drop(f"{SPOT}/node_config/ImageId")),
    (
        "aws",
        rules.all_machines_have_one_image,
        "another image for workers",
        put(f"{SPOT}/node_config/ImageId", "ami-1"),
    ),
    ("aws", rules.disks_go_with_their_machines, "disks that stay", drop(f"{SPOT}/node_config/BlockDeviceMappings")),
    ("aws", rules.every_machine_has_a_role_and_guards_it, "no role", drop(f"{SPOT}/node_config/IamInstanceProfile")),
    ("aws", rules.every_machine_has_a_role_and_guards_it, "IMDSv1", drop(f"{SPOT}/node_config/MetadataOptions")),
    ("aws", rules.the_security_group_is_the_users, "Ray's own group", drop("provider/security_group")),
    ("aws", rules.several_types_and_zones_are_tried, "one zone", put("provider/availability_zone", "us-west-2a")),
    ("aws", rules.several_types_and_zones_are_tried, "zones of another region", put("provider/region", "eu-west-1")),
    ("aws", rules.several_types_and_zones_are_tried, "two types", drop("available_node_types/gpu_spot_g5")),
    (
        "local",
        rules.what_ray_gets_wrong_on_own_machines_is_worked_around,
        "the second autoscaler",
        say("head_start_ray_commands", "RAY_enable_autoscaler_v2=0 ", ""),
    ),
    (
        "local",
        rules.what_ray_gets_wrong_on_own_machines_is_worked_around,
        "trials on the head",
        say("head_start_ray_commands", "--num-gpus=0", ""),
    ),
    (
        "local",
        rules.what_ray_gets_wrong_on_own_machines_is_worked_around,
        "an address to be guessed",
        say("head_start_ray_commands", "--node-ip-address", "--x"),
    ),
    ("local", rules.all_machines_are_workers_from_the_start, "one is left out", put("min_workers", 1)),
    ("gcp", rules.workers_are_spot_first, "no spot", put(f"{GOOGLE}/scheduling/provisioningModel", "STANDARD")),
    ("gcp", rules.google_deletes_disks_and_machines, "disks that stay", drop(f"{GOOGLE}/disks")),
    (
        "gcp",
        rules.google_deletes_disks_and_machines,
        "machines that are stopped",
        drop(f"{GOOGLE}/scheduling/instanceTerminationAction"),
    ),
    ("gcp", rules.google_accepts_machines_with_a_gpu, "a move", drop(f"{GOOGLE}/scheduling/onHostMaintenance")),
    ("gcp", rules.google_accepts_machines_with_a_gpu, "no GPU", put(f"{GOOGLE}/machineType", "n1-standard-4")),
    (
        "gcp",
        rules.google_accepts_machines_with_a_gpu,
        "a GPU that Ray does not know of",
        put("available_node_types/gpu_spot_l4/resources", {}),
    ),
    ("gcp", rules.the_network_is_the_users, "Ray's own network", drop(f"{GOOGLE}/networkInterfaces")),
    (
        "gcp",
        rules.google_machines_have_one_image_and_workers_no_rights,
        "another image",
        put(f"{GOOGLE}/disks/0/initializeParams/sourceImage", "x"),
    ),
    (
        "gcp",
        rules.google_machines_have_one_image_and_workers_no_rights,
        "rights for workers",
        put(f"{GOOGLE}/serviceAccounts", [{"email": "x"}]),
    ),
]


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the check tried to use the network")

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "dummy")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setitem(sys.modules, "boto3", None)  # importing it raises
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.usefixtures("no_network")
class TestPromises:
    """Each file keeps each of its promises, and each rule notices when one is broken."""

    @pytest.mark.parametrize(("variant", "rule"), PAIRS, ids=[f"{variant}-{rule.__name__}" for variant, rule in PAIRS])
    def test_the_file_keeps_its_promise(self, variant: str, rule: Rule) -> None:
        assert list(rule(parsed(variant))) == []

    @pytest.mark.parametrize(
        ("variant", "rule", "breakage"),
        [(variant, rule, breakage) for variant, rule, _, breakage in BREAKAGES],
        ids=[f"{variant}-{name}" for variant, _, name, _ in BREAKAGES],
    )
    def test_a_breakage_is_noticed(self, variant: str, rule: Rule, breakage: Callable[[Config], None]) -> None:
        broken = json.loads(json.dumps(parsed(variant)))  # no parts shared, as YAML's anchors share them
        breakage(broken)
        assert list(rule(broken)) != []

    def test_every_rule_has_a_breakage_that_it_notices(self) -> None:
        assert {rule for _, rule, _, _ in BREAKAGES} == {rule for _, rule in PAIRS}


def test_the_file_in_the_project_is_what_the_command_writes() -> None:
    """Else mend the parts in search/hksd_search/cluster and write it anew: `hksd cluster aws > cluster.yaml`."""
    assert (ROOT / "cluster.yaml").read_text() == text_of("aws")


@pytest.mark.parametrize("variant", ASKED)
def test_neither_comments_nor_commands_mention_an_open_address(variant: str) -> None:
    assert not re.search(r"0\.0\.0\.0|::/0", text_of(variant))


@pytest.mark.parametrize("variant", ASKED)
def test_no_line_is_longer_than_a_screen_and_no_place_is_left_open(variant: str) -> None:
    lines = text_of(variant).splitlines()
    assert [line for line in lines if len(line) > 150 or files.PLACE.search(line) or line != line.rstrip()] == []


def test_files_that_the_user_makes_are_explained() -> None:
    for text in (text_of("aws"), (ROOT / "docs" / "cluster.md").read_text()):
        for name in ("~/.hksd", "auth_token", "mlflow_password", "cluster.env", "HKSD_BUCKET", "HKSD_EFS"):
            assert name in text
        assert all(name in text for name in ("hksd-head", "hksd-worker"))


def test_the_guide_names_the_version_that_the_files_install() -> None:
    assert set(re.findall(r"ray\[default\]==([\d.]+)", (ROOT / "docs" / "cluster.md").read_text())) <= {files.RAY}


def launched(gpus_wanted: int, failed: tuple[str, ...] = ()) -> dict[str, int]:
    """Ask Ray's own scheduler which machines it would start for so many trials of one GPU each."""
    from ray.autoscaler._private.util import prepare_config
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil

    config = prepare_config(parsed("aws"))
    for node_type in rules.workers(config).values():
        node_type["resources"] = {"CPU": 4, "GPU": 1}  # on AWS Ray reads them off the instance type
    types = AutoscalingConfig(config, skip_content_hash=True).get_node_type_configs()
    trials = [ResourceRequestUtil.make({"CPU": 1, "GPU": 1}) for _ in range(gpus_wanted)]
    availability = dict.fromkeys(failed, 0.1)
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=types,
            max_num_nodes=config["max_workers"],
            resource_requests=ResourceRequestUtil.group_by_count(trials),
            recoverable_resource_availabilities=availability,
            cloud_resource_availabilities=availability,
        )
    )
    return {request.instance_type: request.count for request in reply.to_launch}


def test_ray_starts_the_first_spot_type_while_it_is_to_be_had() -> None:
    assert launched(1) == {"gpu_spot_g6": 1}
    assert launched(50) == {"gpu_spot_g6": parsed("aws")["max_workers"]}


def test_ray_goes_on_to_the_next_spot_type_and_last_to_a_machine_on_demand() -> None:
    assert launched(1, ("gpu_spot_g6",)) == {"gpu_spot_g5": 1}
    assert launched(1, ("gpu_spot_g6", "gpu_spot_g5")) == {"gpu_spot_g4dn": 1}
    all_spot = tuple(name for name, kind in rules.workers(parsed("aws")).items() if rules.is_spot(kind))
    assert launched(1, all_spot) == {"gpu_on_demand": 1}
    assert sum(launched(50, all_spot).values()) == parsed("aws")["max_workers"]
