"""The ring of rollouts: what is stored, what is drawn, and that learning from it is learning from
the aggregate.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import behavior, distill, envs, lanes, losses, memory, returns, run, seeds
from jaxkd.base import Batch, Discrete, Memory, Outputs, Policy, UsageError
from jaxkd.distributions import Categorical

B, T, C = 4, 6, 3
jit = partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)


class Params(NamedTuple):
    max_steps_in_episode: int = 5


class Cells:
    """A grid of small integers: the step of the episode, what was drawn at its start, and the last
    action.
    """

    name, default_params = "Cells", Params()

    def reset_env(self, key, params):
        state = {
            "time": jnp.int32(0),
            "luck": jax.random.randint(key, (), 0, 100),
            "last": jnp.int32(0),
        }
        return self._obs(state), state

    def step_env(self, key, state, action, params):
        state = state | {"time": state["time"] + 1, "last": action}
        return self._obs(state), state, jnp.float32(1), jax.random.uniform(key) < 0.15, {}

    def is_truncated(self, state, params):
        return state["time"] >= params.max_steps_in_episode

    def action_space(self, params):
        return Discrete(2)

    def _obs(self, state):
        return jnp.stack(
            [
                jnp.stack([state["time"], state["luck"]]),
                jnp.stack([state["last"], 1 - state["last"]]),
            ]
        ).astype(jnp.int8)


def flat(obs):
    return obs.reshape((*obs.shape[:-2], 4)).astype(jnp.float32) / 10


def plain(width):
    """A feed-forward policy with a value, features and a hidden layer in `extra`: much that a KL
    does not read.
    """

    def init(key):
        keys = jax.random.split(key)
        return {
            "W": jax.random.normal(keys[0], (4, width)),
            "out": jax.random.normal(keys[1], (width, 3)),
        }

    def step(params, carry, obs, reset):
        hidden = jnp.tanh(flat(obs) @ params["W"])
        out = hidden @ params["out"]
        return carry, Outputs(Categorical(out[..., :2]), out[..., 2], hidden, {"hidden_0": hidden})

    return Policy(init, lambda n: (), step, step)


def accumulator(width):
    """A recurrent policy: h <- tanh(h (1 - reset) U + obs W); what it says depends on the whole
    episode.
    """

    def init(key):
        keys = jax.random.split(key, 3)
        sizes = {"U": (width, width), "W": (4, width), "out": (width, 3)}
        return {
            name: jax.random.normal(k, size)
            for (name, size), k in zip(sizes.items(), keys, strict=True)
        }

    def step(params, carry, obs, reset):
        carry = jnp.tanh((carry * (1 - reset)[:, None]) @ params["U"] + flat(obs) @ params["W"])
        out = carry @ params["out"]
        return carry, Outputs(Categorical(out[:, :2]), out[:, 2])

    def unroll(params, carry, obs, reset):
        return jax.lax.scan(lambda carry, row: step(params, carry, *row), carry, (obs, reset))

    return Policy(init, lambda n: jnp.zeros((n, width)), step, unroll)


ENV = envs.make(Cells(), B)
STUDENT, TEACHER = plain(5), plain(7)
TEACHER_PARAMS = {
    "W": np.random.default_rng(0).normal(size=(4, 7)),
    "out": np.random.default_rng(1).normal(size=(7, 3)),
}
TEACHER_PARAMS = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), TEACHER_PARAMS)
RECORD = Memory(
    init=lambda spec: (), add=lambda buffer, batch: batch, sample=lambda key, buffer, batch: batch
)
KL = {"kl": losses.forward_kl()}


def kd(student=STUDENT, teacher=TEACHER, **keywords):
    defaults = dict(losses=KL, num_minibatches=2, unroll_length=T, optimizer=optax.sgd(0.0))
    return distill(ENV, student, teacher, **(defaults | keywords))


def stored(state):
    """What is in the buffer by its path: (shape, dtype)."""
    leaves = jax.tree_util.tree_flatten_with_path(state.memory.actors)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): (x.shape, x.dtype.name)
        for path, x in leaves
    }


# --- what is stored ------------------------------------------------------------------------------


def test_only_what_a_loss_reads_is_stored():
    """A leaf, not a field: of the teacher the logits alone. Integers stay small. Every leaf leads
    with the environments.
    """
    always = {
        "obs": ((B, C, T, 2, 2), "int8"),
        "reset": ((B, C, T), "float32"),
    }
    logits = {"teacher.policy.logits": ((B, C, T, 2), "float32")}
    made = partial(jax.eval_shape, key=jax.random.key(0))
    assert stored(made(kd(memory=memory.ring(C)).init)) == always | logits

    def value(student, batch):
        return (
            student.value
            - batch.teacher.value
            + batch.reward * batch.action
            + batch.next_obs[..., 0, 0]
        )

    state = made(kd(memory=memory.ring(C), losses=KL | {"value": value}).init)
    more = {
        "teacher.value": ((B, C, T), "float32"),
        "action": ((B, C, T), "int32"),
        "reward": ((B, C, T), "float32"),
    }
    assert stored(state) == always | logits | more | {"next_obs": ((B, C, T, 2, 2), "int8")}
    state = made(kd(accumulator(5), memory=memory.ring(C), sequence_length=2).init)
    assert stored(state) == always | logits | {"carry": ((B, C, T // 2, 5), "float32")}
    state = made(
        distill(
            ENV,
            STUDENT,
            losses={"entropy": losses.entropy()},
            memory=memory.ring(C),
            unroll_length=T,
        ).init
    )
    assert stored(state) == always


def test_the_aggregate_bit_for_bit():
    """The last three of five rollouts, each in its place, as a memory that keeps its batch saw
    them; the state does not grow.
    """
    ring, fresh = (
        kd(memory=memory.ring(C), behavior=behavior.mixture(0.5)),
        kd(memory=RECORD, behavior=behavior.mixture(0.5)),
    )
    key = jax.random.key(0)
    state, other = jit(ring.init)(key), jit(fresh.init)(key)
    shapes, rollouts = stored(state), []
    step, record = jit(ring.step), jit(fresh.step)
    for update in range(5):
        state, _ = step(state, TEACHER_PARAMS)
        other, _ = record(other._replace(memory=()), TEACHER_PARAMS)
        rollouts.append(other.memory)
        assert stored(state) == shapes and state.memory.added == update + 1
        newest = {i % C: rollouts[i] for i in range(update + 1)}  # the oldest makes room
        for slot in range(C):
            for field in ("obs", "reset"):
                there = np.asarray(getattr(state.memory.actors, field)[:, slot])
                expected = (
                    np.asarray(getattr(newest[slot], field)).swapaxes(0, 1)
                    if slot in newest
                    else 0 * there
                )
                np.testing.assert_array_equal(there, expected)
            if slot in newest:
                logits = state.memory.actors.teacher.policy.logits[:, slot]
                np.testing.assert_array_equal(
                    logits, np.asarray(newest[slot].teacher.policy.logits).swapaxes(0, 1)
                )
    assert len({np.asarray(r.obs).tobytes() for r in rollouts}) == 5


# --- what is drawn -------------------------------------------------------------------------------


def numbered(rollout, num_envs):
    """A batch whose every number says (rollout, time, environment)."""
    rows = rollout * 10_000 + 100 * np.arange(T)[:, None] + np.arange(num_envs)
    none = dict.fromkeys(
        ("next_obs", "action", "reward", "terminated", "truncated", "acting", "teacher"), ()
    )
    carry = jnp.asarray(rows[::2, :, None], jnp.float32)
    return Batch(
        **none,
        obs={"a": jnp.asarray(rows), "b": carry[:, :, 0].repeat(2, 0)},
        reset=jnp.ones((T, num_envs)),
        carry=carry,
    )


def filled(number, num_envs):
    made = memory.ring(C)
    buffer = made.init(jax.eval_shape(lambda: numbered(0, num_envs)))
    add = jit(made.add)
    for rollout in range(number):
        buffer = add(buffer, numbered(rollout, num_envs))
    return jit(made.sample), buffer


@pytest.mark.parametrize(
    ("number", "there"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (5, [2, 3, 4])]
)
def test_columns_are_drawn_uniformly_and_independently(number, there):
    """Whole columns of one stored rollout and their own environment, their carries with them; what
    is not filled is never drawn.
    """
    n = 3000
    sample, buffer = filled(number, n)
    drawn = sample(jax.random.key(1), buffer, numbered(99, n))
    assert jax.tree.map(jnp.shape, drawn) == jax.tree.map(jnp.shape, numbered(0, n))
    which = np.asarray(drawn.obs["a"][0]) // 10_000
    assert set(which) == set(there)
    np.testing.assert_array_equal(
        drawn.obs["a"], which * 10_000 + 100 * np.arange(T)[:, None] + np.arange(n)
    )
    np.testing.assert_array_equal(drawn.carry[..., 0], drawn.obs["a"][::2])
    p = 1 / len(there)
    assert all(abs(np.mean(which == i) - p) <= 5 * np.sqrt(p * (1 - p) / n) for i in there)
    pairs = np.mean((which[1:] == there[0]) & (which[:-1] == there[0]))
    assert abs(pairs - p**2) <= 6 * np.sqrt(p**2 * (1 - p**2) / n)
    again, other = (
        np.asarray(sample(jax.random.key(k), buffer, numbered(99, n)).obs["a"][0]) // 10_000
        for k in (1, 2)
    )
    np.testing.assert_array_equal(which, again)
    assert len(there) == 1 or np.any(which != other)


def test_unread_is_zeros_and_what_belongs_to_who_acted_is_empty():
    """As the losses see a replayed batch."""
    seen = []

    def loss(student, batch):
        seen.append(batch)
        return batch.teacher.policy.kl(student.policy)

    algorithm = kd(memory=memory.ring(C), losses={"kl": loss})
    state = jax.eval_shape(algorithm.init, jax.random.key(0))
    seen.clear()
    jax.eval_shape(algorithm.step, state, TEACHER_PARAMS)
    (batch,) = {id(b): b for b in seen}.values()
    assert (batch.acting, batch.acting_next, batch.advantage, batch.target, batch.targets) == (
        (),
    ) * 5
    assert batch.action.shape == batch.reward.shape == batch.teacher.value.shape == (1, T * B // 2)
    spec = jax.eval_shape(
        lambda: Batch(*[jnp.ones((2, 3)) for _ in range(10)], weight=jnp.ones((2, 3)))
    )
    whole = memory.restore(
        memory.record(jax.tree.map(lambda x: jnp.ones(x.shape), spec), frozenset({"reward"})),
        spec,
        frozenset({"reward"}),
    )
    assert [float(jnp.sum(x)) for x in (whole.obs, whole.reward, whole.weight, whole.action)] == [
        6,
        6,
        6,
        0,
    ]


# --- learning from it ----------------------------------------------------------------------------


def test_a_ring_of_one_is_this_rollout(key):
    """Bit for bit, with a KL that reads nothing of who acted."""
    one, other = (
        jit(lambda key, m=m: run(kd(memory=m, optimizer=optax.adam(1e-2)), key, 4, TEACHER_PARAMS))(
            key
        )
        for m in (memory.ring(1), None)
    )
    for a, b in zip(
        jax.tree.leaves((one[0].params, one[1])),
        jax.tree.leaves((other[0].params, other[1])),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    larger = jit(
        lambda key: run(
            kd(memory=memory.ring(2), optimizer=optax.adam(1e-2)), key, 4, TEACHER_PARAMS
        )
    )(key)[0].params
    assert np.abs(larger["out"] - one[0].params["out"]).max() > 1e-4


@pytest.mark.parametrize("length", [2, 6])
def test_recurrent_sequences_begin_with_their_own_carries(length, key):
    """Student and teacher are the same network with the same params, so replayed the student says
    what the teacher said: over several updates whose episodes go on from one rollout to the next.
    """
    policy = accumulator(5)

    def difference(student, batch):
        return jnp.abs(student.value - batch.teacher.value) + jnp.abs(
            student.policy.logits - batch.teacher.policy.logits
        ).sum(-1)

    keywords = dict(
        losses={"d": difference, "size": lambda student, batch: jnp.abs(student.value)},
        memory=memory.ring(2),
    )
    algorithm = kd(policy, policy, sequence_length=length, **keywords)
    train = jit(lambda key: run(algorithm, key, 5, algorithm.init(key).params)[1])
    metrics = train(key)
    assert np.all(metrics["loss/d"] < 1e-5) and np.all(metrics["loss/size"] > 0.1)


def test_dagger_learns_from_all_that_was_seen(key):
    """The teacher drives at first, the student after: what the losses report is of the aggregate,
    and each seed has a ring of its own.
    """

    def first(
        student, batch
    ):  # 1 in the rows that were recorded while the teacher, which plays 1, was driving
        return jnp.float32(batch.obs[..., 1, 0] == 1) + 0 * student.value

    def always(action):
        def step(params, carry, obs, reset):
            logits = jnp.broadcast_to(
                params + jnp.where(jnp.arange(2) == action, 1e3, 0.0), (*obs.shape[:-2], 2)
            )
            return carry, Outputs(Categorical(logits), logits[..., 0])

        return Policy(lambda key: jnp.zeros(2), lambda n: (), step, step)

    acts = behavior.mixture(lambda update: 1.0 * (update == 0))
    share = {}
    for name, kept in (("ring", memory.ring(50)), ("fresh", None)):
        algorithm = kd(
            always(0),
            always(1),
            losses=KL | {"first": losses.watch(first)},
            behavior=acts,
            memory=kept,
        )
        state, metrics = jit(lambda keys, a=algorithm: run(lanes(a), keys, 30, jnp.zeros(2)))(
            seeds(0, 3)
        )
        share[name] = np.asarray(metrics["loss/first"])
        if kept:
            assert state.memory.actors.obs.shape == (3, B, 50, T, 2, 2) and np.all(
                state.memory.added == 30
            )
    assert np.all(share["fresh"][0] > 0.5) and np.all(share["fresh"][2:] == 0)
    assert (
        np.all(share["ring"][0] == share["fresh"][0])
        and 0 < share["ring"][10:].mean() < share["ring"][1:4].mean() < 1
    )


def test_a_memory_of_ones_own_gets_and_gives_what_is_recorded(key):
    """One that replays the rollout before, with half of its rows weighing nothing."""

    def sample(key, buffer, batch):
        something = jnp.any(buffer[1].obs != 0).astype(jnp.float32)
        weight = something * jnp.ones(batch.reset.shape).at[: T // 2].set(0.0)
        return buffer[1]._replace(weight=weight)

    empty = lambda spec: (jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), spec),) * 2
    mine = Memory(empty, lambda buffer, batch: (batch, buffer[0]), sample, replays=True)
    early = losses.watch(lambda student, batch: 1.0 + 0 * student.value)
    metrics = jit(
        lambda key: run(kd(memory=mine, losses=KL | {"one": early}), key, 3, TEACHER_PARAMS)[1]
    )(key)
    np.testing.assert_allclose(
        metrics["loss/one"], [0, 1, 1]
    )  # nothing was there at first: every weight is 0
    assert metrics["loss/kl"][0] == 0 and np.all(metrics["loss/kl"][1:] > 0)
    for sample in (
        lambda key, buffer, batch: (),
        lambda key, buffer, batch: batch._replace(reset=batch.reset[:2]),
    ):
        with pytest.raises(
            UsageError, match=r"sample must have the shapes of the recorded batch, .* got "
        ):
            jax.eval_shape(
                lambda key, m=mine._replace(sample=sample): run(
                    kd(memory=m), key, 1, TEACHER_PARAMS
                ),
                key,
            )


# --- mistakes ------------------------------------------------------------------------------------


def valued(student, batch):
    return jnp.square(student.value - batch.acting_next.value)


@pytest.mark.parametrize(
    ("terms", "reads"),
    [
        ({"policy": losses.ppo_clip()}, "acting, advantage"),
        ({"value": losses.td_mse()}, "targets"),
        ({"mine": valued}, "acting_next"),
        ({"q": lambda student, batch: student.value - batch.target}, "target"),
    ],
    ids=["ppo", "td", "acting_next", "target"],
)
def test_what_belongs_to_who_acted_is_refused(terms, reads):
    with pytest.raises(
        UsageError, match=rf"reads {reads}, which belong .* memory=ring\(capacity=3\) replays"
    ):
        kd(losses=KL | terms, memory=memory.ring(C), returns=returns.gae())


@pytest.mark.parametrize("capacity", [0, 2.0, True])
def test_capacity_is_a_positive_int(capacity):
    with pytest.raises(UsageError, match="capacity must be a positive int"):
        memory.ring(capacity)
