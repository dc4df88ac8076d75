"""Write overlays/*: the manifests that `rankzero render` gives for overlays.yaml.

The tests compare, so that none of them drifts. Run it in a checkout: python k8s/render_overlays.py
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from launcher.commands.render import render

FOLDER = Path(__file__).resolve().parent
_KUSTOMIZATION = """\
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources:
  - ../../base
  - rendered
"""


def overlays() -> dict[str, list[str]]:
    """Return the arguments of `rankzero render` for each overlay, without --output."""
    table: dict[str, Any] = yaml.safe_load((FOLDER / "overlays.yaml").read_text(encoding="utf-8"))
    common = [table["config"], *table["arguments"]]
    return {name: [*common, *own] for name, own in table["overlays"].items()}


def main() -> None:
    """Render every overlay; paths in overlays.yaml are the checkout's."""
    os.chdir(FOLDER.parent)
    for name, arguments in overlays().items():
        folder = FOLDER / "overlays" / name
        render.main([*arguments, "--output", str(folder / "rendered")], standalone_mode=False)
        (folder / "kustomization.yaml").write_text(_KUSTOMIZATION, encoding="utf-8")


if __name__ == "__main__":
    main()
