"""Seaquest with shorter lists: gymnax keeps room for 100 of each kind of entity, and its step takes
time by the room.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp


def compact(entities: jax.Array, keep: jax.Array) -> tuple[jax.Array, jax.Array]:
    """gymnax's `compact`: the rows [N, D] with `keep` [N] in their order, then zeros; and how many
    they are, int32 [].

    gymnax scatters every row to its place, one after the other on a CPU. Here one row that goes is
    closed over at a time, and few go in a step.

    >>> compact(jnp.array([[1], [2], [3]]), jnp.array([True, False, True]))[0].ravel().tolist()
    [1, 3, 0]
    """
    place, count = jnp.arange(len(keep)), jnp.sum(keep, dtype=jnp.int32)

    def close(loop):
        after = place >= jnp.min(
            jnp.where(loop[1], len(keep), place)
        )  # the first that goes, and all behind it
        moved = jax.tree.map(lambda x: jnp.concatenate([x[1:], jnp.zeros_like(x[:1])]), loop)
        return jnp.where(after[:, None], moved[0], loop[0]), jnp.where(after, moved[1], loop[1])

    gap = lambda loop: jnp.any(~loop[1] & (place < count))
    return jax.lax.while_loop(gap, close, (jnp.where(keep[:, None], entities, 0), keep))[0], count


class ShortLists:
    """gymnax's Seaquest with room for `entities` of each kind: the same frames while there are
    fewer.

    When a list is full gymnax drops what does not fit, so a full list makes the reward nan: nobody
    trains on another game unawares.
    """

    def __init__(self, environment: Any, modules: tuple, entities: int) -> None:
        """Args: the modules whose MAX_ENTITIES and `compact` are read while a step is traced."""
        self._environment, self._modules, self._entities = environment, modules, entities
        self.name, self.default_params = environment.name, environment.default_params
        for name in ("action_space", "observation_space", "is_truncated"):
            setattr(self, name, getattr(environment, name))

    def reset_env(self, key: Any, params: Any) -> tuple:
        with self._room():
            return self._environment.reset_env(key, params)

    def step_env(self, key: Any, state: Any, action: Any, params: Any) -> tuple:
        with self._room():
            obs, state, reward, done, info = self._environment.step_env(key, state, action, params)
        counts = (
            state.f_bullet_count,
            state.e_bullet_count,
            state.e_fish_count,
            state.e_subs_count,
            state.divers_count,
        )
        full = jnp.any(jnp.stack(counts) >= self._entities)
        return obs, state, jnp.where(full, jnp.nan, reward), done, info

    @contextlib.contextmanager
    def _room(self) -> Iterator[None]:
        ours = {"MAX_ENTITIES": self._entities, "compact": compact}
        before = [
            (module, name, getattr(module, name)) for module in self._modules for name in ours
        ]
        try:
            for module, name, _ in before:
                setattr(module, name, ours[name])
            yield
        finally:
            for module, name, value in before:
                setattr(module, name, value)
