"""What a user may hand over by mistake, or by habit: keys, params, states, functions, environments.

Each mistake is one line in our words, before anything is compiled.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from test_errors import ENV, KEY, STUDENT, TEACHER, B, Line, constant_of, kd, rl

import jaxkd
from jaxkd import check, envs, evaluate, lanes, losses, networks, returns, rewards, run, stream
from jaxkd.base import Algorithm, Outputs, UsageError
from jaxkd.distributions import Categorical
from jaxkd.evaluate import iqm

KEYS = jaxkd.seeds(0, 3)
PARAMS, TEACHERS = constant_of(STUDENT), jax.tree.map(lambda x: x[None], constant_of(TEACHER))
TAUGHT, ALONE = kd(), kd(teacher=None, losses={"entropy": losses.entropy()})
SHAPES = jax.eval_shape(ALONE.init, KEY)


class Values(Line):
    """Gives `more` or fewer values in a step or a reset."""

    def __init__(self, step=5, reset=2):
        super().__init__()
        self.step, self.begin = step, reset

    def reset_env(self, key, params):
        return (*super().reset_env(key, params), {})[: self.begin]

    def step_env(self, key, state, action, params):
        return (*super().step_env(key, state, action, params), {})[: self.step]


class Changing(Line):
    """An observation or a state of its own after a step."""

    def __init__(self, obs=lambda obs: obs, state=lambda state: state):
        super().__init__()
        self.obs, self.state = obs, state

    def step_env(self, key, state, action, params):
        obs, state, *others = super().step_env(key, state, action, params)
        return (self.obs(obs), self.state(state), *others)


class Paying(Line):
    """A reward of its own."""

    def __init__(self, reward):
        super().__init__()
        self.reward = reward

    def step_env(self, key, state, action, params):
        obs, state, _, *others = super().step_env(key, state, action, params)
        return obs, state, self.reward, *others


class Spaceless(Line):
    action_space = None


def made(environment):
    return lambda: kd(env=envs.make(environment, B))


def scored(policy=STUDENT, params=PARAMS, key=KEY):
    return lambda: evaluate(ENV, policy, params, key, num_episodes=1)


def ran(algorithm, key, *inputs):
    """As inside a user's jit, where not even `init` is compiled."""
    inlined = lambda key, *inputs: run(algorithm, key, 1, *inputs)
    return lambda: jax.eval_shape(inlined, key, *inputs)


def going_on(algorithm, key, state, *inputs):
    return lambda: next(stream(algorithm, key, 1, *inputs, chunk_size=1, state=state))


def saved(policy=STUDENT, params=PARAMS):
    return lambda: jaxkd.save_policy("/nowhere/at/all", policy, params)


class Undecided(nn.Module):
    layer: nn.Module

    @nn.compact
    def __call__(self, obs):
        return nn.Dense(2)(self.layer(obs))


class Spectral(nn.Module):
    @nn.compact
    def __call__(self, obs):
        return nn.SpectralNorm(nn.Dense(2))(obs, update_stats=True)


def linked(*layers):
    make = lambda rngs: nnx.Sequential(
        nnx.Linear(3, 2, rngs=rngs), *[layer(rngs=rngs) for layer in layers]
    )
    return lambda: kd(networks.feedforward(ENV, make))


def own(module):
    return lambda: kd(networks.feedforward(ENV, module))


RUNNING = ["updates running averages or draws random numbers", "LayerNorm"]
MISTAKES = {
    # keys
    "a number as a key": (ran(ALONE, 0), ["key must be a key", "jax.random.key(0)", "int32 []"]),
    "a number of numpy": (ran(ALONE, np.int64(3)), ["key must be a key", "jaxkd.seeds"]),
    "None as a key": (ran(ALONE, None), ["key must be a key", "got NoneType"]),
    "a number as a key of evaluate": (scored(key=0), ["key must be a key", "got int"]),
    "many keys": (ran(ALONE, KEYS), ["one key is needed", "[3]", "run(lanes(algorithm), keys"]),
    "many keys of evaluate": (scored(key=KEYS), ["one key is needed", "jax.vmap"]),
    "many old keys": (ran(ALONE, jnp.zeros((3, 2), jnp.uint32)), ["one key is needed", "[3]"]),
    "one key of lanes": (ran(lanes(ALONE), KEY), ["lanes take keys [n]", "jaxkd.seeds(0, n)"]),
    "a number for lanes": (ran(lanes(ALONE), 3), ["key must be a key"]),
    "a number for two": (ran(jaxkd.co_distill(TAUGHT, ALONE), 3), ["key must be a key"]),
    "a negative seed": (lambda: jaxkd.seeds(-1, 2), ["seed must be in [0, 2**32)", "repeat"]),
    "a large seed": (lambda: jaxkd.seeds(2**40, 2), ["seed must be in [0, 2**32)", "repeat"]),
    "a seed of text": (lambda: jaxkd.seeds("a", 2), ["seed must be an int, got 'a'"]),
    # params
    "one teacher of each": (
        ran(lanes(TAUGHT, shared=False), KEYS, constant_of(TEACHER)),
        ["lead with [3]", "params/actor/Dense_0/bias", "(5,)", "shared=True"],
    ),
    "more teachers than keys": (
        ran(lanes(TAUGHT, shared=False), KEYS, TEACHERS),
        ["lanes(shared=False) of 3 keys", "(1, 5)"],
    ),
    "many teachers of all": (
        ran(lanes(TAUGHT), KEYS, TEACHERS),
        ["the teacher's params do not fit", "lead with an axis of 1", "shared=False"],
    ),
    "a state as the teacher": (ran(TAUGHT, KEY, SHAPES), ["State", "Give state.params"]),
    "a state to evaluate": (scored(params=SHAPES), ["params are a State. Give state.params"]),
    "many seeds to evaluate": (
        scored(params=jax.tree.map(lambda x: x[None], PARAMS)),
        ["params do not fit", "(4,)", "(1, 4)", "those of one seed"],
    ),
    "params of another": (scored(params=constant_of(TEACHER)), ["expected (4,), got (5,)"]),
    "part of the params": (scored(params=PARAMS["params"]), ["expected (4,), got no such array"]),
    "an algorithm to evaluate": (scored(ALONE), ["policy must be a Policy", "got Algorithm"]),
    "a state to save": (saved(params=SHAPES), ["params are a State", "of one seed"]),
    "an algorithm to save": (saved(ALONE), ["policy must be a Policy", "got Algorithm"]),
    # states and algorithms
    "params as a state": (going_on(ALONE, KEY, PARAMS), ["state is none of this", "a dict of"]),
    "the state of another": (
        going_on(TAUGHT, KEY, SHAPES, constant_of(TEACHER)),
        ["state is none of this algorithm's", "a State of another structure"],
    ),
    "one state of many": (
        going_on(lanes(ALONE), KEYS, SHAPES),
        ["state is none of this algorithm's", "expected (3, 4), got (4,)", "as many keys"],
    ),
    "lanes of a policy": (lambda: lanes(STUDENT), ["algorithm must be an Algorithm", "Policy"]),
    "a policy described": (lambda: jaxkd.describe(STUDENT), ["must be an Algorithm", "Policy"]),
    "a loss described": (lambda: jaxkd.describe(losses.nll()), ["Algorithm", "LossTerm"]),
    "two policies": (lambda: jaxkd.co_distill(STUDENT, TEACHER), ["student must be an Algorithm"]),
    # environments
    "four values": (made(Values(step=4)), ["step_env of 'Line2' gives 4", "must give 5: obs"]),
    "six values": (made(Values(step=6)), ["gives 6 values", "is_truncated"]),
    "three at a reset": (
        made(Values(reset=3)),
        ["reset_env", "gives 3 values", "2: obs, state"],
    ),
    "an observation alone": (made(Values(reset=1)), ["reset_env", "gives 1 values"]),
    "a shorter observation": (
        made(Changing(obs=lambda obs: obs[:2])),
        ["obs of 'Line2' has shape (3,) after a reset, (2,) after a step"],
    ),
    "two observations": (
        made(Changing(obs=lambda obs: (obs, obs))),
        ["obs of 'Line2' has the structure", "after a reset", "after a step"],
    ),
    "a state that forgets": (
        made(Changing(state=lambda state: {"time": state["time"]})),
        ["env_state of 'Line2' has the structure", "let reset_env and step_env return the same"],
    ),
    "a state with a name": (
        made(Changing(state=lambda state: state | {"name": "x"})),
        ["state/name of 'Line2' is a str in step_env", "only arrays and numbers"],
    ),
    "a choice by if": (
        made(Changing(obs=lambda obs: obs if obs[0] > 0 else -obs)),
        ["of 'Line2' calls float(), int(), bool() or `if`", "jnp.where"],
    ),
    "no reward": (made(Paying(None)), ["reward of 'Line2' is a NoneType"]),
    "a vector of rewards": (made(Paying(jnp.ones(1))), ["reward of 'Line2' has shape (1,)"]),
    "no space of actions": (made(Spaceless()), ["has no method action_space(params)"]),
    # functions
    "an activation by name": (
        lambda: networks.mlp(ENV, (4,), activation="tanh"),
        ["activation must be a function such as jax.nn.tanh, got 'tanh'"],
    ),
    "an activation of a cell": (
        lambda: networks.lstm(ENV, (4,), activation=3),
        ["activation must be a function", "got int"],
    ),
    "a loss with too many places": (
        lambda: kd(losses={"mine": lambda a, b, c, d: a.value}),
        ["loss 'mine' fails on its batch", "TypeError"],
    ),
    # numbers
    "a rate of text": (
        lambda: rl(learning_rate="1e-3"),
        ["learning_rate must be a number, an array or a schedule, got '1e-3'"],
    ),
    "a negative rate": (lambda: rl(learning_rate=-1e-3), ["learning_rate must be in [0, inf]"]),
    "a rate that is none": (lambda: rl(learning_rate=np.nan), ["learning_rate", "got nan"]),
    "a negative rate of a bonus": (
        lambda: rewards.rnd(predictor=rewards.Predictor(learning_rate=-1e-3)),
        ["learning_rate must be in [0, inf]"],
    ),
    "a bool as a number": (lambda: losses.forward_kl(True), ["temperature", "got True"]),
    "a list as a number": (lambda: returns.gae([0.9]), ["gamma must be a number", "got [0.9]"]),
    "a weight of text": (lambda: rl(entropy="0.01"), ["value must be a number", "got '0.01'"]),
    "a bonus of text": (lambda: rewards.scale("2"), ["coef must be a number", "got '2'"]),
    "the mean of nothing": (lambda: iqm([]), ["iqm needs at least one value"]),
    # optimizers
    "an optimizer of the loss": (
        lambda: kd(optimizer=optax.contrib.reduce_on_plateau()),
        ["optimizer fails on gradients and parameters", "'value'", "take a schedule"],
    ),
    "a line search": (lambda: kd(optimizer=optax.lbfgs()), ["optimizer fails", "take a schedule"]),
    "a rate of text in adam": (
        lambda: kd(optimizer=optax.adam("1e-3")),
        ["optimizer fails on gradients and parameters: TypeError"],
    ),
    # modules
    "batch norm": (own(Undecided(nn.BatchNorm())), ["student: Undecided", *RUNNING]),
    "dropout": (own(Undecided(nn.Dropout(0.5, deterministic=False))), RUNNING),
    "spectral norm": (own(Spectral()), RUNNING),
    "a module with another argument": (
        own(nn.SpectralNorm(nn.Dense(2))),
        ["student fails on 'Line2', which gives obs (3,)", "TypeError", "'update_stats'"],
    ),
    "batch norm of nnx": (linked(partial(nnx.BatchNorm, 2)), [*RUNNING, "eval()"]),
    "dropout of nnx": (linked(partial(nnx.Dropout, 0.5)), [*RUNNING, "eval()"]),
    "the class of a module": (own(Spectral), ["the class Spectral: give an instance"]),
    "a function as a module": (own(lambda obs: obs), ["a function (rngs) -> nnx module", "Rngs"]),
    "a module that makes nothing": (own(lambda rngs: 3), ["(rngs) -> nnx module", "It returns"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake(mistake):
    call, parts = MISTAKES[mistake]
    with pytest.raises(UsageError) as raised:
        call()
    message = str(raised.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message and len(message) < 500


# --- what works ---------------------------------------------------------------------------------


class Weighted:
    """A loss as a method."""

    def loss(self, student, batch):
        return 2 * student.value

    def with_context(self, student, batch, context):
        return context.update * student.value


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (Weighted().loss, 2),
        (Weighted().with_context, 3),
        (partial(lambda factor, student, batch: factor * student.value, 5), 5),
        (lambda student, batch, factor=7: factor * student.value, 7),
        (lambda student, batch, context=None: context.update * student.value, 3),
        (jax.jit(lambda student, batch: 4 * student.value), 4),
    ],
    ids=["method", "method with context", "partial", "default", "context", "jit"],
)
def test_functions_of_every_kind_are_losses(function, expected):
    context = jaxkd.base.Context(jnp.float32(3), (), (), ())
    student = Outputs((), value=jnp.ones((1, 2)))
    found = losses.stateless(function).loss((), student, (), context)
    np.testing.assert_array_equal(found, jnp.full((1, 2), expected))


def test_a_student_that_learns_from_what_it_was(key):
    """Its own params, donated with the state, are the teacher's: they are copied before."""
    algorithm = kd(student=TEACHER, losses={"kl": losses.reverse_kl()})
    state = jax.tree.map(jnp.array, jax.jit(algorithm.init)(key))
    _, metrics = next(stream(algorithm, key, 1, state.params, chunk_size=1, state=state))
    np.testing.assert_allclose(metrics["loss/kl"], 0, atol=1e-6)  # its teacher is itself


def test_an_algorithm_by_hand_is_described(capsys):
    jaxkd.describe(Algorithm(lambda key: 0, lambda state: (state, {})))
    assert capsys.readouterr().out


def test_keys_of_the_old_kind():
    assert check.key(jax.random.PRNGKey(0)).shape == (2,)
    assert check.key(jnp.zeros((4, 2), jnp.uint32), many=True).shape == (4, 2)


# --- nnx ----------------------------------------------------------------------------------------


class Linked(nnx.Module):
    """Averages that stay, a mask that is never drawn, and a value head."""

    def __init__(self, rngs):
        self.layer = nnx.Linear(4, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, use_running_average=True, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
        self.policy, self.value = nnx.Linear(3, 2, rngs=rngs), nnx.Linear(3, 1, rngs=rngs)

    def __call__(self, obs):
        features = nnx.tanh(self.dropout(self.norm(self.layer(obs))))
        return Outputs(Categorical(self.policy(features)), self.value(features)[..., 0], features)


def test_an_nnx_module_is_trained_and_saved(tmp_path):
    """Every seed begins anew, what is no nnx.Param is not trained, and the file makes it again."""
    env = envs.make("CartPole-v1", 4)
    policy = networks.feedforward(env, Linked)
    ppo = jaxkd.ppo(env, policy, unroll_length=4, num_minibatches=1, num_epochs=1)
    state, _ = jax.eval_shape(lambda keys: run(lanes(ppo), keys, 1), KEYS)
    first, second = policy.init(KEYS[0]), policy.init(KEYS[1])
    assert jax.tree.map(lambda x: x.shape[1:], state.params) == jax.tree.map(jnp.shape, first)
    assert np.all(first["params"]["layer"]["kernel"] != second["params"]["layer"]["kernel"])
    trained = policy.trainable(first)
    assert sum(jax.tree.leaves(trained)) == 8 and not any(jax.tree.leaves(trained["state"]))
    moments = jax.tree.leaves(state.opt_state[1][0].mu)
    assert len(moments) == 8  # of the averages there are none
    again, params = jaxkd.load_policy(jaxkd.save_policy(tmp_path / "linked", policy, first))
    jax.tree.map(np.testing.assert_array_equal, params, first)
    obs = jnp.ones((2, 4))
    said = [p.step(first, (), obs, jnp.ones(2))[1].policy.logits for p in (policy, again)]
    np.testing.assert_array_equal(*said)


def test_an_nnx_module_has_its_own_arrays():
    """A teacher that was trained elsewhere: what it says is what the module says."""
    module, obs = Linked(nnx.Rngs(3)), jnp.linspace(-1, 1, 8).reshape(2, 4)
    policy = networks.feedforward(envs.make("CartPole-v1", 2), module)
    out = policy.step(policy.init(KEY), (), obs, jnp.ones(2))[1]
    np.testing.assert_array_equal(out.value, module(obs).value)
    assert jax.tree.leaves(policy.init(KEY))[0] is not jax.tree.leaves(nnx.state(module))[0]
