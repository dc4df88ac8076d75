"""The nodes of a run meet before their engines start: all are there, and are of one mind.

Nodes come one after the other: a pod is still pending, its name does not resolve yet, one is
still preparing data. An engine's own rendezvous gives up on that after minutes, joins whoever
listens, and notices another config by a hang. So node 0 listens where the user said
(HOST:PORT), the others try until it does, each says what it is about to run, and once all are
there node 0 names a fresh port for the engine: what is left of an attempt before is never joined.

One line of JSON each way. It is as open as the engine's own store: a network for the ranks alone.
"""

from __future__ import annotations

import contextlib
import json
import selectors
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from launcher import __version__
from launcher.engines.rendezvous import free_port
from trainer.errors import BY_NAME, ConfigError, EnvironmentProblem, Interrupted, RankZeroError

WAIT_SECONDS = 3600.0
"""A node that has not come by then is not on its way; GPUs are not held for it any longer."""
_REMIND_SECONDS = 60.0
_RETRY_SECONDS = 1.0
_CONNECT_SECONDS = 10.0
_LARGEST_LINE = 2**20
_LAG_SECONDS = 10.0
# A machine that loses power says nothing: asked after 30 s, given up after another 30.
_KEEPALIVE = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}


@dataclass(frozen=True)
class Place:
    """One node's part in the meeting."""

    host: str
    port: int
    """Where node 0 listens."""
    nodes: int
    node_rank: int
    run: Mapping[str, Any]
    """What every node must have alike, by name; JSON values."""
    attempt: Path
    """This node's own folder in the run directory."""
    needs_shared_storage: bool = False
    """Whether all nodes write into one run directory."""
    wait_seconds: float = WAIT_SECONDS
    say: Callable[[str], None] = field(default=lambda text: click.echo(text, err=True))

    def hello(self) -> bytes:
        """Return the line this node introduces itself with."""
        return _line(
            {
                "rankzero": __version__,
                "node": self.node_rank,
                "attempt": self.attempt.name,
                "run": dict(self.run),
            }
        )


def meet(place: Place) -> int:
    """Wait for all nodes of a run and return the port where the engine's ranks meet on node 0.

    Raises: ConfigError when nodes differ in what they would run, EnvironmentProblem when they do
    not share storage that they need or node 0 cannot listen, Interrupted when a node has not come
    in `wait_seconds`.
    """
    return _receive(place) if place.node_rank == 0 else _join(place)


def difference(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Name what differs, with both values. PURE."""
    names = sorted(mine.keys() | theirs.keys())
    return [
        f"{name} is {json.dumps(mine.get(name))} on node 0 and {json.dumps(theirs.get(name))} there"
        for name in names
        if mine.get(name) != theirs.get(name)
    ]


# ---- node 0 ----


def _receive(place: Place) -> int:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(_listen(place.port))
        guests = stack.enter_context(_Guests(place, listener))
        patience = _Patience(place)
        while missing := guests.missing():
            patience.wait_for(missing)
            guests.look(_RETRY_SECONDS)
        port = free_port()
        guests.answer({"go": port})
    place.say(f"all {place.nodes} nodes are here")
    return port


class _Guests:
    """Who has come to node 0. A node that leaves is missed again; one that returns is the new."""

    def __init__(self, place: Place, listener: socket.socket) -> None:
        self.place = place
        self._heard: dict[socket.socket, bytes] = {}
        self._nodes: dict[int, socket.socket] = {}
        self._listener = listener
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)

    def __enter__(self) -> _Guests:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in list(self._heard):
            self._dismiss(connection)
        self._selector.close()

    def missing(self) -> str:
        """Say which nodes are not here; empty when all are."""
        missing = [str(n) for n in range(1, self.place.nodes) if n not in self._nodes]
        if not missing:
            return ""
        here = self.place.nodes - len(missing)
        noun = "node" if len(missing) == 1 else "nodes"
        return f"{noun} {', '.join(missing)} ({here} of {self.place.nodes} are here)"

    def look(self, seconds: float) -> None:
        """Take in who comes, speaks or leaves within this time.

        Raises: ConfigError when a node would run something else.
        """
        for key, _ in self._selector.select(seconds):
            if key.fileobj is self._listener:
                self._admit()
            elif key.fileobj in self._heard:  # and not let go a moment ago
                assert isinstance(key.fileobj, socket.socket)
                self._hear(key.fileobj)

    def answer(self, content: Mapping[str, Any]) -> None:
        """Tell every node that is here; one that is gone by now fails by itself."""
        for connection in self._nodes.values():
            _send(connection, content)

    def _admit(self) -> None:
        connection, _ = self._listener.accept()
        _keep_alive(connection)
        self._heard[connection] = b""
        self._selector.register(connection, selectors.EVENT_READ)

    def _hear(self, connection: socket.socket) -> None:
        try:
            part = connection.recv(65536)
        except OSError:
            part = b""
        self._heard[connection] += part
        if not part or len(self._heard[connection]) > _LARGEST_LINE:
            self._dismiss(connection)
        elif self._heard[connection].endswith(b"\n"):
            self._welcome(connection, _read(self._heard[connection]))

    def _welcome(self, connection: socket.socket, hello: dict[str, Any]) -> None:
        node = hello.get("node")
        if hello.get("rankzero") is None or not isinstance(node, int):
            self._dismiss(connection)  # whoever knocks at open ports
            return
        problem = self._problem(node, hello)
        if problem is not None:
            self.answer(_refusal(problem))
            _send(connection, _refusal(problem))
            raise problem
        old = self._nodes.get(node)
        if old is not None:
            self._dismiss(old)
        self._nodes[node] = connection

    def _problem(self, node: int, hello: Mapping[str, Any]) -> RankZeroError | None:
        if hello["rankzero"] != __version__:
            return _differs(
                node, [f"rankzero is {__version__} on node 0, {hello['rankzero']} there"]
            )
        if not 0 < node < self.place.nodes:
            return _differs(node, [f"--node-rank {node} of {self.place.nodes} nodes"])
        theirs = hello.get("run")
        found = difference(self.place.run, theirs if isinstance(theirs, dict) else {})
        if found:
            return _differs(node, found)
        if self.place.needs_shared_storage and not self._sees(str(hello.get("attempt"))):
            return EnvironmentProblem(
                f"node {node} writes into another run directory than node 0",
                rule="ranks that save in parts (full fine-tuning with DeepSpeed, its NVMe offload, "
                "8-bit optimizers) write one checkpoint together",
                fix="put output_dir on a file system that all nodes share",
            )
        return None

    def _sees(self, attempt: str) -> bool:
        """Whether the folder another node has made is here too; network file systems lag."""
        folder = self.place.attempt.with_name(Path(attempt).name)
        deadline = time.monotonic() + _LAG_SECONDS
        while not folder.is_dir() and time.monotonic() < deadline:
            time.sleep(_RETRY_SECONDS)
        return folder.is_dir()

    def _dismiss(self, connection: socket.socket) -> None:
        self._nodes = {n: each for n, each in self._nodes.items() if each is not connection}
        self._heard.pop(connection, None)
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(connection)
        connection.close()


def _listen(port: int) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise EnvironmentProblem(
            f"node 0 cannot listen on port {port}: {error.strerror}",
            rule="the nodes meet at --rendezvous HOST:PORT, and node 0 listens there",
            fix="give a port that is free on node 0, the same on every node",
        ) from None


def _differs(node: int, found: list[str]) -> ConfigError:
    return ConfigError(
        f"node {node} would run something else:\n  " + "\n  ".join(found),
        rule="all nodes start with the same config, options and version",
        fix="start every node with the same command but for --node-rank; of a run that goes on, "
        "each must see the same output_dir",
    )


# ---- the other nodes ----


def _join(place: Place) -> int:
    patience = _Patience(place)
    while True:
        try:
            answer = _ask(place)
        except socket.gaierror:
            problem = "the name does not resolve yet"
        except OSError as error:
            problem = error.strerror or str(error)
        else:
            if "go" in answer:
                place.say(f"all {place.nodes} nodes are here")
                return int(answer["go"])
            if "refused" in answer:
                raise BY_NAME[answer["error"]](
                    answer["refused"], rule=answer["rule"], fix=answer["fix"]
                )
            problem = "it went away"
        patience.wait_for(f"node 0 at {place.host}:{place.port}: {problem}")
        time.sleep(_RETRY_SECONDS)


def _ask(place: Place) -> dict[str, Any]:
    """Go to node 0 and wait for its answer; empty when it leaves without one."""
    with socket.create_connection((place.host, place.port), timeout=_CONNECT_SECONDS) as connection:
        _keep_alive(connection)
        connection.settimeout(None)
        connection.sendall(place.hello())
        place.say(f"at node 0 ({place.host}:{place.port}), waiting for all {place.nodes} nodes")
        heard = b""
        while not heard.endswith(b"\n"):
            part = connection.recv(65536)
            if not part:
                return {}
            heard += part
        return _read(heard)


# ---- both ----


class _Patience:
    """How long this node waits, and what it says while it does."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._begin = self._told_at = time.monotonic()
        self._told = ""

    def wait_for(self, whom: str) -> None:
        """Say what is waited for when that changes, and now and then.

        Raises: Interrupted when it takes too long.
        """
        now = time.monotonic()
        if now > self._begin + self._place.wait_seconds:
            raise Interrupted(
                f"waited {self._place.wait_seconds / 60:.0f} minutes for {whom}",
                rule="all nodes of a run meet before training begins",
                fix="see why it did not come, then start every node again: the run goes on",
            )
        if whom != self._told or now >= self._told_at + _REMIND_SECONDS:
            self._told, self._told_at = whom, now
            self._place.say(f"waiting for {whom}")


def _line(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content).encode() + b"\n"


def _read(line: bytes) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _refusal(problem: RankZeroError) -> dict[str, str]:
    name = type(problem).__name__
    return {"refused": problem.what, "rule": problem.rule, "fix": problem.fix, "error": name}


def _send(connection: socket.socket, content: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(_line(content))


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):  # not on every system
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
