"""Unit tests open no sockets, and tiny tensors are fastest on one thread."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from pytest_socket import disable_socket, enable_socket


@pytest.fixture(autouse=True, scope="session")
def _one_thread_no_network() -> Iterator[None]:
    torch.set_num_threads(1)
    disable_socket(allow_unix_socket=True)
    yield
    enable_socket()
