"""Checkpoints: whole states on disk, to go on with later, elsewhere, or on other devices.

Orbax writes a state as its leaves by number, with a card of them (`checkpoint_card.py`): it alone
reads most flipped bits without a word, so everything that is read is compared with the card.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxkd import check
from jaxkd.base import ArtifactError, UsageError
from jaxkd.checkpoint_card import (
    SUMS,
    card_of,
    check_about,
    check_card,
    check_files,
    check_leaves,
    entry,
    line,
    seal,
)


def save(state: Any, directory: str | Path, step: int, **about: Any) -> Path:
    """Writes a state; on disk as a whole, or not at all, when this returns.

    The newest two of a directory are kept. `Checkpoints` writes beside a running program.

    Args:
        state: a pytree of arrays: the `State` of any algorithm, of one seed or of many.
        directory: of the run's checkpoints; made where it is missing.
        step: updates completed; above those that are there.
        about: JSON values that `restore` can ask for again, such as algorithm="...".

    Returns:
        the path of the checkpoint.

    Raises:
        ArtifactError: what could not be written, and why; earlier checkpoints are kept.

    >>> import jaxkd, tempfile
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=4)
    >>> ppo, key = jaxkd.ppo(env, jaxkd.networks.mlp(env, (8,))), jaxkd.seeds(0, 1)[0]
    >>> state = ppo.init(key)
    >>> save(state, tempfile.mkdtemp(), step=0).name
    '0'
    """
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(state, step, **about)
    return Path(directory) / str(step)


def restore(directory: str | Path, like: Any, step: int | None = None, **about: Any) -> Any:
    """The state that `save` wrote, with the structure of `like`.

    Args:
        like: a state of the same algorithm, or its shapes, `jax.eval_shape(algorithm.init, key)`;
            arrays also say on which devices the state goes.
        step: which; default the newest that is whole. One that is damaged is passed over with a
            warning.
        about: must equal what was saved.

    Raises:
        ArtifactError: nothing there, or nothing whole.
        UsageError: a state of other shapes, or about something else; both are printed.

    >>> import jaxkd, tempfile
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=4)
    >>> ppo, key = jaxkd.ppo(env, jaxkd.networks.mlp(env, (8,))), jaxkd.seeds(0, 1)[0]
    >>> state, _ = jaxkd.run(ppo, key, 2)
    >>> file = save(state, folder := tempfile.mkdtemp(), step=2)
    >>> state = restore(folder, jax.eval_shape(ppo.init, key))
    >>> for state, metrics in jaxkd.stream(ppo, key, 3, chunk_size=1, state=state):
    ...     pass
    >>> state.update.item()
    5
    """
    if not Path(directory).is_dir():
        raise ArtifactError(f"no checkpoint: {directory} is no directory. Name another.")
    with Checkpoints(directory) as checkpoints:
        return checkpoints.restore(like, step, **about)[0]


class Checkpoints:
    """The checkpoints of one run, written while the program goes on.

    A `with` block waits for the last of them.

    >>> import jaxkd, tempfile
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=4)
    >>> ppo, key = jaxkd.ppo(env, jaxkd.networks.mlp(env, (8,))), jaxkd.seeds(0, 1)[0]
    >>> with Checkpoints(tempfile.mkdtemp()) as checkpoints:
    ...     for state, metrics in jaxkd.stream(ppo, key, 4, chunk_size=1):
    ...         checkpoints.save(state, int(state.update))
    ...     checkpoints.steps()
    [3, 4]
    """

    def __init__(self, directory: str | Path, *, keep: int = 2):
        """
        Args:
            directory: made where it is missing.
            keep: the newest so many, and the one of the best score.
        """
        from orbax.checkpoint import v1 as ocp  # here, because it takes a third of a second

        check.count("keep", keep)
        self._path, policies = Path(directory).absolute(), ocp.training.preservation_policies
        best = policies.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False)
        kept = [policies.LatestN(keep), best]
        try:
            self._written = ocp.training.Checkpointer(
                str(self._path),
                preservation_policy=policies.AnyPreservationPolicy(kept),
                cleanup_tmp_directories=True,
            )
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{self._path} cannot hold checkpoints: {line(error)}") from error

    def save(self, state: Any, step: int, *, score: float | None = None, **about: Any) -> None:
        """Copies the state and returns; it is written in the background.

        Args:
            state, step, about: as in the function `save`.
            score: higher is better; the best one is kept beside the newest.

        Raises:
            ArtifactError: this one, or the one before, could not be written.
        """
        self.wait()
        paths, leaves = _leaves(state)
        leaves = [jnp.copy(leaf) for leaf in leaves]  # the next update may take the state's memory
        card = card_of(paths, leaves, about)
        arrays = {str(number): leaf for number, leaf in enumerate(leaves)}
        metrics: Any = None if score is None else {"score": float(score)}
        self._guarded(
            f"the checkpoint of step {step} could not be written",
            lambda: self._written.save_async(
                step,
                arrays,
                metrics=metrics,
                custom_metadata=card,
                force=True,  # not only where no other one is under way
                overwrite=True,  # of a damaged one that was passed over
            ),
        )

    def restore(self, like: Any, step: int | None = None, **about: Any) -> tuple[Any, int]:
        """(state, its step), as in the function `restore`."""
        there = self.steps()
        if step is not None and step not in there or not there:
            found = f"there are {there}" if there else "there is none"
            raise ArtifactError(
                f"no checkpoint{'' if step is None else f' of step {step}'} in {self._path}: "
                f"{found}. Name another directory."
            )
        wanted = there[::-1] if step is None else [step]
        for number, one in enumerate(wanted):
            try:
                return self._whole(one, like, about), one
            except ArtifactError as error:
                if number == len(wanted) - 1:
                    raise
                warnings.warn(f"{error} Going on with the one before.", stacklevel=2)
        raise AssertionError  # the last one returned or raised

    def paths(self, step: int) -> list[str]:
        """Of the leaves of a checkpoint, such as ".update".

        Raises:
            ArtifactError: it is damaged.
        """
        place = self._path / str(step)
        card = check_card(place, self._read(place, lambda: self._written.metadata(step)))
        return [path for path, *_ in card["leaves"]]

    def steps(self) -> list[int]:
        """Of all checkpoints that are there, the newest last."""
        self.wait()
        return sorted(found.step for found in self._written.checkpoints)

    def wait(self) -> None:
        """Until everything is on disk.

        Raises:
            ArtifactError: it could not be written.
        """
        self._guarded("the last checkpoint could not be written", self._finish)

    def _finish(self) -> None:
        self._written.wait()
        for found in self._written.checkpoints:
            place = self._path / str(found.step)
            if not (place / SUMS).exists():
                seal(place)

    def close(self) -> None:
        """Waits, and ends the background threads."""
        try:
            self.wait()
        finally:
            self._written.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def _guarded(self, what: str, work: Callable[[], Any]) -> None:
        """Orbax has many kinds of errors; a user needs one."""
        try:
            work()
        except Exception as error:
            raise ArtifactError(
                f"{what}: {line(error)} Earlier ones in {self._path} are kept. "
                f"Make room there, or name another directory."
            ) from error

    def _whole(self, step: int, like: Any, about: dict) -> Any:
        """The state of one checkpoint, everything compared with its card."""
        place = self._path / str(step)
        check_files(place)
        card = check_card(place, self._read(place, lambda: self._written.metadata(step)))
        check_about(place, card["about"], about)
        paths, leaves = _leaves(like)
        check_leaves(place, card["leaves"], paths, leaves)
        wanted = {str(number): _abstract(leaf) for number, leaf in enumerate(leaves)}
        found = self._read(place, lambda: self._written.load(step, wanted))
        read = [found[number] for number in wanted]
        for path, leaf, then in zip(paths, read, card["leaves"], strict=True):
            if entry(path, leaf) != then:
                raise ArtifactError(
                    f"{place} is damaged: {path} is not what was saved (its SHA-256 differs)."
                )
        return jax.tree.unflatten(jax.tree.structure(like), read)

    def _read(self, place: Path, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except Exception as error:  # of many kinds
            raise ArtifactError(f"{place} is damaged: {line(error)}") from error


def _leaves(state: Any) -> tuple[list[str], list]:
    """Paths and leaves; numbers become arrays."""
    found, _ = jax.tree_util.tree_flatten_with_path(state)
    paths = [jax.tree_util.keystr(path) for path, _ in found]
    for path, leaf in zip(paths, (leaf for _, leaf in found), strict=True):
        if isinstance(leaf, Tracer):
            raise UsageError(
                "a checkpoint is written between updates, not inside jit or vmap. "
                "Call it where the state is an array."
            )
        if not isinstance(leaf, jax.ShapeDtypeStruct | jax.Array | np.ndarray | float | int):
            raise UsageError(
                f"the state's leaf {path} is a {type(leaf).__name__}, which is no array. "
                f"A state is a pytree of arrays."
            )
    return paths, [
        leaf if hasattr(leaf, "dtype") and hasattr(leaf, "shape") else jnp.asarray(leaf)
        for _, leaf in found
    ]


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape, dtype and devices: the first one where nothing is said of them."""
    said = getattr(leaf, "sharding", None)
    where = said or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)


def _score(metrics: Any) -> float:
    return metrics["score"]
