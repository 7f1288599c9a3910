"""A dialogue with a user who has something in mind, as an environment with gymnax's methods.

Slot filling: three slots of eight values. The agent asks for a slot, or whether it has a value, and
in the end offers one value a slot. The user answers with noise, and is silent once an offer has
begun: what was said has to be remembered.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxkd import check
from jaxkd.base import Discrete

_NOTHING, _YES, _NO = 0, 1, 2  # what the user says; value v is 3 + v


@struct.dataclass
class Params:
    """Of a Dialogue."""

    max_steps_in_episode: int = 20
    noise: float = 0.1  # probability that an answer is another one
    turn: float = 0.05  # what a turn costs


@struct.dataclass
class Talk:
    """The state of a Dialogue."""

    goal: jax.Array  # int32 [slots]
    offered: jax.Array  # int32 [], values offered so far
    right: jax.Array  # bool [], whether all of them are the user's
    time: jax.Array  # int32 []


class Dialogue:
    """An agent finds out what a user wants: +1 for three right values, -0.05 a turn.

    Actions: request slot s (s), confirm that slot s is v (S + 8 s + v), offer v for the next slot
    (S + 8 S + v). The observation, float32 [3 + 8 + A], is one-hot what the user has just said
    (nothing, yes, no, one of 8 values) and the agent's last action.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("dialogue", num_envs=2)
    >>> env.action_space, env.obs_spec.shape, env.max_steps
    (Discrete(n=35), (46,), 20)
    """

    name = "dialogue"

    def __init__(self, *, slots: int = 3, values: int = 8) -> None:
        check.count("slots", slots)
        check.count("values", values)
        self.slots, self.values = slots, values
        self.default_params = Params()

    def reset_env(self, key: Any, params: Params) -> tuple:
        """-> (observation, state): the user has said nothing."""
        goal = jax.random.randint(key, (self.slots,), 0, self.values, jnp.int32)
        state = Talk(goal, jnp.int32(0), jnp.asarray(True), jnp.int32(0))
        return self._observed(jnp.int32(_NOTHING), jnp.int32(-1)), state

    def step_env(self, key: Any, state: Talk, action: Any, params: Params) -> tuple:
        """-> (observation, state, reward, terminated, {})."""
        slots, values = self.slots, self.values
        offers, confirms = action >= slots * (1 + values), action >= slots
        said = (action - slots) % values
        slot = jnp.where(confirms, (action - slots) // values, action) % slots
        wanted = state.goal[slot]
        key_wrong, key_other = jax.random.split(key)
        wrong = jax.random.bernoulli(key_wrong, params.noise)
        other = (wanted + jax.random.randint(key_other, (), 1, max(values, 2))) % values
        agrees = (said == wanted) ^ wrong
        informs = 3 + jnp.where(wrong, other, wanted)
        heard = jnp.where(confirms, jnp.where(agrees, _YES, _NO), informs)
        offered = state.offered + offers
        heard = jnp.where(offered > 0, _NOTHING, heard)
        next_one = jnp.minimum(state.offered, slots - 1)
        right = state.right & (~offers | (state.goal[next_one] == said))
        done = offered == slots
        reward = jnp.where(done & right, 1.0, 0.0) - params.turn
        after = Talk(state.goal, offered, right, state.time + 1)
        return self._observed(heard, action), after, reward, done, {}

    def is_truncated(self, state: Talk, params: Params) -> jax.Array:
        """A user waits for so many turns."""
        return state.time >= params.max_steps_in_episode

    def action_space(self, params: Params) -> Discrete:
        """Requests, confirmations and offers."""
        return Discrete(self.slots + self.values * (self.slots + 1))

    def observation_space(self, params: Params) -> None:
        """Shown as it is."""

    def _observed(self, heard: Any, action: Any) -> jax.Array:
        said = jax.nn.one_hot(heard, 3 + self.values, dtype=jnp.float32)
        did = jax.nn.one_hot(action, self.action_space(Params()).n, dtype=jnp.float32)
        return jnp.concatenate([said, did])
