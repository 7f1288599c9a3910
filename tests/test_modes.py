"""jax's own modes of looking for mistakes, and of 64 bits: a user turns one on, and all goes on."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_matrix as matrix

import jaxkd
from jaxkd import behavior, envs, evaluate, keys, losses, networks, rewards
from jaxkd.base import Discrete

MODES = {
    "64 bits": partial(jax.enable_x64, True),
    "nans": partial(jax.debug_nans, True),
    "reused keys": partial(jax.debug_key_reuse, True),
    "strict promotion": partial(jax.numpy_dtype_promotion, "strict"),
}
SIZES = dict(unroll_length=4, num_minibatches=2)


def trained(num_seeds=2):
    """Two updates of teachers and of their students, and what a student does alone.

    Nobody's first episode ends in the first update, and time limits cut; there are statistics, a
    bonus that learns, a ring and continuous actions.
    """
    env = envs.make("Pendulum-v1", 4, max_steps=6)
    teacher, student = networks.mlp(env, (3,), normalise=True), networks.mlp(env, (2,))
    small = rewards.Predictor(hidden=(2,), features=2, batch_size=4, num_minibatches=1)
    bonus = {"n": rewards.normalise(0.9), "rnd": rewards.rnd(predictor=small)}
    ppo = jaxkd.ppo(env, teacher, rewards=bonus, num_epochs=1, **SIZES)
    kd = jaxkd.distill(
        env,
        student,
        teacher,
        losses={"kl": losses.forward_kl(), "slow": losses.scale(lambda n: 0.1 * n, losses.nll())},
        behavior=behavior.mixture(lambda update: 0.5 * update),
        memory=jaxkd.memory.ring(2),
        **SIZES,
    )
    first, second, third = (jaxkd.seeds(seed, num_seeds) for seed in range(3))
    experts, of_teachers = jaxkd.run(jaxkd.lanes(ppo), first, 2)
    pupils, of_students = jaxkd.run(jaxkd.lanes(kd, shared=False), second, 2, experts.params)
    one = jax.tree.map(lambda x: x[0], pupils.params)
    alone = evaluate(env, student, one, third[0], num_episodes=4, greedy=False)
    return dict(params=(experts.params, pupils.params), of_teachers=of_teachers, alone=alone) | {
        "of_students": of_students,
        "dtypes": {str(x.dtype) for x in jax.tree.leaves((experts, pupils, alone))},
    }


@pytest.fixture(scope="module")
def usual():
    return trained()


@pytest.mark.parametrize("mode", MODES)
def test_the_numbers_are_those_of_the_usual_mode(mode, usual):
    with MODES[mode]():
        found = trained()
    assert found.pop("dtypes") == usual["dtypes"]
    for name, values in found.items():
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), values, usual[name])
    assert np.all(found["of_teachers"]["return"][0] == -np.inf)  # and not nan
    assert np.all(np.isfinite(found["of_teachers"]["return"][1]))


@pytest.mark.parametrize("name", ["Freeway-MinAtar", "MetaMaze-misc", "GaussianBandit-misc"])
def test_environments_that_fail_in_64_bits_by_themselves(name):
    """gymnax chooses between 32 and 64 bits there; its code is traced in the usual mode."""
    with jax.enable_x64(True):
        env = envs.make(name, 2)
        env_state, obs = jax.eval_shape(env.reset, jax.random.key(0))
        action = jax.ShapeDtypeStruct((2,), jnp.int32)
        time_step = jax.eval_shape(env.step, jax.random.key(0), env_state, action)[1]
    assert {x.dtype.itemsize for x in jax.tree.leaves((obs, time_step))} <= {1, 4}


class Precise:
    """An environment of one's own, whose state has 64 bits where the mode has."""

    default_params, name = None, "Precise"

    def reset_env(self, key, params):
        state = {"x": jax.random.uniform(key), "time": jnp.zeros((), int)}
        return state["x"][None], state

    def step_env(self, key, state, action, params):
        state = {"x": state["x"] + action / 3, "time": state["time"] + 1}
        return state["x"][None], state, state["x"], state["x"] > 1, {}

    def action_space(self, params):
        return Discrete(2)


def test_an_environment_of_ones_own_has_64_bits_and_shows_32():
    with jax.enable_x64(True):
        env = envs.make(Precise(), 2, max_steps=3)
        assert env.obs_spec.dtype == jnp.float32
        ppo = jaxkd.ppo(env, networks.mlp(env, (2,)), **SIZES)
        state, _ = jax.eval_shape(lambda key: ppo.step(ppo.init(key)), jax.random.key(0))
        assert state.actors.env_state.inner["x"].dtype == jnp.float64


def test_keys_of_the_lanes_are_used_once():
    """The check itself sees a key that a scan or a branch of ours uses twice."""

    def twice(key):
        draw = lambda carry, key: (carry, jax.random.normal(key) + jax.random.uniform(key))
        return keys.scan(draw, 0, jax.random.split(key, 3))

    with pytest.raises(jax.errors.KeyReuseError):
        with jax.debug_key_reuse(True):
            jax.jit(jax.vmap(twice))(jax.random.split(jax.random.key(0)))


TRACED = {mode: MODES[mode] for mode in MODES if mode != "nans"}


@pytest.mark.slow
@pytest.mark.parametrize("mode", TRACED)
@pytest.mark.parametrize("kind", ["feedforward-discrete", "recurrent-continuous"])
def test_every_component_in_every_mode(mode, kind):
    """All losses, rewards and returns in one learner, every behaviour, traced."""
    cell = matrix.CELLS[kind]
    ready = matrix.made(matrix.RETURNS, matrix.X)
    gains = {name: row for name, row in cell.returns().items() if not ready[name].fresh}
    tables = {"losses": cell.losses(), "returns": gains, "rewards": matrix.REWARDS}
    x = {kind: dict.fromkeys(table, matrix.X) for kind, table in tables.items()}
    with TRACED[mode]():
        teacher = matrix.network(cell, 4)
        everything = partial(matrix.everything, cell, tables, x)
        acting = [
            partial(matrix.build, cell, {"kl": matrix.KL}, behavior=acts)
            for acts in matrix.made(matrix.BEHAVIORS, matrix.X).values()
        ]
        for build in [everything, *acting]:
            algorithm = build()
            policy = teacher if build is everything else matrix.bare(cell)

            def update(key, algorithm=algorithm, policy=policy):
                first, second = jax.random.split(key)
                return algorithm.step(algorithm.init(first), policy.init(second))

            jax.eval_shape(update, jax.random.key(0))
