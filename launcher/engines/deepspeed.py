"""DeepSpeed's launcher, called per node. PURE.

`deepspeed.launcher.launch` is what the `deepspeed` command itself starts on each node. That
command is left out, because in deepspeed 0.19 it
- ends with 0 when the ranks were killed by a signal (a negative code is not passed on),
- dies of SIGTERM without telling the ranks, which go on alone,
- drops the CUDA_VISIBLE_DEVICES it was started with,
- wants a host file, or ssh, for more than one node, and reads `/job/hostfile` when there is one.
Source: deepspeed/launcher/runner.py (`main`).
"""

from __future__ import annotations

import base64
import json

from launcher.engines.launch import TRAINER, EngineCommand, Launch


def deepspeed_command(launch: Launch) -> EngineCommand:
    """Return the command of this node; it needs `rendezvous` on a single node as well."""
    host, port = launch.address()
    return EngineCommand(
        argv=[
            *(launch.python, "-m", "deepspeed.launcher.launch"),
            f"--world_info={_world_info(launch)}",
            f"--node_rank={launch.node_rank}",
            f"--master_addr={host}",
            f"--master_port={port}",
            *("--no_local_rank", "--log_level=warning"),
            *("--module", TRAINER, *launch.trainer_arguments),
        ],
        environment={"DS_ACCELERATOR": "cpu" if launch.device == "cpu" else "cuda"},
    )


def _world_info(launch: Launch) -> str:
    """Encode the devices of each node; only those of this node are looked at closely."""
    slots = [str(slot) for slot in range(launch.processes)]
    nodes = {f"node-{rank}": slots for rank in range(launch.nodes)}
    if launch.devices:
        nodes[f"node-{launch.node_rank}"] = list(launch.devices[: launch.processes])
    return base64.urlsafe_b64encode(json.dumps(nodes).encode()).decode()
