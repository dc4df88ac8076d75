"""Answers from trained models, side by side: one prompt, or a chat."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import get_args

import click
import torch
from peft import PeftModel
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from trainer.answers import Asker, Message
from trainer.config_schema import Precision
from trainer.model_source import RECORDED_BASE, check_model_folder, explaining_load, located
from trainer.precision import choose_device, choose_precision, probe_native_bf16
from trainer.tokenizer import find_tokenizer
from trainer.trained_model import TrainedModel, find_trained_model, read_run_system_prompt


@dataclasses.dataclass(frozen=True)
class Answer:
    """One model's answer to one prompt, as `--json` prints it."""

    model: str
    prompt: str
    answer: str
    num_tokens: int
    """Tokens of the answer, the end-of-sequence token left out."""


class Speaker:
    """A loaded model and its side of the conversation."""

    def __init__(
        self,
        label: str,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        system: str | None,
    ) -> None:
        self.label, self.model, self.tokenizer = label, model.eval(), tokenizer
        self.asker = Asker(label, self.model, tokenizer)
        self.system = system
        self.forget()

    def forget(self) -> None:
        """Begin a new conversation."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        self.messages: list[Message] = system

    def answer(self, prompt: str, max_new_tokens: int) -> Answer:
        """Answer greedily, and remember both turns.

        Raises: ConfigError when the chat template refuses the conversation.
        """
        self.messages.append({"role": "user", "content": prompt})
        ids = self.asker.prompt_ids(self.messages)
        tokens = self.asker.answer([ids], max_new_tokens)[0]
        text = self.asker.text(tokens)
        self.messages.append({"role": "assistant", "content": text})
        return Answer(self.label, prompt, text, len(tokens))


def load_speaker(
    found: TrainedModel,
    system: str | None,
    device: torch.device,
    precision: Precision = "auto",
) -> Speaker:
    """Load a model (and its adapter, unmerged) onto `device`.

    precision: `auto` is the fastest safe one.
    Raises: ConfigError, EnvironmentProblem.
    """
    choice = choose_precision(precision, device.type, native_bf16=probe_native_bf16(device.type))
    base, field = located(found.base), RECORDED_BASE if found.adapter else "model"
    check_model_folder(base, field=field)
    with explaining_load(base, found.revision, field=field):
        model: PreTrainedModel | PeftModel = AutoModelForCausalLM.from_pretrained(
            base,
            revision=found.revision,
            trust_remote_code=found.trust_remote_code,
            dtype=choice.dtype,
            device_map={"": device},
        )
    if found.adapter is not None:
        with explaining_load(str(found.adapter), field="adapter"):
            model = PeftModel.from_pretrained(model, found.adapter)
        # Modules trained in full were saved in float32; generation has one type throughout.
        model = model.to(choice.dtype)
    tokenizer = find_tokenizer(
        found.adapter, base, found.revision, trust_remote_code=found.trust_remote_code
    )
    return Speaker(found.label, model, tokenizer, system)


def answer_all(
    targets: Sequence[TrainedModel],
    prompts: Iterable[str],
    system: str | None,
    max_new_tokens: int,
    precision: Precision = "auto",
) -> Iterator[list[Answer]]:
    """Yield the answers of all models to one prompt after another, in one conversation each."""
    device = choose_device()
    speakers = []
    for found in targets:
        if sys.stderr.isatty():  # which of several is waited for
            click.echo(f"loading {found.label}", err=True)
        speakers.append(load_speaker(found, system, device, precision))
    for prompt in prompts:
        yield [speaker.answer(prompt, max_new_tokens) for speaker in speakers]


def show(answers: Sequence[Answer], console: Console) -> None:
    """Print answers as columns on a terminal, as labelled blocks elsewhere."""
    if len(answers) == 1:
        console.print(answers[0].answer, markup=False, highlight=False, soft_wrap=True)
        return
    if not console.is_terminal:
        for answer in answers:
            block = f"== {answer.model}\n{answer.answer}\n"
            console.print(block, markup=False, highlight=False, soft_wrap=True)
        return
    table = Table(*(answer.model for answer in answers), expand=True)
    table.add_row(*(answer.answer for answer in answers))
    console.print(table, markup=False)


def system_prompt_for(targets: Sequence[str], given: str | None) -> str | None:
    """Use `--system`, else the first run's system prompt for all models, said on stderr."""
    if given is not None:
        return given or None
    for target in targets:
        prompt = read_run_system_prompt(target)
        if prompt:
            click.echo(f"system prompt of {target}, for every model: {prompt}", err=True)
            return prompt
    return None


def _turns() -> Iterator[str]:
    """Read one prompt per line from the terminal or a pipe; Ctrl-D ends."""
    is_interactive = sys.stdin.isatty()
    while True:
        if is_interactive:
            click.echo("> ", nl=False, err=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--prompt", help="Answer this and end. Without it: a chat, one line per turn.")
@click.option("--system", help="System prompt. Default: the run's own; '' for none.")
@click.option("--max-new-tokens", default=256, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--precision",
    type=click.Choice(get_args(Precision)),
    default="auto",
    show_default=True,
    help="What to compute in.",
)
@click.option("--trust-remote-code", is_flag=True, help="Run code a model ships.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list on stdout.")
def command(
    models: tuple[str, ...],
    prompt: str | None,
    system: str | None,
    max_new_tokens: int,
    precision: Precision,
    trust_remote_code: bool,
    as_json: bool,
) -> None:
    """Answer with each MODEL: a run directory, a model or adapter folder, or a Hub id."""
    targets = [find_trained_model(name, trust_remote_code=trust_remote_code) for name in models]
    system = system_prompt_for(models, system)
    console = Console()
    collected: list[Answer] = []
    prompts = _turns() if prompt is None else iter([prompt])
    for answers in answer_all(targets, prompts, system, max_new_tokens, precision):
        if as_json:
            collected.extend(answers)
        else:
            show(answers, console)
    if as_json:
        rows = [dataclasses.asdict(answer) for answer in collected]
        click.echo(json.dumps(rows, indent=2, ensure_ascii=False))


def main(argv: list[str]) -> None:
    command.main(args=argv, prog_name="python -m trainer.generation", standalone_mode=False)
