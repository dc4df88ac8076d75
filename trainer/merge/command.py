"""`python -m trainer.merge TARGET [--base B] [--output O]`"""

from __future__ import annotations

from pathlib import Path

import click

from trainer.merge.merging import merge_adapter
from trainer.trained_model import find_adapter


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
    """Run the command; errors come out as they are."""
    command.main(args=argv, prog_name="python -m trainer.merge", standalone_mode=False)
