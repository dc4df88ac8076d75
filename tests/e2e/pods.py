"""Pods of a rendered Job on this machine: its arguments and variables, and what a Job does on exit.

As root each pod gets a network, a host name and an /etc/hosts of its own, so that pods find each
other by the names of the manifest, or do not yet; elsewhere they share the loopback device.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from launcher.kubernetes.cluster import CONFIG_FOLDER, MOUNTS
from launcher.kubernetes.manifests.pod import INDEX_VARIABLE
from tests.e2e.running import PATIENCE_SECONDS

_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Network:
    """How pods reach each other. Namespaces: by pod; none: all share this machine's network."""

    names: tuple[str, ...]
    namespaces: tuple[str, ...]
    hosts: tuple[Path, ...]

    def command(self, pod: int) -> list[str]:
        """Return what starts a command inside a pod's network."""
        if not self.namespaces:
            return []
        enter = 'hostname "$0" && mount --bind "$1" /etc/hosts && shift && exec "$@"'
        namespace = ["ip", "netns", "exec", self.namespaces[pod], "unshare", "--uts", "--mount"]
        return [*namespace, "sh", "-c", enter, self.names[pod], str(self.hosts[pod])]

    def address(self, name: str) -> str:
        """Return how a pod's name is written in arguments."""
        return name if self.namespaces else _LOOPBACK

    def make_known(self) -> None:
        """Let names resolve from now on, as a cluster's DNS does once pods are there."""
        for pod, hosts in enumerate(self.hosts):
            service = self.names[pod].rpartition("-")[0]
            lines = [
                f"10.213.7.{number + 1} {name}.{service} {name}\n"
                for number, name in enumerate(self.names)
            ]
            # In place: the file is mounted over the pod's own.
            hosts.write_text(f"{_LOOPBACK} localhost\n" + "".join(lines), encoding="utf-8")


@contextmanager
def pod_network(names: tuple[str, ...], folder: Path) -> Iterator[Network]:
    """Join pods by a bridge, where this user may."""
    if os.geteuid() != 0 or shutil.which("ip") is None or not _can_bridge():
        yield Network(names, (), ())
        return
    tag = f"rz{os.getpid() % 100_000}"
    hosts = tuple(folder / f"hosts-{pod}" for pod in range(len(names)))
    with ExitStack() as stack:
        _ip("link", "add", tag, "type", "bridge")
        stack.callback(_ip, "link", "delete", tag)
        _ip("link", "set", tag, "up")
        for pod, name in enumerate(names):
            inside = f"{tag}-{pod}"
            _ip("netns", "add", inside)
            stack.callback(_ip, "netns", "delete", inside)
            outside = f"{tag}v{pod}"
            _ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", inside)
            _ip("link", "set", outside, "master", tag, "up")
            _ip("-n", inside, "address", "add", f"10.213.7.{pod + 1}/24", "dev", "eth0")
            _ip("-n", inside, "link", "set", "eth0", "up")
            _ip("-n", inside, "link", "set", "lo", "up")
            own = f"{_LOOPBACK} localhost\n10.213.7.{pod + 1} {name}\n"
            hosts[pod].write_text(own, encoding="utf-8")
        yield Network(names, tuple(f"{tag}-{pod}" for pod in range(len(names))), hosts)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def _can_bridge() -> bool:
    try:
        _ip("link", "add", "rz-try", "type", "bridge")
        _ip("link", "delete", "rz-try")
    except subprocess.CalledProcessError:
        return False
    return True


@dataclass
class Pod:
    """One pod: a process that was started once."""

    index: int
    output: Path
    process: subprocess.Popen[bytes]

    @property
    def said(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")


@dataclass
class Job:
    """An Indexed Job of the rendered manifests in a folder, as its controller carries it out."""

    manifests: Path
    network: Network
    mounts: Mapping[str, Path]
    """Paths in the pods -> folders here."""
    pods: list[Pod] = field(default_factory=list)
    """Every pod that ever was, in the order of their starts."""

    @property
    def spec(self) -> dict[str, Any]:
        spec: dict[str, Any] = self._read("job.yaml")["spec"]
        return spec

    def start(self, index: int, *more: str) -> Pod:
        """Start the pod of an index, with more arguments if given."""
        container = self.spec["template"]["spec"]["containers"][0]
        arguments = [
            self._here(each.replace(f"$({INDEX_VARIABLE})", str(index)))
            for each in container["args"]
        ]
        values = {e["name"]: self._here(e["value"]) for e in container["env"] if "value" in e}
        output = self.manifests / f"pod-{len(self.pods)}.said"
        with output.open("wb") as file:
            process = subprocess.Popen(
                [*self.network.command(index), sys.executable, "-m", "launcher", *arguments, *more],
                stdout=file,
                stderr=file,
                env={**os.environ, **values, "OMP_NUM_THREADS": "1"},
            )
        self.pods.append(Pod(index, output, process))
        return self.pods[-1]

    def write_config(self) -> None:
        """Put the files of the ConfigMap where pods find them."""
        folder = self.mounts[CONFIG_FOLDER]
        folder.mkdir()
        for name, text in self._read("configmap.yaml")["data"].items():
            (folder / name).write_text(self._here(text), encoding="utf-8")

    def policy(self, exit_code: int) -> str:
        """Return what the Job does about a pod that ended so."""
        code = exit_code if exit_code >= 0 else 128 - exit_code
        for rule in self.spec["podFailurePolicy"]["rules"]:
            if code in rule.get("onExitCodes", {}).get("values", ()):
                return str(rule["action"])
        return "Count"

    def end(self, pod: Pod) -> int:
        """Wait for a pod's end and return its exit code."""
        return pod.process.wait(timeout=PATIENCE_SECONDS)

    def kill_all(self) -> None:
        for pod in self.pods:
            if pod.process.poll() is None:
                pod.process.send_signal(signal.SIGTERM)
        for pod in self.pods:
            try:
                pod.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                pod.process.kill()
                pod.process.wait()

    def _read(self, name: str) -> dict[str, Any]:
        content: dict[str, Any] = yaml.safe_load(
            (self.manifests / name).read_text(encoding="utf-8")
        )
        return content

    def _here(self, text: str) -> str:
        for inside, outside in self.mounts.items():
            text = text.replace(f"{inside}/", f"{outside}/")
        first = f"{self.network.names[0]}.{self.network.names[0].rpartition('-')[0]}"
        return text.replace(first, self.network.address(first))


def all_mounts(folder: Path) -> dict[str, Path]:
    """Return where the paths of pods lie under a folder."""
    return {CONFIG_FOLDER: folder / "config", **{p: folder / p[1:] for p in MOUNTS.values()}}
