"""Seaquest with shorter lists: gymnax keeps room for 100 of each kind of entity, and its step takes time by the room."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp


class ShortLists:
    """gymnax's Seaquest with room for `entities` of each kind: the same frames while there are fewer.

    When a list is full gymnax drops what does not fit, so a full list makes the reward nan: nobody trains on another game unawares.
    """

    def __init__(self, environment: Any, modules: tuple, entities: int) -> None:
        """Args: the modules whose MAX_ENTITIES is read while a step is traced."""
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
        counts = state.f_bullet_count, state.e_bullet_count, state.e_fish_count, state.e_subs_count, state.divers_count
        full = jnp.any(jnp.stack(counts) >= self._entities)
        return obs, state, jnp.where(full, jnp.nan, reward), done, info

    @contextlib.contextmanager
    def _room(self) -> Iterator[None]:
        before = [module.MAX_ENTITIES for module in self._modules]
        try:
            for module in self._modules:
                module.MAX_ENTITIES = self._entities
            yield
        finally:
            for module, value in zip(self._modules, before, strict=True):
                module.MAX_ENTITIES = value
