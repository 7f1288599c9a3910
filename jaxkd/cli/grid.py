"""`--grid name=value,value`: many settings in one compiled call, a lane for each seed and point.

What is swept enters the program as an array. Sizes cannot be: every size is another program.
Legend of shapes: `n` seeds, `G` points.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, NamedTuple

import jax

from jaxkd.base import Algorithm, Env, UsageError
from jaxkd.presets import Preset

_MOST_POINTS = 1000
Point = dict[str, float]  # values by name


class Sweepable(NamedTuple):
    """What a training can be swept over."""

    of: str  # whose settings, in words
    fields: frozenset[str]  # of the preset
    keywords: frozenset[str]  # of the recipe


def points(options: Sequence[str]) -> list[Point]:
    """All combinations of the values; one empty point where there is no option.

    >>> points(["gamma=0.9,0.99", "weight=1"])
    [{'gamma': 0.9, 'weight': 1.0}, {'gamma': 0.99, 'weight': 1.0}]
    """
    found: dict[str, list[float]] = {}
    for option in options:
        name, _, text = option.partition("=")
        values = [_number(part) for part in text.split(",")]
        if not name or None in values:
            raise UsageError(f"--grid takes NAME=NUMBER,NUMBER,..., got {option!r}.")
        if name in found or len(set(values)) < len(values):
            raise UsageError(f"--grid {option}: {name} or one of its values is given twice.")
        found[name] = [value for value in values if value is not None]
    number = math.prod(len(values) for values in found.values())
    if number > _MOST_POINTS:
        raise UsageError(f"--grid: {number} points; at most {_MOST_POINTS}.")
    return [dict(zip(found, values, strict=True)) for values in product(*found.values())]


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def sweepable(of: str, recipe: Callable, settings: Callable, env: Env, preset: Preset) -> Sweepable:
    """The floats of a preset that a recipe's `settings` read, and those the recipe itself takes."""
    read: set[str] = set()

    class Noting:
        """The preset, noting what is read of it."""

        def __getattr__(self, name: str) -> Any:
            read.add(name)
            return getattr(preset, name)

    settings(env, Noting(), 1)
    floats = {name for name in read if isinstance(getattr(preset, name), float)}
    keywords = inspect.signature(recipe).parameters.values()
    taken = {each.name for each in keywords if "float" in str(each.annotation)}
    return Sweepable(of, frozenset(floats), frozenset(taken - floats))


def check_names(chosen: Point, known: Sweepable) -> None:
    """Raises a UsageError for what cannot be swept, with what can."""
    for name in chosen:
        if renamed(name, known) in known.fields | known.keywords:
            continue
        default = Preset._field_defaults.get(name)
        is_size = name in Preset._field_defaults and not isinstance(default, float)
        why = (
            "it is part of the program, and every value compiles another: begin a run for each, "
            f"with --set {name}="
            if is_size
            else f"{known.of} does not read it"
        )
        can = ", ".join(sorted(known.fields | known.keywords))
        raise UsageError(f"--grid {name}: {why}. What can be swept here: {can}.")


def renamed(name: str, known: Sweepable) -> str:
    """The student's learning rate, where a method reads no other."""
    student = f"student_{name}"
    return student if name not in known.fields and student in known.fields else name


def swept(build: Callable, known: Sweepable, preset: Preset, first: Point) -> Algorithm:
    """The algorithm whose last input is a point, a dict of arrays [].

    Args:
        build: (preset, **keywords of the recipe) -> Algorithm.
        first: a point, to begin a state with.

    Raises:
        UsageError: a value that the recipe refuses.
    """

    def at(point: Any) -> Algorithm:
        values = {renamed(name, known): value for name, value in point.items()}
        fields = {name: value for name, value in values.items() if name in known.fields}
        keywords = {name: value for name, value in values.items() if name not in fields}
        return build(preset._replace(**fields), **keywords)

    begun = at(first)

    def step(state: Any, *inputs: Any) -> Any:
        return at(inputs[-1]).step(state, *inputs[:-1])

    return Algorithm(begun.init, step, begun.description)


def lanes_of(chosen: list[Point], n: int) -> dict[str, jax.Array]:
    """The points as inputs of n seeds each: values [G n] by name, seeds after one another."""
    import numpy as np

    return {
        name: jax.numpy.asarray(np.repeat([point[name] for point in chosen], n), jax.numpy.float32)
        for name in chosen[0]
    }


def in_words(point: Point) -> str:
    """ "gamma=0.9, weight=1"."""
    return ", ".join(f"{name}={value:g}" for name, value in point.items())
