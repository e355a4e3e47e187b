"""The script that prepares a node, run with the system's programs replaced: no root, no network, nothing installed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import hksd
from hksd_search.cluster import files

SCRIPT = files.PARTS / "set_up.sh"
VERSIONS = {"hksd": hksd.__version__, "ray": files.RAY, "python": "3.12.3"}
INSTALLED = """installed() { mkdir -p ~/site/$1-$2.dist-info; cd ~/site/$1-$2.dist-info
printf 'Name: %s\\nVersion: %s\\n' $1 $2 > METADATA; }
"""
# Each writes what it was asked into $HOME/asked. In the venv, the look at the versions is by a real Python
# that knows only what pip "installed", and has the version that a file says.
STUBS = {
    "sudo": """case $1 in tee) exec "$@";; mount) touch ~/mounted;; esac
               case "$*" in *"apt-get -qq install"*) touch ~/bin/mount.nfs; chmod +x ~/bin/mount.nfs;; esac""",
    "mountpoint": "test -e ~/mounted",
    "sleep": "true",
    "python3": """case "$*" in
                    *platform*) cat ~/python_version;;
                    *"-m venv"*) mkdir -p ~/venv/bin; cp ~/bin/venv_python ~/venv/bin/python; cp ~/bin/pip ~/venv/bin;;
                  esac""",
    "venv_python": f"""case "$*" in
  *versions.py*) PYTHONPATH=~/site exec {sys.executable} -S -c "import platform, runpy, sys
platform.python_version = lambda: open('$HOME/venv_version').read().strip()
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')" "$@";;
  *freeze*) echo torch==2.13.0; echo 'local @ file:///x';;
esac""",
    "pip": INSTALLED
    + """line="$*"; v=${line##*==}
case $line in *"ray[default]=="*) installed ray ${v%% *}; installed hksd $(cat ~/code);; esac""",
}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home folder as `ray up` leaves it on a new machine before the set-up."""
    for folder in (".hksd", "bin", "site", "hksd-source/hksd"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / ".hksd" / "auth_token").write_text("secret")
    (tmp_path / ".bashrc").write_text("# as the image has it\n")
    (tmp_path / "fstab").write_text("")
    (tmp_path / "code").write_text(hksd.__version__)
    (tmp_path / "python_version").write_text("3.12.3\n")
    (tmp_path / "venv_version").write_text("3.12.3\n")
    (tmp_path / "hksd-source" / "hksd" / "x.py").write_text("")
    for name, body in STUBS.items():
        stub = tmp_path / "bin" / name
        stub.write_text(f'#!/bin/bash\necho "$(basename "$0") $*" >> ~/asked\n{body}\n')
        stub.chmod(0o755)
    text = SCRIPT.read_text().replace("/etc/fstab", "~/fstab").replace("/sbin/mount.nfs", "~/bin/mount.nfs")
    (tmp_path / "set_up.sh").write_text(text)
    shutil.copy(files.PARTS / "versions.py", tmp_path)
    return tmp_path


def on_node(home: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command as Ray does over SSH, but in `home` and with the system's programs replaced."""
    shell = ["bash", "-c", f"source ~/.bashrc; export OMP_NUM_THREADS=1 && ({command})"]
    environment = {"HOME": str(home), "PATH": f"{home}/bin:/usr/bin:/bin"}
    return subprocess.run(shell, env=environment, cwd=home, capture_output=True, text=True, timeout=60)


def set_up(home: Path, role: str = "head", **versions: str) -> subprocess.CompletedProcess[str]:
    (home / "asked").write_text("")
    words = " ".join(f"{name}=={version}" for name, version in (VERSIONS | versions).items())
    return on_node(home, f"bash ~/set_up.sh {role} {words}")


def asked(home: Path) -> list[str]:
    return (home / "asked").read_text().splitlines()


@pytest.mark.parametrize("script", sorted(files.PARTS.glob("*.sh")), ids=lambda path: path.name)
def test_every_script_is_valid_bash(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_once_more_it_changes_nothing_and_installs_nothing(home: Path) -> None:
    (home / ".hksd" / "cluster.env").write_text("HKSD_EFS=fs-1.example\nHKSD_BUCKET=bucket\n")
    written = (".bashrc", ".hksd-env.sh", "fstab", ".hksd/mlflow_password")
    first = set_up(home)
    assert (first.returncode, first.stderr) == (0, "")
    assert any(line.startswith("sudo mount") for line in asked(home))
    assert any(line.startswith("pip install") for line in asked(home))
    after_first = [(home / name).read_text() for name in written]
    second = set_up(home)
    assert (second.returncode, second.stderr) == (0, "")
    assert [(home / name).read_text() for name in written] == after_first
    assert not [line for line in asked(home) if re.search(r"sudo (mount|tee)|apt-get|install", line)]


def test_changed_code_is_installed_again(home: Path) -> None:
    set_up(home)
    (home / "hksd-source" / "hksd" / "x.py").write_text("x = 1\n")
    assert set_up(home).returncode == 0
    assert [line for line in asked(home) if line.startswith("pip install")]


def test_an_install_that_failed_is_made_again(home: Path) -> None:
    good = (home / "bin" / "pip").read_text()
    (home / "bin" / "pip").write_text("#!/bin/bash\nexit 1\n")
    failed = set_up(home)
    assert failed.returncode == 1
    assert "pip could not install hksd" in failed.stderr
    (home / "venv" / "bin" / "pip").write_text(good)
    assert set_up(home).returncode == 0


def test_it_ends_at_once_without_a_token(home: Path) -> None:
    (home / ".hksd" / "auth_token").unlink()
    done = set_up(home)
    assert done.returncode == 1
    assert "there is no ~/.hksd/auth_token" in done.stderr
    assert asked(home) == []


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        ({"ray": "2.59.1"}, "ray is 2.60.0, the cluster wants 2.59.1"),
        ({"hksd": "9.9.9"}, f"hksd is {hksd.__version__}, the cluster wants 9.9.9"),
        ({"python": "3.12.9"}, "Python is 3.12.3, the cluster wants 3.12.9"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_node_of_the_users_with_another_version_is_told_in_a_sentence_and_left_alone(
    home: Path, wanted: dict[str, str], sentence: str
) -> None:
    set_up(home)
    (home / "venv" / ".of-hksd").unlink()  # as if the user had made it
    done = set_up(home, **wanted)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"in {home}/venv {sentence}" in done.stderr
    assert not [line for line in asked(home) if "install" in line]


def test_a_node_of_the_users_with_the_right_versions_is_taken_as_it_is(home: Path) -> None:
    set_up(home)
    (home / "venv" / ".of-hksd").unlink()
    (home / "hksd-source" / "hksd" / "x.py").write_text("x = 1\n")
    assert set_up(home).returncode == 0
    assert not [line for line in asked(home) if "install" in line]


def test_code_of_another_version_than_the_files_is_told(home: Path) -> None:
    (home / "code").write_text("0.0.9")
    done = set_up(home)
    assert done.returncode == 1
    assert f"hksd is 0.0.9, the cluster wants {hksd.__version__}" in done.stderr


def test_a_machine_with_another_python_is_told_before_anything_is_installed(home: Path) -> None:
    (home / "python_version").write_text("3.10.12\n")
    done = set_up(home)
    assert done.returncode == 1
    assert "the cluster wants Python 3.12.3, python3 here is 3.10.12" in done.stderr
    assert not (home / "venv").exists()


def test_nothing_is_mounted_unless_a_file_system_is_named(home: Path) -> None:
    assert set_up(home).returncode == 0
    assert not [line for line in asked(home) if line.startswith("sudo")]
    assert (home / "runs").is_dir()
    assert (home / "fstab").read_text() == ""


def test_a_named_file_system_is_mounted_at_the_folder_of_runs(home: Path) -> None:
    (home / ".hksd" / "cluster.env").write_text("HKSD_NFS=10.0.0.9:/share\nHKSD_RUNS=~/elsewhere\n")
    assert set_up(home).returncode == 0
    assert (home / "fstab").read_text().startswith(f"10.0.0.9:/share {home}/elsewhere nfs ")
    assert f"sudo mount {home}/elsewhere" in asked(home)


def test_workers_take_the_password_and_the_packages_of_the_head(home: Path) -> None:
    set_up(home, "head")
    password = (home / ".hksd" / "mlflow_password").read_text()
    assert re.fullmatch("[0-9a-f]{64}", password)
    assert (home / ".hksd" / "constraints.txt").read_text() == "torch==2.13.0\n"
    (home / "venv" / ".of-hksd").write_text("")  # a worker, which gets ~/.hksd from the head, is new
    set_up(home, "worker")
    assert (home / ".hksd" / "mlflow_password").read_text() == password
    (install,) = [line for line in asked(home) if line.startswith("pip install")]
    assert f"--constraint {home}/.hksd/constraints.txt" in install


def test_every_shell_of_a_node_knows_token_runs_and_tracking_and_only_its_user_reads_the_secrets(home: Path) -> None:
    (home / ".hksd" / "cluster.env").write_text("HKSD_BUCKET=bucket\n")
    (home / ".hksd" / "mlflow_password").write_text("a password of mine")
    for file in (home / ".hksd").iterdir():
        file.chmod(0o644)
    assert set_up(home).returncode == 0
    (home / "mlflow").mkdir()
    (home / "mlflow" / "uri").write_text("http://10.0.0.5:5000\n")
    seen = dict(line.partition("=")[::2] for line in on_node(home, "env").stdout.splitlines())
    wanted = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": f"{home}/.hksd/auth_token",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HKSD_RUNS": f"{home}/runs",
        "HKSD_BUCKET": "bucket",
        "MLFLOW_TRACKING_URI": "http://10.0.0.5:5000",
        "MLFLOW_TRACKING_USERNAME": "hksd",
        "MLFLOW_TRACKING_PASSWORD": "a password of mine",
    }
    assert {key: seen.get(key) for key in wanted} == wanted
    assert seen["PATH"].startswith(f"{home}/venv/bin:")
    assert {file.stat().st_mode & 0o777 for file in (home / ".hksd").iterdir()} == {0o600}
    assert "a password of mine" not in (home / ".hksd-env.sh").read_text()
