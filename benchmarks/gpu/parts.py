"""The parts of the protocol. Each runs its measurements and returns Markdown lines to print."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from benchmarks.gpu.case import RANK, Case
from benchmarks.gpu.flops import TERA
from benchmarks.gpu.jobs import Result
from benchmarks.gpu.ladder import LADDER
from benchmarks.gpu.protocol import TRAINING_HEADS, Protocol
from benchmarks.gpu.sizes import Attempt, Shape, Sizes
from benchmarks.gpu.tables import speeds, spread, table

_NVIDIA_TOKENS_PER_SECOND = 12_473
"""Llama-3-8B LoRA on one H100, bf16, full rows of 4096.
Source: docs.nvidia.com/nemo/automodel, performance summary."""
_UNSLOTH_CONTEXT_TOKENS = 78_475
"""Llama-3.1-8B QLoRA on 24 GB. Source: unsloth.ai/docs, benchmarks."""
_MAX_ROUNDS = 5
_MIXED_SECONDS, _LADDER_SECONDS = 12.0, 10.0  # of measured steps in one run
_BUILD_SECONDS = 40.0  # what a process takes before it measures, and a margin
_PARITY_COLUMNS = ("error", "plain_error", "allowed")


def ceilings(protocol: Protocol) -> list[str]:
    sizes = protocol.sizes
    side = sizes.matmul_side
    job = {"kind": "ceilings", "device": sizes.device, "side": side, "copy_mib": sizes.copy_mib}
    found = protocol.runner.run(job)
    if found["status"] != "ok":
        return [protocol.excuse("ceilings", found)]
    protocol.tflops = found["tflops"]
    rates = [2 * side**3 / seconds / TERA for seconds in found["matmul_seconds"]]
    return [
        f"bf16 matrix product of {side}^3: {spread(rates, ',.1f')} TFLOP/s",
        f"copy within the card: {found['gigabytes_per_second']:,.0f} GB/s, read and written",
    ]


def parity(protocol: Protocol) -> list[str]:
    """Gradients before times: in float32 on a tiny shape, in bf16 on a real one."""
    sizes = protocol.sizes
    name, shape = sizes.small
    rows = []
    for title, case in (
        ("tiny, fp32", sizes.mixed(sizes.tiny, labelled=0.5).with_(precision="fp32")),
        (f"{name}, bf16", sizes.mixed(shape, labelled=0.5)),
    ):
        asked = case.with_(examples_per_step=16, micro_batch_tokens=4 * case.rows.longest)
        found = protocol.runner.run({"kind": "parity", "case": asked.to_json()})
        if found["status"] != "ok":
            protocol.problems.append(f"{title}: gradients were not compared")
            rows.append([title, protocol.excuse(title, found)])
            continue
        if not found["equal"]:
            protocol.problems.append(f"{title}: gradients differ from plain PEFT's")
        pairs = [(found[column]["all"], found[column]["worst"]) for column in _PARITY_COLUMNS]
        rows.append([title, *(f"{every:.1e} / {worst:.1e}" for every, worst in pairs)])
    heads = ("relative error, all / worst parameter", "ours", "plain, same precision", "allowed")
    return table(heads, rows)


def full_rows(protocol: Protocol) -> list[str]:
    name, shape = protocol.sizes.big
    case = protocol.sizes.full(shape)
    title = f"{name} LoRA r {RANK}, rows of {case.rows.longest}"
    used, found = protocol.train(title, case, protocol.sizes.attempts(shape))
    lines = table(TRAINING_HEADS, [protocol.row(title, used, [found])])
    if not protocol.is_real or found["status"] != "ok":
        return lines
    ratio = median(speeds(found)) / _NVIDIA_TOKENS_PER_SECOND
    lines += ["", f"NVIDIA publishes {_NVIDIA_TOKENS_PER_SECOND:,} on an H100: x {ratio:.2f}"]
    if protocol.tflops is not None:
        per_token = protocol.flops_per_token(used)
        lines.append(
            f"{per_token / 1e9:.1f} GFLOP a token (4 N + 3 att + 6 N_lora): at the card's matmul "
            f"rate {protocol.tflops * TERA / per_token:,.0f} tokens/s"
        )
    return lines


def mixed(protocol: Protocol) -> list[str]:
    """Rounds of all contenders in turn, each in its own process, while there is time."""
    sizes, runner = protocol.sizes, protocol.runner
    runs: dict[tuple[str, str], list[Result]] = {}
    cases: dict[tuple[str, str], Case] = {}
    fitting: dict[tuple[str, str], list[Attempt]] = {}
    for _ in range(_MAX_ROUNDS if runner.isolated else 1):
        for name, shape in (sizes.small, sizes.big):
            for contender, attempts in _contenders(sizes, shape):
                key = (name, contender)
                known = runs.setdefault(key, [])
                if known and (
                    known[-1]["status"] != "ok"
                    or runner.part_seconds_left < known[-1]["job_seconds"]
                ):
                    continue
                case = sizes.mixed(shape).with_(contender=contender, seconds=_MIXED_SECONDS)
                used, found = protocol.train(
                    ", ".join(key), case, fitting.setdefault(key, attempts)
                )
                cases[key], fitting[key] = used, [(used.micro_batch_tokens, used.checkpointing)]
                known.append(found)
    rows = [protocol.row(", ".join(key), cases[key], runs[key]) for key in runs]
    return [*table(TRAINING_HEADS, rows), "", *_ratios(runs)]


def _contenders(sizes: Sizes, shape: Shape) -> list[tuple[str, list[Attempt]]]:
    rows = sizes.longest
    return [
        ("ours", sizes.attempts(shape)),
        ("trl packing", sizes.attempts(shape)),
        ("trl default", [(8 * rows, True)]),
        ("transformers", [(8 * rows, False), (4 * rows, False), (8 * rows, True)]),
    ]


def _ratios(runs: dict[tuple[str, str], list[Result]]) -> list[str]:
    """Ours to each of the others, in medians of all measured steps."""
    middle = {
        key: median(value for result in done for value in speeds(result))
        for key, results in runs.items()
        if (done := [result for result in results if result["status"] == "ok"])
    }
    return [
        f"{name}: ours is x {middle[name, 'ours'] / value:.2f} of {contender}"
        for (name, contender), value in middle.items()
        if contender != "ours" and (name, "ours") in middle
    ]


def loss(protocol: Protocol) -> list[str]:
    sizes = protocol.sizes
    found = protocol.runner.run(
        {
            "kind": "loss",
            "shape": sizes.big[1],
            "device": sizes.device,
            "tokens": sizes.loss_tokens,
            "repeats": sizes.loss_repeats,
        }
    )
    if found["status"] != "ok":
        return [protocol.excuse("loss", found)]
    rows: list[list[Any]] = []
    for result in found["results"]:
        row = [f"{result['tokens']:,}", result["name"]]
        if result["status"] == "ok":
            memory, error = result["mib"], result.get("gradient_error")
            row += [
                spread([1000 * seconds for seconds in result["seconds"]], ",.1f"),
                "" if memory is None else f"{memory:,.0f}",
                "" if error is None else f"{error:.1e}",
            ]
        else:
            row.append(protocol.excuse(f"loss, {result['name']}", result))
        rows.append(row)
    return table(("tokens", "operator", "ms", "MiB", "gradient's error against float64"), rows)


def ladder(protocol: Protocol) -> list[str]:
    """What each piece brings, one added after the other."""
    name, shape = protocol.sizes.small
    rows = []
    for rung in LADDER:
        case = protocol.sizes.mixed(shape, labelled=0.3).with_(**rung.changes)
        attempts = protocol.sizes.attempts(shape)
        used, found = protocol.train(
            f"{name}, {rung.title}", case.with_(seconds=_LADDER_SECONDS), attempts
        )
        rows.append(protocol.row(rung.title, used, [found]))
    return table(TRAINING_HEADS, rows)


def qlora(protocol: Protocol) -> list[str]:
    """NF4 in the memory of a smaller card."""
    sizes, runner = protocol.sizes, protocol.runner
    name, shape = sizes.big
    capped = sizes.full(shape).with_(
        quantization="nf4", checkpointing=True, memory_gib=sizes.capped_gib, seconds=15.0
    )
    title = f"{name} NF4 in {sizes.capped_gib} GiB"
    rows = []
    for tokens in sizes.capped_tokens:
        used, found = protocol.train(title, capped, [(tokens, True)])
        rows.append(protocol.row(title, used, [found]))
    first, most = sizes.context
    asked = capped.with_(seconds=max(10.0, runner.part_seconds_left - _BUILD_SECONDS))
    found = runner.run({"kind": "longest", "case": asked.to_json(), "first": first, "most": most})
    if found["status"] != "ok":
        said = protocol.excuse("longest context", found)
    else:
        end = "no failure seen" if found["too_long"] is None else f"{found['too_long']:,} is not"
        said = f"longest context: {found['longest']:,} tokens is trained, {end}"
        if protocol.is_real:
            said += f"; Unsloth publishes {_UNSLOTH_CONTEXT_TOKENS:,}"
    return [*table(TRAINING_HEADS, rows), "", said]


PARTS: dict[str, tuple[Callable[[Protocol], list[str]], float]] = {
    "ceilings": (ceilings, 20),
    "parity": (parity, 50),
    "full-rows": (full_rows, 60),
    "mixed": (mixed, 190),
    "loss": (loss, 50),
    "ladder": (ladder, 80),
    "qlora": (qlora, 150),
}
"""Name -> what measures it, and its share of the time, in the order in which they run."""
