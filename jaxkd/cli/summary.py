"""The figures of a finished run, as one JSON value.

Legend of shapes: `n` seeds, `E` episodes.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

import numpy as np

import jaxkd
from jaxkd import description
from jaxkd.base import Evaluation, Policy
from jaxkd.cli.training import Trained, mean
from jaxkd.evaluate import interval, iqm

FORMAT = 1
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "gymnax", "numpy")


class Result(NamedTuple):
    """One row of the headline: a policy, what it cost to train and what it does alone."""

    policy: Policy
    episodes: Evaluation  # [n, E], greedy
    sampled: Evaluation  # [n, E]
    cost: dict[str, Any]
    trained: Trained  # without steps and seconds for a teacher from a file
    point: dict[str, float] = {}  # of a grid


def summarise(
    results: dict[str, Result],
    random: Evaluation,
    likeness: dict[str, dict[str, Any]],
    *,
    starts: int,
    kl: np.ndarray | None = None,
) -> dict[str, Any]:
    """What summary.json holds beside the settings.

    A row for teacher, student and control (or for the teacher alone), and what compares them. A
    share of the teacher is kept only where the teacher is above a random policy, by their
    intervals.

    Args:
        likeness: of each student, by its name among the results.
        starts: how many beginnings of an episode look different.
        kl: of the seeds' students to their teachers, at every line of metrics.jsonl [lines, n].
    """
    everyone = np.ones(len(random.returns), bool)
    floor = _scores(random, everyone)
    rows = {name: _row(result) for name, result in results.items()}
    teacher = rows["teacher"]
    for row in rows.values():
        for own, top in ((row, teacher), (row["sampled"], teacher["sampled"])):
            own["kept"] = _kept(own["iqm"], top, floor)
        row["fraction_of_teacher"] = row["iqm"] / teacher["iqm"] if teacher["iqm"] else None
        largest = teacher["actor_parameters"]  # 0 of a rule without parameters
        row["size_ratio"] = row["actor_parameters"] / largest if largest else None
    summary: dict[str, Any] = {
        **rows,
        "random": {name: floor[name] for name in ("mean", "interval")},
    }
    summary |= {"different_starts": starts, "kl_while_learning": None}
    if "student" not in results:
        return summary
    alive = results["student"].trained.alive
    if kl is not None and len(kl):
        summary["kl_while_learning"] = _halves(kl[:, alive])
    for name, alike in likeness.items():
        own = results[name].trained.alive
        compared: dict[str, Any] = {of: float(np.mean(x[own])) for of, x in alike.items()}
        # The first student's stand beside what the run has one of.
        place = summary if name == "student" else summary[name]
        place |= compared | {"likeness_by_seed": alike}
    return summary


def _kept(own: float, top: dict[str, Any], floor: dict[str, Any]) -> float | None:
    """The share of what the teacher has above chance; None where it has nothing above it."""
    if top["interval"][0] <= floor["interval"][1]:
        return None
    return (own - floor["mean"]) / (top["iqm"] - floor["mean"])


def _row(result: Result) -> dict[str, Any]:
    """Of one policy; seeds that diverged are null and in no statistic.

    Episodes without a finite return, such as those that did not end, are in no mean but counted.
    """
    trained, episodes = result.trained, result.episodes
    alive = trained.alive
    greedy = _scores(episodes, alive)
    discounted = np.where(alive, mean(episodes.discounted_returns, axis=1), np.nan)
    scored = np.isfinite(greedy["returns"])
    return {
        "network": network(result.policy),
        **({"point": result.point} if result.point else {}),
        **greedy,
        "discounted_returns": discounted,
        "discounted_iqm": iqm(discounted[scored]) if scored.any() else np.nan,
        "sampled": _scores(result.sampled, alive),
        "episodes": episodes.returns.shape[1],
        "episodes_left_out": int(np.sum(~np.isfinite(episodes.returns[alive]))),
        "different_episodes": _different(episodes, alive),
        "seeds_diverged": np.flatnonzero(~alive),
        **result.cost,
        "env_steps": trained.env_steps,
        "wall_seconds": round(trained.wall_seconds, 3),
        "compile_seconds": round(trained.compile_seconds, 3),
    }


def _scores(episodes: Evaluation, alive: np.ndarray) -> dict[str, Any]:
    """Mean returns by seed [n], their mean and IQM, and its interval: over seeds, or over episodes
    where there is only one seed.
    """
    by_seed = np.where(alive, mean(episodes.returns, axis=1), np.nan)
    scored = np.isfinite(by_seed)
    found = {"returns": by_seed, "mean": np.nan, "iqm": np.nan, "interval": (np.nan, np.nan)}
    if not scored.any():
        return found
    spread = interval(by_seed[scored])
    if scored.sum() == 1:
        played = episodes.returns[scored]
        spread = interval(played[np.isfinite(played)], statistic=np.mean)
    mean_and_iqm = {"mean": float(by_seed[scored].mean()), "iqm": iqm(by_seed[scored])}
    return found | mean_and_iqm | {"interval": spread}


def _different(episodes: Evaluation, alive: np.ndarray) -> float:
    """How many episodes of a seed differ in return, length or discounted return; the median."""
    numbers = [
        len({*zip(*(x[seed].tolist() for x in episodes), strict=True)})
        for seed in np.flatnonzero(alive)
    ]
    return float(np.median(numbers)) if numbers else np.nan


def _halves(kl: np.ndarray) -> dict[str, float]:
    """The mean KL at half of a training and at its end, each over a tenth of its lines."""
    tenth = max(1, len(kl) // 10)
    middle = (len(kl) - tenth) // 2
    return {"half": float(mean(kl[middle : middle + tenth])), "end": float(mean(kl[-tenth:]))}


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
    found = {"jaxkd-rl": jaxkd.__version__}  # metadata of an editable installation may be older
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
