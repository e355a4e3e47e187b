"""What a node of a cluster must be to work for a search. Runs on the node, where an older hksd may be installed."""

from __future__ import annotations

import socket

from hksd import __version__
from hksd_search.backend import shared_folder
from hksd_search.backend.shared_folder import Mark


def fault(mark: Mark, version: str) -> str | None:
    """What keeps this machine from working for a search, in words; None where nothing does.

    Args:
        mark: that the driver has left in the folder of all searches.
        version: of hksd at the driver.
    """
    if __version__ != version:
        return f"hksd {__version__} is installed on {socket.gethostname()}, and {version} where the search runs"
    return not_shared(mark)


def not_shared(mark: Mark, write: bool = True) -> str | None:
    """Why a trial must not work here: its checkpoints would be seen by no other node. None where they are.

    Args:
        mark: that the driver has left in the folder of all searches.
        write: try to write there too.
    """
    why = shared_folder.fault(mark, write)
    return why and (
        f"--runs: the folder is not shared by all nodes: {why}. Trials keep their checkpoints there, and teachers "
        "their weights, so every node must see one and the same folder at that path (NFS, EFS, Lustre, ...): mount it "
        "on every node, and name it by --runs or HKSD_RUNS (docs/cluster.md)"
    )
