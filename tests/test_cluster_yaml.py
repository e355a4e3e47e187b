"""What `cluster.yaml` promises, checked without AWS and without network, and the MLflow script that it starts.

Each promise is a rule: a function from the parsed file to the faults that it finds. The file must have none, and each
rule must notice when somebody breaks its promise.
"""

import copy
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "search" / "cluster" / "start_mlflow.sh"
USER_FILES = {"~/.hksd"}  # made by the user, as docs/cluster.md tells
RAY_DEFAULTS_TO_REPLACE = {
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
}

Config = dict[str, Any]
Faults = Iterator[str]


def parsed_file() -> Config:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def node_types(config: Config) -> Config:
    return config.get("available_node_types", {})


def workers(config: Config) -> Config:
    return {name: kind for name, kind in node_types(config).items() if name != config.get("head_node_type")}


def is_spot(node_type: Config) -> bool:
    return node_type["node_config"].get("InstanceMarketOptions", {}).get("MarketType") == "spot"


def commands(config: Config) -> list[str]:
    return [command for key in config if key.endswith("_commands") for command in config[key]]


def ray_accepts_the_file(config: Config) -> Faults:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        validate_config(prepare_config(copy.deepcopy(config)))
    except (ValueError, TypeError, KeyError, AssertionError, RuntimeError, ValidationError) as error:
        yield f"{type(error).__name__}: {error}"


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


def nothing_is_left_to_rays_defaults(config: Config) -> Faults:
    # They install a nightly wheel, open the dashboard to the network and pick an image of years ago.
    yield from sorted(RAY_DEFAULTS_TO_REPLACE - config.keys())
    images = {node_type["node_config"].get("ImageId", "") for node_type in node_types(config).values()}
    if len(images) != 1 or not all(image.startswith("ami-") for image in images):
        yield f"head and workers need one and the same image, found {sorted(images)}"


def the_head_runs_no_trial(config: Config) -> Faults:
    head = node_types(config).get(config.get("head_node_type"), {})
    if head.get("resources") != {"CPU": 0, "GPU": 0}:
        yield f"the head offers {head.get('resources')}"
    if head.get("max_workers") != 0:
        yield "workers could be made of the head's type"
    if head and is_spot(head):
        yield "the head could be taken back by AWS"


def cost_is_capped(config: Config) -> Faults:
    cap = config.get("max_workers")
    if not isinstance(cap, int) or cap < 1:
        yield f"max_workers is {cap}"
        return
    for name, node_type in workers(config).items():
        if node_type.get("min_workers") != 0:
            yield f"{name} never goes down to zero"
        if not 0 <= node_type.get("max_workers", -1) <= cap:
            yield f"{name} has no maximum of its own within {cap}"


def workers_are_spot_first(config: Config) -> Faults:
    spot = [node_type for node_type in workers(config).values() if is_spot(node_type)]
    if not spot:
        yield "no worker is spot"
        return
    for name, node_type in workers(config).items():
        if not is_spot(node_type):
            if node_type.get("max_workers", 0) >= max(kind.get("max_workers", 0) for kind in spot):
                yield f"{name} is dearer and allowed as often as spot"
            if node_type.get("priority", 0) >= min(kind.get("priority", 0) for kind in spot):
                yield f"{name} is not after spot in priority"


def idle_machines_are_terminated(config: Config) -> Faults:
    if not 0 < config.get("idle_timeout_minutes", 0) <= 30:
        yield f"idle_timeout_minutes is {config.get('idle_timeout_minutes')}"
    if config["provider"].get("cache_stopped_nodes") is not False:
        yield "machines are stopped, not terminated, and their disks go on costing"
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


def nothing_is_open_to_the_world(config: Config) -> Faults:
    yield from re.findall(r".*(?:0\.0\.0\.0|::/0).*", yaml.safe_dump(config, width=10_000))
    group = config["provider"].get("security_group", {})
    if set(group) != {"GroupName"}:
        yield f"security_group must name a group of the user's and add no rule, found {group}"
    for command in config.get("head_start_ray_commands", []):
        if "ray start" in command and "--dashboard-host=127.0.0.1" not in command:
            yield f"the dashboard is not on the loopback: {command}"


def every_connection_needs_the_token(config: Config) -> Faults:
    setup = " ".join(config.get("setup_commands", []))
    if "RAY_AUTH_MODE=token" not in setup:
        yield "the nodes do not turn token authentication on"
    token = re.search(r'RAY_AUTH_TOKEN_PATH="\$HOME/([^"]+)"', setup)
    home = f"/home/{config['auth'].get('ssh_user')}"
    if not token or not any(f"{home}/{token[1]}".startswith(f"{remote}/") for remote in config["file_mounts"]):
        yield "the token's file is not copied to the nodes"
    yield from (command for command in commands(config) if "RAY_AUTH_MODE=disabled" in command)


def nothing_is_reported_home(config: Config) -> Faults:
    for command in config.get("head_start_ray_commands", []):
        if "ray start" in command and "--disable-usage-stats" not in command:
            yield f"usage statistics are on: {command}"


def ray_is_the_pinned_version(config: Config) -> Faults:
    pin = re.search(r'"ray\[tune\]([^"]+)"', (ROOT / "pyproject.toml").read_text())
    assert pin, "pyproject.toml pins ray"
    versions = re.findall(r"\bray(?:\[[^\]]*\])?==([\w.]+)", " ".join(commands(config)))
    versions += re.findall(r":(\d+\.\d+\.\d+)", config.get("docker", {}).get("image", ""))
    if not versions:
        yield "no version of ray is installed by name"
    yield from (f"ray {version} is outside {pin[1]}" for version in versions if version not in SpecifierSet(pin[1]))


def file_mounts_exist_and_are_small(config: Config) -> Faults:
    for remote, local in config["file_mounts"].items():
        if not remote.startswith(f"/home/{config['auth'].get('ssh_user')}/"):
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


def mlflow_starts_from_a_script_that_is_copied(config: Config) -> Faults:
    home = f"/home/{config['auth'].get('ssh_user')}"
    scripts = re.findall(r"bash (~/\S+\.sh)", "\n".join(config.get("head_start_ray_commands", [])))
    for script in scripts:
        for remote, local in config["file_mounts"].items():
            inside = script.replace("~", home, 1).removeprefix(remote + "/")
            if not inside.startswith("/") and (ROOT / local / inside).is_file():
                return
    yield f"none of {scripts} comes from a file_mount"


def several_zones_are_tried(config: Config) -> Faults:
    zones = config["provider"].get("availability_zone", "").split(",")
    if len(set(zones)) < 2:
        yield f"spot capacity is sought in {zones} only"
    yield from (f"{zone} is not in the region" for zone in zones if not zone.startswith(config["provider"]["region"]))


RULES: list[Callable[[Config], Faults]] = [
    ray_accepts_the_file,
    ec2_accepts_every_machine,
    nothing_is_left_to_rays_defaults,
    the_head_runs_no_trial,
    cost_is_capped,
    workers_are_spot_first,
    idle_machines_are_terminated,
    every_machine_has_a_role_and_guards_it,
    nothing_is_open_to_the_world,
    every_connection_needs_the_token,
    nothing_is_reported_home,
    ray_is_the_pinned_version,
    file_mounts_exist_and_are_small,
    mlflow_starts_from_a_script_that_is_copied,
    several_zones_are_tried,
]


GONE = object()


def put(path: str, value: Any) -> Callable[[Config], None]:
    def change(config: Config) -> None:
        *parents, last = path.split("/")
        for key in parents:
            config = config[key]
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


SPOT = "available_node_types/gpu_spot"
BREAKAGES: list[tuple[Callable[[Config], Faults], str, Callable[[Config], None]]] = [
    (ray_accepts_the_file, "misspelt top key", put("max_wrokers", 4)),
    (ray_accepts_the_file, "no head type", drop("head_node_type")),
    (ray_accepts_the_file, "head type of another name", put("head_node_type", "boss")),
    (ray_accepts_the_file, "misspelt auth key", put("auth/ssh_usr", "ubuntu")),
    (ray_accepts_the_file, "misspelt node type key", put(f"{SPOT}/max_worker", 4)),
    (ray_accepts_the_file, "a command that is no list", put("setup_commands", "pip install")),
    (ray_accepts_the_file, "a word for a number", put("max_workers", "four")),
    (ray_accepts_the_file, "more minimum than maximum", put(f"{SPOT}/min_workers", 9)),
    (ray_accepts_the_file, "docker without a name", put("docker", {"image": "rayproject/ray:2.60.0-py312-gpu"})),
    (ec2_accepts_every_machine, "misspelt machine key", put(f"{SPOT}/node_config/InstanceTyp", "g5.xlarge")),
    (ec2_accepts_every_machine, "unknown instance type", put(f"{SPOT}/node_config/InstanceType", "g5.xlarg")),
    (
        ec2_accepts_every_machine,
        "misspelt nested key",
        put(f"{SPOT}/node_config/MetadataOptions/HttpToken", "required"),
    ),
    (
        ec2_accepts_every_machine,
        "disk size in words",
        put(f"{SPOT}/node_config/BlockDeviceMappings", [{"Ebs": "150 GB"}]),
    ),
    (nothing_is_left_to_rays_defaults, "no set-up commands", drop("setup_commands")),
    (nothing_is_left_to_rays_defaults, "no image", drop(f"{SPOT}/node_config/ImageId")),
    (nothing_is_left_to_rays_defaults, "another image for workers", put(f"{SPOT}/node_config/ImageId", "ami-1")),
    (the_head_runs_no_trial, "the head offers a CPU", put("available_node_types/head/resources/CPU", 4)),
    (the_head_runs_no_trial, "the head offers all it has", put("available_node_types/head/resources", {})),
    (cost_is_capped, "no cap", drop("max_workers")),
    (cost_is_capped, "a worker always on", put(f"{SPOT}/min_workers", 1)),
    (cost_is_capped, "a type above the cap", put(f"{SPOT}/max_workers", 99)),
    (workers_are_spot_first, "no spot", drop(f"{SPOT}/node_config/InstanceMarketOptions")),
    (workers_are_spot_first, "on-demand first", put("available_node_types/gpu_on_demand/priority", 20)),
    (workers_are_spot_first, "on-demand as often", put("available_node_types/gpu_on_demand/max_workers", 4)),
    (idle_machines_are_terminated, "no idle timeout", drop("idle_timeout_minutes")),
    (idle_machines_are_terminated, "idle for a day", put("idle_timeout_minutes", 1440)),
    (idle_machines_are_terminated, "stopped, not terminated", drop("provider/cache_stopped_nodes")),
    (idle_machines_are_terminated, "disks that stay", drop(f"{SPOT}/node_config/BlockDeviceMappings")),
    (every_machine_has_a_role_and_guards_it, "worker without a role", drop(f"{SPOT}/node_config/IamInstanceProfile")),
    (every_machine_has_a_role_and_guards_it, "IMDSv1", drop(f"{SPOT}/node_config/MetadataOptions")),
    (nothing_is_open_to_the_world, "Ray's own group", drop("provider/security_group")),
    (
        nothing_is_open_to_the_world,
        "workers open to the world",
        put("provider/security_group/IpPermissions", [{"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]),
    ),
    (nothing_is_open_to_the_world, "open dashboard", say("head_start_ray_commands", "127.0.0.1", "0.0.0.0")),
    (
        nothing_is_open_to_the_world,
        "Ray's default dashboard",
        say("head_start_ray_commands", "--dashboard-host", "--x"),
    ),
    (every_connection_needs_the_token, "no token mode", say("setup_commands", "RAY_AUTH_MODE=token", "")),
    (every_connection_needs_the_token, "token not copied", put("file_mounts", {"/home/ubuntu/x": "./hksd"})),
    (
        every_connection_needs_the_token,
        "token mode off at start",
        say("worker_start_ray_commands", "ray start", "RAY_AUTH_MODE=disabled ray start"),
    ),
    (nothing_is_reported_home, "usage statistics", say("head_start_ray_commands", "--disable-usage-stats", "")),
    (ray_is_the_pinned_version, "another ray", say("setup_commands", "==2.60.0", "==2.61.0")),
    (ray_is_the_pinned_version, "any ray", say("setup_commands", "==2.60.0", "")),
    (file_mounts_exist_and_are_small, "a folder that is not there", put("file_mounts", {"/home/ubuntu/x": "./gone"})),
    (file_mounts_exist_and_are_small, "the whole project", put("file_mounts", {"/home/ubuntu/hksd": "."})),
    (file_mounts_exist_and_are_small, "an exclude that drops hksd/data", put("rsync_exclude", ["**/data"])),
    (mlflow_starts_from_a_script_that_is_copied, "no script", say("head_start_ray_commands", "start_mlflow", "start")),
    (several_zones_are_tried, "one zone", put("provider/availability_zone", "us-west-2a")),
    (several_zones_are_tried, "zones of another region", put("provider/region", "eu-west-1")),
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
class TestClusterFile:
    @pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
    def test_the_file_keeps_its_promise(self, rule: Callable[[Config], Faults]) -> None:
        assert list(rule(parsed_file())) == []

    @pytest.mark.parametrize(
        ("rule", "breakage"), [(r, b) for r, _, b in BREAKAGES], ids=[name for _, name, _ in BREAKAGES]
    )
    def test_a_breakage_is_noticed(self, rule: Callable[[Config], Faults], breakage: Callable[[Config], None]) -> None:
        broken = json.loads(json.dumps(parsed_file()))  # no parts shared, as YAML's anchors share them
        breakage(broken)
        assert list(rule(broken)) != []

    def test_every_rule_has_a_breakage_that_it_notices(self) -> None:
        assert {rule for rule, _, _ in BREAKAGES} == set(RULES)

    def test_neither_comments_nor_commands_mention_an_open_address(self) -> None:
        assert not re.search(r"0\.0\.0\.0|::/0", (ROOT / "cluster.yaml").read_text())

    def test_files_that_the_user_makes_are_explained(self) -> None:
        for text in ((ROOT / "cluster.yaml").read_text(), (ROOT / "docs" / "cluster.md").read_text()):
            for name in ("~/.hksd", "auth_token", "cluster.env", "HKSD_BUCKET", "HKSD_EFS", "hksd-head", "hksd-worker"):
                assert name in text

    def test_the_guide_names_the_version_that_the_file_installs(self) -> None:
        versions = {
            version
            for name in ("cluster.yaml", "docs/cluster.md")
            for version in re.findall(r"ray\[default\]==([\d.]+)", (ROOT / name).read_text())
        }
        assert len(versions) == 1


def launched(gpus_wanted: int, after_spot_failed: bool = False) -> dict[str, int]:
    """Ask Ray's own scheduler which machines it would start for so many trials of one GPU each."""
    from ray.autoscaler._private.util import prepare_config
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil

    config = prepare_config(parsed_file())
    for node_type in workers(config).values():
        node_type["resources"] = {"CPU": 4, "GPU": 1}  # on AWS Ray reads them off the instance type
    types = AutoscalingConfig(config, skip_content_hash=True).get_node_type_configs()
    trials = [ResourceRequestUtil.make({"CPU": 1, "GPU": 1}) for _ in range(gpus_wanted)]
    availability = {"gpu_spot": 0.1} if after_spot_failed else {}
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


def test_ray_starts_spot_workers_only_while_spot_is_to_be_had() -> None:
    assert launched(1) == {"gpu_spot": 1}
    assert launched(50) == {"gpu_spot": parsed_file()["max_workers"]}


def test_ray_falls_back_to_on_demand_after_a_spot_request_failed() -> None:
    assert launched(1, after_spot_failed=True) == {"gpu_on_demand": 1}
    assert sum(launched(50, after_spot_failed=True).values()) == parsed_file()["max_workers"]


def test_the_copied_files_alone_make_an_installable_package(tmp_path: Path) -> None:
    remote_source = "/home/ubuntu/hksd-source/"
    for remote, local in parsed_file()["file_mounts"].items():
        if remote.startswith(remote_source):
            target = tmp_path / "source" / remote.removeprefix(remote_source)
            target.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / local).is_dir():
                shutil.copytree(ROOT / local, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / local, target)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        "./source",
    ]
    subprocess.run(build, cwd=tmp_path, check=True, timeout=60)
    assert list(tmp_path.glob("hksd-*.whl"))


STUBS = {  # the system's programs, replaced; each writes what it was asked into $HOME/asked
    "sudo": """case $1 in tee) case $3 in "$HOME"/*) exec "$@";; esac;; mount) touch ~/mounted;; esac
               case "$*" in *"apt-get -qq install"*) touch ~/installed;; esac""",
    "dpkg": "test -e ~/installed",
    "mountpoint": "test -e ~/mounted",
    "python3": 'mkdir -p ~/venv/bin; for p in pip python; do cp "$0" ~/venv/bin/$p; done',
    "sleep": "true",
}


@pytest.fixture
def node_home(tmp_path: Path) -> Path:
    """A home folder as `ray up` leaves it on a new machine before the set-up commands."""
    (tmp_path / ".hksd").mkdir()
    (tmp_path / ".hksd" / "auth_token").write_text("secret")
    (tmp_path / ".hksd" / "cluster.env").write_text("HKSD_EFS=fs-1.example\nHKSD_BUCKET=bucket\n")
    (tmp_path / ".bashrc").write_text("# as the image has it\n")
    (tmp_path / "fstab").write_text("")
    (tmp_path / "bin").mkdir()
    for name, body in STUBS.items():
        stub = tmp_path / "bin" / name
        stub.write_text(f'#!/bin/bash\necho "$(basename "$0") $*" >> ~/asked\n{body}\n')
        stub.chmod(0o755)
    return tmp_path


def on_node(home: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command as Ray does over SSH, but in `home` and with the system's programs replaced."""
    shell = [
        "bash",
        "-c",
        f"source ~/.bashrc; export OMP_NUM_THREADS=1 && ({command.replace('/etc/fstab', '~/fstab')})",
    ]
    environment = {"HOME": str(home), "PATH": f"{home}/bin:/usr/bin:/bin"}
    return subprocess.run(shell, env=environment, cwd=home, capture_output=True, text=True, timeout=30)


def set_up(home: Path) -> list[str]:
    (home / "asked").write_text("")
    for command in parsed_file()["setup_commands"]:
        done = on_node(home, command)
        assert done.returncode == 0, (command, done.stderr)
    return (home / "asked").read_text().splitlines()


def test_set_up_commands_may_run_twice(node_home: Path) -> None:
    written = (".bashrc", ".hksd-env.sh", "fstab")
    first = set_up(node_home)
    after_first = [(node_home / name).read_text() for name in written]
    second = set_up(node_home)
    assert [(node_home / name).read_text() for name in written] == after_first
    assert any(line.startswith("sudo mount") for line in first)
    assert not [line for line in second if "mount " in line or "apt-get" in line]


def test_set_up_ends_at_once_without_a_token(node_home: Path) -> None:
    (node_home / ".hksd" / "auth_token").unlink()
    assert on_node(node_home, parsed_file()["setup_commands"][0]).returncode != 0


def test_set_up_mounts_nothing_unless_a_file_system_is_named(node_home: Path) -> None:
    (node_home / ".hksd" / "cluster.env").unlink()
    assert not [line for line in set_up(node_home) if line.startswith(("sudo mount", "sudo tee"))]
    assert (node_home / "runs").is_dir()
    assert (node_home / "fstab").read_text() == ""


def test_every_shell_of_a_node_knows_token_runs_and_tracking(node_home: Path) -> None:
    set_up(node_home)
    (node_home / "mlflow").mkdir()
    (node_home / "mlflow" / "uri").write_text("http://10.0.0.5:5000\n")
    seen = dict(line.partition("=")[::2] for line in on_node(node_home, "env").stdout.splitlines())
    wanted = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": f"{node_home}/.hksd/auth_token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HKSD_RUNS": f"{node_home}/runs",
        "HKSD_BUCKET": "bucket",
        "MLFLOW_TRACKING_URI": "http://10.0.0.5:5000",
    }
    assert {key: seen.get(key) for key in wanted} == wanted
    assert seen["PATH"].startswith(f"{node_home}/venv/bin:")
    assert (node_home / ".hksd" / "auth_token").stat().st_mode & 0o777 == 0o600


def start_mlflow(home: Path, port: int, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HKSD_MLFLOW_HOST": "127.0.0.1",
        "HKSD_MLFLOW_PORT": str(port),
        "HKSD_MLFLOW_WAIT": "60",
        **more,
    }
    return subprocess.run(["bash", str(SCRIPT)], env=environment, capture_output=True, text=True, timeout=90)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def mlflow_on_head(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[tuple[Path, int]]:
    home, port = tmp_path_factory.mktemp("head"), free_port()
    (home / "mlflow").mkdir()
    shutil.copy(empty_store, home / "mlflow" / "mlflow.db")  # making its tables takes seconds
    done = start_mlflow(home, port)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"http://127.0.0.1:{port}"
    leader = int((home / "mlflow" / "pid").read_text())
    yield home, port
    os.killpg(leader, signal.SIGTERM)
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return
        time.sleep(0.1)
    os.killpg(leader, signal.SIGKILL)


def status_for(port: int, host: str) -> int:
    request = Request(
        f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search?max_results=1", headers={"Host": host}
    )
    try:
        with urlopen(request, timeout=20) as reply:
            return int(reply.status)
    except HTTPError as error:
        return error.code


def test_the_mlflow_script_is_valid_bash() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)


def test_a_second_start_of_mlflow_finds_the_first(mlflow_on_head: tuple[Path, int]) -> None:
    home, port = mlflow_on_head
    first_pid = (home / "mlflow" / "pid").read_text()
    again = start_mlflow(home, port)
    assert (again.returncode, again.stdout.strip()) == (0, f"http://127.0.0.1:{port}")
    assert "already running" in again.stderr
    assert (home / "mlflow" / "pid").read_text() == first_pid


def test_mlflow_survives_the_end_of_its_session_in_a_group_of_its_own(mlflow_on_head: tuple[Path, int]) -> None:
    leader = int((mlflow_on_head[0] / "mlflow" / "pid").read_text())
    assert os.getpgid(leader) == os.getsid(leader) == leader


def test_mlflow_answers_nodes_and_tunnels_and_no_other_host_name(mlflow_on_head: tuple[Path, int]) -> None:
    _, port = mlflow_on_head
    assert status_for(port, f"127.0.0.1:{port}") == 200
    assert status_for(port, "localhost:5000") == 200
    assert status_for(port, "evil.example") == 403


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_mlflow_refuses_to_listen_on_every_interface(tmp_path: Path, host: str) -> None:
    done = start_mlflow(tmp_path, free_port(), HKSD_MLFLOW_HOST=host)
    assert done.returncode == 1
    assert "refusing to listen on every interface" in done.stderr


def test_a_port_of_another_program_is_an_error(tmp_path: Path) -> None:
    class NotMlflow(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), NotMlflow) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        done = start_mlflow(tmp_path, server.server_port)
        server.shutdown()
    assert done.returncode == 1
    assert "taken by something that is not MLflow" in done.stderr
