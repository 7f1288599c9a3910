"""`--set name=value`: another value for a field of a preset."""

import math
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from jaxkd.base import UsageError
from jaxkd.presets import Preset

_TRUTH = {"true": True, "yes": True, "false": False, "no": False}
_FORMS = {bool: "true or false", int: "a positive int", float: "a number", tuple: "sizes as 64,64"}


def override(preset: Preset, pairs: Sequence[str]) -> Preset:
    """The preset with the values given.

    >>> override(Preset(), ["learning_rate=1e-2", "hidden=32,32"]).hidden
    (32, 32)
    """
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise UsageError(f"--set takes NAME=VALUE, got {pair!r}.")
        if name not in preset._fields:
            near = get_close_matches(name, preset._fields, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UsageError(
                f"--set: a preset has no {name!r}.{hint} It has {', '.join(preset._fields)}."
            )
        default = Preset._field_defaults[name]
        kind = float if default is None else type(default)
        preset = preset._replace(**{name: _value(name, kind, text)})
    return preset


def _value(name: str, kind: type, text: str) -> Any:
    try:
        value = _TRUTH[text.lower()] if kind is bool else _number(kind, text)
    except (KeyError, ValueError) as error:
        raise UsageError(f"--set {name} must be {_FORMS[kind]}, got {text!r}.") from error
    return value


def _number(kind: type, text: str) -> Any:
    if kind is tuple:
        return tuple(_number(int, part) for part in text.split(",")) if text else ()
    value = kind(text)
    if not math.isfinite(value) or kind is int and not 0 < value < 2**31:
        raise ValueError
    return value
