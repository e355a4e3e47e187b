"""What Ray says of a worker that is lost, read: the fault that ended it, or that its process or its machine is gone."""

from __future__ import annotations

from pathlib import Path

import pytest

from hksd_search.backend.failures import DIED, MEMORY, NODE, Failure, failure, last_line, told_by_tune

# As Ray 2.60 says it, shortened in the middle.
IMPORT = """The actor died unexpectedly before finishing this task.
	class_name: ImplicitFunc
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker exits
unexpectedly. Worker exits with an exit code None. Traceback (most recent call last):
  File "function_manager.py", line 657, in temporary_actor_method
    raise RuntimeError(
RuntimeError: The actor with name ImplicitFunc failed to import on the worker. This may be because needed library:
Traceback (most recent call last):
  File "function_manager.py", line 696, in _load_actor_class_from_gcs
    actor_class = pickle.loads(pickled_class)
ModuleNotFoundError: No module named 'search'

An unexpected internal error occurred while the worker was executing a task."""
FILE = """\x1b[36mray::ImplicitFunc.train()\x1b[39m (pid=27047, ip=192.0.2.2, repr=run_trial)
  File "registry.py", line 313, in get
    return ray.get(self.references[k])
ray.exceptions.RaySystemError: System error: [Errno 2] No such file or directory: '/data/a'
traceback: Traceback (most recent call last):
FileNotFoundError: [Errno 2] No such file or directory: '/data/a'
"""
KILLED = """The actor died unexpectedly before finishing this task.
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker
unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was killed
by the OOM killer due to high memory usage, (2) ray stop --force was called, or (3) the worker crashed unexpectedly due
to SIGSEGV or another unexpected error."""
EXIT = """The actor died unexpectedly before finishing this task.
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker exits \
unexpectedly. Worker exits with an exit code {}."""
LOST = "The actor died unexpectedly before finishing this task.\nThe actor died because its node has died. Node Id: 4f2"
FULL = "Task was killed due to the node running low on memory.\nMemory on the node (IP: 192.0.2.2) was 15.2GB / 16GB"
TASK = f"""Task failed because the node it was running on is dead or unavailable. Node IP: 192.0.2.7, node ID: \
{"b6" * 28}. This can happen if the node was preempted, had a hardware failure, or its raylet crashed unexpectedly. To \
see node death information, use `ray list nodes --filter node_id={"b6" * 28}`."""
AWAY = f"""The actor {"60" * 16} is unavailable: The actor is temporarily unavailable: RpcError: RPC error: \
recvmsg:Connection reset by peer rpc_code: 14. The task may or may not have been executed on the actor."""
DEAD = f"""The actor died unexpectedly before finishing this task.
	class_name: ImplicitFunc
	actor_id: {"60" * 16}
	pid: 4711
	namespace: 0
	ip: 192.0.2.7
The actor is dead because its node has died. Node Id: {"b6" * 28}
	the actor's node was terminated unexpectedly: health check failed"""


@pytest.mark.parametrize(
    ("text", "node", "address", "actor"),
    [
        (TASK, "b6" * 28, "192.0.2.7", None),
        (AWAY, None, None, "60" * 16),
        (DEAD, "b6" * 28, "192.0.2.7", "60" * 16),
        (KILLED, None, None, None),
    ],
)
def test_what_ray_tells_of_the_place_is_kept(
    text: str, node: str | None, address: str | None, actor: str | None
) -> None:
    found = failure(text)
    assert (found.node, found.address, found.actor, found.fault) == (node, address, actor, False)
    assert found.reason == (NODE if node else DIED)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (IMPORT, Failure("ModuleNotFoundError: No module named 'search'", fault=True)),
        (FILE, Failure("FileNotFoundError: [Errno 2] No such file or directory: '/data/a'", fault=True)),
        (KILLED, Failure(DIED, fault=False)),
        (EXIT.format("not on this machine"), Failure("SystemExit: not on this machine", fault=True)),
        (EXIT.format(3), Failure("the worker process ended itself (exit code 3)", fault=False)),
        (LOST, Failure(NODE, fault=False)),
        (FULL, Failure(MEMORY, fault=False)),
        (f"ray.exceptions.OutOfMemoryError: {FULL}", Failure(MEMORY, fault=False)),
        ("", Failure(DIED, fault=False)),
    ],
    ids=[
        "an import",
        "a file",
        "a kill",
        "an exit",
        "an exit code",
        "a node",
        "memory",
        "memory by its class",
        "nothing",
    ],
)
def test_the_true_cause_is_told_and_a_kill_only_where_there_was_one(text: str, expected: Failure) -> None:
    assert failure(text) == expected
    assert failure(RuntimeError(text)) == expected


def test_of_the_errors_that_tune_keeps_of_a_trial_the_newest_counts(tmp_path: Path) -> None:
    file = tmp_path / "error.txt"
    file.write_text(f"Failure # 1 (occurred at noon)\n{IMPORT}\nFailure # 2 (occurred at one)\n{KILLED}\n")
    assert told_by_tune(str(file)) == Failure(DIED, fault=False)
    assert told_by_tune(str(tmp_path / "none")) is None
    assert told_by_tune(None) is None


def test_an_exception_of_many_lines_is_told_by_its_last_one() -> None:
    assert last_line(RuntimeError("one")) == "one"
    assert last_line(RuntimeError("one\n  two\n\n")) == "two"
    assert last_line(RuntimeError()) == "RuntimeError"
