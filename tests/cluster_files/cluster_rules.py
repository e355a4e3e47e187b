"""What the files for `ray up` promise, as rules: functions from a parsed file to the faults that they find in it."""

from __future__ import annotations

import copy
import importlib.metadata
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import botocore.session
from botocore.validate import ParamValidator
from packaging.specifiers import SpecifierSet

import hksd

ROOT = Path(__file__).resolve().parents[2]
USER_FILES = {"~/.hksd"}  # made by the user, as docs/cluster.md tells
RAY_DEFAULTS_TO_REPLACE = {
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
}
SET_UP = "bash ~/hksd-cluster/set_up.sh"

Config = dict[str, Any]
Faults = Iterator[str]
Rule = Callable[[Config], Faults]


def node_types(config: Config) -> Config:
    return config.get("available_node_types", {})


def workers(config: Config) -> Config:
    return {name: kind for name, kind in node_types(config).items() if name != config.get("head_node_type")}


def commands(config: Config) -> list[str]:
    return [command for key in config if key.endswith("_commands") for command in config[key]]


def ray_accepts_the_file(config: Config) -> Faults:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        validate_config(prepare_config(copy.deepcopy(config)))
    except (ValueError, TypeError, KeyError, AssertionError, RuntimeError, ValidationError) as error:
        yield f"{type(error).__name__}: {error}"


def nothing_is_left_to_rays_defaults(config: Config) -> Faults:
    # They install a nightly wheel, open the dashboard to the network and pick an image of years ago.
    yield from sorted(RAY_DEFAULTS_TO_REPLACE - config.keys())


def nothing_is_open_to_the_world(config: Config) -> Faults:
    import yaml

    yield from re.findall(r".*(?:0\.0\.0\.0|::/0).*", yaml.safe_dump(config, width=10_000))
    for command in config.get("head_start_ray_commands", []):
        if "ray start" in command and "--dashboard-host=127.0.0.1" not in command:
            yield f"the dashboard is not on the loopback: {command}"


def every_node_is_set_up_by_the_script(config: Config) -> Faults:
    """It is what turns the token on, writes the environment and looks at versions; its own tests say how."""
    for role in ("head", "worker"):
        if not any(f"{SET_UP} {role} " in command for command in config.get(f"{role}_setup_commands", [])):
            yield f"the {role} is not set up"
    yield from (command for command in commands(config) if "RAY_AUTH_MODE=disabled" in command)


def scripts_and_secrets_are_copied(config: Config) -> Faults:
    mounts = config["file_mounts"]
    if mounts.get("~/.hksd") != "~/.hksd":
        yield "the token's file is not copied to the nodes"
    for script in re.findall(r"bash ~/hksd-cluster/(\S+)", " ".join(commands(config))):
        if not (ROOT / mounts.get("~/hksd-cluster", "nowhere") / script).is_file():
            yield f"{script} is not copied to the nodes"


def mlflow_is_started_by_the_script_that_guards_it(config: Config) -> Faults:
    started = [command for command in commands(config) if "mlflow" in command]
    if not started:
        yield "no MLflow is started"
    yield from (c for c in started if not c.endswith("bash ~/hksd-cluster/start_mlflow.sh") or "PASSWORD" in c)


def nothing_is_reported_home(config: Config) -> Faults:
    for command in config.get("head_start_ray_commands", []):
        if "ray start" in command and "--disable-usage-stats" not in command:
            yield f"usage statistics are on: {command}"


def versions_are_pinned_to_the_dot(config: Config) -> Faults:
    """And they are those of this project, and the same for head and workers."""
    project = (ROOT / "pyproject.toml").read_text()
    pin, version = re.search(r'"ray\[tune\]([^"]+)"', project), re.search(r'^version = "(.+)"', project, re.MULTILINE)
    assert pin and version, "pyproject.toml pins ray and has a version"
    pins = [
        dict(re.findall(r"\b(hksd|ray|python)==([\d.]+)", command)) for command in commands(config) if SET_UP in command
    ]
    if len(pins) != 2 or pins[0] != pins[1]:
        yield f"head and worker do not get the same versions: {pins}"
    for found in pins:
        if found.get("hksd") != version[1] or version[1] != hksd.__version__:
            yield f"hksd {found.get('hksd')} is not this one, {version[1]}"
        if not re.fullmatch(r"3\.\d+\.\d+", found.get("python", "")):
            yield f"Python {found.get('python')} is no version to the dot"
        if "ray" not in found or found["ray"] not in SpecifierSet(pin[1]):
            yield f"ray {found.get('ray')} is outside {pin[1]}"
        elif found["ray"] != importlib.metadata.version("ray"):
            yield f"ray {found['ray']} is not the one that the tests run with"


def file_mounts_exist_and_are_small(config: Config) -> Faults:
    for remote, local in config["file_mounts"].items():
        if not remote.startswith("~/"):
            yield f"{remote} is not under the user's home"
        if local in USER_FILES:
            continue
        path = (ROOT / local).resolve()
        if not path.exists():
            yield f"{local} does not exist"
        if path == ROOT or path in ROOT.parents:
            yield f"{local} would read .venv and runs/ at every `ray up`"
        for pattern in config.get("rsync_exclude", []):
            name = pattern.rsplit("/", 1)[-1]
            if name != "__pycache__" and any(path.rglob(name)):
                yield f"rsync_exclude {pattern} drops a part of {local}"


def the_number_of_workers_is_capped(config: Config) -> Faults:
    cap = config.get("max_workers")
    if not isinstance(cap, int) or cap < 1:
        yield f"max_workers is {cap}"
        return
    for name, node_type in workers(config).items():
        if not 0 <= node_type.get("max_workers", -1) <= cap:
            yield f"{name} has no maximum of its own within {cap}"


EVERY_FILE: list[Rule] = [
    ray_accepts_the_file,
    nothing_is_left_to_rays_defaults,
    nothing_is_open_to_the_world,
    every_node_is_set_up_by_the_script,
    scripts_and_secrets_are_copied,
    mlflow_is_started_by_the_script_that_guards_it,
    nothing_is_reported_home,
    versions_are_pinned_to_the_dot,
    file_mounts_exist_and_are_small,
    the_number_of_workers_is_capped,
]


# --- clouds: machines that come and go, and cost money


def is_spot(node_type: Config) -> bool:
    machine = node_type["node_config"]
    aws = machine.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
    return aws or machine.get("scheduling", {}).get("provisioningModel") == "SPOT"


def the_head_runs_no_trial(config: Config) -> Faults:
    head = node_types(config).get(config.get("head_node_type"), {})
    if head.get("resources") != {"CPU": 0, "GPU": 0}:
        yield f"the head offers {head.get('resources')}"
    if head.get("max_workers") != 0:
        yield "workers could be made of the head's type"
    if head and is_spot(head):
        yield "the head could be taken back"


def workers_begin_at_zero(config: Config) -> Faults:
    yield from (f"{name} never goes to zero" for name, kind in workers(config).items() if kind.get("min_workers") != 0)


def workers_are_spot_first(config: Config) -> Faults:
    spot = [node_type for node_type in workers(config).values() if is_spot(node_type)]
    if not spot:
        yield "no worker is spot"
        return
    priorities = [node_type.get("priority", 0) for node_type in spot]
    if len(set(priorities)) != len(priorities):
        yield f"which spot type comes first is left to chance: {priorities}"
    if len(spot) == len(workers(config)):
        yield "there is no fallback on demand"
    for name, node_type in workers(config).items():
        if not is_spot(node_type):
            if node_type.get("max_workers", 0) >= max(kind.get("max_workers", 0) for kind in spot):
                yield f"{name} is dearer and allowed as often as spot"
            if node_type.get("priority", 0) >= min(priorities):
                yield f"{name} is not after spot in priority"


def idle_machines_end(config: Config) -> Faults:
    if not 0 < config.get("idle_timeout_minutes", 0) <= 30:
        yield f"idle_timeout_minutes is {config.get('idle_timeout_minutes')}"
    if config["provider"].get("cache_stopped_nodes") is not False:
        yield "machines are stopped, not terminated, and their disks go on costing"


def workers_have_a_gpu_that_works(config: Config) -> Faults:
    if not any("torch.cuda.is_available()" in command for command in config.get("worker_setup_commands", [])):
        yield "a worker without a usable GPU would train on its CPU"


EVERY_CLOUD: list[Rule] = [
    the_head_runs_no_trial,
    workers_begin_at_zero,
    workers_are_spot_first,
    idle_machines_end,
    workers_have_a_gpu_that_works,
]


# --- AWS


def ec2_accepts_every_machine(config: Config) -> Faults:
    model = botocore.session.get_session().get_service_model("ec2")
    request = model.operation_model("RunInstances").input_shape
    known_types = set(model.shape_for("InstanceType").enum)
    for name, node_type in node_types(config).items():
        machine = {key: value for key, value in node_type["node_config"].items() if key != "SubnetIds"}  # Ray's own key
        for key in machine.keys() - request.members.keys():
            yield f"{name}: EC2 has no setting {key}"
        report = ParamValidator().validate({**machine, "MinCount": 1, "MaxCount": 1}, request)
        if report.has_errors():
            yield f"{name}: {report.generate_report()}"
        if machine.get("InstanceType") not in known_types:
            yield f"{name}: unknown instance type {machine.get('InstanceType')}"


def all_machines_have_one_image(config: Config) -> Faults:
    images = {node_type["node_config"].get("ImageId", "") for node_type in node_types(config).values()}
    if len(images) != 1 or not all(image.startswith("ami-") for image in images):
        yield f"head and workers need one and the same image, found {sorted(images)}"


def disks_go_with_their_machines(config: Config) -> Faults:
    for name, node_type in node_types(config).items():
        for disk in node_type["node_config"].get("BlockDeviceMappings", [{}]):
            if disk.get("Ebs", {}).get("DeleteOnTermination") is not True:
                yield f"{name} leaves a disk behind"


def every_machine_has_a_role_and_guards_it(config: Config) -> Faults:
    for name, node_type in node_types(config).items():
        machine = node_type["node_config"]
        if not machine.get("IamInstanceProfile"):
            yield f"{name} has no IamInstanceProfile"
        if machine.get("MetadataOptions", {}).get("HttpTokens") != "required":
            yield f"{name} allows IMDSv1"


def the_security_group_is_the_users(config: Config) -> Faults:
    group = config["provider"].get("security_group", {})
    if set(group) != {"GroupName"}:
        yield f"security_group must name a group of the user's and add no rule, found {group}"


def several_types_and_zones_are_tried(config: Config) -> Faults:
    zones = config["provider"].get("availability_zone", "").split(",")
    if len(set(zones)) < 2:
        yield f"spot capacity is sought in {zones} only"
    yield from (f"{zone} is not in the region" for zone in zones if not zone.startswith(config["provider"]["region"]))
    types = {kind["node_config"].get("InstanceType") for kind in workers(config).values() if is_spot(kind)}
    if len(types) < 3:
        yield f"spot capacity is sought in {types} only"


AWS: list[Rule] = [
    ec2_accepts_every_machine,
    all_machines_have_one_image,
    disks_go_with_their_machines,
    every_machine_has_a_role_and_guards_it,
    the_security_group_is_the_users,
    several_types_and_zones_are_tried,
]


# --- machines of one's own


def what_ray_gets_wrong_on_own_machines_is_worked_around(config: Config) -> Faults:
    (start,) = [command for command in config["head_start_ray_commands"] if "ray start" in command]
    if not re.search(r"RAY_enable_autoscaler_v2=0 ray start", start):
        yield "with the second autoscaler one worker never starts"
    if "--num-cpus=0 --num-gpus=0 " not in start:
        yield "trials would run on the head"
    if f"--node-ip-address={config['provider']['head_ip']} " not in start:
        yield "without a way to the internet Ray takes 127.0.0.1 for the head's address"


def all_machines_are_workers_from_the_start(config: Config) -> Faults:
    count = len(config["provider"]["worker_ips"])
    if (config.get("min_workers"), config.get("max_workers")) != (count, count):
        yield f"{count} machines, and {config.get('min_workers')} to {config.get('max_workers')} workers"


LOCAL: list[Rule] = [
    what_ray_gets_wrong_on_own_machines_is_worked_around,
    all_machines_are_workers_from_the_start,
]


# --- Google Cloud


def machines(config: Config) -> list[tuple[str, Config]]:
    return [(name, node_type["node_config"]) for name, node_type in node_types(config).items()]


def google_deletes_disks_and_machines(config: Config) -> Faults:
    for name, machine in machines(config):
        if not all(disk.get("autoDelete") is True for disk in machine.get("disks", [{}])):
            yield f"{name} leaves a disk behind"
        scheduling = machine.get("scheduling", {})
        if scheduling.get("provisioningModel") == "SPOT" and scheduling.get("instanceTerminationAction") != "DELETE":
            yield f"{name} is stopped, not deleted, when Google takes it back"


def google_accepts_machines_with_a_gpu(config: Config) -> Faults:
    for name, node_type in workers(config).items():
        machine = node_type["node_config"]
        if machine.get("scheduling", {}).get("onHostMaintenance") != "TERMINATE":
            yield f"{name}: a machine with a GPU cannot be moved"
        if node_type.get("resources", {}).get("GPU") != 1:
            yield f"{name}: Ray does not find its GPU out by itself"
        if not machine["machineType"].startswith("g2-") and not machine.get("guestAccelerators"):
            yield f"{name} has no GPU"


def the_network_is_the_users(config: Config) -> Faults:
    for name, machine in machines(config):
        subnetworks = [one.get("subnetwork", "") for one in machine.get("networkInterfaces", [{}])]
        if not all(re.fullmatch(rf"regions/{config['provider']['region']}/subnetworks/hksd", s) for s in subnetworks):
            yield f"{name} is in {subnetworks}, where SSH may be open to the world"


def google_machines_have_one_image_and_workers_no_rights(config: Config) -> Faults:
    images = {
        disk["initializeParams"].get("sourceImage") for _, machine in machines(config) for disk in machine["disks"]
    }
    if len(images) != 1:
        yield f"head and workers need one and the same image, found {images}"
    yield from (f"{name} has rights" for name, machine in machines(config) if "serviceAccounts" in machine)


GCP: list[Rule] = [
    google_deletes_disks_and_machines,
    google_accepts_machines_with_a_gpu,
    the_network_is_the_users,
    google_machines_have_one_image_and_workers_no_rights,
]
