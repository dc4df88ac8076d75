"""Who a run's pods may talk to, and the names they find each other by. PURE."""

from __future__ import annotations

from typing import Any

from launcher.kubernetes.cluster import RENDEZVOUS_PORT
from launcher.kubernetes.names import labels, selector_labels

# NodeLocal DNSCache answers there, where no pod selector reaches.
# Source: kubernetes.io/docs/tasks/administer-cluster/nodelocaldns.
_NODE_LOCAL_DNS = "169.254.20.10/32"
# Where clouds hand out a machine's credentials.
_METADATA = "169.254.0.0/16"


def make_network_policy(name: str, *, nodes: int, internet: bool) -> dict[str, Any]:
    """Return the policy: ranks among themselves and DNS; HTTPS outside the cluster if asked for."""
    ranks = {"podSelector": {"matchLabels": selector_labels(name)}}
    peers: list[dict[str, Any]] = [ranks] if nodes > 1 else []
    # NCCL's ports are random: between ranks all are open.
    egress: list[dict[str, Any]] = [{"to": peers}] if peers else []
    egress.append(_DNS)
    if internet:
        egress.append(_HTTPS)
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "labels": labels(name)},
        "spec": {
            "podSelector": ranks["podSelector"],
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": peers}] if peers else [],
            "egress": egress,
        },
    }


_DNS: dict[str, Any] = {
    "to": [
        {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
            "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
        },
        {"ipBlock": {"cidr": _NODE_LOCAL_DNS}},
    ],
    "ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}],
}
_HTTPS: dict[str, Any] = {
    "to": [
        {"ipBlock": {"cidr": "0.0.0.0/0", "except": [_METADATA]}},
        {"ipBlock": {"cidr": "::/0", "except": ["fe80::/10"]}},
    ],
    "ports": [{"protocol": "TCP", "port": 443}],
}


def make_service(name: str) -> dict[str, Any]:
    """Return the headless Service that names the pods of an Indexed Job.

    Node 0 is looked up before it is ready: it becomes so only once the others have come.
    """
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": labels(name)},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": selector_labels(name),
            "ports": [
                {
                    "name": "rendezvous",
                    "port": RENDEZVOUS_PORT,
                    "protocol": "TCP",
                    "targetPort": RENDEZVOUS_PORT,
                }
            ],
        },
    }
