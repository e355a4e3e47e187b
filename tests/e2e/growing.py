"""A cluster whose workers come when there is work for them: Ray's own autoscaler, with nodes on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RAY = Path(sys.executable).with_name("ray")
STORE = "100000000"  # bytes of the object store of a node; Ray's own default is 30 % of the memory


class Growing:
    """A head without cores, and an autoscaler that starts nodes; all of it listens on the loopback interface.

    Args:
        folder: for its files; short, since the paths of Ray's sockets may not be long.
        types: kinds of nodes: name -> resources, with `max_workers`. None is a cluster without an autoscaler.
        most: nodes at once.
        look_every: seconds between two looks of the autoscaler.
    """

    def __init__(self, folder: Path, types: dict[str, dict[str, Any]] | None, most: int = 2, look_every: float = 1):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.folder, self.address = folder, f"127.0.0.1:{port}"
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # see `hksd_search.backend.connect.LOOPBACK`
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        words = [
            RAY,
            "start",
            "--head",
            f"--port={port}",
            "--node-ip-address=127.0.0.1",
            "--num-cpus=0",
            "--num-gpus=0",
        ]
        words += [f"--object-store-memory={STORE}", f"--temp-dir={folder}", "--include-dashboard=false"]
        words += ["--disable-usage-stats"]
        if types is not None:
            file = folder / "cluster.json"
            file.write_text(json.dumps(self._tree(types, most)))
            words.append(f"--autoscaling-config={file}")
        environment = {
            **os.environ,
            **self.environment,
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "0",  # its new one wants a file that its wheel lacks for such a cluster
            "AUTOSCALER_UPDATE_INTERVAL_S": f"{look_every:g}",
        }
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr

    def _tree(self, types: dict[str, dict[str, Any]], most: int) -> dict[str, Any]:
        kinds = {
            name: {"node_config": {}, "min_workers": 0, "max_workers": kind.pop("max_workers", most), "resources": kind}
            for name, kind in ((name, {**kind}) for name, kind in types.items())
        }
        for kind in kinds.values():
            kind["resources"]["object_store_memory"] = int(STORE)
        head = {"node_config": {}, "max_workers": 0, "resources": {}}
        return {
            "cluster_name": "growing",
            "max_workers": most,
            "upscaling_speed": 100.0,
            "idle_timeout_minutes": 5,
            "provider": {
                "type": "fake_multinode",
                "gcs_address": self.address,
                "disable_node_updaters": True,
                "launch_multiple": True,
                "use_node_id_as_ip": True,  # all nodes have one address
            },
            "auth": {},
            "available_node_types": {"ray.head.default": head, **kinds},
            "head_node_type": "ray.head.default",
            "docker": {},
            "initialization_commands": [],
            "setup_commands": [],
            "head_setup_commands": [],
            "worker_setup_commands": [],
            "head_start_ray_commands": [],
            "worker_start_ray_commands": [],
            "file_mounts": {},
            "cluster_synced_files": [],
            "file_mounts_sync_continuously": False,
            "rsync_exclude": [],
            "rsync_filter": [],
        }

    def processes(self) -> list[int]:
        """Numbers of all its processes, which name its folder."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if int(entry.name) != os.getpid() and str(self.folder).encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
        return found

    def raylets(self) -> list[int]:
        """Numbers of the raylets of its workers, which are children of the autoscaler."""
        found = []
        for process in self.processes():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")
                if words[0].endswith("/raylet") and "--head" not in words:
                    found.append(process)
        return found

    def end(self) -> None:
        """Kill it, by the numbers of its processes."""
        for _ in range(50):
            for process in self.processes():
                with contextlib.suppress(OSError):
                    os.kill(process, signal.SIGKILL)
            if not self.processes():
                return
            time.sleep(0.1)
