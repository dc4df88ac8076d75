"""Unit tests reach no other machine, and tiny tensors are fastest on one thread."""

from __future__ import annotations

import pytest
import torch
from pytest_socket import socket_allow_hosts


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _this_machine_alone() -> None:
    """For one test: pytest-socket takes its restrictions back after each."""
    socket_allow_hosts(["127.0.0.1", "::1"], allow_unix_socket=True)
