"""Metrics to TensorBoard and Weights & Biases, from the host, between two chunks of updates.

Legend of shapes: `U` updates of a chunk, `n` seeds.
"""

from collections.abc import Callable, Sequence
from importlib import util
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxkd.base import UsageError

KINDS = {"tb": "tensorboardX", "wandb": "wandb"}  # name and extra: module

Scalars = dict[str, float]


class Tracker(NamedTuple):
    """Where metrics go: `tracker` makes one.

    track = jaxkd.tracker("tb", "runs/mine")
    for state, metrics in jaxkd.stream(jaxkd.lanes(kd), keys, 100, params, chunk_size=10):
        track.write(metrics, step=int(state.update[0]))
    track.close()
    """

    write: Callable  # (metrics {name: [U] or [U, n]}, *, step, prefix="") -> None
    close: Callable  # () -> None: what was written is on the disk


def tracker(kinds: str | Sequence[str], folder: str | Path, **settings: Any) -> Tracker:
    """Sends metrics to every one of `kinds`, below `folder`; nothing leaves the machine.

    Each metric is one number a step: the mean over updates and seeds, without what is not finite
    (a return before the first episode ends); with more than one seed "<name>/lowest" and
    "<name>/highest" beside it.

    Args:
        kinds: "tb" (TensorBoard's files) and "wandb" (an offline run, which `wandb sync` uploads
            when you want), as "tb,wandb" or a sequence; "" is none.
        folder: made where it is missing.
        settings: JSON values to keep with the run, such as learning_rate=1e-3.

    Raises:
        UsageError: an unknown kind, or one whose library is not installed.

    >>> import tempfile
    >>> track = tracker("", tempfile.mkdtemp())
    >>> track.write({"return": np.ones((10, 4))}, step=10)
    >>> track.close()
    """
    names = check_kinds(kinds)
    sinks = [_SINKS[name](Path(folder), settings) for name in names]

    def write(metrics: dict[str, Any], *, step: int, prefix: str = "") -> None:
        found = scalars(metrics, prefix) if sinks else {}
        for sink in sinks:
            sink.write(found, step=step)

    def close() -> None:
        for sink in sinks:
            sink.close()

    return Tracker(write, close)


def check_kinds(kinds: str | Sequence[str]) -> tuple[str, ...]:
    """The kinds that are asked for, before anything is made.

    Raises:
        UsageError: as `tracker`.

    >>> check_kinds("tensorboard")
    Traceback (most recent call last):
    ...
    jaxkd.base.UsageError: unknown tracking 'tensorboard'. Take tb, wandb or both, as tb,wandb.
    """
    names = tuple(filter(None, kinds.split(",") if isinstance(kinds, str) else kinds))
    for name in names:
        if name not in KINDS:
            raise UsageError(
                f"unknown tracking {name!r}. Take tb, wandb or both, as {','.join(KINDS)}."
            )
        if util.find_spec(KINDS[name]) is None:
            raise UsageError(
                f"tracking by {name} needs {KINDS[name]}, which is not installed: "
                f'pip install "jaxkd-rl[{name}]"'
            )
    return names


def scalars(metrics: dict[str, Any], prefix: str = "") -> Scalars:
    """One number, or three, a metric; what has no finite value is left out.

    >>> scalars({"return": [[1.0, 3.0]], "loss/kl": [0.5]})
    {'return': 2.0, 'return/lowest': 1.0, 'return/highest': 3.0, 'loss/kl': 0.5}
    """
    found = {}
    for name, values in metrics.items():
        by_seed = np.asarray(values, float)
        finite = np.isfinite(by_seed)
        if not finite.any():
            continue
        name = f"{prefix}/{name}" if prefix else name
        if by_seed.ndim < 2 or by_seed.shape[1] == 1:
            found[name] = float(by_seed[finite].mean())
            continue
        number = finite.sum(axis=0)
        of_seeds = np.where(finite, by_seed, 0.0).sum(axis=0)[number > 0] / number[number > 0]
        found[name] = float(of_seeds.mean())
        found[f"{name}/lowest"], found[f"{name}/highest"] = (
            of_seeds.min().item(),
            of_seeds.max().item(),
        )
    return found


def _tensorboard(folder: Path, settings: dict[str, Any]) -> Tracker:
    from tensorboardX import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"))
    for name, value in settings.items():
        writer.add_text(name, str(value), 0)

    def write(found: Scalars, *, step: int) -> None:
        for name, value in found.items():
            writer.add_scalar(name, value, step)

    return Tracker(write, writer.close)


def _wandb(folder: Path, settings: dict[str, Any]) -> Tracker:
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    quiet = wandb.Settings(console="off", silent=True)
    run = wandb.init(
        project="jaxkd",
        name=folder.name,
        dir=str(folder),
        config=settings,
        mode="offline",
        settings=quiet,
        reinit="create_new",
    )
    return Tracker(lambda found, *, step: run.log(found | {"step": step}), run.finish)


_SINKS = {"tb": _tensorboard, "wandb": _wandb}
