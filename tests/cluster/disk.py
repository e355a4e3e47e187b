"""The file system of a machine of these tests: its disk, and what it sees of the host."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

SYSTEM = ("bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "opt", "etc")  # folders of the host's programs
MEMORY = {"/tmp": "mode=1777,size=3g", "/run": "mode=755", "/var": "mode=755", "/var/tmp": "mode=1777"}
SSHD = """
Port 22
HostKey /machine/host_key
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
PidFile none
MaxStartups 100
"""
PASSWD = {
    "root": "root:x:0:0::/root:/bin/bash\n",
    "sshd": "sshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n",
    "nobody": "nobody:x:65534:65534::/:/bin/false\n",
}
GROUP = "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"


@dataclass(frozen=True)
class User:
    """Who works on a machine.

    Attributes:
        name: its name.
        number: user and group id.
    """

    name: str = "root"
    number: int = 0

    @property
    def home(self) -> str:
        """Its home."""
        return "/root" if self.name == "root" else f"/home/{self.name}"


@dataclass(frozen=True)
class Parts:
    """What a machine begins with.

    Attributes:
        user: who works there.
        key: public key that opens it; None for a machine without SSH.
        profile: text of its `.bashrc`.
        files: further files of its home, by name.
        etc: files of /etc that are not the host's, by name; the host must have each.
        images: folders of the host that it sees, by their place there; not to be written.
        mounts: the same, to be written.
    """

    user: User = field(default_factory=User)
    key: str | None = None
    profile: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    etc: Mapping[str, str] = field(default_factory=dict)
    images: Mapping[str, Path] = field(default_factory=dict)
    mounts: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Disk:
    """The disk of a machine.

    Attributes:
        folder: where it is on the host.
        parts: what it begins with.
        host_key: the machine's half of SSH.
    """

    folder: Path
    parts: Parts
    host_key: Path

    @property
    def home(self) -> Path:
        """The home of its user, on the host."""
        return self.folder / "home"

    def format(self) -> None:
        """Give a new disk what it begins with; one that was in use stays as it is."""
        if self.home.exists():
            return
        user = self.parts.user
        files = {".bashrc": self.parts.profile, **self.parts.files}
        if self.parts.key:
            files[".ssh/authorized_keys"] = self.parts.key
        for name, text in files.items():
            (self.home / name).parent.mkdir(parents=True, exist_ok=True)
            (self.home / name).write_text(text)
        for path in (self.home, *self.home.rglob("*")):
            os.chown(path, user.number, user.number)
            path.chmod(0o700 if path.is_dir() else 0o600)
        for name in ("root", "machine", "etc"):
            (self.folder / name).mkdir()
        shutil.copy(self.host_key, self.folder / "machine" / "host_key")
        (self.folder / "machine" / "sshd_config").write_text(f"{SSHD}SetEnv HOME={user.home}\n")
        self._write_etc()

    def _write_etc(self) -> None:
        user = self.parts.user
        passwd = {**PASSWD, user.name: f"{user.name}:x:{user.number}:{user.number}::{user.home}:/bin/bash\n"}
        texts = {
            "passwd": "".join(passwd.values()),
            "group": GROUP + f"{user.name}:x:{user.number}:\n" * bool(user.number),
            "shadow": "".join(f"{name}:*:19000:0:99999:7:::\n" for name in passwd),
            **self.parts.etc,
        }
        for name, text in texts.items():
            (self.folder / "etc" / name).write_text(text)
            (self.folder / "etc" / name).chmod(0o440 if name in ("shadow", "sudoers") else 0o644)

    def lay_out(self, known: Mapping[str, str]) -> None:
        """Write down what the machine shall see of the file system, for `boot.sh`.

        Args:
            known: addresses that it knows by name.
        """
        hosts = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in known.items())]
        (self.folder / "etc" / "hosts").write_text("\n".join(hosts) + "\n")
        lines = []
        for path in (Path("/", name) for name in SYSTEM):
            if path.is_symlink():
                lines.append(f"link {path} {path.readlink()}")
            elif path.is_dir():
                lines.append(f"image {path} {path}")
        lines += [f"tmpfs {place} {options}" for place, options in MEMORY.items()]
        lines += ["link /var/run /run", f"disk {self.parts.user.home} {self.home}"]
        lines += [f"image /etc/{path.name} {path}" for path in sorted((self.folder / "etc").iterdir())]
        lines += [f"image /machine {self.folder / 'machine'}"]
        lines += [f"image {place} {source}" for place, source in self.parts.images.items()]
        lines += [f"disk {place} {source}" for place, source in self.parts.mounts.items()]
        (self.folder / "mounts").write_text("\n".join(lines) + "\n")
