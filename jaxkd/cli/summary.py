"""The figures of a finished run, as one JSON value.

Legend of shapes: `n` seeds, `E` episodes.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import numpy as np

from jaxkd import description
from jaxkd.base import Evaluation, Policy
from jaxkd.cli.training import Trained, mean
from jaxkd.evaluate import interval, iqm

FORMAT = 1
_PACKAGES = ("jaxkd-rl", "jax", "jaxlib", "flax", "optax", "gymnax", "numpy")


class Result(NamedTuple):
    """One row of the headline: a policy, what it cost to train and what it does alone."""

    policy: Policy
    episodes: Evaluation  # [n, E]
    cost: dict[str, Any]
    trained: Trained  # without steps and seconds for a teacher from a file


def summarise(
    results: dict[str, Result], random: Evaluation, likeness: dict[str, Any]
) -> dict[str, Any]:
    """What summary.json holds beside the settings.

    A row for teacher, student and control (or for the teacher alone), and what compares them.
    """
    floor = float(mean(random.returns))
    rows = {name: _row(result) for name, result in results.items()}
    top = rows["teacher"]["iqm"]
    for row in rows.values():
        own = row["iqm"]  # nan, and so are its ratios, where no episode counts
        row["fraction_of_teacher"] = own / top if top else None
        row["kept"] = (own - floor) / (top - floor) if top > floor else None
        largest = rows["teacher"]["actor_parameters"]  # 0 of a rule without parameters
        row["size_ratio"] = row["actor_parameters"] / largest if largest else None
    summary = {**rows, "random": {"mean": floor}}
    if "student" not in results:
        return summary
    alive = results["student"].trained.alive
    compared = {name: float(np.mean(values[alive])) for name, values in likeness.items()}
    return {**summary, **compared, "likeness_by_seed": likeness}


def _row(result: Result) -> dict[str, Any]:
    """Of one policy; seeds that diverged are null and in no statistic.

    Episodes without a finite return, such as those that did not end, are in no mean but counted.
    """
    trained, episodes = result.trained, result.episodes
    alive = trained.alive
    by_seed = np.where(alive, mean(episodes.returns, axis=1), np.nan)
    discounted = np.where(alive, mean(episodes.discounted_returns, axis=1), np.nan)
    scored = np.isfinite(by_seed)
    return {
        "network": network(result.policy),
        "returns": by_seed,
        "iqm": iqm(by_seed[scored]) if scored.any() else np.nan,
        "interval": interval(by_seed[scored]) if scored.any() else (np.nan, np.nan),
        "discounted_returns": discounted,
        "discounted_iqm": iqm(discounted[scored]) if scored.any() else np.nan,
        "episodes": episodes.returns.shape[1],
        "episodes_left_out": int(np.sum(~np.isfinite(episodes.returns[alive]))),
        "seeds_diverged": np.flatnonzero(~alive),
        **result.cost,
        "env_steps": trained.env_steps,
        "wall_seconds": round(trained.wall_seconds, 3),
        "compile_seconds": round(trained.compile_seconds, 3),
    }


_SIZES = ("channels", "dense", "hidden", "units")  # keywords that say how large a network is


def network(policy: Policy) -> str:
    """How a policy was made, in the words of --student where it knows such: "mlp:64,64".

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=2)
    >>> network(jaxkd.networks.lstm(env, (32,), units=16))
    'lstm:32,16'
    >>> network(jaxkd.networks.mlp(env, (8,))._replace(description=()))
    'a network of your own'
    """
    name, given = description.name(policy), description.keywords(policy)
    if not name:
        return "a network of your own"
    sizes: list[int] = []
    for keyword in _SIZES:
        value = given.get(keyword) or ()
        sizes += value if isinstance(value, tuple | list) else [value]
    inner = [network(value) for value in given.values() if isinstance(value, Policy)]
    if inner:
        return f"{name}({', '.join(inner)})"
    return f"{name}:{','.join(map(str, sizes))}" if sizes else name


def versions() -> dict[str, str]:
    """Of jaxkd and what its numbers depend on."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
