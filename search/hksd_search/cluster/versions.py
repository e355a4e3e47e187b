"""Whether this Python environment is that of the cluster: hksd==VERSION, ray==VERSION, python==VERSION, all or some.

Run by itself on a node, before anything else: it needs nothing but Python.
"""

import platform
import sys
from importlib.metadata import PackageNotFoundError, version


def faults(wanted: list[str]) -> list[str]:
    """What differs, in words; nothing where all is right."""
    found = []
    for name, _, other in (one.partition("==") for one in wanted):
        try:
            have = platform.python_version() if name == "python" else version(name)
        except PackageNotFoundError:
            have = "not there"
        if have != other:
            found.append(f"{'Python' if name == 'python' else name} is {have}, the cluster wants {other}")
    return found


if __name__ == "__main__" and (different := faults(sys.argv[1:])):
    sys.exit("; ".join(different))
