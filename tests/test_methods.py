"""The recipes named after papers: each runs with the preset's settings, and is what it says."""

import re
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import presets
from jaxkd.cli import main
from jaxkd.distributions import Categorical
from jaxkd.optimize import component_key

PRESET = presets.preset("CartPole-v1")._replace(
    num_envs=8, unroll_length=8, num_epochs=1, num_minibatches=2, student_epochs=1
)
FAST = {"xla_backend_optimization_level": 0}


@pytest.mark.parametrize("method", presets.METHODS)
def test_every_method_learns_something_finite_from_its_teacher(method):
    env = presets.method_env(jaxkd.envs.make("CartPole-v1", 8, max_steps=12), method)
    teacher, key = jaxkd.networks.mlp(env, (8,)), jax.random.key(0)
    student = presets.student_network(env, PRESET, "mlp:4", 100, method)
    algorithm, _ = presets.distillation(
        env, student, teacher, PRESET._replace(student_steps=512), method
    )
    needs_teacher = presets.METHODS[method].needs_teacher
    jit = partial(jax.jit, compiler_options=FAST)
    state = jit(algorithm.init)(key)
    step = jit(lambda state, params: algorithm.step(state, *[params] * needs_teacher))
    two_updates = lambda params: step(step(state, params)[0], params)
    sure, other = (
        jax.tree.map(lambda x: 30 * x, teacher.init(jax.random.key(seed))) for seed in (1, 2)
    )  # of what they do
    after, metrics = two_updates(sure)
    chex.assert_tree_all_finite((after.params, {k: v for k, v in metrics.items() if "/" in k}))
    named = presets.METHODS[method].build in vars(jaxkd.methods).values()
    assert ("loss/agreement" in metrics) == (needs_teacher and named)
    chex.assert_trees_all_equal_dtypes(after, state)
    moved = [
        np.abs(a - b).max()
        for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(state.params), strict=True)
    ]
    assert max(moved) > 0
    if needs_teacher:
        differently, _ = two_updates(other)
        pairs = zip(jax.tree.leaves(after.params), jax.tree.leaves(differently.params), strict=True)
        assert any((a != b).any() for a, b in pairs)


def test_an_unknown_method_names_the_nearest():
    with pytest.raises(jaxkd.UsageError, match="Did you mean 'kickstarting'"):
        presets.find_method("kickstart")


def test_a_method_of_your_own_is_a_record_of_five_lines():
    def values_too(env, student, teacher, **keywords):
        terms = {"kl": jaxkd.losses.forward_kl(), "value": jaxkd.losses.value_mse()}
        return jaxkd.distill(env, student, teacher, losses=terms, **keywords)

    mine = presets.Method(values_too, paper="mine", heads=("bonus",), group_size=4)
    env = presets.method_env(jaxkd.envs.make("CartPole-v1", 8, max_steps=12), mine)
    teacher, key = jaxkd.networks.mlp(env, (8,)), jax.random.key(0)
    student = presets.student_network(env, PRESET, "mlp:4", 100, mine)
    algorithm, num_updates = presets.distillation(env, student, teacher, PRESET, method=mine)
    assert env.group_size == 4 and num_updates == PRESET.student_steps // (8 * 12)
    state = algorithm.init(key)
    assert any("bonus" in jax.tree_util.keystr(p) for p, _ in jax.tree.leaves_with_path(state))
    _, metrics = algorithm.step(state, teacher.init(key))
    assert {"loss/kl", "loss/value"} <= set(metrics)


def test_every_record_says_what_it_is_and_needs():
    """The name is the recipe's own; a paper is cited by authors, year and title."""
    for name, method in presets.METHODS.items():
        assert (
            method.build in vars(jaxkd.methods).values()
            or method.build in vars(jaxkd.sequences).values()
        )
        assert method.build.__name__ == name
        assert method.summary.endswith(".") and len(method.summary) < 100
        assert re.match(r"[A-Z][a-z]+( et al\.| & [A-Z][a-z]+)? \d{4}, \w+", method.paper)
    assert presets.METHODS["qdagger"].needs == "a Q student; the teacher's return"
    assert presets.METHODS["dagger"].needs == ""


def test_the_command_lists_every_method(capsys):
    assert main(["methods"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in presets.METHODS) and "Schmitt" in printed


def test_a_preset_without_an_expected_return_is_refused():
    env = jaxkd.envs.make("Asterix-MinAtar", 8, max_steps=12)
    with pytest.raises(jaxkd.UsageError, match="qdagger needs an expected return"):
        presets.METHODS["qdagger"].settings(env, PRESET._replace(gate=None), 10)


def test_more_updates_than_a_schedule_counts_are_refused():
    env = jaxkd.envs.make("CartPole-v1", 8, max_steps=12)
    for method in ("dagger", "qdagger", "kickstarting"):
        with pytest.raises(jaxkd.UsageError, match="Take fewer steps"):
            presets.METHODS[method].settings(env, PRESET, 2**31)


def test_finetuning_starts_after_the_switch_and_weans_the_student():
    env = jaxkd.envs.make("CartPole-v1", 8)
    student, teacher = jaxkd.networks.mlp(env, (4,)), jaxkd.networks.mlp(env, (8,))
    algorithm = jaxkd.methods.distil_then_finetune(
        env, student, teacher, switch=2, half_life=1.0, unroll_length=8, num_minibatches=1
    )
    _, metrics = jaxkd.run(algorithm, jax.random.key(0), 4, teacher.init(jax.random.key(1)))
    assert (metrics["loss/policy"][:2] == 0).all() and (metrics["loss/policy"][2:] != 0).all()
    plain = jaxkd.methods.distil_then_finetune(
        env, student, teacher, switch=100, unroll_length=8, num_minibatches=1
    )
    _, full = jaxkd.run(plain, jax.random.key(0), 4, teacher.init(jax.random.key(1)))
    np.testing.assert_array_equal(metrics["loss/kl"][:2], full["loss/kl"][:2])
    assert (metrics["loss/kl"][2:] != full["loss/kl"][2:]).all()


def test_a_dagger_that_never_mixes_and_keeps_one_rollout_is_on_policy_distillation():
    env = jaxkd.envs.make("CartPole-v1", 8)
    student, teacher = jaxkd.networks.mlp(env, (4,)), jaxkd.networks.mlp(env, (8,))
    common = dict(unroll_length=8, num_minibatches=2, behavior=jaxkd.behavior.student_acts())
    algorithms = (
        jaxkd.methods.dagger(env, student, teacher, capacity=1, **common),
        jaxkd.methods.on_policy_distillation(env, student, teacher, **common),
    )
    after = [
        jaxkd.run(a, jax.random.key(0), 2, teacher.init(jax.random.key(1)))[0].params
        for a in algorithms
    ]
    chex.assert_trees_all_close(*after, atol=1e-6)
    assert jnp.isfinite(jax.tree.leaves(after[0])[0]).all()


def test_methods_report_how_often_student_and_teacher_do_the_same():
    """A student that always pushes left, a teacher that does so left of the middle only."""
    env = jaxkd.envs.make("CartPole-v1", 8)

    def left(obs):
        return jnp.stack([jnp.ones_like(obs[..., 0]), jnp.zeros_like(obs[..., 0])], -1)

    def towards(obs):
        return jnp.stack([-obs[..., 0], obs[..., 0]], -1)

    def fixed(logits):
        def step(params, carry, obs, reset):
            return carry, jaxkd.Outputs(Categorical(params * logits(obs)))

        return jaxkd.Policy(lambda key: jnp.ones(()), lambda num_envs: (), step, step)

    terms = {
        "kl": jaxkd.losses.forward_kl(),
        "left": jaxkd.losses.watch(lambda student, batch: batch.obs[..., 0] <= 0),
    }
    sizes = dict(unroll_length=8, num_minibatches=2, optimizer=optax.sgd(0.0))
    recipe = jaxkd.methods.on_policy_distillation
    kd = recipe(env, fixed(left), fixed(towards), losses=terms, **sizes)
    _, metrics = jaxkd.run(kd, jax.random.key(0), 3, jnp.ones(()))
    assert (metrics["loss/agreement"] > 0).all() and (metrics["loss/agreement"] < 1).all()
    np.testing.assert_allclose(metrics["loss/agreement"], metrics["loss/left"], rtol=1e-6)
    plain = jaxkd.distill(env, fixed(left), fixed(towards), losses=terms, **sizes)
    alike = [jaxkd.run(a, jax.random.key(0), 3, jnp.ones(()))[0].params for a in (kd, plain)]
    chex.assert_trees_all_equal(*alike)


def test_what_there_is_nothing_to_agree_about_is_not_reported():
    """No teacher, or actions that are never quite the same."""
    env, continuous = (jaxkd.envs.make(name, 4) for name in ("CartPole-v1", "Pendulum-v1"))
    sizes = dict(unroll_length=4, num_minibatches=1)
    explorer = jaxkd.networks.mlp(env, (4,), extra=("bonus",))
    small, big = (jaxkd.networks.mlp(continuous, (width,)) for width in (4, 8))
    algorithms = (
        (jaxkd.methods.exploration(env, explorer, **sizes), ()),
        (jaxkd.methods.dagger(continuous, small, big, **sizes), (big.init(jax.random.key(1)),)),
    )
    for algorithm, inputs in algorithms:
        state = jax.eval_shape(algorithm.init, jax.random.key(0))
        assert "loss/agreement" not in jax.eval_shape(algorithm.step, state, *inputs)[1]


def test_a_teacher_that_is_still_learning():
    """It learns as it does alone; the student has its params of today, or of its best return."""
    env = jaxkd.envs.make("CartPole-v1", 8, max_steps=10)
    small, big = jaxkd.networks.mlp(env, (4,)), jaxkd.networks.mlp(env, (8,))
    sizes = dict(unroll_length=8, num_minibatches=1)
    teaching = jaxkd.ppo(env, big, num_epochs=1, optimizer=optax.sgd(0.3), **sizes)
    learning = jaxkd.distill(env, small, big, losses={"kl": jaxkd.losses.forward_kl()}, **sizes)
    key, n = jax.random.key(3), 12
    alone = component_key(key, "teacher")
    expected = [teaching.init(alone).params]
    state = teaching.init(alone)
    step = jax.jit(teaching.step)
    returns = []
    for _ in range(n):
        state, metrics = step(state)
        expected.append(state.params)
        returns.append(float(metrics["return"]))
    for best_so_far in (False, True):
        both = jaxkd.co_distill(learning, teaching, best_so_far=best_so_far)
        after, metrics = jaxkd.run(both, key, n)
        chex.assert_trees_all_close(after.teacher.params, expected[-1], atol=1e-5)
        np.testing.assert_allclose(metrics["teacher/return"], returns, rtol=1e-5)
        row = 1 + int(np.argmax(returns)) if best_so_far else n
        chex.assert_trees_all_close(after.teaching, expected[row], atol=1e-5)
        assert after.best == pytest.approx(max(returns)) and (metrics["loss/kl"] > 0).all()
        assert after.params is after.student.params
    assert 1 + int(np.argmax(returns)) != n  # so that the two differ
