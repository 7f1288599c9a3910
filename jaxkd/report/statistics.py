"""What many seeds say together, and how sure that is: numpy alone, no jax.

The SEED is the unit of replication: every function takes one number a seed (or one row of numbers
that belong together), never episodes. With few seeds intervals are wide, whatever each of them has
played.

Legend of shapes: `n` seeds, `S` draws of the bootstrap, `P` points.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

LEVEL, DRAWS = 0.95, 2000
_AT_ONCE = 100  # draws: 100 of 200 against 200 seeds are 4 MB

Scores = Mapping[str, Any]  # [n] by task


def iqm(values: Any, axis: int = -1) -> np.ndarray:
    """Interquartile mean along an axis, as `jaxkd.iqm` of each row (Agarwal et al. 2021).

    nan where a row holds one.

    >>> float(iqm([0.0, 1.0, 2.0, 100.0]))
    1.5
    """
    ordered = np.moveaxis(np.sort(np.asarray(values, float), axis=axis), axis, -1)
    size = ordered.shape[-1]
    rank = np.arange(size)
    weight = np.clip(np.minimum(rank + 1, 0.75 * size) - np.maximum(rank, 0.25 * size), 0, 1)
    middle = ordered[..., weight > 0] @ (weight[weight > 0] / weight.sum())
    return np.where(np.isnan(ordered).any(-1), np.nan, middle)


def curve(values: Any, *, draws: int = 500) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(IQM, low, high) [P] of curves [P, n], the same seeds drawn at every point.

    Points where a seed has no finite value are nan.
    """
    values = np.asarray(values, float)
    values = np.where(np.isfinite(values), values, np.nan)
    seeds = np.random.default_rng(0).integers(values.shape[1], size=(draws, values.shape[1]))
    # 200 points of 16 seeds, 500 times, are 13 MB.
    low, high = _ends(iqm(values[:, seeds]), axis=1)
    return iqm(values), low, high


def estimate(
    statistic: Callable[..., Any], *tasks: Scores, draws: int = DRAWS
) -> tuple[Any, Any, Any]:
    """(value, low, high): a statistic of one or more runs, its stratified bootstrap interval.

    Seeds are drawn within each task and run, apart from each other.

    Args:
        statistic: ([..., n], ...) -> [...], of ONE task; the mean over tasks counts.
        tasks: the runs compared, each with the same tasks.

    >>> value, low, high = estimate(iqm, {"CartPole-v1": [1.0, 2.0, 3.0, 4.0]})
    >>> float(value), bool(low < value < high)
    (2.5, True)
    """
    generator = np.random.default_rng(0)
    values, drawn = [], []
    for task in tasks[0]:
        runs = [np.asarray(run[task], float) for run in tasks]
        again = [generator.integers(run.size, size=(draws, run.size)) for run in runs]
        values.append(statistic(*runs))
        parts = [
            statistic(*[run[each[start : start + _AT_ONCE]] for run, each in zip(runs, again)])
            for start in range(0, draws, _AT_ONCE)
        ]
        drawn.append(np.concatenate(parts))
    return np.mean(values, axis=0), *_ends(np.mean(drawn, axis=0), axis=0)


def probability_of_improvement(ours: Any, theirs: Any) -> np.ndarray:
    """P(a seed of ours does better than one of theirs) [...], of [..., n] and [..., m]; ties half.

    >>> float(probability_of_improvement([2.0, 3.0], [1.0, 2.0]))
    0.875
    """
    ours, theirs = np.asarray(ours)[..., :, None], np.asarray(theirs)[..., None, :]
    over, as_good = (np.mean(x, axis=(-2, -1)) for x in (ours > theirs, ours >= theirs))
    return (over + as_good) / 2


def profile(scores: Any, thresholds: Any) -> np.ndarray:
    """The share of seeds that reach each threshold [..., P], of [..., n]: a performance profile.

    >>> profile([0.5, 0.9, 1.0], [0.0, 0.9, 0.95]).round(2).tolist()
    [1.0, 0.67, 0.33]
    """
    reached = np.asarray(scores)[..., :, None] >= np.asarray(thresholds)
    return np.mean(reached, axis=-2)


def area(steps: Any, values: Any) -> np.ndarray:
    """The mean height [n] of curves [P, n] over the steps [P]: the area under them, by its width.

    Before its first finite value a curve is as high as that one; nan where it has none.
    """
    steps, values = np.asarray(steps, float), np.array(values, float)
    if len(steps) < 2:
        return np.where(np.isfinite(values), values, np.nan).mean(axis=0)
    for seed in values.T:
        finite = np.isfinite(seed)
        seed[:] = np.interp(steps, steps[finite], seed[finite]) if finite.any() else np.nan
    return np.trapezoid(values, steps, axis=0) / (steps[-1] - steps[0])


def _ends(drawn: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Both ends of the percentile interval."""
    low, high = np.percentile(drawn, [50 * (1 - LEVEL), 50 * (1 + LEVEL)], axis=axis)
    return low, high
