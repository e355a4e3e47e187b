"""Calling functions on the device for which students are searched: a node of Ray with a resource of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hksd.errors import RunError, UserError, nearest
from hksd_search.space.settings import LOCAL

SHARE = 0.001  # of the target's resource; a measurement takes no core from the trials
ANSWER_S = 900.0  # a target that has not answered by then is taken for dead


def on_target(target: str, function: Any, *arguments: Any) -> Any:
    """Call a function on a node that has the custom resource `target`, and wait for its answer.

    Raises:
        UserError: there is no such node.
        RunError: it failed there, or did not answer.
    """
    import ray

    custom = [] if not ray.is_initialized() else known_targets(ray.cluster_resources())
    if target not in custom:
        there = ", ".join([LOCAL, *custom])
        raise UserError(
            f"search.latency.target: no node has the resource '{target}'{nearest(target, custom)} "
            f"(there are: {there}); "
            f"""give a node one by `ray start --resources='{{"{target}": 1}}'` and the cluster by --address"""
        )
    remote = ray.remote(num_cpus=0, resources={target: SHARE}, max_retries=1)(function)
    try:
        return ray.get(remote.remote(*arguments), timeout=ANSWER_S)
    except ray.exceptions.GetTimeoutError as error:
        raise RunError(f"search.latency.target: '{target}' has not answered for {ANSWER_S:.0f} s") from error
    except ray.exceptions.RayError as error:
        reason = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
        raise RunError(f"search.latency.target: '{target}' cannot measure: {reason}") from error


def known_targets(resources: Mapping[str, float]) -> list[str]:
    """Names of custom resources among those of a cluster."""
    own = ("CPU", "GPU", "TPU", "memory", "object_store_memory")
    return sorted(name for name in resources if name not in own and ":" not in name)
