"""Two-way renaming rules for tensor names.

A rule is a pair of templates with typed fields, for instance

    Rule("blocks.{i}.mlp.lin{k}.{p}", "blocks.{i}.mlp.layers.{k-1}.{p}")

Each template compiles to a regular expression anchored at both ends, so a rule matches whole names only, its inverse is
the same rule read from right to left, and the order of rules has no meaning: a name must be matched by exactly one.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

_INTEGER = r"0|[1-9]\d*"
_FIELDS: Mapping[str, str] = {
    "i": _INTEGER,  # index of a layer, a stage or a module of a Sequential
    "j": _INTEGER,  # index inside the former
    "k": r"[1-9]",  # number that a name ends with, counted from 1
    "p": r"weight|bias",
    "stat": r"weight|bias|running_mean|running_var|num_batches_tracked",
    "proj": r"[qkv]_proj|out_proj",
}
_PLACEHOLDER = re.compile(r"\{(\w+)([+-]\d+)?\}")


@dataclass(frozen=True)
class Rule:
    """One family of names on both sides.

    Attributes:
        source: template of the foreign name.
        target: template of our name; uses the same fields, integer ones optionally shifted as in ``{i+1}``.
    """

    source: str
    target: str

    def __post_init__(self) -> None:
        """Refuse templates whose inverse would lose a field."""
        if _field_names(self.source) != _field_names(self.target):
            raise ValueError(f"both templates of a rule need the same fields, got {self}")

    def inverse(self) -> Rule:
        """The same rule in the other direction."""
        return Rule(self.target, self.source)

    def apply(self, name: str) -> str | None:
        """The new name, or None where the rule does not match the whole name."""
        fields = _parse(self.source, name)
        return None if fields is None else _render(self.target, fields)


@dataclass(frozen=True)
class Dropped:
    """Names that a file may hold and nobody needs.

    Attributes:
        source: template of the foreign name.
        reason: why the tensors can be left out without changing any output.
    """

    source: str
    reason: str


@dataclass(frozen=True)
class Translation:
    """Result of renaming a set of names.

    Attributes:
        names: source name -> target name.
        dropped: source name -> reason.
        unknown: source names that no rule matches, in their order.
    """

    names: dict[str, str]
    dropped: dict[str, str]
    unknown: tuple[str, ...]


class KeyMap:
    """A set of rules; see `translate` and `inverse`."""

    def __init__(self, rules: Sequence[Rule], dropped: Sequence[Dropped] = ()) -> None:
        self.rules = tuple(rules)
        self.dropped = tuple(dropped)
        # A model's names come back with every call, and each costs a try of all rules.
        self._matches = functools.lru_cache(maxsize=4096)(self.matches)

    def inverse(self) -> KeyMap:
        """Target names to source names; what was dropped does not come back."""
        return KeyMap([rule.inverse() for rule in self.rules])

    def matches(self, name: str) -> list[str | Dropped]:
        """What every rule that matches `name` says: its new name, or why it is dropped. More than one is a defect."""
        renamed: list[str | Dropped] = [new for rule in self.rules if (new := rule.apply(name)) is not None]
        return renamed + [rule for rule in self.dropped if _parse(rule.source, name) is not None]

    def translate(self, names: Iterable[str]) -> Translation:
        """Rename each name by the one rule that matches it."""
        renamed: dict[str, str] = {}
        dropped: dict[str, str] = {}
        unknown: list[str] = []
        for name in names:
            match self._matches(name):
                case []:
                    unknown.append(name)
                case [Dropped(reason=reason)]:
                    dropped[name] = reason
                case [str(target)]:
                    renamed[name] = target
                case several:
                    raise ValueError(f"{name} must be matched by one rule, got {several}")
        return Translation(renamed, dropped, tuple(unknown))


def _field_names(template: str) -> set[str]:
    return {name for name, _ in _PLACEHOLDER.findall(template)}


@functools.cache
def _compile(template: str) -> tuple[re.Pattern[str], dict[str, int]]:
    """Regular expression of a template and, per field, how far the written number is from the field's value."""
    pattern, shifts, end = "", {}, 0
    for match in _PLACEHOLDER.finditer(template):
        name, shift = match[1], int(match[2] or 0)
        # A shifted number is any integer here; its field's own pattern is checked after the shift is undone.
        pattern += re.escape(template[end : match.start()])
        pattern += f"(?P<{name}>{_INTEGER if shift else _FIELDS[name]})"
        shifts[name], end = shift, match.end()
    return re.compile(pattern + re.escape(template[end:])), shifts


def _parse(template: str, name: str) -> dict[str, str] | None:
    pattern, shifts = _compile(template)
    match = pattern.fullmatch(name)
    if match is None:
        return None
    fields = {key: str(int(text) - shifts[key]) if shifts[key] else text for key, text in match.groupdict().items()}
    legal = all(re.fullmatch(_FIELDS[key], text) for key, text in fields.items())
    return fields if legal else None


def _render(template: str, fields: Mapping[str, str]) -> str | None:
    def fill(match: re.Match[str]) -> str:
        value = fields[match[1]]
        return str(int(value) + int(match[2])) if match[2] else value

    name = _PLACEHOLDER.sub(fill, template)
    # A shift can leave the template's range ("{i-1}" of 0); then there is no such name and the rule does not apply.
    return name if _parse(template, name) == dict(fields) else None
