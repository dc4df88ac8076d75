"""Names of Kubernetes objects: valid, short, stable, and never shared by accident."""

from __future__ import annotations

import re

import pytest

from launcher.kubernetes.names import LONGEST_NAME, check_name, run_name, selector_labels
from trainer.errors import ConfigError

# Source: RFC 1035, what a Service's name must be.
_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
DIRECTORIES = [
    "runs/one",
    "runs/One",
    "runs/o.n.e",
    "runs/o_n_e",
    "runs/7b",
    "runs/-",
    "runs/模型",
    "runs/" + "long-" * 30,
    "runs/" + "long-" * 30 + "x",
    "/",
    "..",
    "runs/x-",
]


def test_a_plain_name_is_kept() -> None:
    assert run_name("runs/medical-7b") == run_name("/runs/medical-7b/") == "rankzero-medical-7b"


@pytest.mark.parametrize("directory", DIRECTORIES)
def test_names_are_valid_and_leave_room_for_what_controllers_add(directory: str) -> None:
    name = run_name(directory)
    assert _LABEL.fullmatch(name)
    assert len(name) <= LONGEST_NAME
    assert len(f"{name}-node-0-999-abcde") <= 63
    assert set(selector_labels(name).values()) == {"rankzero", name}


def test_changed_names_stay_apart_and_the_same_tomorrow() -> None:
    assert len({run_name(directory) for directory in DIRECTORIES}) == len(DIRECTORIES)
    assert run_name("runs/My Run") == "rankzero-my-run-2635e1"


@pytest.mark.parametrize("name", ["", "A", "a_b", "-a", "a-", "a" * 64, "a\n", "a.b"])
def test_names_that_kubernetes_refuses_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="--queue"):
        check_name("--queue", name)


def test_names_that_kubernetes_takes_are_kept() -> None:
    assert check_name("--queue", "team-a") == "team-a"
    assert check_name("--queue", "a" * 63) == "a" * 63
