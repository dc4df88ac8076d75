"""Containers of one image under runc, confined as a pod's security context confines them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processes import Process, finish, start

USER = 10_001  # a pod's; the image has no such user, which is the harder case
EXIT_INTERRUPTED = 75
Mount = dict[str, Any]


@dataclass(frozen=True)
class Surroundings:
    """What one container sees besides the image."""

    name: str
    """Its own, and its host's."""
    hosts: Path
    mounts: Sequence[Mount]
    network: str | None = None
    """Path of a network namespace; None: one of its own, without a network."""


class Container:
    """The image, to be started again and again."""

    def __init__(self, folder: Path, root: str, image: dict[str, Any], mounts: Sequence[Mount]):
        """`root` and `image`: where its files are mounted, and its config as OCI has it."""
        self.folder, self._root, self._image = folder, root, image
        self.home: str = image["WorkingDir"]
        """Where a command starts, in the container; `work` lies there."""
        self.work, self.cache, self.tmp = (folder / name for name in ("work", "cache", "tmp"))
        self._runc = ["runc", "--root", str(folder / "runc")]
        for each in (self.work, self.cache, self.tmp):
            make_open(each)
        # Every runtime writes one; torchrun asks for localhost, gloo for the container's own name.
        (folder / "hosts").write_text("127.0.0.1 localhost alone\n")
        subprocess.run([*self._runc, "spec", "--bundle", str(folder)], check=True)
        self._spec = json.loads((folder / "config.json").read_text())
        own = [
            bind(self.work, self.home, "rw"),
            *(bind(path, f"/{path.name}", "rw") for path in (self.cache, self.tmp)),
        ]
        self._alone = Surroundings("alone", folder / "hosts", [*own, *mounts])

    def start(
        self,
        *arguments: str,
        entry: Sequence[str] = (),
        user: int = USER,
        within: Surroundings | None = None,
        **environment: str,
    ) -> Process:
        """Start the image's entry point, or another one, as PID 1 of a new container."""
        within = within or self._alone
        process = self._spec["process"] | {
            "terminal": False,
            "user": {"uid": user, "gid": user},
            "args": [*(entry or self._image["Entrypoint"]), *arguments],
            "cwd": self.home,
            "env": [*self._image["Env"], *(f"{key}={value}" for key, value in environment.items())],
            "capabilities": {key: [] for key in self._spec["process"]["capabilities"]},
            "noNewPrivileges": True,
        }
        mounts = [
            m | {"options": [*m["options"][:-1], "size=2g"]}
            if m["destination"] == "/dev/shm"
            else m
            for m in self._spec["mounts"]
            if m["type"] != "cgroup"
        ]
        namespaces = [
            each
            | ({"path": within.network} if within.network and each["type"] == "network" else {})
            for each in self._spec["linux"]["namespaces"]
        ]
        spec = self._spec | {
            "process": process,
            "hostname": within.name,
            "root": {"path": self._root, "readonly": True},
            "mounts": [*mounts, bind(within.hosts, "/etc/hosts", "ro"), *within.mounts],
            "linux": self._spec["linux"] | {"namespaces": namespaces},
        }
        bundle = self.folder / f"bundle-{within.name}"
        bundle.mkdir(exist_ok=True)
        (bundle / "config.json").write_text(json.dumps(spec))
        return start([*self._runc, "run", "--bundle", str(bundle), within.name])

    def run(self, *arguments: str, **options: Any) -> str:
        """Run to the end, shown line by line, and return what was printed."""
        return finish(self.start(*arguments, **options))

    @property
    def own_user(self) -> int:
        """The user the image itself names."""
        return int(self._image["User"].partition(":")[0])

    def terminate(self, name: str = "alone") -> None:
        """Send SIGTERM to PID 1, as a cluster does first."""
        subprocess.run([*self._runc, "kill", name, "TERM"], check=True)


def quickstart(*settings: str) -> list[str]:
    """Return the quickstart as a command takes it: changed, and with little to evaluate."""
    changed = (*settings, "data.validation_size=2", "data.test_size=2")
    return ["examples/quickstart.yaml", *(word for one in changed for word in ("--set", one))]


def make_open(folder: Path) -> None:
    """Make a folder that every user may write to, as volumes are to a pod's."""
    folder.mkdir()
    folder.chmod(0o1777)


def bind(source: Path, target: str, mode: str) -> Mount:
    """Return a folder's mount as an OCI bundle has it."""
    options = ["rbind", "nosuid", "nodev", mode]
    return {"destination": target, "type": "bind", "source": str(source), "options": options}
