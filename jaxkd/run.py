"""Running an algorithm: in one compiled call, or in chunks with the host in between."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from jaxkd import check
from jaxkd.base import Algorithm, UsageError


def seeds(seed: int, n: int) -> jax.Array:
    """n keys [n] from one number: fold_in(key(seed), i).

    Seed 7 is the same run whether 8 or 64 are asked for.

    >>> seeds(0, 16).shape
    (16,)
    """
    check.count("n", n)
    if not isinstance(seed, jax.Array) and (type(seed) is bool or not hasattr(seed, "__index__")):
        raise UsageError(f"seed must be an int, got {seed!r}.")
    if not isinstance(seed, jax.Array) and not 0 <= seed < 2**32:
        raise UsageError(f"seed must be in [0, 2**32), got {seed}: beyond it seeds repeat.")
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.arange(n))


def run(
    algorithm: Algorithm,
    key: jax.Array,
    num_updates: int,
    *inputs: Any,
    deterministic: bool = False,
) -> tuple[Any, dict[str, jax.Array]]:
    """`num_updates` steps from a fresh state, compiled once an algorithm.

    Call it again with another key and nothing is compiled. Inside your own jit or vmap it is
    inlined.

    Args:
        algorithm: keep one object; it is compiled by its identity.
        key: a typed key (`jax.random.key`, `jaxkd.seeds`).
        inputs: of the algorithm's step: the teacher's params.
        deterministic: the same bits in every run also on a GPU, and float32 products without TF32;
            slower there. A CPU's are the same anyway.

    Returns:
        (State, metrics: dict of [num_updates]).

    Raises:
        UsageError: deterministic=True inside a jit, whose options are those of the outermost one.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=4)
    >>> state, metrics = run(jaxkd.ppo(env, jaxkd.networks.mlp(env, (8,))), jaxkd.seeds(0, 1)[0], 2)
    >>> metrics["return"].shape
    (2,)
    """
    _check_call(algorithm, num_updates)
    if not deterministic:
        return _advance(algorithm, _start(algorithm, key), num_updates, *inputs)
    if isinstance(key, Tracer):
        raise UsageError(
            "deterministic=True is an option of the compiler, which takes it at the outermost jit "
            "only: call run outside of jit."
        )
    with jax.default_matmul_precision("highest"):
        return _advance_deterministic(algorithm, _start(algorithm, key), num_updates, *inputs)


def stream(
    algorithm: Algorithm,
    key: jax.Array,
    num_updates: int,
    *inputs: Any,
    chunk_size: int,
    state: Any = None,
) -> Iterator[tuple[Any, dict[str, jax.Array]]]:
    """`run` in chunks, the same bits, for progress, logs and checkpoints.

    Yields (State, metrics [<= chunk_size]) after each. The state's memory is donated to the next
    chunk: a yielded State is valid until the next item is asked for.

    Args:
        key, inputs: as in `run`; many seeds are `stream(lanes(algorithm), seeds(0, n), ...)`.
        chunk_size: updates between two looks.
        state: goes on from a yielded State instead of starting with `key`; it is donated too.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=4)
    >>> ppo, key = jaxkd.ppo(env, jaxkd.networks.mlp(env, (8,))), jaxkd.seeds(0, 1)[0]
    >>> for state, metrics in stream(ppo, key, 3, chunk_size=2):
    ...     print(metrics["return"].shape)
    (2,)
    (1,)
    """
    _check_call(algorithm, num_updates)
    check.count("chunk_size", chunk_size)
    if state is None:
        state = _start(algorithm, key)
    else:
        _check_state(algorithm, key, state)
        inputs = _apart(inputs, state)
    for done in range(0, num_updates, chunk_size):
        state, metrics = _advance_donated(
            algorithm, state, min(chunk_size, num_updates - done), *inputs
        )
        yield state, metrics


def lanes(algorithm: Algorithm, *, shared: bool = True, at_once: int | None = None) -> Algorithm:
    """`algorithm` for many keys at once.

    init takes keys [n], every leaf of state and metrics leads with [n].

    Args:
        shared: the inputs are one for all lanes (one copy in memory); False: they lead with [n] too
            (a teacher for each seed).
        at_once: lanes computed together in an update, group after group; fewer keep fewer rollouts
            in memory. A seed has the same bits for the same `at_once`, whatever n is. Default all.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=4)
    >>> many = lanes(jaxkd.ppo(env, jaxkd.networks.mlp(env, (8,))))
    >>> state, metrics = run(many, jaxkd.seeds(0, 3), 2)
    >>> metrics["return"].shape
    (2, 3)
    """
    check.kind("algorithm", algorithm, Algorithm, "an Algorithm (jaxkd.ppo, jaxkd.distill)")
    if at_once is not None:
        check.count("at_once", at_once)

    def init(keys):
        return jax.vmap(algorithm.init)(check.key(keys, many=True))

    def step(state, *inputs):
        if not shared:
            _check_leading(inputs, jax.tree.leaves(state)[0].shape[0])
        if at_once is None:
            axes = (0, *[None if shared else 0 for _ in inputs])
            return jax.vmap(algorithm.step, axes)(state, *inputs)
        if shared:
            one = lambda state: algorithm.step(state, *inputs)
            return jax.lax.map(one, state, batch_size=at_once)
        return jax.lax.map(lambda row: algorithm.step(*row), (state, *inputs), batch_size=at_once)

    return Algorithm(init, step, algorithm.description)


def _check_leading(inputs: tuple, n: int) -> None:
    """Raises unless every array leads with [n], one row for each lane."""
    for path, x in jax.tree_util.tree_flatten_with_path(inputs)[0]:
        shape = jnp.shape(x)
        if shape[:1] != (n,):
            where = jax.tree_util.keystr(path[1:], simple=True, separator="/")
            raise UsageError(
                f"lanes(shared=False) of {n} keys take inputs that lead with [{n}], such as a "
                f"teacher for each; {where!r} has shape {shape}. One teacher of all: shared=True."
            )


def memory_needed(
    algorithm: Algorithm, key: jax.Array, num_updates: int, *inputs: Any, streamed: bool = False
) -> int:
    """Bytes that `run` with these arguments will take on a device, before anything runs.

    Known by compiling it: inputs, outputs and what lies between, of one device of a mesh; the
    process itself and the compiler come on top.

    Args:
        key, inputs: as in `run`, or their shapes.
        streamed: of `stream` with chunks of `num_updates` instead, which reuses its state's memory.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=4)
    >>> memory_needed(jaxkd.ppo(env, jaxkd.networks.mlp(env, (8,))), jaxkd.seeds(0, 1)[0], 2) < 1e6
    True
    """
    _check_call(algorithm, num_updates)
    state = jax.eval_shape(algorithm.init, key)
    advance = _advance_donated if streamed else _advance
    needed: Any = advance.lower(algorithm, state, num_updates, *inputs).compile().memory_analysis()
    return (
        needed.argument_size_in_bytes
        + needed.output_size_in_bytes
        + needed.temp_size_in_bytes
        - needed.alias_size_in_bytes
    )


@partial(jax.jit, static_argnums=0)
def _start(algorithm, key):
    return algorithm.init(key)


def _updates(algorithm, state, num_updates, *inputs):
    return jax.lax.scan(lambda state, _: algorithm.step(state, *inputs), state, None, num_updates)


_advance = jax.jit(_updates, static_argnums=(0, 2))
_advance_deterministic = jax.jit(
    _updates, static_argnums=(0, 2), compiler_options={"xla_gpu_deterministic_ops": True}
)
_advance_donated = jax.jit(_updates, static_argnums=(0, 2), donate_argnums=1)


def _check_state(algorithm: Algorithm, key: Any, state: Any) -> None:
    """Raises unless `state` is one of this algorithm's, for as many keys; None says nothing."""
    if key is None:
        return
    expected = jax.eval_shape(algorithm.init, key)
    if jax.tree.structure(expected) == jax.tree.structure(state):
        different = check.difference(check.shapes(expected), check.shapes(state))
        if not different:
            return
    else:
        different = f"a {type(state).__name__} of another structure"
    raise UsageError(
        f"state is none of this algorithm's: {different}. Give what stream or run of this very "
        f"algorithm returned, and as many keys."
    )


def _apart(inputs: tuple, state: Any) -> tuple:
    """`inputs`, copied where they are arrays of the state, whose memory is donated."""
    donated = {id(x) for x in jax.tree.leaves(state)}
    return jax.tree.map(lambda x: jnp.copy(x) if id(x) in donated else x, inputs)


def _check_call(algorithm: Any, num_updates: Any) -> None:
    if not isinstance(algorithm, Algorithm):
        raise UsageError(
            "run and stream take an Algorithm (jaxkd.ppo, jaxkd.distill), got "
            f"{type(algorithm).__name__}."
        )
    check.count("num_updates", num_updates)
