"""Nodes meet before their engines start, in whatever order they come, leave and come back."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from launcher import __version__
from launcher.engines.rendezvous import free_port
from launcher.meeting import Place, difference, meet
from tests.commands import write_config
from tests.e2e.running import PATIENCE_SECONDS
from tests.tiny import make_model_folder
from trainer.errors import ConfigError, EnvironmentProblem, Interrupted, RankZeroError

pytestmark = pytest.mark.e2e

SAME = {"seed": 1}


class Nodes:
    """Nodes of one run, each in a thread; what they say."""

    def __init__(self, nodes: int) -> None:
        self.nodes = nodes
        self.port = free_port()
        self.told: list[str] = []
        self._said = threading.Condition()

    def start(self, node_rank: int, run: Mapping[str, Any] = SAME, **more: Any) -> Future[int]:
        def say(text: str) -> None:
            with self._said:
                self.told.append(f"{node_rank}: {text}")
                self._said.notify_all()

        attempt = more.pop("attempt", Path())
        place = Place("127.0.0.1", self.port, self.nodes, node_rank, run, attempt, say=say, **more)
        result: Future[int] = Future()

        def take_part() -> None:
            try:
                result.set_result(meet(place))
            except (RankZeroError, OSError) as error:
                result.set_exception(error)

        # A pool's threads would outlive a test that failed, and keep the interpreter from ending.
        threading.Thread(target=take_part, daemon=True).start()
        return result

    def until_told(self, words: str) -> None:
        with self._said:
            assert self._said.wait_for(
                lambda: any(words in text for text in self.told), PATIENCE_SECONDS
            ), self.told

    def hello(self, node: int = 1, **changes: Any) -> socket.socket:
        """Introduce a node that does nothing else."""
        connection = self.knock(
            json.dumps({"rankzero": __version__, "node": node, "run": SAME, **changes}).encode()
        )
        connection.sendall(b"\n")
        return connection

    def knock(self, data: bytes) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), PATIENCE_SECONDS)
        connection.settimeout(PATIENCE_SECONDS)
        connection.sendall(data)
        return connection


def results(*nodes: Future[int]) -> list[int]:
    return [node.result(PATIENCE_SECONDS) for node in nodes]


def test_all_get_the_same_port_whoever_comes_first() -> None:
    nodes = Nodes(3)
    last = nodes.start(2)
    nodes.until_told(f"2: waiting for node 0 at 127.0.0.1:{nodes.port}: Connection refused")
    first = nodes.start(0)
    nodes.until_told("0: waiting for node 1 (2 of 3 are here)")
    ports = results(first, nodes.start(1), last)
    assert len(set(ports)) == 1
    assert nodes.port not in ports  # an attempt that is not quite over may still listen there
    assert {f"{node}: all 3 nodes are here" for node in range(3)} <= set(nodes.told)


def test_a_node_that_leaves_is_waited_for_again_and_one_that_returns_is_the_new() -> None:
    nodes = Nodes(3)
    first = nodes.start(0)
    nodes.until_told("0: waiting for nodes 1, 2 (1 of 3 are here)")
    gone = nodes.hello(1)
    nodes.until_told("0: waiting for node 2 (2 of 3 are here)")
    nodes.told.clear()
    gone.close()
    nodes.until_told("0: waiting for nodes 1, 2 (1 of 3 are here)")
    silent = nodes.hello(1)  # its machine is dead, and the connection does not know
    nodes.until_told("0: waiting for node 2 (2 of 3 are here)")
    again = nodes.start(1)
    nodes.until_told("1: at node 0")
    assert silent.recv(100) == b""  # let go for the new one
    assert len(set(results(first, again, nodes.start(2)))) == 1


def test_whoever_else_knocks_changes_nothing() -> None:
    nodes = Nodes(2)
    first = nodes.start(0)
    nodes.until_told("0: waiting for node 1")
    strangers = [
        nodes.knock(data)
        for data in (
            b"GET / HTTP/1.1\r\n\r\n",
            b'["node", 1]\n',
            b'{"rankzero": "1", "node": "x"}\n',
        )
    ]
    quiet = nodes.knock(b"")
    assert [each.recv(100) for each in strangers] == [b""] * 3
    assert len(set(results(first, nodes.start(1)))) == 1
    quiet.close()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"run": {"seed": 2}}, "seed is 1 on node 0 and 2 there"),
        ({"run": {}}, "seed is 1 on node 0 and null there"),
        ({"rankzero": "0.0.1"}, f"rankzero is {__version__} on node 0, 0.0.1 there"),
        ({"node": 2}, "--node-rank 2 of 2 nodes"),
    ],
)
def test_nodes_that_differ_both_end_and_say_in_what(changes: dict[str, Any], named: str) -> None:
    nodes = Nodes(2)
    first = nodes.start(0)
    nodes.until_told("0: waiting for node 1")
    other = nodes.hello(**changes)
    with pytest.raises(ConfigError, match=named):
        first.result(PATIENCE_SECONDS)
    assert named in json.loads(other.makefile().readline())["refused"]


def test_the_refusal_is_an_error_of_the_refused_node_too() -> None:
    nodes = Nodes(2)
    first = nodes.start(0)
    nodes.until_told("0: waiting for node 1")
    second = nodes.start(1, {"seed": 2})
    for node in (first, second):
        with pytest.raises(ConfigError, match="seed is 1 on node 0 and 2 there"):
            node.result(PATIENCE_SECONDS)


@pytest.mark.parametrize("is_shared", [True, False])
def test_ranks_that_save_in_parts_need_one_run_directory(is_shared: bool, tmp_path: Path) -> None:
    nodes = Nodes(2)
    own = [tmp_path / "one", tmp_path / ("one" if is_shared else "other")]
    attempts = [own[0] / "attempts" / "001", own[1] / "attempts" / "001-node-1"]
    for attempt in attempts:
        attempt.mkdir(parents=True)
    started = [
        nodes.start(node, attempt=attempt, needs_shared_storage=True)
        for node, attempt in enumerate(attempts)
    ]
    if is_shared:
        assert len(set(results(*started))) == 1
        return
    for node in started:
        with pytest.raises(EnvironmentProblem, match="another run directory"):
            node.result(PATIENCE_SECONDS)


@pytest.mark.parametrize("node", [0, 1])
def test_a_wait_that_takes_too_long_is_a_run_to_start_again(node: int) -> None:
    other = "node 1" if node == 0 else "node 0"
    with pytest.raises(Interrupted, match=f"for {other}"):
        Nodes(2).start(node, wait_seconds=0.1).result(PATIENCE_SECONDS)


def test_a_port_that_is_taken_is_named() -> None:
    nodes = Nodes(2)
    with socket.create_server(("", nodes.port)), pytest.raises(EnvironmentProblem) as problem:
        nodes.start(0).result(PATIENCE_SECONDS)
    assert f"port {nodes.port}" in str(problem.value)


def test_only_what_differs_is_named() -> None:
    assert difference({"a": 1, "b": [1]}, {"a": 1, "b": [1]}) == []
    assert difference({"a": 1}, {"b": 2}) == [
        "a is 1 on node 0 and null there",
        "b is null on node 0 and 2 there",
    ]


@pytest.mark.parametrize("node", [0, 1])
def test_a_launcher_that_waits_stops_on_request(node: int, tmp_path: Path) -> None:
    base = make_model_folder(tmp_path / "tiny")
    config = write_config(tmp_path / "run.json", base, tmp_path / "out")
    options = ["--profile", "cpu", "--nodes", "2", "--node-rank", str(node)]
    options += ["--rendezvous", f"127.0.0.1:{free_port()}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "launcher", "train", str(config), *options],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("waiting for node"):
            break
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=PATIENCE_SECONDS) == 75
    assert "stopped by SIGTERM" in process.stderr.read()
    status = tmp_path / "out" / "status.json"
    assert status.exists() == (node == 0)  # the run is node 0's to tell about
    if node == 0:
        assert json.loads(status.read_text())["state"] == "interrupted"
