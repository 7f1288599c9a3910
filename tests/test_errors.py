"""What a user may do wrong: each mistake is a UsageError before anything is compiled, and says what
is wrong, both values, what to do.
"""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import (
    behavior,
    check,
    description,
    distill,
    envs,
    evaluate,
    losses,
    memory,
    networks,
    ppo,
    returns,
    rewards,
    run,
    stream,
)
from jaxkd.base import Box, Discrete, Memory, Outputs, Policy, RewardTransform, UsageError
from jaxkd.networks.module import Spec

B = 6


class Params(NamedTuple):
    max_steps_in_episode: int = 5


class Line:
    """A number that the action moves."""

    def __init__(self, actions=2, size=3, space=None, limit=True):
        self.name, self.actions, self.size, self.space = f"Line{actions}", actions, size, space
        self.default_params = Params() if limit else ()

    def reset_env(self, key, params):
        state = {"time": jnp.int32(0), "x": jax.random.normal(key, (self.size,))}
        return state["x"], state

    def step_env(self, key, state, action, params):
        state = {"time": state["time"] + 1, "x": state["x"] + jnp.sum(action)}
        return state["x"], state, state["x"][0], state["x"][0] > 9, {}

    def is_truncated(self, state, params):
        return state["time"] >= params.max_steps_in_episode if params else jnp.zeros((), bool)

    def action_space(self, params):
        return self.space or Discrete(self.actions)


ENV, THREE, WIDE, LIMITLESS = (
    envs.make(Line(*args), B) for args in ((2,), (3,), (2, 7), (2, 3, None, False))
)
BOX = envs.make(Line(space=Box((2,))), B)
STUDENT, TEACHER = networks.mlp(ENV, (4,)), networks.mlp(ENV, (5,))
BLIND = networks.feedforward(ENV, nn.Dense(2))  # no value head
KEY = jax.random.key(0)
KL = {"kl": losses.forward_kl()}
RING = Memory(
    lambda spec: (), lambda buffer, batch: buffer, lambda key, buffer, batch: batch, replays=True
)


def kd(student=STUDENT, teacher=TEACHER, env=ENV, losses=KL, **keywords):
    return distill(
        env,
        student,
        teacher,
        **(dict(losses=losses, num_minibatches=2, unroll_length=4) | keywords),
    )


def rl(student=STUDENT, env=ENV, **keywords):
    return ppo(env, student, **(dict(num_minibatches=2, unroll_length=4) | keywords))


def loss(fn):
    return partial(kd, losses={"mine": fn})


def constant_of(policy):
    """The policy's params of its own shapes, without an initialisation to compile."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(policy.init, KEY))


def traced(build):
    """`build(number)` inside of jit, with the number traced."""
    return lambda: jax.eval_shape(lambda number: build(number).init(KEY), jnp.float32(0.5))


def bonus(stream="", fn=lambda reward: reward):
    return RewardTransform(
        lambda key, spec: (), lambda reward, state, batch, context: (fn(reward), state), stream
    )


MISTAKES = {
    # environments
    "unknown id": (
        lambda: envs.make("CartPol-v1", 2),
        ["unknown environment 'CartPol-v1'", "Did you mean 'CartPole-v1'"],
    ),
    "no environments": (lambda: envs.make(Line(), 0), ["num_envs must be a positive int", "got 0"]),
    "number of environments as a float": (
        lambda: envs.make(Line(), 8.0),
        ["num_envs must be a positive int", "got 8.0"],
    ),
    "group size": (
        lambda: envs.make(Line(), 6, group_size=4),
        ["num_envs = 6", "group_size = 4", "nearest: 3, 6"],
    ),
    "group size of a thousand million": (
        lambda: envs.make(Line(), 10**9, group_size=7),
        ["num_envs = 1000000000", "group_size = 7", "nearest: 5, 8"],
    ),
    "not an environment": (
        lambda: envs.make(object(), 6),
        ["is no environment", "reset_env and step_env"],
    ),
    "environment is none": (
        lambda: kd(env="CartPole-v1"),
        ["env must be an Env (jaxkd.envs.make), got str"],
    ),
    # policies
    "student of other actions": (
        lambda: kd(networks.mlp(THREE, (4,))),
        [
            "student expects obs (3,) float32 and 3 actions",
            "'Line2' gives obs (3,) float32 and 2 actions",
        ],
    ),
    "teacher of other actions": (
        lambda: kd(teacher=networks.mlp(THREE, (4,))),
        ["teacher expects obs (3,) float32 and 3 actions", "'Line2' gives", "2 actions"],
    ),
    "teacher of other observations": (
        lambda: kd(teacher=networks.mlp(WIDE, (4,))),
        ["teacher expects obs (7,) float32 and 2 actions", "gives obs (3,) float32"],
    ),
    "discrete student in a box": (
        lambda: kd(env=BOX),
        [
            "student expects obs (3,) float32 and 2 actions",
            "gives obs (3,) float32 and 2 action dimensions",
        ],
    ),
    "foreign student of other actions": (
        lambda: kd(networks.feedforward(THREE, nn.Dense(3))),
        ["student expects obs (3,) float32 and 3 actions", "'Line2' gives", "2 actions"],
    ),
    "wrong width of logits": (
        lambda: kd(networks.feedforward(ENV, nn.Dense(5))),
        ["student", "gives obs (3,) float32 and 2 actions"],
    ),
    "params as the student": (
        lambda: kd(constant_of(STUDENT)),
        ["student must be a Policy", "got dict"],
    ),
    "params as the teacher": (
        lambda: kd(teacher=constant_of(TEACHER)),
        ["teacher must be a Policy", "params are the input of run", "got dict"],
    ),
    "cnn on a vector": (lambda: networks.cnn(ENV), ["cnn needs one grid", "(3,)", "networks.mlp"]),
    "grid too small": (
        lambda: networks.cnn(
            Spec(jax.ShapeDtypeStruct((4, 9, 1), jnp.float32), Discrete(2)), (4, 4)
        ),
        ["3x3 at each of 2 convolutions", "(4, 9, 1)"],
    ),
    "no layers": (
        lambda: networks.mlp(ENV, ()),
        ["hidden must name at least one layer", "(64, 64)"],
    ),
    "layer of width 0": (
        lambda: networks.mlp(ENV, (0,)),
        ["hidden must be a positive int", "got 0"],
    ),
    "width as a float": (
        lambda: networks.mlp(ENV, (64.0,)),
        ["hidden must be a positive int", "got 64.0"],
    ),
    "select of one array": (
        lambda: networks.mlp(ENV, (4,), select="full"),
        ["select='full'", "it is one array"],
    ),
    "selecting a field that the environment has not": (
        lambda: evaluate(
            ENV, networks.select(networks.mlp(ENV, (4,)), "fll"), (), KEY, num_episodes=1
        ),
        ["policy: select='fll'", "it is one array"],
    ),
    "evaluating on another environment": (
        lambda: evaluate(
            ENV,
            networks.mlp(Spec(jax.ShapeDtypeStruct((7,), jnp.float32), Discrete(2)), (4,)),
            (),
            KEY,
            num_episodes=1,
        ),
        ["policy expects obs (7,)", "gives obs (3,)"],
    ),
    "saving a policy of lambdas": (
        lambda: jaxkd.save_policy(
            "/tmp/none", Policy(lambda key: (), lambda num_envs: (), None, None), ()
        ),
        ["policy.init: ", "has no importable name", "at the top of a module"],
    ),
    "select of a missing field": (
        lambda: networks.mlp(
            Spec({"a": jax.ShapeDtypeStruct((2,), jnp.float32)}, Discrete(2)), (4,), select="b"
        ),
        ["select='b'", "fields: a"],
    ),
    "negative teacher temperature": (
        lambda: networks.temper(TEACHER, -1.0),
        ["temperature must be in (0, inf]", "got -1"],
    ),
    # losses
    "temperature 0": (
        lambda: losses.forward_kl(temperature=0),
        ["temperature must be in (0, inf]", "got 0"],
    ),
    "negative temperature": (
        lambda: losses.reverse_kl(temperature=-2.0),
        ["temperature must be in (0, inf]", "got -2"],
    ),
    "epsilon": (lambda: losses.ppo_clip(-0.1), ["epsilon must be in (0, inf]", "got -0.1"]),
    "clip": (lambda: losses.td_mse(clip=0.0), ["clip must be in (0, inf]", "got 0"]),
    "no losses": (
        lambda: kd(losses={}),
        ["losses must be a dict with at least one term", "forward_kl", "got {}"],
    ),
    "losses as a list": (
        lambda: kd(losses=[losses.forward_kl()]),
        ["losses must be a dict with at least one term"],
    ),
    "loss that is no function": (
        lambda: kd(losses={"kl": 0.5}),
        ["a loss is a function (student, batch[, context])", "got float"],
    ),
    "factory without its call": (lambda: kd(losses={"kl": losses.forward_kl}), ["loss 'kl'"]),
    "missing teacher": (
        lambda: kd(teacher=None),
        ["loss 'kl' reads the teacher, but teacher=None", "Pass the teacher's policy"],
    ),
    "scalar loss": (
        loss(lambda student, batch: jnp.mean(student.value)),
        ["loss 'mine' must return one number a sample", "(1, 12)", "got ()", "the engine averages"],
    ),
    "loss that keeps the actions": (
        loss(lambda student, batch: student.policy.logits),
        ["loss 'mine'", "(1, 12)", "got (1, 12, 2)"],
    ),
    "loss that returns a tuple": (
        loss(lambda student, batch: (student.value, student.value)),
        ["loss 'mine' must return one number a sample"],
    ),
    "typo in a field": (
        loss(lambda student, batch: batch.teachr.value),
        ["loss 'mine' fails on its batch", "AttributeError", "'teachr'"],
    ),
    "loss of four arguments": (
        loss(lambda a, b, c, d: a.value),
        ["loss 'mine' fails on its batch", "TypeError"],
    ),
    "shapes that do not fit": (
        loss(lambda student, batch: student.value + jnp.ones(7)),
        ["loss 'mine' fails on its batch"],
    ),
    "float() on the batch": (
        loss(lambda student, batch: student.value * float(batch.reward.mean())),
        ["loss 'mine' calls float()", "Keep it an array", "jnp.where"],
    ),
    "float() on the context": (
        loss(lambda student, batch, context: student.value * float(context.update)),
        ["loss 'mine' calls float()"],
    ),
    "if on the batch": (
        loss(lambda student, batch: student.value if batch.reward.sum() > 0 else -student.value),
        ["loss 'mine' calls float()", "`if`", "jnp.where"],
    ),
    "float() on a traced weight": (
        traced(
            lambda number: kd(
                losses={"mine": losses.scale(lambda update: float(number), losses.forward_kl())}
            )
        ),
        ["loss 'mine' calls float()", "no float() around a hyperparameter"],
    ),
    "float() on a traced number": (
        traced(
            lambda number: kd(losses={"mine": lambda student, batch: float(number) * student.value})
        ),
        ["loss 'mine' calls float()"],
    ),
    "head of a stream that is not there": (
        loss(losses.td_mse(stream="rnd")),
        ["loss 'mine'", "no value head for stream 'rnd'", "extra=('rnd',)"],
    ),
    "target of a stream that is not there": (
        lambda: kd(
            networks.mlp(ENV, (4,), extra=("rnd",)), losses={"value": losses.td_mse(stream="rnd")}
        ),
        ["loss 'value'", "target of stream 'rnd'", "returns has {''}"],
    ),
    "target without a value head": (
        lambda: rl(BLIND),
        ["loss 'value'", "the student has no value head", "(policy parameters, value)"],
    ),
    "advantage without a value head": (
        lambda: kd(BLIND, losses={"policy": losses.ppo_clip()}),
        ["loss 'policy'", "the student has no value head", "(policy parameters, value)"],
    ),
    "value of a student without one": (
        lambda: kd(BLIND, losses={"value": losses.value_mse()}),
        ["loss 'value'", "the student has no value head"],
    ),
    "value of a teacher without one": (
        lambda: kd(teacher=BLIND, losses={"value": losses.value_mse()}),
        ["loss 'value'", "the teacher has no value head", "(policy parameters, value)"],
    ),
    "memory that replays": (
        lambda: rl(memory=RING),
        [
            "loss 'policy' reads acting, advantage",
            "belong to the policy that acted just now",
            "replays older rollouts",
        ],
    ),
    # rewards and returns
    "reward that nothing reads": (
        lambda: kd(rewards={"bonus": bonus()}),
        ["rewards {'bonus'} have no effect", "no loss reads advantage or target", "ppo_clip"],
    ),
    "stream without returns": (
        lambda: rl(rewards={"bonus": bonus("rnd")}),
        ["reward 'bonus' pays into stream 'rnd'", "returns has {''}", "Add returns"],
    ),
    "returns of an unknown stream": (
        lambda: rl(returns={"": returns.gae(), "rnd": returns.gae()}),
        ["returns names stream 'rnd'", "no reward transform pays into it"],
    ),
    "returns without a head": (
        lambda: rl(
            rewards={"bonus": bonus("rnd")}, returns={"": returns.gae(), "rnd": returns.gae()}
        ),
        ["stream 'rnd'", "the student has no value head for stream 'rnd'", "extra=('rnd',)"],
    ),
    "reward of another shape": (
        lambda: rl(rewards={"bonus": bonus(fn=jnp.mean)}),
        ["reward 'bonus' must return rewards [T, B] = (4, 6)", "got ()"],
    ),
    "reward that fails": (
        lambda: rl(rewards={"bonus": bonus(fn=lambda reward: reward + jnp.ones(5))}),
        ["reward 'bonus' fails on its batch"],
    ),
    "rewards as a transform": (
        lambda: rl(rewards=rewards.normalise()),
        ["rewards must be a dict of RewardTransforms by name", "got RewardTransform"],
    ),
    "reward that is a function": (
        lambda: rl(rewards={"bonus": lambda r: r}),
        ["reward 'bonus' must be a RewardTransform", "got function"],
    ),
    "gamma": (lambda: returns.gae(1.5), ["gamma must be in [0, 1]", "got 1.5"]),
    "lambda": (lambda: returns.gae(0.9, -0.1), ["lambda_ must be in [0, 1]", "got -0.1"]),
    "gamma of a reward": (lambda: rewards.normalise(2), ["gamma must be in [0, 1]", "got 2"]),
    "returns as a number": (
        lambda: rl(returns=0.99),
        ["returns", "must be a Returns", "got float"],
    ),
    # behaviours
    "beta": (lambda: behavior.mixture(1.2), ["beta must be in [0, 1]", "got 1.2"]),
    "teacher acts without a teacher": (
        lambda: rl(behavior=behavior.teacher_acts()),
        ["behavior teacher_acts", "needs a teacher, but teacher=None", "student_acts()"],
    ),
    "behavior that is a function": (
        lambda: kd(behavior=behavior.student_acts),
        ["behavior must be a Behavior", "got function"],
    ),
    "memory that is a function": (
        lambda: kd(memory=memory.this_rollout),
        ["memory must be a Memory", "got function"],
    ),
    # sizes
    "indivisible minibatches": (
        lambda: kd(num_minibatches=4),
        ["num_envs = 6 is not divisible by num_minibatches = 4", "nearest: 3, 6"],
    ),
    "more minibatches than environments": (
        lambda: kd(num_minibatches=9),
        ["num_envs = 6", "num_minibatches = 9", "nearest: 6"],
    ),
    "indivisible sequences": (
        lambda: kd(num_minibatches=5, shuffle="full"),
        ["the number of sequences = 24", "num_minibatches = 5", "nearest: 4, 6"],
    ),
    "sequence length": (
        lambda: kd(unroll_length=32, sequence_length=5),
        ["unroll_length = 32 is not divisible by sequence_length = 5", "nearest: 4, 8"],
    ),
    "unroll length 0": (
        lambda: kd(unroll_length=0),
        ["unroll_length must be a positive int", "got 0"],
    ),
    "sequence length 0": (
        lambda: kd(sequence_length=0),
        ["sequence_length must be a positive int", "got 0"],
    ),
    "epochs": (lambda: kd(num_epochs=2.0), ["num_epochs must be a positive int", "got 2.0"]),
    "traced size": (
        traced(lambda number: kd(num_epochs=number)),
        ["num_epochs must be a positive int (sizes are static)"],
    ),
    "minibatches as a bool": (
        lambda: kd(num_minibatches=True),
        ["num_minibatches must be a positive int", "got True"],
    ),
    "shuffle": (lambda: kd(shuffle="time"), ["shuffle must be 'env' or 'full', got 'time'"]),
    "optimizer as a number": (
        lambda: kd(optimizer=1e-3),
        ["optimizer must be an optax transformation such as optax.adam(1e-3), got float"],
    ),
    "optimizer without its call": (
        lambda: kd(optimizer=optax.adam),
        ["optimizer must be an optax transformation", "got function"],
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake(mistake):
    call, parts = MISTAKES[mistake]
    with pytest.raises(UsageError) as raised:
        call()
    for part in parts:
        assert part in str(raised.value), str(raised.value)


# --- calls ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def algorithms():
    return kd(), kd(teacher=None, losses={"entropy": losses.entropy()})


def test_calls_of_run_and_stream(algorithms):
    taught, alone = algorithms
    params = constant_of(TEACHER)
    calls = [
        (
            lambda: run(taught, KEY, 2),
            ["has a teacher and got 0 inputs", "run(algorithm, key, num_updates, teacher_params)"],
        ),
        (
            lambda: run(alone, KEY, 2, params),
            ["has no teacher and got 1 inputs", "takes no further inputs"],
        ),
        (
            lambda: run(taught, KEY, 2, constant_of(STUDENT)),
            ["teacher's params do not fit", "(5,)", "(4,)"],
        ),
        (lambda: run(taught, KEY, 2, params["params"]), ["teacher's params do not fit"]),
        (lambda: run(taught, KEY, 0, params), ["num_updates must be a positive int", "got 0"]),
        (lambda: run(taught, KEY, 2.5, params), ["num_updates must be a positive int", "got 2.5"]),
        (lambda: run(kd, KEY, 2), ["take an Algorithm (jaxkd.ppo, jaxkd.distill), got function"]),
        (
            lambda: next(stream(taught, KEY, 4, params, chunk_size=0)),
            ["chunk_size must be a positive int", "got 0"],
        ),
        (lambda: jaxkd.seeds(0, 0), ["n must be a positive int", "got 0"]),
    ]
    for call, parts in calls:
        with pytest.raises(UsageError) as raised:
            call()
        assert all(part in str(raised.value) for part in parts), str(raised.value)


def test_calls_of_evaluate():
    params = constant_of(STUDENT)
    with pytest.raises(UsageError, match=r"'Line2' has no time limit.*max_steps=1000"):
        evaluate(LIMITLESS, STUDENT, params, KEY, num_episodes=4)
    with pytest.raises(UsageError, match="num_episodes must be a positive int"):
        evaluate(ENV, STUDENT, params, KEY, num_episodes=0)
    with pytest.raises(UsageError, match="env must be an Env"):
        evaluate("CartPole-v1", STUDENT, params, KEY, num_episodes=4)


def test_records_are_no_arguments_of_a_transformed_function(algorithms):
    """Every record of functions, under jit, vmap and grad, says what to do; as a static argument it
    works.
    """
    records = [
        algorithms[0],
        STUDENT,
        ENV,
        losses.forward_kl(),
        rewards.normalise(),
        returns.gae(),
        behavior.student_acts(),
        memory.this_rollout(),
    ]
    for record in records:
        with pytest.raises(
            UsageError,
            match=rf"{type(record).__name__} holds functions.*[Cc]lose over it.*static_argnums",
        ):
            jax.jit(lambda record: 0.0)(record)
    for transform in (jax.vmap, jax.grad):
        with pytest.raises(UsageError, match="holds functions"):
            transform(lambda record: 0.0)(STUDENT)
    assert jax.jit(lambda record, x: x + 1, static_argnums=0)(STUDENT, 1) == 2
    assert (
        STUDENT == STUDENT and STUDENT != networks.mlp(ENV, (4,)) and len({STUDENT, TEACHER}) == 2
    )


def test_plain_numbers_are_checked_and_traced_ones_pass():
    def everything(number):
        (
            networks.temper(TEACHER, number),
            losses.forward_kl(number),
            losses.ppo_clip(number),
            losses.td_mse(clip=number),
        )
        returns.gae(number, number), rewards.normalise(number), behavior.mixture(number)
        return number

    assert jax.jit(everything)(0.5) == 0.5
    everything(lambda update: 0.5)
    everything(np.float32(0.5))
    for check_low in (losses.forward_kl, losses.ppo_clip, partial(networks.temper, TEACHER)):
        with pytest.raises(UsageError):
            check_low(np.float32(-0.5))


# --- check.py itself -----------------------------------------------------------------------------


def test_reads_is_exact_through_jit_and_never_less_through_loops():
    def fn(a, b, c, d):
        looped = jax.lax.fori_loop(0, 2, lambda i, x: (x[0] + 1, x[1]), (a["x"], d))[0]
        return jax.jit(lambda x, y: (x, y))(looped, c)[0] + jax.nn.relu(b) + 0 * c.shape[0]

    read = check.reads(
        fn, a={"x": jnp.ones(3), "y": jnp.ones(3)}, b=jnp.ones(3), c=jnp.ones(3), d=jnp.ones(3)
    )
    assert {"a.x", "b"} <= read <= {"a.x", "b", "d"}
    assert check.reads(lambda a, b: jnp.where(a > 0, b, 0.0), a=jnp.ones(2), b=jnp.ones(2)) == {
        "a",
        "b",
    }
    assert check.reads(lambda a: jnp.zeros(2), a=jnp.ones(2)) == frozenset()


def test_label_shows_the_settings():
    scaled = losses.scale(0.5, losses.ppo_clip(0.1))
    assert description.show(scaled) == "scale(value=0.5, term=ppo_clip(epsilon=0.1))"
    assert description.show(losses.forward_kl(2.0)) == "forward_kl(temperature=2.0)"
    assert description.show(behavior.mixture(0.25)) == "mixture(beta=0.25)"
    seen = []
    jax.eval_shape(lambda gamma: seen.append(description.show(returns.gae(gamma))), 0.9)
    assert seen == ["gae(gamma=traced)"]


def test_a_policy_with_wrong_outputs_is_named():
    """A hand-written policy that fails inside: the error of the network is the cause."""
    broken = Policy(
        lambda key: (),
        lambda n: (),
        lambda params, carry, obs, reset: (carry, Outputs(obs @ jnp.ones((9, 2)))),
        None,
    )
    with pytest.raises(UsageError, match="student fails on .Line2., .*: TypeError") as raised:
        kd(broken)
    assert raised.value.__cause__ is not None
