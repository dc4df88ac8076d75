"""What a rank writes about its end, and whose word counts in status.json."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path

import psutil
import pytest
import torch

from launcher.attempt import Attempt
from launcher.diagnosis import WITH_ANOTHER
from trainer import failures
from trainer.attempt import RankRecord, ended_with, read_record, taking_part
from trainer.errors import ConfigError, EnvironmentProblem, Interrupted, PeerLost, TrainingFailed
from trainer.failures import explained
from trainer.run_directory import RunDirectory, find_process
from trainer.status import Ending, write_failed, write_running, write_verdict
from trainer.world import World

RECORD = RankRecord(1, 2, 2, pid=os.getpid(), host=socket.gethostname(), created=1.0)


def status_of(run: RunDirectory) -> tuple[str, int, str]:
    status = json.loads(run.status.read_text())
    return status["state"], status["rank"], status["message"]


@pytest.mark.parametrize(
    ("error", "state", "exit_code", "message"),
    [
        (ConfigError("wrong", fix="right"), "failed", 2, "wrong"),
        (Interrupted("stopped by SIGTERM"), "interrupted", 75, "stopped by SIGTERM"),
        (KeyboardInterrupt(), "interrupted", 130, "stopped by SIGINT"),
        (KeyError("x"), "failed", 1, "'x'"),
        (SystemExit(3), "failed", 3, "exit 3"),
        (SystemExit(None), "completed", 0, "exit 0"),
    ],
)
def test_a_record_tells_how_the_rank_ended(
    error: BaseException, state: str, exit_code: int, message: str
) -> None:
    ended = ended_with(RECORD, error)
    assert (ended.state, ended.exit_code, ended.message) == (state, exit_code, message)
    assert ended.ended is not None


def test_without_an_attempt_nothing_is_read_or_written(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("RANKZERO_ATTEMPT", raising=False)
    monkeypatch.chdir(tmp_path)
    with taking_part(lambda: pytest.fail("asked for the world")):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_record_that_is_none_is_passed_over(tmp_path: Path) -> None:
    for text in ("", "{", "[]", '{"rank": 1}'):
        path = tmp_path / "rank-1.json"
        path.write_text(text)
        assert read_record(path) is None


def test_a_pid_that_is_another_process_now_is_not_the_rank() -> None:
    created = psutil.Process().create_time()
    assert find_process(os.getpid(), created) is not None
    assert find_process(os.getpid(), created - 60) is None


def test_nodes_that_share_a_file_system_keep_apart(tmp_path: Path) -> None:
    names = [Attempt.create(tmp_path, node_rank=node).folder.name for node in (0, 1, 1)]
    assert names == ["001-node-0", "001-node-1", "002-node-1"]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[/x/gloo/transport/tcp/pair.cc:553] Connection closed by peer [::1]:57059"),
        torch.distributed.DistBackendError("NCCL error: ncclRemoteError: A call failed"),
        torch.distributed.DistNetworkError("recvValue failed: Connection reset by peer"),
        torch.distributed.DistStoreError("Timed out after 61 seconds waiting for clients. 1/2"),
    ],
)
def test_a_broken_connection_is_a_lost_peer(error: BaseException) -> None:
    known = explained(error)
    assert type(known) is PeerLost
    assert known.exit_code == 4


@pytest.mark.parametrize(
    "error",
    [
        torch.distributed.DistBackendError("NCCL error: ncclInvalidUsage: Duplicate GPU detected"),
        ConnectionResetError("a download: Connection reset by peer"),
        ValueError("broken pipe"),
    ],
)
def test_this_ranks_own_trouble_is_not(error: BaseException) -> None:
    assert explained(error) is error


def test_a_rank_whose_partner_stopped_is_known_by_its_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(failures, "requested", lambda: signal.SIGTERM)
    known = explained(RuntimeError("Connection closed by peer [::1]:57059"))
    assert isinstance(known, Interrupted)
    assert known.what.endswith(WITH_ANOTHER)


def test_a_taken_port_is_the_machines_trouble() -> None:
    error = torch.distributed.DistNetworkError("port: 29500, code: -98, name: EADDRINUSE")
    known = explained(error)
    assert isinstance(known, EnvironmentProblem)
    assert "29500" in known.what


def test_host_memory_of_torch_is_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    known = explained(caught.value)
    assert isinstance(known, TrainingFailed)
    assert "out of memory" in str(known)


def test_a_lost_peer_gives_way_to_the_cause(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    write_running(run)
    write_failed(run, World(0, 2, 0), PeerLost("rank 1 went away"))
    assert status_of(run) == ("failed", 0, "rank 1 went away")
    write_failed(run, World(1, 2, 1), TrainingFailed("the cause"))
    write_failed(run, World(0, 2, 0), PeerLost("rank 1 went away"))
    assert status_of(run) == ("failed", 1, "the cause")


def ending(error: str = "TrainingFailed") -> Ending:
    return Ending("failed", 4, 1, error, "rank 1 was killed", "more memory")


def test_the_launchers_verdict_is_the_last_word(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    write_running(run)
    write_failed(run, World(0, 2, 0), Interrupted("stopped by SIGTERM"))  # by torchrun
    write_verdict(run, ending())
    assert status_of(run) == ("failed", 1, "rank 1 was killed")


def test_a_rank_keeps_its_words_and_a_lost_peer_overrules_nobody(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    write_failed(run, World(1, 2, 1), TrainingFailed("out of memory"))
    write_verdict(run, ending())
    assert status_of(run) == ("failed", 1, "out of memory")
    write_failed(run, World(0, 2, 0), TrainingFailed("another"))
    write_verdict(run, Ending("failed", 4, 0, "PeerLost", "a peer", ""))
    assert status_of(run) == ("failed", 1, "out of memory")
