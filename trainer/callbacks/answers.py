"""What the model in training answers: samples to read, and checks of its safety.

Both happen when the validation split is measured, or, without one, when training ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from trainer.answers import Asker, Sampling
from trainer.callbacks.stateful import StatefulCallback
from trainer.config import Config
from trainer.config_monitoring import SafetyConfig, SamplesConfig
from trainer.quality import describe_answers, quality_score
from trainer.run_directory import RunDirectory, append_line
from trainer.safety.checker import load_checker, load_prompts

if TYPE_CHECKING:
    from trainer.training import RankZeroTrainer

_TOGETHER = 8
"""Prompts that are answered in one go: bounds memory, and how long a request to stop waits."""


def answer_callbacks(
    trainer: RankZeroTrainer, config: Config, run: RunDirectory
) -> list[AnswersCallback]:
    """Return what the config asks for.

    Raises: ConfigError when prompts, rules or the checker cannot be used.
    """
    system = config.data.system_prompt
    callbacks: list[AnswersCallback] = []
    if config.samples.prompts:
        callbacks.append(SamplesCallback(trainer, config.samples, system, run, config.seed))
    if config.safety.enabled:
        callbacks.append(SafetyCallback(trainer, config.safety, system, run))
    return callbacks


class AnswersCallback(StatefulCallback):
    """Asks the same prompts each time and writes a line. Ranks: one on every rank."""

    def __init__(
        self, trainer: RankZeroTrainer, prompts: Sequence[str], system: str | None, path: Path
    ) -> None:
        self.trainer, self.prompts, self.path = trainer, tuple(prompts), path
        self.asker = Asker("the model", trainer.model, trainer.processing_class)
        before = [{"role": "system", "content": system}] if system else []
        self.prompt_ids = [
            self.asker.prompt_ids([*before, {"role": "user", "content": prompt}])
            for prompt in self.prompts
        ]
        self.last: tuple[int, int] | None = None

    def measure(self) -> dict[str, Any]:
        """Answer, and return the line to write. Ranks: collective; empty but on rank 0."""
        raise NotImplementedError

    def metrics(self, line: dict[str, Any]) -> dict[str, float]:
        """Return the numbers of a line that are logged."""
        raise NotImplementedError

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        if "eval_loss" in metrics:
            self._write(state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.trainer.data.split("validation") is None:
            self._write(state.global_step)

    def _write(self, step: int) -> None:
        weights = self.trainer.weights_step
        if self.last == (step, weights):
            return  # the best weights are the last ones
        line = self.measure()
        self.last = step, weights
        if not line:
            return
        append_line(self.path, {"step": step, "weights_of_step": weights, **line})
        self.trainer.log(self.metrics(line))

    def state_dict(self) -> dict[str, Any]:
        return {"last": self.last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        last = state["last"]
        self.last = None if last is None else (last[0], last[1])

    def answers(self, max_new_tokens: int, sampling: Sampling | None = None) -> list[str]:
        """Return an answer to every prompt. Ranks: collective; empty but on rank 0."""
        trainer = self.trainer
        was_training = trainer.model.training
        trainer.model.eval()
        found: list[str] = []
        try:
            for prompts in _portions(self.prompt_ids):
                trainer.host.stop_if_agreed()
                # ZeRO-3 gathers every layer from all ranks; else the others have nothing to do.
                if trainer.world.is_rank_zero or is_deepspeed_zero3_enabled():
                    with trainer.accelerator.autocast():
                        tokens = self.asker.answer(prompts, max_new_tokens, sampling)
                    found += [self.asker.text(answer) for answer in tokens]
                trainer.host.wait_for_all()
        finally:
            trainer.model.train(was_training)
        return found if trainer.world.is_rank_zero else []


def _portions(prompts: Sequence[list[int]]) -> Iterator[Sequence[list[int]]]:
    for start in range(0, len(prompts), _TOGETHER):
        yield prompts[start : start + _TOGETHER]


class SamplesCallback(AnswersCallback):
    """samples.jsonl: a greedy and a drawn answer to each prompt, their lengths and quality."""

    def __init__(
        self,
        trainer: RankZeroTrainer,
        config: SamplesConfig,
        system: str | None,
        run: RunDirectory,
        seed: int,
    ) -> None:
        super().__init__(trainer, load_prompts(config.prompts), system, run.samples)
        self.config, self.sampling = config, Sampling(config.temperature, config.top_p, seed)

    def measure(self) -> dict[str, Any]:
        length = self.config.max_new_tokens
        greedy, sampled = self.answers(length), self.answers(length, self.sampling)
        if not greedy:
            return {}
        statistics = describe_answers(greedy)
        return {
            "samples": [
                {"prompt": prompt, "greedy": one, "sampled": other, "quality": quality_score(one)}
                for prompt, one, other in zip(self.prompts, greedy, sampled, strict=True)
            ],
            "mean_words": statistics.mean_words,
            "std_words": statistics.std_words,
            "quality": statistics.quality,
        }

    def metrics(self, line: dict[str, Any]) -> dict[str, float]:
        return {
            "eval_response_words": line["mean_words"],
            "eval_response_words_std": line["std_words"],
            "eval_quality": line["quality"],
        }


class SafetyCallback(AnswersCallback):
    """safety.jsonl: each answer's verdict, the share of safe ones, the mean score."""

    def __init__(
        self, trainer: RankZeroTrainer, config: SafetyConfig, system: str | None, run: RunDirectory
    ) -> None:
        super().__init__(trainer, load_prompts(config.prompts), system, run.safety)
        self.max_new_tokens = config.max_new_tokens
        self.checker = load_checker(config.checker, Path(config.rules) if config.rules else None)

    def measure(self) -> dict[str, Any]:
        answers = self.answers(self.max_new_tokens)
        if not answers:
            return {}
        checks = [
            {"prompt": prompt, "answer": answer, **self.checker.check(prompt, answer).to_json()}
            for prompt, answer in zip(self.prompts, answers, strict=True)
        ]
        return {
            "compliance_rate": sum(check["is_safe"] for check in checks) / len(checks),
            "average_score": sum(check["score"] for check in checks) / len(checks),
            "checks": checks,
        }

    def metrics(self, line: dict[str, Any]) -> dict[str, float]:
        return {
            "eval_safety_compliance_rate": line["compliance_rate"],
            "eval_safety_average_score": line["average_score"],
        }
