"""torchrun: one agent per node starts and watches its ranks. PURE."""

from __future__ import annotations

from launcher.engines.launch import TRAINER, EngineCommand, Launch

# The option --shutdown-timeout says the same, but torch 2.11 refuses it and ignores the variable
# (it kills after 30 s). Source: pytorch/pytorch#172596.
SHUTDOWN_TIMEOUT = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"


def torchrun_command(launch: Launch) -> EngineCommand:
    """Return torchrun's command; on one node it finds a free port by itself."""
    meeting = ["--standalone"]
    if launch.nodes > 1:
        host, port = launch.address()
        # Static, not c10d: there the nodes are numbered as they arrive, and rank 0, which
        # writes the files, could be on any of them.
        meeting = [
            f"--nnodes={launch.nodes}",
            f"--node-rank={launch.node_rank}",
            "--rdzv-backend=static",
            f"--rdzv-endpoint={host}:{port}",
            f"--master-addr={host}",
            f"--master-port={port}",
        ]
    return EngineCommand(
        argv=[
            *(launch.python, "-m", "torch.distributed.run"),
            *meeting,
            f"--nproc-per-node={launch.processes}",
            *("-m", TRAINER, *launch.trainer_arguments),
        ],
        environment={SHUTDOWN_TIMEOUT: str(launch.shutdown_timeout_seconds)},
    )
