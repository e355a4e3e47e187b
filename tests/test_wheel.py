"""What is installed: names that begin with hksd, and everything that belongs to them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
IGNORED = shutil.ignore_patterns("__pycache__", "*.egg-info")
COPIED = [  # to the nodes of a cluster
    local.removeprefix("./")
    for remote, local in yaml.safe_load((ROOT / "cluster.yaml").read_text())["file_mounts"].items()
    if remote.startswith("~/hksd-source/")
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names of the files in a wheel of this tree, made of what `cluster.yaml` copies to nodes, and of nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / "source" / name, ignore=IGNORED)
        else:
            shutil.copy(ROOT / name, folder / "source")
    words = ["-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), str(folder / "source")]
    subprocess.run([sys.executable, *words], check=True, timeout=120)
    (built,) = folder.glob("hksd-*.whl")
    return zipfile.ZipFile(built).namelist()


def test_every_name_that_is_installed_begins_with_hksd(wheel: list[str]) -> None:
    assert {name.split("/")[0].split("-")[0] for name in wheel} == {"hksd", "hksd_search"}


def test_all_modules_kernels_and_spaces_are_in_it(wheel: list[str]) -> None:
    installed = {
        ROOT / "hksd": "hksd",
        ROOT / "search" / "hksd_search": "hksd_search",
        ROOT / "spaces": "hksd_search/spaces",
    }
    for folder, where in installed.items():
        files = [path for path in folder.rglob("*") if path.suffix in (".py", ".c", ".h", ".yaml", ".md", ".sh")]
        assert files
        missing = {f"{where}/{path.relative_to(folder).as_posix()}" for path in files} - set(wheel)
        assert not missing
