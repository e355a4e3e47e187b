"""An imitation of AWS in which instances are machines: moto keeps the books, what runs there is switched on here.

What moto does not imitate is not tested by it: images and how they start, the rules of security groups and roles,
quotas, spot capacity.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Callable, Mapping
from typing import Any

import image
from disk import Parts, User
from launcher import token
from machines import Machine, Network

REGION, IMAGE = "us-west-2", "ami-12345678"
PORT = 5000
SWITCH, AWS, LAPTOP = "172.31.255.1/16", "172.31.255.5", "172.31.255.10"  # no subnet of moto has these
CREDENTIALS = "[default]\naws_access_key_id=testing\naws_secret_access_key=testing\n"
OWN_ADDRESS = "203.0.113.7/32"  # of the user, who alone may come in by SSH
MEMORY = "--object-store-memory=100000000"  # see onprem
NODES = f"HKSD_HEAD_OPTIONS={MEMORY}\nHKSD_WORKER_OPTIONS={MEMORY}\n"
LOOK_EVERY = 0.5  # seconds
SERVER = """
import sys
from moto.ec2.responses.instances import InstanceResponse
from moto.server import main
get = InstanceResponse._get_param
# moto starts MinCount instances, EC2 up to MaxCount, which is what Ray asks for.
InstanceResponse._get_param = lambda self, name, *rest, **more: get(
    self, "MaxCount" if name == "MinCount" else name, *rest, **more
)
main(sys.argv[1:])
"""
CLERK = """
import json, sys
import boto3
for line in sys.stdin:
    service, call, arguments = json.loads(line)
    try:
        answer = {"answer": getattr(boto3.client(service), call)(**arguments)}
    except Exception as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answer, default=str), flush=True)
"""


class Cloud:
    """An account at the imitation of AWS, prepared as docs/cluster.md says.

    Attributes:
        network: of the cloud and of the laptop.
        laptop: where clusters are launched from.
        shared: what all instances see as ~/runs; stands for an EFS.
        machines: the instances that are switched on, by their id.

    Args:
        network: a new one, whose switch has the address `SWITCH`.
        desk: makes a machine at which somebody works; see `onprem.desk`.
    """

    def __init__(self, network: Network, desk: Callable[..., Machine]):
        self.network, self.machines, self.fault = network, dict[str, Machine](), None
        image.write(network.folder / "image", gpus=True)
        self.images = image.parts(network.folder / "image")
        self.shared = network.folder / "runs"
        self.shared.mkdir()
        self.user = User("ubuntu", 1000)
        os.chown(self.shared, self.user.number, self.user.number)
        profile = f"{image.PROFILE}export PATH=$HOME/venv/bin:$PATH\n"
        self.aws = network.machine("aws", AWS, Parts(profile=profile, files=self.settings(), images=self.images))
        self.aws.shell("python3 -m venv ~/venv")
        secrets = {".hksd/auth_token": token(), ".hksd/cluster.env": NODES}
        self.laptop = desk(network, "laptop", LAPTOP, self.images, {**self.settings(), **secrets})
        self._lock, self._over = threading.Lock(), threading.Event()
        self._server = self._start(SERVER, "-H", AWS, "-p", str(PORT), stdout=subprocess.DEVNULL)
        knock = f"until (exec 3<>/dev/tcp/{AWS}/{PORT}) 2>/dev/null; do sleep 0.2; done"
        self.aws.shell(knock, timeout=60)
        self._clerk = self._start(CLERK, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._prepare()
        self._thread = threading.Thread(target=self._follow, name="instances", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Switch no more machines on or off; they end with the network."""
        self._over.set()
        self._thread.join(30)

    @staticmethod
    def settings() -> dict[str, str]:
        """What the AWS command line's own files say, of whoever uses this cloud."""
        endpoint = f"http://{AWS}:{PORT}"
        config = f"[default]\nregion={REGION}\nendpoint_url={endpoint}\n"
        return {".aws/config": config, ".aws/credentials": CREDENTIALS}

    def ask(self, service: str, call: str, **arguments: Any) -> Any:
        """Call boto3 in the account; returns its answer."""
        with self._lock:
            assert self._clerk.stdin and self._clerk.stdout
            self._clerk.stdin.write(json.dumps([service, call, arguments]) + "\n")
            self._clerk.stdin.flush()
            said = json.loads(self._clerk.stdout.readline())
        assert "error" not in said, f"{service} {call}: {said['error']}"
        return said["answer"]

    def instances(self, kind: str = "", state: str = "running") -> list[dict[str, Any]]:
        """Instances in a state, of Ray's kind ``head`` or ``worker``, or all."""
        filters = [{"Name": "instance-state-name", "Values": [state]}]
        if kind:
            filters.append({"Name": "tag:ray-node-type", "Values": [kind]})
        groups = self.ask("ec2", "describe_instances", Filters=filters)["Reservations"]
        return [instance for group in groups for instance in group["Instances"]]

    def running(self, kind: str) -> list[Machine]:
        """Machines of the instances that run, of Ray's kind ``head`` or ``worker``."""
        assert self.fault is None, self.fault
        ids = [instance["InstanceId"] for instance in self.instances(kind)]
        return [self.machines[one] for one in ids if one in self.machines and self.machines[one].on]

    def listed(self, state: str) -> list[str]:
        """Types of the instances in a state."""
        return [instance["InstanceType"] for instance in self.instances(state=state)]

    def terminate(self, machine: Machine) -> None:
        """Take an instance back."""
        (one,) = [number for number, found in self.machines.items() if found is machine]
        self.ask("ec2", "terminate_instances", InstanceIds=[one])

    def _start(self, code: str, *words: str, **how: Any) -> subprocess.Popen[str]:
        line = '. ~/.bashrc; exec python -c "$@"'
        return self.aws.popen("bash", "-c", line, "-", code, *words, stderr=subprocess.DEVNULL, **how)

    def _prepare(self) -> None:
        """The steps of docs/cluster.md that come once per account."""
        for role in ("hksd-head", "hksd-worker"):
            self.ask("iam", "create_role", RoleName=role, AssumeRolePolicyDocument="{}")
            self.ask("iam", "create_instance_profile", InstanceProfileName=role)
            self.ask("iam", "add_role_to_instance_profile", InstanceProfileName=role, RoleName=role)
        vpc = self.ask("ec2", "describe_vpcs")["Vpcs"][0]["VpcId"]
        made = self.ask("ec2", "create_security_group", GroupName="hksd", Description="hksd cluster", VpcId=vpc)
        group = made["GroupId"]
        own = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": OWN_ADDRESS}]}
        inside = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}
        self.ask("ec2", "authorize_security_group_ingress", GroupId=group, IpPermissions=[own, inside])

    def _follow(self) -> None:
        """Switch machines on and off as the books say."""
        while not self._over.wait(LOOK_EVERY):
            try:
                there = {one["InstanceId"]: one for one in self.instances()}
                for number in [one for one in self.machines if one not in there and self.machines[one].on]:
                    self.machines[number].remove()
                for number in there.keys() - self.machines.keys():
                    self.machines[number] = self._boot(there[number])
            except Exception as error:  # told by whoever asks for machines
                self.fault = error
                return

    def _boot(self, instance: Mapping[str, Any]) -> Machine:
        pem = self.laptop.home / ".ssh" / f"{instance['KeyName']}.pem"  # Ray writes it there
        key = subprocess.run(["ssh-keygen", "-y", "-f", str(pem)], capture_output=True, text=True, check=True).stdout
        mounts = {f"{self.user.home}/runs": self.shared}
        parts = Parts(self.user, key, image.PROFILE, self.settings(), images=self.images, mounts=mounts)
        name = "i" + instance["InstanceId"][-6:]
        return self.network.machine(name, instance["PrivateIpAddress"], parts, instance.get("PublicIpAddress"))
