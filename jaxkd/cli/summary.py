"""The figures of a finished run, as one JSON value.

Legend of shapes: `n` seeds, `E` episodes.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import numpy as np

from jaxkd import description
from jaxkd.base import Evaluation, Policy
from jaxkd.evaluate import interval, iqm

FORMAT = 1
_PACKAGES = ("jaxkd-rl", "jax", "jaxlib", "flax", "optax", "gymnax", "numpy")


class Result(NamedTuple):
    """One row of the headline: a policy, what it cost to train and what it does alone."""

    policy: Policy
    episodes: Evaluation  # [n, E]
    alive: np.ndarray  # bool [n]
    cost: dict[str, Any]
    env_steps: int  # of one seed; 0 for a teacher from a file
    wall_seconds: float  # of all seeds, without compiling
    compile_seconds: float


def summarise(
    results: dict[str, Result], random: Evaluation, likeness: dict[str, Any]
) -> dict[str, Any]:
    """What summary.json holds beside the settings: a row for teacher, student and control, and what compares them."""
    floor = float(np.mean(random.returns))
    rows = {name: _row(result) for name, result in results.items()}
    top = rows["teacher"]["iqm"]
    for row in rows.values():
        row["fraction_of_teacher"] = row["iqm"] / top if top else None
        row["kept"] = (row["iqm"] - floor) / (top - floor) if top > floor else None
        row["size_ratio"] = row["actor_parameters"] / rows["teacher"]["actor_parameters"]
    alive = results["student"].alive
    compared = {name: float(np.mean(values[alive])) for name, values in likeness.items()}
    return {**rows, "random": {"mean": floor}, **compared, "likeness_by_seed": likeness}


def _row(result: Result) -> dict[str, Any]:
    """Of one policy; seeds that diverged are null and in no statistic."""
    by_seed = np.where(result.alive, result.episodes.returns.mean(axis=1), np.nan)
    discounted = np.where(result.alive, result.episodes.discounted_returns.mean(axis=1), np.nan)
    return {
        "network": network(result.policy),
        "returns": by_seed,
        "iqm": iqm(by_seed[result.alive]),
        "interval": interval(by_seed[result.alive]),
        "discounted_returns": discounted,
        "discounted_iqm": iqm(discounted[result.alive]),
        "episodes": result.episodes.returns.shape[1],
        "seeds_diverged": np.flatnonzero(~result.alive),
        **result.cost,
        "env_steps": result.env_steps,
        "wall_seconds": round(result.wall_seconds, 3),
        "compile_seconds": round(result.compile_seconds, 3),
    }


def network(policy: Policy) -> str:
    """A network in the words of --student: "mlp:64,64", "cnn:16,128"; others as they were made."""
    name, given = description.name(policy), description.keywords(policy)
    if name == "mlp":
        sizes = given["hidden"]
    elif name == "cnn":
        sizes = (*given["channels"], *given["dense"])
    else:
        return description.show(policy)
    return f"{name}:{','.join(map(str, np.atleast_1d(sizes)))}"


def versions() -> dict[str, str]:
    """Of jaxkd and what its numbers depend on."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
