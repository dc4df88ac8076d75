"""Fold a LoRA adapter into its base model, and prove that the result is what was trained.

`python -m trainer.merge TARGET [--base B] [--output O]`

Shapes: T tokens of a prompt, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from trainer.entry import run_entry
from trainer.errors import ConfigError, EnvironmentProblem, TrainingFailed
from trainer.merge_checks import (
    check_adapter_tensors,
    check_changes,
    check_logits,
    digests,
    sample_logits,
    targeted_parameters,
)
from trainer.model_source import RECORDED_BASE, check_model_folder, explaining_load, located
from trainer.tokenizer import find_tokenizer
from trainer.trained_model import find_adapter, read_adapter_config, run_trusts_code

_SPARE_BYTES = 64 * 2**20  # tokenizer, configs, headers
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class MergeReport:
    """What merge.json says."""

    base: str
    adapter: str
    output: str
    dtype: str
    targets: tuple[str, ...]
    """Names of the parameters the adapter changes."""
    num_adapter_tensors: int
    max_logit_difference: float
    """Largest |merged - (base + adapter)| over the sample prompts, in logits."""
    max_logit: float
    """Largest logit seen, to judge the difference by."""


def merge_adapter(
    adapter: Path, output: Path, base: str | None = None, *, trust_remote_code: bool = False
) -> MergeReport:
    """Write base + adapter as one plain model folder at `output`, which must not exist.

    The model's own code runs when asked for here, or when the run it was trained in trusted it.

    The base is read fresh, in the 16 or 32-bit type it is stored in, on the CPU. Nothing appears at
    `output` until everything was written and checked.
    Raises: ConfigError, EnvironmentProblem (disk), TrainingFailed when a check does not hold.
    Ranks: rank 0 only.
    """
    if output.exists():
        raise ConfigError(
            f"{output} exists",
            rule="a merge never overwrites",
            fix="remove it, or choose another --output",
        )
    description = read_adapter_config(adapter)
    name = base or description.get("base_model_name_or_path")
    if not name:
        raise ConfigError(
            f"the adapter {adapter} does not say which base model it belongs to",
            rule="adapter_config.json names it in base_model_name_or_path",
            fix="give it with --base",
        )
    revision = None if base else description.get("revision")
    field = "--base" if base else RECORDED_BASE
    # A run's trust is in its own base, not in another one.
    trusted = trust_remote_code or (base is None and run_trusts_code(adapter))
    check_model_folder(name, field)
    _check_disk(name, revision, field, output, trusted=trusted)
    with explaining_load(name, revision, field):
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            located(name), revision=revision, dtype="auto", trust_remote_code=trusted
        )
    tokenizer = find_tokenizer(adapter, located(name), revision, trust_remote_code=trusted)
    with _published(output) as folder:
        merged, report = _merge(model, tokenizer, adapter)
        report = dataclasses.replace(report, base=name, output=str(output))
        merged.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        text = json.dumps(dataclasses.asdict(report), indent=2)
        (folder / "merge.json").write_text(text + "\n", encoding="utf-8")
    return report


def _merge(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, adapter: Path
) -> tuple[PreTrainedModel, MergeReport]:
    """Merge in memory with PEFT, checking before and after."""
    dtypes = {name: parameter.dtype for name, parameter in model.named_parameters()}
    before = digests(model)
    with explaining_load(str(adapter), field="adapter"):
        adapted = PeftModel.from_pretrained(model, adapter)
    num_tensors = check_adapter_tensors(adapted, adapter)
    targets = targeted_parameters(adapted)
    for name, parameter in adapted.get_base_model().named_parameters():
        if "modules_to_save" in name:  # kept in float32 while training, unlike their neighbours
            original = name.replace("modules_to_save.default.", "")
            parameter.data = parameter.data.to(dtypes.get(original, parameter.dtype))
    adapted.eval()
    expected = sample_logits(adapted, tokenizer)
    try:
        merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    except ValueError as error:  # PEFT's check for not-a-number
        raise TrainingFailed(
            f"the adapter cannot be merged: {error}",
            rule="every merged weight is finite",
            fix="merge an earlier checkpoint: RUN/checkpoints/step-N",
        ) from error
    for name, parameter in merged.named_parameters():
        parameter.data = parameter.data.to(dtypes[name])
    check_changes(before, digests(merged), targets)
    difference, largest = check_logits(expected, sample_logits(merged, tokenizer), merged.dtype)
    return merged, MergeReport(
        base="",
        adapter=str(adapter),
        output="",
        dtype=str(merged.dtype).removeprefix("torch."),
        targets=tuple(sorted(targets)),
        num_adapter_tensors=num_tensors,
        max_logit_difference=difference,
        max_logit=largest,
    )


def _check_disk(
    name: str, revision: str | None, field: str, output: Path, *, trusted: bool
) -> None:
    """Compare the model's size, from its shapes alone, with the free space."""
    with explaining_load(name, revision, field):
        config = AutoConfig.from_pretrained(
            located(name), revision=revision, trust_remote_code=trusted
        )
        if hasattr(config, "quantization_config"):
            raise ConfigError(
                f"{field}: the weights of {name} are stored quantised",
                rule="an adapter is merged into 16 or 32-bit weights",
                fix="give the unquantised model with --base",
            )
        with torch.device("meta"):
            shapes = AutoModelForCausalLM.from_config(
                config, dtype=config.dtype or torch.float32, trust_remote_code=trusted
            )
    needed = _SPARE_BYTES + sum(p.numel() * p.element_size() for p in shapes.parameters())
    existing = next(parent for parent in output.absolute().parents if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise EnvironmentProblem(
            f"merging needs {needed / _GIB:.1f} GiB on disk, {free / _GIB:.1f} GiB are free",
            rule="the merged model is written whole before it appears",
            fix=f"free space under {existing}, or choose another --output",
        )


@contextmanager
def _published(output: Path) -> Iterator[Path]:
    """Yield a temporary sibling that becomes `output` by rename; on any failure it is removed."""
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.partial-", dir=output.parent))
    try:
        folder.chmod(0o755)  # mkdtemp's 0700 would hide the model from other users
        yield folder
        for file in folder.iterdir():
            file.chmod(0o644)  # safetensors writes weights as 0600
        try:
            folder.rename(output)
        except OSError as error:
            raise EnvironmentProblem(
                f"{output} cannot be created: {error.strerror}",
                rule="the merged model appears by rename",
                fix="remove what appeared there meanwhile, or choose another --output",
            ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@click.command()
@click.argument("target")
@click.option("--base", help="Base model to merge into. Default: the one the adapter names.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Folder to write. Default: merged/ in the run, or beside the adapter.",
)
@click.option("--trust-remote-code", is_flag=True, help="Run code the base model ships.")
def command(target: str, base: str | None, output: Path | None, trust_remote_code: bool) -> None:
    """Merge the LoRA adapter of TARGET, a run directory or an adapter folder."""
    adapter, default_output = find_adapter(target)
    report = merge_adapter(
        adapter, output or default_output, base, trust_remote_code=trust_remote_code
    )
    click.echo(
        f"merged {report.num_adapter_tensors} adapter tensors into {len(report.targets)} weights "
        f"of {report.base} ({report.dtype}); logits differ from base + adapter by at most "
        f"{report.max_logit_difference:.2g} (largest logit {report.max_logit:.3g})",
        err=True,
    )
    click.echo(report.output)


def main(argv: list[str]) -> None:
    command.main(args=argv, prog_name="python -m trainer.merge", standalone_mode=False)


if __name__ == "__main__":
    sys.exit(run_entry(main))
