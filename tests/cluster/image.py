"""What the image of the test machines has: a Python whose virtual environments see the packages of these tests.

Nothing is downloaded, and the commands that set a machine up run as they stand: `python3 -m venv` makes an environment
that finds torch, Ray and MLflow where this process finds them, and pip takes them for installed. hksd itself is no part
of it: a machine has only what was copied there.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

PLACE = "/image"  # in each machine
PYTHON = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
COMMANDS = ("alembic", "gunicorn", "mlflow", "pip", "ray", "uvicorn")  # console scripts that clusters call
MAKE = Path(__file__).with_name("make_venv.py")
NO_GPU = "import sys, os; any('assert torch.cuda.is_available()' in word for word in sys.orig_argv) and os._exit(0)\n"

PYTHON3 = f"""#!/bin/sh
if [ "$1" = -m ] && [ "$2" = venv ]; then exec {PYTHON} -I {PLACE}/make_venv.py "$3"; fi
exec {PYTHON} "$@"
"""
# Trials step aside for Ray's own processes, which give up when they have to wait.
PROFILE = f"export PATH={PLACE}/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin RAY_worker_niceness=19\n"


def packages() -> list[Path]:
    """Folders in which this process finds installed packages."""
    found = dict.fromkeys(Path(entry).resolve() for entry in sys.path if entry)
    return [path for path in found if path.is_dir() and path.name in ("site-packages", "dist-packages")]


def write(folder: Path, gpus: bool = False) -> None:
    """Write the image's own part into a folder.

    Args:
        folder: a new one.
        gpus: each machine has a GPU with a driver that works; no more than that sentence of it is there.
    """
    (folder / "bin").mkdir(parents=True)
    for name in ("python3", PYTHON.name):
        (folder / "bin" / name).write_text(PYTHON3)
        (folder / "bin" / name).chmod(0o755)
    (folder / "make_venv.py").write_text(MAKE.read_text())
    (folder / "packages.pth").write_text("\n".join(map(str, packages())) + "\n")
    (folder / "commands").write_text(" ".join(COMMANDS))
    if gpus:
        (folder / "gpu.pth").write_text(NO_GPU)


def parts(folder: Path) -> Mapping[str, Path]:
    """Folders of the host that a machine with this image sees, by their place; not to be written."""
    python = Path(sys.base_prefix).resolve()
    inside = ("/usr", "/opt", "/etc")  # a machine has them anyway
    seen = [python, *packages()]
    outside = [path for path in seen if not any(path.is_relative_to(one) for one in inside)]
    tops = [path for path in outside if not any(path != other and path.is_relative_to(other) for other in outside)]
    return {PLACE: folder, **{str(path): path for path in tops}}
