"""A free place on this machine where ranks can meet."""

from __future__ import annotations

import random
import socket

# Below Linux's range for outgoing connections (32768 to 60999): between this look and the moment
# rank 0 listens there, seconds later, none of them takes the port.
_PORTS = range(20_000, 32_000)
_ATTEMPTS = 100


def free_local_rendezvous() -> str:
    """Pick 127.0.0.1 with a port that nobody listens on; raises as `free_port`."""
    return f"127.0.0.1:{free_port('127.0.0.1')}"


def free_port(address: str = "") -> int:
    """Pick a port that nobody listens on; of all this machine's addresses if none is given.

    Raises: OSError when a hundred ports tried at random are all taken.
    """
    generator = random.SystemRandom()  # runs started together must not pick the same
    for attempt in range(1, _ATTEMPTS + 1):
        port = generator.choice(_PORTS)
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((address, port))
            except OSError:
                if attempt == _ATTEMPTS:
                    raise
                continue
        return port
    raise AssertionError("the last attempt raises")
