"""Every error a user can meet, and the exit code each one ends the process with.

RankZeroError (1, a bug if raised bare)
├── ConfigError          2   the config, or a command line option, is wrong
│   └── DataError        2   the data files are wrong
├── EnvironmentProblem   3   this machine lacks memory, disk, a library, a permission
├── TrainingFailed       4   non-finite loss, out of memory, a rank died
│   ├── OutOfMemory      4   of a device, or of the host
│   └── PeerLost         4   another rank died first
├── GateFailed           5   a required check did not pass
└── Interrupted         75   state is saved, start again to continue (EX_TEMPFAIL)
"""

from __future__ import annotations

from collections.abc import Sequence

INTERRUPTED_BY_KEYBOARD = 130
"""Ctrl-C before there was anything to save: 128 + SIGINT, what a shell reports."""


class RankZeroError(Exception):
    """An error with the three parts a reader needs: what is wrong, the rule, one fix."""

    exit_code = 1

    def __init__(self, what: str, *, rule: str = "", fix: str = "") -> None:
        self.what, self.rule, self.fix = what, rule, fix
        super().__init__(what)

    def __str__(self) -> str:
        parts = [self.what]
        if self.rule:
            parts.append(f"  rule: {self.rule}")
        if self.fix:
            parts.append(f"  fix:  {self.fix}")
        return "\n".join(parts)


class ConfigError(RankZeroError):
    """One or several config mistakes, reported together."""

    exit_code = 2

    @classmethod
    def from_problems(
        cls, where: str, problems: Sequence[str], *, fix: str = "correct each line named above"
    ) -> ConfigError:
        """Join several one-problem messages under one headline."""
        noun = "problem" if len(problems) == 1 else "problems"
        lines = "\n".join(f"  {number}. {text}" for number, text in enumerate(problems, 1))
        return cls(f"{where}: {len(problems)} {noun}\n{lines}", fix=fix)


class DataError(ConfigError):
    """Rows or files of a dataset that cannot be trained on."""


class EnvironmentProblem(RankZeroError):
    """The machine lacks something the run needs."""

    exit_code = 3


class TrainingFailed(RankZeroError):
    """Training started and could not go on."""

    exit_code = 4


class OutOfMemory(TrainingFailed):
    """A step needed more memory than there is."""


class PeerLost(TrainingFailed):
    """Another rank went away in the middle of a collective: a consequence, never the cause."""


class GateFailed(RankZeroError):
    """A check that must pass before publishing did not pass."""

    exit_code = 5


class Interrupted(RankZeroError):
    """Stopped on request with the state saved; the same command continues."""

    exit_code = 75


_MAIN = (RankZeroError, ConfigError, EnvironmentProblem, TrainingFailed, GateFailed, Interrupted)
BY_EXIT_CODE: dict[int, type[RankZeroError]] = {each.exit_code: each for each in _MAIN}
"""The class that an exit code stands for."""
BY_NAME: dict[str, type[RankZeroError]] = {
    each.__name__: each for each in (*_MAIN, DataError, OutOfMemory, PeerLost)
}
"""Every class, as records of other processes name it."""
