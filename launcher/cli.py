"""The `rankzero` command: which verbs there are, and how an error ends one."""

from __future__ import annotations

import signal
from importlib import import_module
from typing import Any, NoReturn

import click

from launcher import __version__
from trainer.config_problems import did_you_mean
from trainer.errors import INTERRUPTED_BY_KEYBOARD, ConfigError, Interrupted, RankZeroError

# Verb -> its line in the help. The module of the same name is imported when the verb is used.
COMMANDS = {
    "init": "Write a commented config to start from.",
    "schema": "Print the JSON Schema of the config.",
    "plan": "Show how a run would be carried out, what it takes, and whether it fits.",
    "train": "Plan, prepare the data and train.",
    "render": "Write the Kubernetes manifests of a run; no cluster is needed.",
    "submit": "Plan a run, send it to a cluster and follow it; submitted again, it goes on.",
    "status": "Show how a run on a cluster stands, or all runs of a namespace.",
    "logs": "Print what a run on a cluster prints; followed, its outcome is the exit code.",
    "cancel": "End a run on a cluster: its pods save, then its objects go; volumes stay.",
    "merge": "Join an adapter and its base model into one model.",
    "generate": "Let a run, a model or several answer.",
    "evaluate": "Measure a finished run on a split of its data.",
    "compare": "Show runs side by side: settings that differ, losses, rates, memory.",
    "report": "Write a run's report.html and training_curves.png, finished or not.",
    "checkpoints": "List a run's checkpoints, verify them, remove those it no longer needs.",
    "profiles": "List the hardware profiles; the one this machine matches is marked.",
    "doctor": "Show what works on this machine: versions, GPUs, compiled parts, memory, disk.",
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(import_module(f"launcher.commands.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        verb = args[0]
        if verb not in COMMANDS and not verb.startswith("-"):
            meant = did_you_mean(verb, {name: name for name in COMMANDS})
            raise ConfigError(
                f"there is no command `{verb}`{meant}",
                rule=f"a command is one of {', '.join(COMMANDS)}",
                fix="`rankzero --help` says what each does",
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except RankZeroError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(error.exit_code)
        except click.UsageError as error:
            wrong = _to_config_error(error, ctx)
            click.echo(f"error: {wrong}", err=True)
            ctx.exit(wrong.exit_code)
        except KeyboardInterrupt:  # click's own answer is the code of a bug
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED_BY_KEYBOARD)


def _to_config_error(error: click.UsageError, ctx: click.Context) -> ConfigError:
    """Word a wrong option or argument as every other mistake is worded. PURE."""
    command = error.ctx or ctx
    return ConfigError(
        error.format_message().removesuffix("."),
        rule=command.get_usage().replace("Usage:", "usage:"),
        fix=f"`{command.command_path} --help` says what each option takes",
    )


@click.group(cls=_LazyGroup)
@click.version_option(__version__, prog_name="rankzero")
def rankzero() -> None:
    """Fine-tune language models from one config on any hardware."""


def main() -> None:
    """Run the command, as the installed script does."""
    # Without a handler the kernel keeps SIGTERM from PID 1. While a child runs, `supervise` has
    # handlers of its own.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, _stop)
    rankzero(prog_name="rankzero")


def _stop(number: int, _: object) -> NoReturn:
    raise Interrupted(f"stopped by {signal.Signals(number).name}")
