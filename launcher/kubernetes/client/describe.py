"""A run's state in a few lines, for somebody who waits. PURE."""

from __future__ import annotations

from collections import Counter

from launcher.kubernetes.client.observe import PodState, RunState, Wait
from launcher.kubernetes.client.outcome import summarize


def describe(state: RunState) -> list[str]:
    """Return what stands now: one line for all nodes of which the same is true."""
    if state.is_over:
        return []
    if state.phase == "ending":
        return ["being deleted: its pods save, and end", *_node_lines(state)]
    if state.phase == "queued":
        return [waiting_for(state.wait) if state.wait else "waiting for its queue"]
    if state.wait is not None:
        return [waiting_for(state.wait)]
    if not state.pods:
        return ["waiting for its pods to be made"]
    return _node_lines(state)


def waiting_for(wait: Wait) -> str:
    """Return what something waits for, and why it has to."""
    return f"waiting for {_NOUNS[wait.category]}: {wait.text}"


def _node_lines(state: RunState) -> list[str]:
    """Tell of every pod: one may have ended, and the next come, between two looks."""
    is_alone = {pod.index for pod in state.pods} == {0}
    sentences: dict[str, list[int]] = {}
    tries: Counter[int] = Counter()
    for pod in state.pods:
        tries[pod.index] += 1
        again = f" (attempt {tries[pod.index]})" if tries[pod.index] > 1 else ""
        sentence = _sentence(pod, names_machine=is_alone) + again
        sentences.setdefault(sentence, []).append(pod.index)
    if is_alone:
        return list(sentences)
    return [f"{_nodes(sorted(indexes))}: {text}" for text, indexes in sentences.items()]


def _sentence(pod: PodState, *, names_machine: bool) -> str:
    # Each node of a run has a machine of its own, which would be a line for each.
    where = f" on {pod.machine}" if names_machine and pod.machine else ""
    if pod.phase == "waiting":
        idle = f"starting{where}" if pod.machine else "waiting for a machine"
        return waiting_for(pod.wait) if pod.wait else idle
    if pod.phase == "running":
        return f"running{where}"
    if pod.phase == "ending":
        return "saving before the end" + (f", {pod.disruption}" if pod.disruption else "")
    if pod.phase == "stopped":
        return "stopped on request, saved; another pod goes on"
    if pod.phase == "failed" and pod.ended is not None:
        return f"ended, {summarize(pod.ended)}"
    return "complete"


_NOUNS = {
    "queue": "its queue",
    "quota": "quota",
    "machine": "a machine",
    "volume": "a volume",
    "image": "its image",
    "container": "its container",
}


def _nodes(indexes: list[int]) -> str:
    """Write node numbers as ranges: nodes 0-3, 7."""
    ranges: list[list[int]] = []
    for index in indexes:
        if ranges and index == ranges[-1][-1] + 1:
            ranges[-1][1:] = [index]
        else:
            ranges.append([index])
    words = ", ".join("-".join(map(str, each)) for each in ranges)
    return f"node{'s' if len(indexes) > 1 else ''} {words}"
