"""What the image promises to others, as far as it shows without a build; `.ci/image` builds it."""

from __future__ import annotations

import fnmatch
import re
import subprocess
from pathlib import Path
from typing import Any

import tomllib

from launcher.kubernetes.cluster import DEFAULT_IMAGE, MOUNTS
from launcher.kubernetes.manifests.volumes import writable_environment

REPOSITORY = Path(__file__).parents[2]
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
RUNTIME = DOCKERFILE.partition(" AS runtime\n")[2]


def instructions(text: str) -> list[str]:
    """Return a Dockerfile's instructions, comments dropped and continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    return [line for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line]


def is_sent(path: str) -> bool:
    """Tell whether .dockerignore lets a path into the build; the last rule that matches decides."""
    sent = True
    for rule in (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if rule.startswith("#") or not rule:
            continue
        pattern = rule.removeprefix("!").removeprefix("**/")
        parts = path.split("/")
        parents = ["/".join(parts[: end + 1]) for end in range(len(parts))]
        candidates = parts if "**/" in rule else parents
        if any(fnmatch.fnmatchcase(candidate, pattern) for candidate in candidates):
            sent = rule.startswith("!")
    return sent


def test_the_build_gets_everything_the_wheel_is_made_of() -> None:
    project: dict[str, Any] = tomllib.loads(
        (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    )
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    metadata = [project["project"]["readme"], *project["project"]["license-files"]]
    needed = [*wheel["packages"], *wheel["force-include"], *metadata, "pyproject.toml"]
    assert {path for path in needed if not is_sent(path)} == set()


def test_the_build_gets_nothing_else() -> None:
    private = [".git/config", ".env", "runs/a/adapter", "models/a", ".venv/bin/pip", "hub_token"]
    cached = ["trainer/__pycache__/main.cpython-311.pyc", "rankzero.egg-info/PKG-INFO"]
    assert {path for path in [*private, *cached] if is_sent(path)} == set()


def test_the_user_is_a_number_and_not_root() -> None:
    # Kubernetes refuses `runAsNonRoot` for a name: it cannot know what number is behind it.
    (user,) = [line for line in instructions(RUNTIME) if line.startswith("USER ")]
    assert re.fullmatch(r"USER ([1-9]\d*):\1", user)


def test_the_cache_is_one_volume_in_the_image_and_in_a_pod() -> None:
    assert f'VOLUME ["{MOUNTS["cache"]}"]' in instructions(RUNTIME)
    environment = next(line for line in instructions(RUNTIME) if line.startswith("ENV "))
    in_image = dict(re.findall(r"([A-Z_]+)=(\S+)", environment))
    # What a pod sends elsewhere the image must have named as well: else `docker run --read-only`
    # has that library write to the root file system.
    in_pod = set(writable_environment()) - {"TMPDIR", "MPLCONFIGDIR"}  # HOME decides the latter
    assert in_pod <= set(in_image)
    assert {in_image[name].split("/")[1] for name in in_pod} == {"cache"}


def test_make_image_makes_the_image_that_manifests_name() -> None:
    command = ["make", "--dry-run", "image"]
    printed = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    assert f"--tag {DEFAULT_IMAGE} ." in printed


def test_every_build_argument_a_from_uses_has_a_default() -> None:
    before_first_stage = DOCKERFILE.partition("\nFROM ")[0]
    used = set(re.findall(r"^FROM \$\{(\w+)\}", DOCKERFILE, re.MULTILINE))
    assert used == set(re.findall(r"^ARG (\w+)=\S+$", before_first_stage, re.MULTILINE))
