"""What the parts share: training runs that fit, whether their numbers can be true, their rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.gpu.case import RANK, Case
from benchmarks.gpu.flops import count, lora_flops_per_token, utilisation
from benchmarks.gpu.jobs import Job, Result
from benchmarks.gpu.rows import make_rows
from benchmarks.gpu.runner import Runner
from benchmarks.gpu.sizes import Attempt, Sizes
from benchmarks.gpu.tables import speeds, spread

TRAINING_HEADS = (
    "what",
    "tokens a micro-batch",
    "checkpointing",
    "tokens/s",
    "of the card's matmul",
    "peak GiB (reserved)",
    "warm-up s",
    "steps",
)
_LOSS_OFF = 0.2  # share by which the loss may differ from ln V on random weights and tokens


@dataclass
class Protocol:
    """One run of the protocol. `tflops`: what the card's matrix product reached."""

    runner: Runner
    sizes: Sizes
    tflops: float | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def is_real(self) -> bool:
        """On a card, with real shapes."""
        return self.sizes.device == "cuda"

    def train(self, title: str, case: Case, attempts: Iterable[Attempt]) -> tuple[Case, Result]:
        """Train with the first micro-batch that fits, and look whether the numbers can be true."""
        jobs = [to_job(case, attempt) for attempt in attempts]
        job, found = self.runner.first_that_fits(jobs)
        used = Case.from_json(job["case"])
        if found["status"] == "ok":
            expected = math.log(used.shape["vocab_size"])
            if not abs(found["loss"] - expected) < _LOSS_OFF * expected:
                self.problems.append(
                    f"{title}: the loss is {found['loss']:.2f}, not near {expected:.2f}"
                )
            if self.is_real and (self.utilisation(used, speeds(found)) or 0.0) > 1.0:
                self.problems.append(f"{title}: faster than the card multiplies matrices")
        return used, found

    def flops_per_token(self, case: Case) -> float:
        lengths = [len(ids) for ids, _ in make_rows(case.rows, case.num_rows)]
        return lora_flops_per_token(count(case.shape, RANK), lengths)

    def utilisation(self, case: Case, reached: Sequence[float]) -> float | None:
        """Share of the card's matrix product; None when that was not measured."""
        if self.tflops is None:
            return None
        return utilisation(median(reached), self.flops_per_token(case), self.tflops)

    def row(self, title: str, case: Case, results: Sequence[Result]) -> list[Any]:
        """Make a row of TRAINING_HEADS from one or more runs of a case."""
        done = [result for result in results if result["status"] == "ok"]
        if not done:
            return [title, self.excuse(title, results[-1])]
        reached = [value for result in done for value in speeds(result)]
        share = self.utilisation(case, reached) if self.is_real else None
        fullest = max(done, key=lambda result: result.get("peak_gib", 0.0))
        return [
            title,
            f"{case.micro_batch_tokens:,}",
            "on" if case.checkpointing else "off",
            spread(reached),
            "" if share is None else f"{share:.0%}",
            f"{fullest['peak_gib']:.1f} ({fullest['reserved_gib']:.1f})" if self.is_real else "",
            f"{max(sum(result['warm_up_seconds']) for result in done):.1f}",
            f"{len(reached)}" + (f" in {len(done)} runs" if len(done) > 1 else ""),
        ]

    def excuse(self, title: str, result: Result) -> str:
        """Say why there is no number; a failure is also a problem, a missing package is not."""
        if result["status"] == "failed":
            self.problems.append(f"{title}: {result['reason']}")
        return f"{result['status']}: {result['reason']}"


def to_job(case: Case, attempt: Attempt) -> Job:
    tokens, checkpointing = attempt
    changed = case.with_(
        micro_batch_tokens=tokens,
        micro_batch_examples=max(1, min(tokens // case.rows.longest, case.examples_per_step)),
        checkpointing=checkpointing,
    )
    return {"kind": "ours" if case.contender == "ours" else "theirs", "case": changed.to_json()}
