"""Configurations: dataclasses with defaults, filled from a YAML file and ``key=value`` overrides.

A schema is a ``dataclass(kw_only=True)`` whose fields are scalars, lists, dictionaries, ``Literal`` choices or further
such dataclasses; ``omegaconf.MISSING`` marks what the user has to give. `setting` adds limits and a help line. Every
mistake in a file and its overrides is collected, so one run shows all of them.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hqsam.errors import ConfigError

__all__ = [
    "MISSING",
    "config_to_yaml",
    "default_values",
    "describe_settings",
    "flatten_config",
    "load_config",
    "setting",
]

T = TypeVar("T")


def setting(
    default: Any = MISSING,
    help: str = "",
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
) -> Any:
    """Declare a field of a schema with a help line and numeric limits.

    Args:
        default: value when nothing is given; `MISSING` makes the key required. Lists and dictionaries are copied.
        help: one line for ``--help``.
        at_least: smallest legal number, inclusive.
        above: legal numbers are greater than this.
        at_most: largest legal number, inclusive.
    """
    limits = {"at_least": at_least, "above": above, "at_most": at_most}
    metadata = {"help": help, **{name: limit for name, limit in limits.items() if limit is not None}}
    if isinstance(default, (list, dict)):
        frozen = default
        return dataclasses.field(default_factory=lambda: type(frozen)(frozen), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def load_config(schema: type[T], path: str | Path | Mapping[str, Any] | None, overrides: Sequence[str] = ()) -> T:
    """Read a configuration.

    Args:
        schema: dataclass that declares every legal key.
        path: YAML file, or what one would hold; None takes the schema's defaults.
        overrides: ``section.key=value`` texts, applied after the file in their order. Values are YAML, except that a
            text field takes the characters as they are (``null`` still empties an optional one).

    Returns:
        An instance of `schema`, interpolations resolved.

    Raises:
        ConfigError: unreadable file, unknown keys, wrong types, values out of range, missing required keys: all that
            were found, each with its origin, its dotted path and, for an unknown key, the nearest legal one.
    """
    problems: list[str] = []
    config = OmegaConf.structured(schema)
    origin = "the settings" if isinstance(path, Mapping) else str(path)
    for key, value in _leaves(_read_yaml(path), schema):
        _assign(config, schema, key, value, origin=origin, problems=problems)
    for text in overrides:
        key, equals, raw = text.partition("=")
        if not equals or not key:
            problems.append(f"override {text!r}: expected key=value, for example optim.lr=1e-3")
            continue
        value = _parse_override(schema, key, raw)
        if isinstance(value, _Unparsable):
            problems.append(f"override {key}: {raw!r} is not valid YAML")
            continue
        for leaf, leaf_value in _leaves(value, schema, key):
            _assign(config, schema, leaf, leaf_value, origin="override", problems=problems)
    problems += _check_values(config, schema)
    if problems:
        subject = "the defaults" if path is None else origin
        raise ConfigError("\n  ".join([f"{len(problems)} problem(s) in the configuration from {subject}:", *problems]))
    return typing.cast(T, OmegaConf.to_object(config))


def config_to_yaml(config: object) -> str:
    """YAML text of a configuration object; `load_config` reads it back to an equal one."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def flatten_config(config: object) -> dict[str, Any]:
    """Dotted path -> plain value of every leaf of a configuration object."""
    return dict(_leaves(OmegaConf.to_container(OmegaConf.structured(config)), type(config)))


def default_values(schema: type) -> dict[str, Any]:
    """Dotted path -> default of every key of a schema that has one, as plain values."""
    values = {key: _default(field) for key, field in _fields(schema)}
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in values.items() if value != MISSING
    }


def describe_settings(schema: type) -> list[tuple[str, str, str]]:
    """(dotted path, default, help) of every key of a schema, for ``--help``."""
    rows = []
    for key, field in _fields(schema):
        default = _default(field)
        rows.append((key, "required" if default == MISSING else str(default), field.metadata.get("help", "")))
    return rows


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else MISSING


class _Unparsable:
    """Stands for an override that is not YAML."""


def _read_yaml(path: str | Path | Mapping[str, Any] | None) -> Mapping[str, Any]:
    if path is None or isinstance(path, Mapping):
        return path or {}
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except FileNotFoundError:
        folder = Path(path).parent
        near = difflib.get_close_matches(Path(path).name, [p.name for p in folder.glob("*.yaml")], n=1)
        hint = f"; did you mean {folder / near[0]}?" if near else ""
        raise ConfigError(f"no configuration file {path}{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration file {path}: {error}") from error
    except Exception as error:  # PyYAML's and OmegaConf's errors share no base class
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold sections and keys, got a {type(content).__name__}")
    return typing.cast(Mapping[str, Any], content)


def _parse_override(schema: type, key: str, raw: str) -> Any:
    target = _type_at(schema, key)
    if _accepts_text(target) and raw not in ("null", "~"):
        return raw
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={raw}"]))["value"]  # type: ignore[call-overload, index]
    except Exception:  # PyYAML's and OmegaConf's errors share no base class
        return _Unparsable()


def _leaves(value: Any, schema: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Split nested sections into (dotted path, value); a dictionary-typed field stays one value."""
    section = schema if prefix == "" else _type_at(schema, prefix)
    if isinstance(value, Mapping) and (dataclasses.is_dataclass(section) or section is None):
        for name, inner in value.items():
            yield from _leaves(inner, schema, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, value


def _assign(config: Any, schema: type, key: str, value: Any, *, origin: str, problems: list[str]) -> None:
    target = _type_at(schema, key)
    parent = _type_at(schema, key.rpartition(".")[0]) if "." in key else None
    if target is None and not _is_dict(parent):
        problems.append(f"{origin}: unknown key {key}{_nearest(schema, key)}")
        return
    if dataclasses.is_dataclass(target):
        names = ", ".join(field.name for field in dataclasses.fields(target))
        problems.append(f"{origin}: {key} is a section, got {value!r}; set its keys: {names}")
        return
    choices = _choices(target)
    if isinstance(value, bool) and choices:
        # YAML 1.1 reads a bare `off`, `on`, `no` and `yes` as a boolean.
        words = ("on", "yes") if value else ("off", "no")
        value = next((word for word in words if word in choices), value)
    elif isinstance(value, bool) and _accepts_text(target):
        problems.append(f"{origin}: {key} must be text, got {value}; write it in quotes")
        return
    try:
        OmegaConf.update(config, key, value, merge=False)
    except OmegaConfBaseException as error:
        problems.append(f"{origin}: {key}: {str(error).splitlines()[0]}")


def _check_values(config: Any, schema: type) -> list[str]:
    problems = []
    for key, field in _fields(schema):
        try:
            if _missing(config, key):
                help_text = field.metadata.get("help", "")
                problems.append(f"{key} is required but missing" + (f" ({help_text})" if help_text else ""))
                continue
            value = OmegaConf.select(config, key, throw_on_resolution_failure=True)
        except OmegaConfBaseException as error:
            problems.append(f"{key}: {str(error).splitlines()[0]}")
            continue
        numbers = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
        for number in numbers:
            if isinstance(number, (int, float)) and not isinstance(number, bool):
                problems += [f"{key} must be {rule}, got {number}" for rule in _broken_limits(field.metadata, number)]
    return problems


def _missing(config: Any, key: str) -> bool:
    section, _, name = key.rpartition(".")
    return OmegaConf.is_missing(OmegaConf.select(config, section) if section else config, name)


def _broken_limits(limits: Mapping[str, Any], number: float) -> list[str]:
    broken = []
    if "at_least" in limits and not number >= limits["at_least"]:
        broken.append(f"at least {limits['at_least']}")
    if "above" in limits and not number > limits["above"]:
        broken.append(f"greater than {limits['above']}")
    if "at_most" in limits and not number <= limits["at_most"]:
        broken.append(f"at most {limits['at_most']}")
    return broken


def _fields(schema: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """(dotted path, field) of every leaf of a schema."""
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        key = f"{prefix}.{field.name}" if prefix else field.name
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _fields(typing.cast(type, hints[field.name]), key)
        else:
            yield key, field


def _type_at(schema: type, key: str) -> Any:
    """Declared type of a dotted path, `None` where the schema has none."""
    current: Any = schema
    for name in key.split("."):
        hints = typing.get_type_hints(current) if dataclasses.is_dataclass(current) else {}
        if name not in hints:
            return None
        current = hints[name]
    return current


def _alternatives(target: Any) -> tuple[Any, ...]:
    """Members of a union, or the type alone."""
    is_union = typing.get_origin(target) in (typing.Union, types.UnionType)
    return typing.get_args(target) if is_union else (target,)


def _choices(target: Any) -> tuple[Any, ...]:
    options: tuple[Any, ...] = ()
    for kind in _alternatives(target):
        if typing.get_origin(kind) is Literal:
            options += typing.get_args(kind)
    return options


def _accepts_text(target: Any) -> bool:
    kinds = [kind for kind in _alternatives(target) if kind is not type(None)]
    return bool(kinds) and all(kind is str or typing.get_origin(kind) is Literal for kind in kinds)


def _is_dict(target: Any) -> bool:
    return any(typing.get_origin(kind) is dict for kind in _alternatives(target))


def _nearest(schema: type, key: str) -> str:
    known = [path for path, _ in _fields(schema)]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not near:
        same_name = [path for path in known if path.rpartition(".")[2] == key.rpartition(".")[2]]
        near = same_name[:1]
    if near:
        return f"; did you mean {near[0]}?"
    sections = sorted({path.partition(".")[0] for path in known})
    return f"; legal at the top: {', '.join(sections)}"
