"""What Slurm and KubeRay are given: seen as they are read, and their scripts run with programs that only write down."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hksd.errors import UserError
from hksd_search.cluster import files, versions

Manifest = dict[str, Any]


def text_of(variant: str, **asked: Any) -> str:
    return files.compose(variant, files.Asked(**asked), Path("/nowhere"), "3.11.7")


def kuberay(**asked: Any) -> dict[str, Manifest]:
    text = text_of("kuberay", **({"image": "registry.example/hksd:1", "name": "first"} | asked))
    return {one["kind"]: one for one in yaml.safe_load_all(text)}


def cluster(parts: dict[str, Manifest]) -> Manifest:
    return parts["RayJob"]["spec"]["rayClusterSpec"]


def pods(parts: dict[str, Manifest]) -> dict[str, Manifest]:
    """The templates of all pods: of head, workers, and the one that submits."""
    (workers,) = cluster(parts)["workerGroupSpecs"]
    return {
        "head": cluster(parts)["headGroupSpec"]["template"],
        "worker": workers["template"],
        "submitter": parts["RayJob"]["spec"]["submitterPodTemplate"],
    }


def container(pod: Manifest) -> Manifest:
    (only,) = pod["spec"]["containers"]
    return only


class TestKubeRay:
    """The manifest: whatever changes it must keep these."""

    def test_all_its_parts_are_there_and_named_after_the_search(self) -> None:
        parts = kuberay()
        assert list(parts) == ["PersistentVolumeClaim", "ConfigMap", "NetworkPolicy", "RayJob"]
        assert all(part["metadata"]["name"].startswith("first") for part in parts.values())

    def test_ray_is_the_pinned_one_and_asks_for_a_token(self) -> None:
        spec = cluster(kuberay())
        assert spec["rayVersion"] == files.RAY
        assert spec["authOptions"] == {"mode": "token"}

    def test_workers_come_and_go_up_to_the_cap_and_no_trial_runs_on_the_head(self) -> None:
        spec = cluster(kuberay(max_workers=7))
        (workers,) = spec["workerGroupSpecs"]
        assert spec["enableInTreeAutoscaling"] is True
        assert spec["autoscalerOptions"]["idleTimeoutSeconds"] <= 1800
        assert (workers["replicas"], workers["minReplicas"], workers["maxReplicas"]) == (0, 0, 7)
        assert spec["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"}

    def test_a_worker_has_one_gpu_and_every_container_says_what_it_takes(self) -> None:
        parts = kuberay()
        for name, pod in pods(parts).items():
            resources = container(pod)["resources"]
            assert {"cpu", "memory"} <= resources["requests"].keys() & resources["limits"].keys(), name
            assert resources["limits"].get("nvidia.com/gpu") == (1 if name == "worker" else None)
        assert "nvidia.com/gpu" in {one["key"] for one in pods(parts)["worker"]["spec"]["tolerations"]}

    def test_head_and_workers_share_one_folder_of_runs_that_many_may_write_to(self) -> None:
        parts = kuberay()
        claim = parts["PersistentVolumeClaim"]
        assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
        for name in ("head", "worker"):
            pod = pods(parts)[name]
            (runs,) = [one["value"] for one in container(pod)["env"] if one["name"] == "HKSD_RUNS"]
            (volume,) = [one["name"] for one in container(pod)["volumeMounts"] if one["mountPath"] == runs]
            (source,) = [one for one in pod["spec"]["volumes"] if one["name"] == volume]
            assert source["persistentVolumeClaim"] == {"claimName": claim["metadata"]["name"]}

    def test_no_pod_has_more_rights_than_it_needs_and_all_have_one_image(self) -> None:
        parts = kuberay()
        assert {container(pod)["image"] for pod in pods(parts).values()} == {"registry.example/hksd:1"}
        for name, pod in pods(parts).items():
            assert pod["spec"]["securityContext"]["runAsNonRoot"] is True, name
            assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            assert container(pod)["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert name == "head" or pod["spec"]["automountServiceAccountToken"] is False  # it asks for workers

    def test_no_other_pod_reaches_one_of_these(self) -> None:
        parts = kuberay()
        policy = parts["NetworkPolicy"]["spec"]
        assert policy["policyTypes"] == ["Ingress"]
        for name, pod in pods(parts).items():
            assert policy["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items(), name
        own, operator = policy["ingress"]
        assert own == {"from": [{"podSelector": policy["podSelector"]}]}
        assert [one["port"] for one in operator["ports"]] == [8265]

    def test_nothing_is_left_running_and_a_failure_is_tried_again(self) -> None:
        spec = kuberay()["RayJob"]["spec"]
        assert spec["shutdownAfterJobFinishes"] is True
        assert spec["backoffLimit"] >= 1

    def test_no_secret_stands_in_it(self) -> None:
        assert not re.search(r"password|auth_token|stringData", json.dumps(kuberay()), re.IGNORECASE)

    @pytest.mark.parametrize("name", ["First", "a_b", "a" * 48, "1st", "a-"])
    def test_a_name_that_kubernetes_refuses_is_told(self, name: str) -> None:
        with pytest.raises(UserError, match="--name: Kubernetes takes"):
            kuberay(name=name)

    def test_without_an_image_it_says_what_it_needs(self) -> None:
        with pytest.raises(UserError, match="kuberay needs --image"):
            text_of("kuberay")


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Path]:
    """Programs that write down what they are asked, in a folder `bin`, and where they do."""
    (tmp_path / "bin").mkdir()
    for name in ("hksd", "python"):
        (tmp_path / "bin" / name).write_text(
            f'#!/bin/bash\necho "{name} $*" >> {tmp_path}/asked\nexit ${{{name}_code:-0}}\n'
        )
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path / "asked"


def run_script(place: Path, **environment: str) -> int:
    script = kuberay(space="cifar10")["ConfigMap"]["data"]["search.sh"]
    shown = {"PATH": f"{place / 'bin'}:/usr/bin:/bin", "HKSD_RUNS": str(place / "runs"), **environment}
    return subprocess.run(["bash"], input=script, text=True, env=shown, timeout=60).returncode


def test_the_job_begins_a_search_and_after_a_failure_goes_on_with_it(asked: Path) -> None:
    assert run_script(asked.parent) == 0
    assert asked.read_text().splitlines()[-1] == "hksd search cifar10 --name first --address auto"
    (asked.parent / "runs" / "first").mkdir(parents=True)
    (asked.parent / "runs" / "first" / "space.yaml").touch()
    assert run_script(asked.parent) == 0
    assert asked.read_text().splitlines()[-1] == "hksd search first --resume --address auto"


def test_a_job_in_an_image_of_other_versions_does_not_begin(asked: Path) -> None:
    assert run_script(asked.parent, python_code="1") == 2
    line = f"python -m hksd_search.cluster.versions hksd=={files.hksd.__version__} ray=={files.RAY}"
    assert asked.read_text().splitlines() == [line]


def test_what_differs_from_the_wanted_versions_is_told_by_name() -> None:
    have = {name: versions.version(name) for name in ("hksd", "ray")}
    assert versions.faults([f"{name}=={version}" for name, version in have.items()]) == []
    assert versions.faults(["ray==1.0", "python==2.7.18", "no-such-package==1"]) == [
        f"ray is {have['ray']}, the cluster wants 1.0",
        f"Python is {versions.platform.python_version()}, the cluster wants 2.7.18",
        "no-such-package is not there, the cluster wants 1",
    ]


class TestSlurm:
    """The batch script; tests/e2e/test_slurm.py runs it."""

    def test_it_is_valid_bash(self) -> None:
        subprocess.run(["bash", "-n"], input=text_of("slurm"), text=True, check=True)

    def test_slurm_is_asked_for_a_warning_a_place_in_the_queue_and_nodes(self) -> None:
        text = text_of("slurm", name="first", max_workers=3)
        found = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(\S*)$", text, re.MULTILINE))
        assert found["signal"] == "B:TERM@120"  # to this script alone, which passes it on to the search
        assert found["requeue"] == ""
        assert found["open-mode"] == "append"  # the log of before stays
        assert (found["nodes"], found["ntasks-per-node"], found["job-name"]) == ("3", "1", "first")
        assert text.index("#SBATCH") < text.index("\nspace=")  # Slurm reads none after the first command

    def test_it_ends_only_processes_of_its_own_job(self) -> None:
        assert not re.search(r"ray stop|pkill|killall|kill -9 -1", text_of("slurm"))

    def test_it_has_the_paths_that_were_asked_for(self) -> None:
        text = text_of("slurm", venv="/shared/venv", shared="/shared/runs", space="spaces/mine.yaml")
        assert "\nexport HKSD_RUNS=/shared/runs\n" in text
        assert "\nexport PATH=/shared/venv/bin:$PATH\n" in text
        assert "\nspace=spaces/mine.yaml\n" in text


@pytest.mark.parametrize(("variant", "more"), [("slurm", {}), ("kuberay", {"image": "x"})])
def test_no_place_is_left_open_and_none_is_open_to_the_world(variant: str, more: dict[str, str]) -> None:
    text = text_of(variant, **more)
    assert not files.PLACE.search(text)
    assert not re.search(r"0\.0\.0\.0|::/0", text)
    assert [line for line in text.splitlines() if len(line) > 150 or line != line.rstrip()] == []


@pytest.mark.parametrize(
    ("variant", "asked", "message"),
    [
        ("aws", {"head": "10.0.0.1"}, "--head means nothing to aws, which takes --image"),
        ("slurm", {"workers": ("10.0.0.1",)}, "--worker means nothing to slurm"),
        ("local", {"head": "10.0.0.1"}, "local needs --worker, --user"),
        ("gcp", {}, "gcp needs --project"),
        ("aws", {"source": Path("/")}, "--source: / has no pyproject.toml; give the project's folder, or a wheel"),
    ],
)
def test_options_that_do_not_fit_are_told(variant: str, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        text_of(variant, **asked)


def test_a_wheel_is_copied_instead_of_the_projects_folder(tmp_path: Path) -> None:
    wheel = tmp_path / "hksd-0.1.0-py3-none-any.whl"
    wheel.touch()
    mounts = yaml.safe_load(text_of("aws", source=wheel))["file_mounts"]
    assert mounts[f"~/hksd-source/{wheel.name}"] == str(wheel)
    assert list(mounts) == [f"~/hksd-source/{wheel.name}", "~/hksd-cluster", "~/.hksd"]


def test_an_installed_hksd_copies_the_scripts_of_the_folder_that_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = files.PARTS.parents[2]
    mounts = yaml.safe_load(text_of("aws", source=root))["file_mounts"]
    installed = tmp_path / "python3.11" / "site-packages" / "hksd_search" / "cluster"
    shutil.copytree(files.PARTS, installed)
    monkeypatch.setattr(files, "PARTS", installed)
    assert yaml.safe_load(text_of("aws", source=root))["file_mounts"] == mounts
    with pytest.raises(UserError, match="--source: this hksd was not started from its own folder"):
        text_of("aws")
