"""The way to a cluster: a kubeconfig, or the service account of the pod this runs in."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from trainer.errors import ConfigError, EnvironmentProblem

_SERVICE_ACCOUNT_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_DEFAULT_NAMESPACE = "default"


@dataclass(frozen=True)
class Connection:
    """A client that knows server and credentials; nothing has been asked yet."""

    client: Any
    """kubernetes.client.ApiClient"""
    namespace: str
    context: str | None
    """The context that was asked for by name: later commands need it, too."""

    @property
    def options(self) -> str:
        """Return the options that lead another command to the same place."""
        context = f" --context {self.context}" if self.context else ""
        return f"--namespace {self.namespace}{context}"


def connect(context: str | None = None, namespace: str | None = None) -> Connection:
    """Read the kubeconfig (or, without one, what a pod is given) and return a client.

    Raises: EnvironmentProblem when the client library or credentials are missing; ConfigError for
    an unknown context.
    """
    try:
        from kubernetes import client, config
    except ImportError as error:
        raise EnvironmentProblem(
            f"the Kubernetes client cannot be used: {error}",
            rule="submit, status, logs and cancel talk to a cluster through it",
            fix="pip install 'rankzero[k8s]'",
        ) from None
    settings = client.Configuration()
    settings.retries = False  # here, where a lost connection can be told
    own_namespace = _read_settings(config, settings, context)
    return Connection(client.ApiClient(settings), namespace or own_namespace, context)


def _read_settings(config: Any, settings: Any, context: str | None) -> str:
    """Fill the settings and return the namespace that belongs to them."""
    files = os.environ.get("KUBECONFIG", "~/.kube/config").split(os.pathsep)
    has_file = any(Path(file).expanduser().is_file() for file in files if file)
    try:
        if not has_file and "KUBERNETES_SERVICE_HOST" in os.environ:
            config.load_incluster_config(client_configuration=settings)
            return _SERVICE_ACCOUNT_NAMESPACE.read_text(encoding="utf-8").strip()
        if not has_file:
            raise _no_kubeconfig()
        paths = os.pathsep.join(files)
        contexts, current = config.list_kube_config_contexts(config_file=paths)
        chosen = next((each for each in contexts if each["name"] == context), None)
        if context is not None and chosen is None:
            raise _unknown_context(context, [each["name"] for each in contexts])
        config.load_kube_config(
            config_file=paths,
            context=context,
            client_configuration=settings,
            persist_config=False,
        )
    # A kubeconfig may be no YAML, name files that are gone, or a program that fails.
    except (
        config.ConfigException,
        yaml.YAMLError,
        OSError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:
        raise _broken_kubeconfig(error) from None
    return str((chosen or current)["context"].get("namespace") or _DEFAULT_NAMESPACE)


def _no_kubeconfig() -> EnvironmentProblem:
    return EnvironmentProblem(
        "no kubeconfig, and this is no pod",
        rule="~/.kube/config, or the files that KUBECONFIG names, say where the cluster is",
        fix="set KUBECONFIG to the file that your cluster's administrator or cloud gave you",
    )


def _unknown_context(context: str, known: list[str]) -> ConfigError:
    return ConfigError(
        f"--context {context}: the kubeconfig has no such context",
        rule=f"it has {', '.join(sorted(known)) or 'none'}",
        fix="name one of these",
    )


def _broken_kubeconfig(error: Exception) -> EnvironmentProblem:
    words = " ".join(str(error).split())
    return EnvironmentProblem(
        f"the kubeconfig cannot be used: {words}",
        rule="it names a current context, a server, and credentials that can be read",
        fix="`kubectl get pods` must work with the same kubeconfig first",
    )
