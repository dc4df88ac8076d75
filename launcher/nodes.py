"""The nodes of one run: what they must have alike, and where their engines meet."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from launcher.attempt import Attempt
from launcher.engines.launch import host_and_port
from launcher.meeting import Place, meet
from launcher.planning import PlannedRun
from launcher.start import Start
from trainer.errors import RankZeroError
from trainer.status import Ending, write_termination_log, write_verdict


def meet_other_nodes(planned: PlannedRun, start: Start, attempt: Attempt) -> Start:
    """Return the start with the place where the engines of all nodes meet.

    Raises: RankZeroError, as `launcher.meeting.meet`; it is told in status.json too.
    """
    plan = planned.plan
    host, port = host_and_port(start.rendezvous)
    place = Place(
        host=host,
        port=port,
        nodes=plan.nodes,
        node_rank=start.node_rank,
        run=alike_on_all_nodes(planned, start),
        attempt=attempt.folder,
        needs_shared_storage=plan.saves_in_parts,
    )
    try:
        return replace(start, rendezvous=f"[{host}]:{meet(place)}")
    except RankZeroError as error:
        ending = Ending.of(error)
        # What an earlier attempt came to stays; so does what another node says.
        if start.node_rank == 0 and attempt.run.read_status().get("state") == "preparing":
            write_verdict(attempt.run, ending)
        else:
            write_termination_log(ending)
        raise


def alike_on_all_nodes(planned: PlannedRun, start: Start) -> dict[str, Any]:
    """Return what the nodes of a run must have alike, by name. PURE.

    Where the model, the caches and the output lie may differ from machine to machine.
    """
    plan, config = planned.plan, planned.config.model_dump(mode="json")
    config["model"].pop("name")
    config["data"].pop("cache_dir")
    config["training"].pop("deepspeed_config")
    config.pop("output_dir")
    return {
        "--resume": start.resume if start.resume in ("auto", "never") else "PATH",
        "nodes": plan.nodes,
        "processes per node": plan.processes_per_node,
        "device": plan.device,
        "engine": plan.engine,
        "strategy": plan.strategy,
        **{
            f"{section}.{name}": value
            for section, settings in config.items()
            if isinstance(settings, dict)
            for name, value in settings.items()
        },
        "seed": planned.config.seed,
    }
