"""Problems in tokens: a prompt, an answer written token by token, a judge.

Legend of shapes: `P` the longest prompt, `C` the longest answer, its end included, `V` vocabulary.

A token is an action, a prompt is the beginning of an episode. The observation is the latest token,
and the actor answers with the next one. While the prompt lasts the environment writes it itself,
whatever the action, and the row weighs 0; the reward comes with the end.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from jaxkd import check
from jaxkd.base import Discrete, UsageError
from jaxkd.envs import protocol


class Task(NamedTuple):
    """A problem in tokens: two pure functions, and how tokens are read.

    >>> copy = Task(
    ...     draw=lambda key: 2 * (jax.random.randint(key, (3,), 0, 2),),       # prompt, answer
    ...     judge=lambda prompt, answer, written: jnp.float32((written == answer).all()),
    ...     symbols=("a", "b", "end"),
    ... )
    >>> import jaxkd
    >>> jaxkd.envs.make(TokenEnv("copy", copy), num_envs=4).max_steps
    5
    """

    draw: Callable  # (key) -> (prompt int32 [P], one right answer int32 [C]); short ones end early
    judge: Callable  # (prompt [P], answer [C], written [C]) -> float32 [], 1 for a right one
    symbols: tuple[str, ...]  # of tokens 0, 1, ..., V - 1; the last one ends what is written
    credit: Callable | None = None  # like judge: how near a wrong one is, in [0, 1]

    @property
    def end(self) -> int:
        """The token that ends an answer; behind it, in prompts too, nothing else stands."""
        return len(self.symbols) - 1

    def text(self, tokens: Any) -> str:
        """Tokens [...] as a person reads them, up to the end."""
        found = [int(token) for token in tokens]
        length = found.index(self.end) if self.end in found else len(found)
        return "".join(self.symbols[token] for token in found[:length])


@struct.dataclass
class Params:
    """Of a TokenEnv; `max_steps_in_episode` is P - 1 + C."""

    max_steps_in_episode: int
    credit: float = 0.0  # share of the reward that is paid for being near, in [0, 1]


@struct.dataclass
class Written:
    """The state of a TokenEnv."""

    prompt: jax.Array  # int32 [P]
    answer: jax.Array  # int32 [C]
    written: jax.Array  # int32 [C], the end where nothing stands yet
    time: jax.Array  # int32 [], tokens after the first


class TokenEnv:
    """One task as an environment with gymnax's methods; `envs.make` makes a batch of it.

    Prompts of different lengths are filled up with the end. The last row of a prompt is the first
    whose action counts.
    """

    def __init__(self, name: str, task: Task, *, privileged: bool = False) -> None:
        """Args: privileged shows {"token", "hint"}: with the first tokens one right answer too, a
        token a row, for a teacher that may know it.
        """
        self.name, self.task, self.privileged = name, task, privileged
        self.prompt_length, self.answer_length = _check_task(name, task)
        longest = self.prompt_length - 1 + self.answer_length
        self.default_params = Params(max_steps_in_episode=longest)

    def reset_env(self, key: Any, params: Params) -> tuple:
        """-> (observation, state) at the prompt's first token."""
        prompt, answer = (jnp.asarray(x, jnp.int32) for x in self.task.draw(key))
        empty = jnp.full_like(answer, self.task.end)
        state = Written(prompt, answer, empty, jnp.int32(0))
        return self._observed(state, prompt[0]), state

    def step_env(self, key: Any, state: Written, action: Any, params: Params) -> tuple:
        """-> (observation, state, reward, terminated, {"weight"})."""
        task, time = self.task, state.time + 1
        length = jnp.sum(jnp.cumsum(state.prompt == task.end) == 0)
        forced = time < length
        place = time - length
        write = (jnp.arange(self.answer_length) == place) & ~forced
        written = jnp.where(write, action, state.written)
        following = state.prompt[jnp.minimum(time, self.prompt_length - 1)]
        token = jnp.where(forced, following, action)
        last = (token == task.end) | (place == self.answer_length - 1)
        done = ~forced & last
        grade = task.judge(state.prompt, state.answer, written)
        if task.credit is not None:
            near = task.credit(state.prompt, state.answer, written)
            grade = (1 - params.credit) * grade + params.credit * near
        after = Written(state.prompt, state.answer, written, time)
        reward = jnp.where(done, grade, 0.0)
        info = {"weight": jnp.where(forced, 0.0, 1.0)}
        return self._observed(after, token), after, reward, done, info

    def is_truncated(self, state: Written, params: Params) -> jax.Array:
        """Only where `max_steps` is less than prompts and answers need."""
        limit = params.max_steps_in_episode
        return (state.time >= limit) & (limit < self.default_params.max_steps_in_episode)

    def action_space(self, params: Params) -> Discrete:
        """The vocabulary."""
        return Discrete(len(self.task.symbols))

    def observation_space(self, params: Params) -> None:
        """Tokens are shown as they are, not one-hot."""

    def _observed(self, state: Written, token: Any) -> Any:
        token = jnp.asarray(token, jnp.int32)
        if not self.privileged:
            return token
        known = state.time < self.answer_length
        place = jnp.minimum(state.time, self.answer_length - 1)
        return {"token": token, "hint": jnp.where(known, state.answer[place], self.task.end)}


def _check_task(name: str, task: Task) -> tuple[int, int]:
    """(P, C), or an error before anything is compiled."""
    check.kind("task", task, Task, "a Task (jaxkd.envs.tokens)")
    drawn = jax.eval_shape(task.draw, jax.random.key(0))
    shapes = [getattr(x, "shape", None) for x in drawn] if isinstance(drawn, tuple) else drawn
    whole = isinstance(shapes, list) and len(shapes) == 2
    if not whole or any(shape is None or len(shape) != 1 for shape in shapes):
        raise UsageError(
            f"draw of task {name!r} must give (prompt [P], answer [C]) of tokens, got {shapes}."
        )
    prompt, answer = (jax.ShapeDtypeStruct(x.shape, jnp.int32) for x in drawn)
    for what in ("judge", "credit"):
        function = getattr(task, what)
        if function is None:
            continue
        graded = jax.eval_shape(function, prompt, answer, answer)
        if getattr(graded, "shape", None) != ():
            raise UsageError(
                f"{what} of task {name!r} must give one number, shape (), for one answer; got "
                f"{getattr(graded, 'shape', type(graded).__name__)}. envs.make makes the batch."
            )
    return prompt.shape[0], answer.shape[0]


def demonstrations(task: Task, key: jax.Array, number: int) -> dict[str, jax.Array]:
    """Right answers as rows that a student can imitate, for `memory.dataset`.

    Args:
        number: M, of problems.

    Returns:
        "obs" and "action" int32, "reset" and "weight" float32, all [T, M] with T = P - 1 + C: each
        column is one episode from its prompt on; prompts, and what is behind an end, weigh 0.

    >>> from jaxkd.envs import tasks
    >>> rows = demonstrations(tasks.addition(3), jax.random.key(0), 5)
    >>> rows["obs"].shape, rows["weight"].sum(axis=0).tolist()
    ((12, 5), [5.0, 5.0, 5.0, 5.0, 5.0])
    """
    check.count("number", number)
    env = TokenEnv("demonstrations", task)
    params = env.default_params

    def one(key):
        obs, state = env.reset_env(key, params)

        def body(carry, _):
            obs, state, over = carry
            length = jnp.sum(jnp.cumsum(state.prompt == task.end) == 0)
            place = jnp.clip(state.time + 1 - length, 0, env.answer_length - 1)
            following = state.prompt[jnp.minimum(state.time + 1, env.prompt_length - 1)]
            action = jnp.where(state.time + 1 < length, following, state.answer[place])
            after, state, _, done, info = env.step_env(key, state, action, params)
            row = dict(obs=obs, action=action, weight=jnp.where(over, 0.0, info["weight"]))
            return (after, state, over | done), row

        start = obs, state, jnp.asarray(False)
        return jax.lax.scan(body, start, None, params.max_steps_in_episode)[1]

    with protocol.settings(env):
        rows = jax.jit(jax.vmap(one, out_axes=1))(jax.random.split(key, number))
    first = jnp.arange(rows["obs"].shape[0]) == 0
    reset = jnp.broadcast_to(first[:, None], rows["obs"].shape).astype(jnp.float32)
    return rows | {"reset": reset}
