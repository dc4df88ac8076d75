"""A namespace of its own for one scenario."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.kubernetes_server.access import Access, Refused
from tests.kubernetes_server.acts import Scenario
from tests.kubernetes_server.fake_nodes import NODES, acting_nodes

PATIENCE_SECONDS = 120
LOOK_SECONDS = 0.5
_PLURALS = {"ResourceQuota": "resourcequotas"}


class NotForTests(Exception):
    """A cluster that people use: pods of tests would run on its machines."""


@contextmanager
def scenario_namespace(access: Access, name: str, scenario: Scenario) -> Iterator[None]:
    """Make the namespace and its nodes; both are gone after the block.

    Raises: NotForTests; Refused when a namespace of that name exists: it is somebody else's.
    """
    nodes = [each["metadata"]["name"] for each in access.request("GET", "/api/v1/nodes")["items"]]
    if not set(nodes) <= set(NODES):
        raise NotForTests(f"{access.host} has nodes of its own: {', '.join(nodes)}")
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    access.request("POST", "/api/v1/namespaces", namespace)
    with acting_nodes(access, name, scenario):  # without them, no pod would ever go
        try:
            _wait_for(access, f"/api/v1/namespaces/{name}/serviceaccounts/default")
            for each in scenario.objects:
                access.request("POST", f"/api/v1/namespaces/{name}/{_PLURALS[each['kind']]}", each)
            yield
        finally:
            access.request("DELETE", f"/api/v1/namespaces/{name}")
            _wait_for(access, f"/api/v1/namespaces/{name}", is_there=False)


def _wait_for(access: Access, path: str, *, is_there: bool = True) -> None:
    """Return when there is something, or nothing any more."""
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        try:
            access.request("GET", path)
            found = True
        except Refused as refused:
            if refused.status != 404:
                raise
            found = False
        if found == is_there:
            return
        time.sleep(LOOK_SECONDS)
    raise TimeoutError(f"{path} after {PATIENCE_SECONDS} s: {'nothing' if is_there else 'there'}")
