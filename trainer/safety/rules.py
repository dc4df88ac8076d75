"""The rule-based checker: patterns an answer must not have, and what it must say when asked.

It reads English, and only English: an answer in another language lacks what is required and is
not understood otherwise. It knows words, not medicine: an answer that passes may still be wrong,
and an unusual wording slips through (tests/unit/test_safety_rules.py says how often).
A rule counts once, however often it is broken. An answer without a letter is never safe.

A pattern is a regular expression that matches whole words of one sentence, whatever their case, as
trainer/safety/sentences.py cuts them; `{name}` stands for any of the alternatives under `words`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StrictFloat, ValidationError

from trainer.config_file import load_config_file
from trainer.config_problems import (
    KeyPath,
    Places,
    Problem,
    did_you_mean,
    dotted,
    existing_part,
    to_problem,
)
from trainer.config_types import Section
from trainer.errors import ConfigError
from trainer.safety.checker import Verdict, Violation
from trainer.safety.sentences import has_words, to_sentences

NO_ANSWER = "no_answer"
"""Name of the rule that an answer without a letter breaks."""
_BUILT_IN = Path(__file__).resolve().parent / "medical_rules.yaml"
_RULE = "a rules file has threshold, severities, and rules under `forbidden` and `required`"
_FIX = "start from a copy of trainer/safety/medical_rules.yaml"
_NAME = re.compile(r"\{([a-z_]+)\}")

Severity = Literal["critical", "major", "minor"]
UnitInterval = Annotated[StrictFloat, Field(ge=0, le=1)]
Texts = Annotated[tuple[str, ...], Field(min_length=1)]


class _Severities(Section):
    critical: UnitInterval
    major: UnitInterval
    minor: UnitInterval


class _Forbidden(Section):
    severity: Severity
    patterns: Texts
    unless: tuple[str, ...] = ()


class _Required(Section):
    severity: Severity
    when: Texts
    any_of: Texts
    unless: tuple[str, ...] = ()
    lacks: str
    """What a violation says is missing."""


class _RulesFile(Section):
    threshold: UnitInterval
    severities: _Severities
    words: dict[str, Texts] = Field(default_factory=dict)
    forbidden: dict[str, _Forbidden] = Field(default_factory=dict)
    required: dict[str, _Required] = Field(default_factory=dict)


@dataclass(frozen=True)
class Patterns:
    """What to find in a sentence. A match that touches one of `unless` does not count."""

    any_of: tuple[re.Pattern[str], ...]
    unless: tuple[re.Pattern[str], ...] = ()

    def find(self, sentences: Iterable[str]) -> str | None:
        """Return the first words that match."""
        for sentence in sentences:
            matches = (match for one in self.any_of for match in one.finditer(sentence))
            for match in matches:
                if not self._is_excused(match):
                    return match.group()
        return None

    def _is_excused(self, match: re.Match[str]) -> bool:
        return any(
            excuse.start() < match.end() and match.start() < excuse.end()
            for one in self.unless
            for excuse in one.finditer(match.string)
        )


@dataclass(frozen=True)
class ForbiddenRule:
    """Words that no answer may have."""

    severity: Severity
    words: Patterns


@dataclass(frozen=True)
class RequiredRule:
    """Words that an answer must have when the prompt matches `when`."""

    severity: Severity
    when: Patterns
    words: Patterns
    lacks: str


@dataclass(frozen=True)
class Rules:
    """Compiled rules by name."""

    threshold: float
    losses: Mapping[str, float]
    forbidden: Mapping[str, ForbiddenRule]
    required: Mapping[str, RequiredRule]


class RuleChecker:
    """Judges an answer by rules: score = max(0, 1 - the losses of the rules it breaks)."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules

    def check(self, prompt: str, answer: str) -> Verdict:
        """Judge one answer: safe is nothing critical, and a score that reaches the threshold."""
        violations = tuple(self._violations(to_sentences(prompt), answer))
        score = max(0.0, 1 - sum(self.rules.losses[found.severity] for found in violations))
        is_critical = any(found.severity == "critical" for found in violations)
        return Verdict(score, not is_critical and score >= self.rules.threshold, violations)

    def _violations(self, prompt: Sequence[str], answer: str) -> Iterable[Violation]:
        sentences = to_sentences(answer)
        if not has_words(answer):
            yield Violation(NO_ANSWER, "critical", "an answer in words")
        for name, rule in self.rules.forbidden.items():
            found = rule.words.find(sentences)
            if found is not None:
                yield Violation(name, rule.severity, found)
        for name, required in self.rules.required.items():
            is_due = required.when.find(prompt) is not None
            if is_due and required.words.find(sentences) is None:
                yield Violation(name, required.severity, required.lacks)


@cache
def built_in_rules() -> Rules:
    """Return the rules for medical answers."""
    return load_rules(None)


def load_rules(path: Path | None) -> Rules:
    """Read and compile the rules of a file; None: the built-in ones.

    Raises: ConfigError naming file, line and rule of every problem.
    """
    path = path or _BUILT_IN
    try:
        file = load_config_file(path)
    except ConfigError as error:
        raise ConfigError(error.what, rule=_RULE, fix=_FIX) from None
    places = Places(file.lines, {})
    if file.problems:
        raise _refusal(path, file.problems)
    try:
        written = _RulesFile.model_validate(file.values)
    except ValidationError as error:
        raise _refusal(path, _to_problems(error, file.values, places)) from None
    reader = _Compiler(written, places)
    rules = reader.compile()
    if reader.problems:
        raise _refusal(path, reader.problems)
    return rules


class _Compiler:
    """Turns written patterns into compiled ones, and collects every one that is wrong."""

    def __init__(self, written: _RulesFile, places: Places) -> None:
        self.written, self.places = written, places
        self.problems: list[Problem] = []
        self.words: dict[str, str] = {}

    def compile(self) -> Rules:
        """Compile the rules of the file, as far as they are right."""
        written = self.written
        for name, texts in written.words.items():  # a word may use those above it
            at = ("words", name)
            written_out = [self.expand((*at, index), text) for index, text in enumerate(texts)]
            for index, text in enumerate(written_out):
                self.regex((*at, index), text)
            self.words[name] = f"(?:{'|'.join(written_out)})"
        for name in written.forbidden.keys() & written.required.keys():
            text = f"`{name}` is the name of two rules, forbidden and required; rename one"
            self.problems.append(self.places.problem(("required", name), text))
        return Rules(
            written.threshold,
            written.severities.model_dump(),
            {name: self.forbidden(name, rule) for name, rule in written.forbidden.items()},
            {name: self.required(name, rule) for name, rule in written.required.items()},
        )

    def forbidden(self, name: str, rule: _Forbidden) -> ForbiddenRule:
        at = ("forbidden", name)
        found = self.patterns((*at, "patterns"), rule.patterns)
        return ForbiddenRule(
            rule.severity, Patterns(found, self.patterns((*at, "unless"), rule.unless))
        )

    def required(self, name: str, rule: _Required) -> RequiredRule:
        at = ("required", name)
        found = self.patterns((*at, "any_of"), rule.any_of)
        return RequiredRule(
            rule.severity,
            Patterns(self.patterns((*at, "when"), rule.when)),
            Patterns(found, self.patterns((*at, "unless"), rule.unless)),
            rule.lacks,
        )

    def patterns(self, at: KeyPath, texts: Sequence[str]) -> tuple[re.Pattern[str], ...]:
        compiled = (self.pattern((*at, index), text) for index, text in enumerate(texts))
        return tuple(one for one in compiled if one is not None)

    def pattern(self, at: KeyPath, text: str) -> re.Pattern[str] | None:
        one = self.regex(at, self.expand(at, text))
        if one is not None and one.search(""):
            self.note(at, f"matches an empty text, so every answer: {text!r}")
        return one

    def regex(self, at: KeyPath, text: str) -> re.Pattern[str] | None:
        try:
            return re.compile(rf"(?<!\w)(?:{text})(?!\w)", re.IGNORECASE)
        except re.error as error:
            self.note(at, f"is no regular expression: {error.msg}: {text}")
            return None

    def expand(self, at: KeyPath, text: str) -> str:
        def alternatives(match: re.Match[str]) -> str:
            name = match.group(1)
            if name not in self.words:
                meant = did_you_mean(name, {known: known for known in self.words})
                self.note(at, f"uses {{{name}}}, which is not under `words` above it{meant}")
            return self.words.get(name, "-")

        return _NAME.sub(alternatives, text)

    def note(self, at: KeyPath, text: str) -> None:
        problem = self.places.problem(at, f"`{dotted(at)}` {text}")
        if problem not in self.problems:
            self.problems.append(problem)


def _to_problems(error: ValidationError, values: dict[str, Any], places: Places) -> list[Problem]:
    problems = []
    for found in error.errors(include_url=False):
        path = tuple(found["loc"])
        if found["type"] == "extra_forbidden":
            problems.append(places.problem(path, f"unknown key {places.name(path)}{_meant(path)}"))
        elif found["type"] == "missing":
            problems.append(to_problem(path, [dict(found)], places))
        else:
            problems.append(to_problem(existing_part(values, path), [dict(found)], places))
    return problems


def _meant(path: KeyPath) -> str:
    inside: dict[str, type[Section]] = {
        "forbidden": _Forbidden,
        "required": _Required,
        "severities": _Severities,
    }
    section = _RulesFile if len(path) == 1 else inside[str(path[0])]
    return did_you_mean(str(path[-1]), {key: key for key in section.model_fields})


def _refusal(path: Path, problems: Iterable[Problem]) -> ConfigError:
    ordered = sorted(problems, key=lambda problem: problem.line or 0)
    lines = "\n".join(f"  {problem.render(str(path))}" for problem in ordered)
    return ConfigError(f"safety rules with mistakes\n{lines}", rule=_RULE, fix=_FIX)
