"""What the clusters of these tests need, and what of it is missing here; knows nothing but the standard library.

As a program it prints what is missing, with the command that brings it, and ends with 1. ``--cloud`` asks for what the
imitation of AWS needs too, ``--system`` for no Python packages.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec

PROGRAMS = {  # with the Debian package that has them
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "rsync": "rsync",
    "ip": "iproute2",
    "ss": "iproute2",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "pivot_root": "util-linux",
}
CLOUD_PROGRAMS = {"sudo": "sudo"}
MODULES = {
    "aiohttp_cors": "ray[default]",
    "opencensus": "ray[default]",
    "flask_wtf": "mlflow[auth]",
    "boto3": "boto3",
    "pip": "pip",
    "setuptools": "setuptools",
}
CLOUD_MODULES = {"moto.server": "moto[server,ec2,iam,s3]"}
NAMESPACES = ["unshare", "--net", "--mount", "--pid", "--uts", "--fork", "mount", "-t", "tmpfs", "none", "/mnt"]
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # where sshd is, on the path or not


def missing(cloud: bool = False, packages: bool = True) -> list[str]:
    """What is missing, each with the way to get it; empty where clusters can be run.

    Args:
        cloud: for the imitation of AWS.
        packages: look for Python packages too.
    """
    if not sys.platform.startswith("linux"):
        return ["Linux: machines are made of its namespaces"]
    found = []
    programs = PROGRAMS | (CLOUD_PROGRAMS if cloud else {})
    lacking = {name: package for name, package in programs.items() if not shutil.which(name, path=SYSTEM_PATH)}
    if lacking:
        names = " ".join(sorted(set(lacking.values())))
        found.append(f"{', '.join(lacking)} (apt-get install --no-install-recommends {names})")
    modules = (MODULES | (CLOUD_MODULES if cloud else {})) if packages else {}
    absent = {name: package for name, package in modules.items() if not _importable(name)}
    if absent:
        found.append(f"Python packages {', '.join(sorted(set(absent.values())))} (pip install -e '.[cluster-test]')")
    if os.geteuid() != 0:
        found.append("root: only root may make network and mount namespaces (sudo)")
    elif not {"unshare", "ip"} & lacking.keys():
        done = subprocess.run(NAMESPACES, capture_output=True, text=True, timeout=20)
        if done.returncode:
            found.append(f"namespaces: this machine does not let root make them ({done.stderr.strip()})")
    return found


def _importable(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ImportError:  # a parent of it
        return False


def main() -> int:
    """Print what is missing; 1 if anything is."""
    found = missing("--cloud" in sys.argv[1:], "--system" not in sys.argv[1:])
    for one in found:
        print(f"missing: {one}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
