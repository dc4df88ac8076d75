"""What a safety checker is, what it says about an answer, and how a user's own is loaded."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from trainer.config_problems import did_you_mean
from trainer.errors import ConfigError
from trainer.safety.prompts import load_prompts

__all__ = ["SafetyChecker", "Verdict", "Violation", "load_checker", "load_prompts"]

BUILT_IN = "rules"
_RULE = (
    f"a checker is `{BUILT_IN}` or package.module.Name: a class made without arguments or an "
    "object, with check(prompt, answer); or a function of the two. Each returns a Verdict"
)
_DOTTED = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)+")


@dataclass(frozen=True)
class Violation:
    """One rule an answer breaks."""

    rule: str
    severity: str
    found: str
    """The words of the answer, or what it lacks."""


@dataclass(frozen=True)
class Verdict:
    """What a checker says about one answer."""

    score: float
    """1 is spotless, 0 the worst."""
    is_safe: bool
    violations: tuple[Violation, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as safety.jsonl holds it."""
        return asdict(self) | {"violations": [asdict(violation) for violation in self.violations]}


@runtime_checkable
class SafetyChecker(Protocol):
    """Anything that can judge an answer."""

    def check(self, prompt: str, answer: str) -> Verdict:
        """Judge the answer given to a prompt."""
        ...


def load_checker(name: str, rules: Path | None = None) -> SafetyChecker:
    """Return the rule-based checker, with built-in rules or those of a file, or a user's own.

    Raises: ConfigError when it cannot be had. What a user's code raises itself passes through.
    """
    if name == BUILT_IN:
        from trainer.safety.rules import RuleChecker, load_rules

        return RuleChecker(load_rules(rules))
    if rules is not None:
        raise ConfigError(
            f"{rules}: the rules would be ignored, the checker is {name}",
            rule=f"only the checker `{BUILT_IN}` reads rules",
            fix=f"leave out the rules, or set the checker to `{BUILT_IN}`",
        )
    return _UserChecker(name, _check_function(name, _import(name)))


class _UserChecker:
    """A user's checker whose verdicts are verified, as nothing else about it is known."""

    def __init__(self, name: str, check: Callable[[str, str], Any]) -> None:
        self.name, self._check = name, check

    def check(self, prompt: str, answer: str) -> Verdict:
        verdict = self._check(prompt, answer)
        if not isinstance(verdict, Verdict):
            kind = type(verdict).__name__
            raise ConfigError(
                f"{self.name} returned {kind} instead of a Verdict",
                rule=_RULE,
                fix="let it return trainer.safety.checker.Verdict(score, is_safe, violations)",
            )
        if not 0 <= verdict.score <= 1:
            raise ConfigError(
                f"{self.name} returned the score {verdict.score}",
                rule="a score is from 0 to 1",
                fix="let it return 1 for a spotless answer, 0 for the worst",
            )
        return verdict


def check_name(name: str) -> None:
    """Raises: ConfigError for what can name no checker."""
    if name != BUILT_IN and not _DOTTED.fullmatch(name):
        meant = did_you_mean(name, {BUILT_IN: BUILT_IN})
        raise ConfigError(
            f"there is no safety checker {name!r}{meant}",
            rule=_RULE,
            fix=f"set safety.checker to {BUILT_IN}, or to the full name of your own",
        )


def _import(name: str) -> Any:
    check_name(name)
    module_name, _, attribute = name.rpartition(".")
    try:
        return vars(importlib.import_module(module_name))[attribute]
    except (ImportError, ValueError, SyntaxError) as error:
        raise ConfigError(
            f"the safety checker {name!r} cannot be imported: {error}",
            rule=_RULE,
            fix="check the name; the folder of the module must be on PYTHONPATH",
        ) from error
    except KeyError:
        raise ConfigError(
            f"{module_name} has no {attribute!r}",
            rule=_RULE,
            fix=f"correct safety.checker, or define {attribute} in {module_name}",
        ) from None


def _check_function(name: str, found: Any) -> Callable[[str, str], Any]:
    if inspect.isclass(found):
        try:
            inspect.signature(found).bind()
        except TypeError as error:
            raise ConfigError(
                f"the safety checker {name} cannot be made without arguments: {error}",
                rule=_RULE,
                fix="give its arguments defaults, or name an object that is made already",
            ) from None
        found = found()
        check = found.check if isinstance(found, SafetyChecker) else None
    else:
        check = found.check if isinstance(found, SafetyChecker) else found
    if not callable(check):
        raise ConfigError(
            f"{name} is no safety checker: it has no `check`",
            rule=_RULE,
            fix="give it a method check(self, prompt, answer)",
        )
    try:
        inspect.signature(check).bind("prompt", "answer")
    except TypeError as error:
        raise ConfigError(
            f"{name} is no safety checker: it does not take (prompt, answer): {error}",
            rule=_RULE,
            fix="let it take these two arguments, and give any others defaults",
        ) from None
    return check
