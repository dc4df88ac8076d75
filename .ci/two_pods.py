"""A rendered Job of two nodes, as a cluster would carry it out: one pod leaves, both come back."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from containers import (
    EXIT_INTERRUPTED,
    Container,
    Mount,
    Surroundings,
    bind,
    make_open,
    quickstart,
)
from processes import Process, end, finish

NAME = "rankzero-pods"
SETTINGS = ("output_dir=runs/pods", "training.max_steps=12", "checkpoint.every_steps=2")
STOP_AFTER_STEP = 5
# In the image, which has a YAML parser, in its working directory: the ConfigMap becomes files, the
# container is printed.
_UNPACK = """
import json, pathlib, yaml
def read(name): return yaml.safe_load(pathlib.Path("manifests", name).read_text())
for name, text in read("configmap.yaml")["data"].items():
    pathlib.Path("pods/config", name).write_text(text)
print(json.dumps(read("job.yaml")["spec"]["template"]["spec"]["containers"][0]))
"""


def check_two_pods(container: Container, read_only: Sequence[Mount]) -> None:
    """Train on two nodes through the image's entry point; pod 1 is asked to leave on the way.

    `read_only`: what lies on the volumes of models and data.
    """
    spec = render(container)
    volumes = container.work / "pods"
    mounts = [
        bind(volumes / "config", "/etc/rankzero", "ro"),
        bind(volumes / "runs", "/runs", "rw"),
        bind(container.cache, "/cache", "rw"),
        *read_only,
    ]
    with network(container.folder) as (hosts, namespaces):
        pods = [
            # /tmp is a pod's own.
            Surroundings(
                f"{NAME}-{n}", hosts, [*mounts, bind(volumes / f"tmp-{n}", "/tmp", "rw")], path
            )
            for n, path in enumerate(namespaces)
        ]

        def run(stop_at: int | None, wanted: int) -> str:
            second = Reader(start(container, spec, pods[1], 1))

            def stop(line: str) -> bool:
                found = re.match(r"step +(\d+)/", line)
                if (
                    found
                    and stop_at is not None
                    and int(found[1]) >= stop_at
                    and not second.is_asked
                ):
                    second.is_asked = True
                    container.terminate(pods[1].name)
                return True

            try:
                printed = finish(start(container, spec, pods[0], 0), wanted, shown=stop)
                second.finish(wanted)
            finally:
                second.end()
            return printed

        run(STOP_AFTER_STEP, EXIT_INTERRUPTED)
        printed = run(None, 0)
    if "going on from /runs/pods/checkpoints/step-" not in printed:
        sys.exit("image: the pods that came back did not go on from a checkpoint")
    if not (volumes / "runs/pods/merged/model.safetensors").is_file():
        sys.exit("image: node 0 did not merge at the end")


def render(container: Container) -> dict[str, Any]:
    """Render the Job inside the image; return its pods' container, its config in a folder."""
    volumes = container.work / "pods"
    make_open(volumes)
    for name in ("config", "runs", "tmp-0", "tmp-1"):
        make_open(volumes / name)
    where = ("--profile", "cpu", "--nodes", "2", "--output", "manifests")
    container.run("render", *quickstart(*SETTINGS), *where)
    printed = container.run("-c", _UNPACK, entry=["python"])
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return found


def start(container: Container, spec: dict[str, Any], pod: Surroundings, index: int) -> Process:
    """Start a pod with the arguments and variables its manifest gives it."""
    arguments = [word.replace("$(JOB_COMPLETION_INDEX)", str(index)) for word in spec["args"]]
    environment = {each["name"]: each["value"] for each in spec["env"] if "value" in each}
    return container.start(*arguments, within=pod, **environment)


class Reader:
    """Reads a process in the background, so that it never waits for its reader."""

    def __init__(self, process: Process) -> None:
        self.is_asked = False
        self._process, self._lines = process, list[str]()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        self._lines.extend(self._process.stdout)

    def end(self) -> None:
        """End it, if it has not ended."""
        if self._process.poll() is None:
            end(self._process)

    def finish(self, wanted: int) -> None:
        """Wait for its end; an exit code other than the wanted one ends everything."""
        code = self._process.wait()
        self._thread.join()
        if code != wanted:
            sys.exit(f"{''.join(self._lines[-60:])}\nimage: pod 1 ended with {code}, not {wanted}")


@contextmanager
def network(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Join two network namespaces; yield the hosts file of both and the namespaces' paths."""
    names = [f"{folder.name}-{n}" for n in range(2)]
    with ExitStack() as stack:
        for name in names:
            ip("netns", "add", name)
            stack.callback(ip, "netns", "delete", name)
        pair = ("eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0")
        ip("link", "add", *pair, "netns", names[1])
        for n, name in enumerate(names):
            ip("-n", name, "address", "add", f"10.213.8.{n + 1}/24", "dev", "eth0")
            for device in ("eth0", "lo"):
                ip("-n", name, "link", "set", device, "up")
        hosts = folder / "hosts-of-pods"
        known = [f"10.213.8.{n + 1} {NAME}-{n}.{NAME} {NAME}-{n}\n" for n in range(2)]
        hosts.write_text("127.0.0.1 localhost\n" + "".join(known))
        yield hosts, [f"/var/run/netns/{name}" for name in names]


def ip(*arguments: str) -> None:
    """Run iproute2's command."""
    subprocess.run(["ip", *arguments], check=True)
