"""`python -m trainer.merge TARGET... [options]`"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click
import torch

from trainer.config_schema import BasePrecision
from trainer.errors import ConfigError, EnvironmentProblem
from trainer.hub import check_push, push_folder
from trainer.merge.job import MergeOptions
from trainer.merge.merging import merge_adapter
from trainer.merge.quantized import Kind, Quantization
from trainer.merge.report import ORIGINAL, MergeReport
from trainer.requirements import check_requirements
from trainer.trained_model import find_adapter, settings_of_run

_DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}


@click.command()
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
@click.option("--base", help="Base model to merge into. Default: the one the adapter names.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Folder to write. Default: merged/ in the run, or beside the adapter.",
)
@click.option(
    "--base-precision",
    "precision",
    type=click.Choice(get_args(BasePrecision)),
    help="For an adapter trained on a quantised base. Default: as its run says, else original.",
)
@click.option(
    "--quantization",
    "kind",
    type=click.Choice(get_args(Kind)),
    help="How training stored the base. Default: as its run says.",
)
@click.option(
    "--dtype",
    type=click.Choice(tuple(_DTYPES)),
    help="Type of the merged weights. Default: as its run says, else that of the base.",
)
@click.option("--ignore-requirements", is_flag=True, help="Merge although merge.require says no.")
@click.option("--replace", is_flag=True, help="Replace an earlier merge at the output.")
@click.option(
    "--push-to-hub",
    "repository",
    metavar="OWNER/NAME",
    help="Publish the merged model there, with its card.",
)
@click.option("--private", is_flag=True, help="Make the repository on the Hub a private one.")
@click.option("--trust-remote-code", is_flag=True, help="Run code the base model ships.")
def command(
    targets: tuple[str, ...],
    output: Path | None,
    kind: Kind | None,
    precision: BasePrecision | None,
    dtype: str | None,
    ignore_requirements: bool,
    repository: str | None,
    private: bool,
    **options: Any,
) -> None:
    """Merge the LoRA adapter of each TARGET, a run directory or an adapter folder, in order."""
    found = [find_adapter(target) for target in targets]
    if private and not repository:
        raise ConfigError(
            "--private without --push-to-hub",
            rule="it says how a repository on the Hub is made",
            fix="give --push-to-hub OWNER/NAME as well, or leave --private out",
        )
    if output is None and len(found) > 1:
        raise ConfigError(
            f"{len(found)} adapters and no --output",
            rule="a merge of several adapters belongs to none of their runs",
            fix="say where to write it with --output",
        )
    requirements = {
        f"{name} of adapter {number}" if len(found) > 1 else name: outcome
        for number, (adapter, _) in enumerate(found, 1)
        for name, outcome in check_requirements(adapter, is_ignored=ignore_requirements).items()
    }
    if repository:
        check_push(repository, private=private)
    settings = settings_of_run(found[0][0]).get("merge") or {} if len(found) == 1 else {}
    output = output or found[0][1]
    report = merge_adapter(
        [adapter for adapter, _ in found],
        output,
        MergeOptions(
            **options,
            precision=precision or settings.get("base_precision") or ORIGINAL,
            quantization=Quantization(kind) if kind else None,
            dtype=_DTYPES.get(dtype or settings.get("output_dtype", "auto")),
            requirements=requirements,
        ),
    )
    click.echo(summary(report), err=True)
    click.echo(output)
    if repository:
        click.echo(push_folder(output, repository, private=private))


def summary(report: MergeReport) -> str:
    """Say in a few lines what was merged and how well it fits."""
    text = (
        f"merged {report.num_adapter_tensors} adapter tensors into {len(report.targets)} weights "
        f"of {report.base} ({report.dtype}); logits differ from base + adapter by at most "
        f"{report.max_logit_difference:.2g} (largest logit {report.max_logit:.3g})"
    )
    if report.distances:
        distances = ", ".join(f"{name} {far:.3g}" for name, far in report.distances.items())
        text += (
            f"\nbase: {report.base_precision}; logits differ from the adapter on the "
            f"{report.quantization} base it was trained on by (root mean square): {distances}"
        )
    return text


def main(argv: list[str]) -> None:
    """Run the command; errors come out as they are. Raises: EnvironmentProblem for permissions."""
    try:
        _run(argv)
    except PermissionError as error:
        raise EnvironmentProblem(
            f"{error.filename} cannot be read: {error.strerror}",
            rule="base and adapter are files this user may read",
            fix="change their permissions, or run as another user",
        ) from error


def _run(argv: list[str]) -> None:
    command.main(args=argv, prog_name="python -m trainer.merge", standalone_mode=False)
