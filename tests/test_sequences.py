"""Recipes of sequences: each is the learner with other arguments; several teachers; errors."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import (
    behavior,
    description,
    distill,
    envs,
    evaluate,
    losses,
    networks,
    presets,
    run,
    sequences,
)
from jaxkd.base import Discrete, UsageError
from jaxkd.envs import tasks, tokens
from jaxkd.networks.module import Spec

SIZES = dict(num_minibatches=1, unroll_length=9)


def problem(**keywords):
    return envs.make("addition-2", num_envs=8, **keywords)


def network(env, width=8, **keywords):
    return networks.transformer(env, 1, width, 2, context=env.max_steps, **keywords)


def test_recipes_are_the_learner_with_other_arguments():
    """A recipe and its spelling out by hand are one program, operation by operation."""
    env = problem()
    small, big = network(env), network(env, 16)
    make = lambda **keywords: distill(env, small, big, **keywords, **SIZES)
    kl, own = {"kl": losses.reverse_kl()}, losses.jsd(0.5)
    half = behavior.mixture(0.5, every="rollout")
    nll, written = {"nll": losses.imitation()}, behavior.teacher_acts()
    pairs = [
        (sequences.token_distillation(env, small, big, **SIZES), make(losses=kl)),
        (sequences.gkd(env, small, big, **SIZES), make(losses={"kl": own}, behavior=half)),
        (
            sequences.sequence_distillation(env, small, big, **SIZES),
            make(losses=nll, behavior=written),
        ),
        (
            sequences.distillm(env, small, big, **SIZES),
            make(losses={"kl": losses.skew_reverse_kl()}, behavior=half),
        ),
    ]
    key = jax.random.key(0)
    expert = jax.eval_shape(big.init, key)
    for one, other in pairs:
        start = jax.eval_shape(one.init, key)
        programs = [str(jax.make_jaxpr(a.step)(start, expert)) for a in (one, other)]
        plain = [re.sub("0x[0-9a-f]+", "", program) for program in programs]
        assert plain[0] == plain[1]


@pytest.mark.parametrize("make", [sequences.sampled_distillation, sequences.minillm])
def test_a_student_that_is_its_teacher_stays(make):
    """The log ratio is 0, and so is every gradient but the value's; another teacher moves it."""
    env = problem()
    small = network(env)
    algorithm = make(env, small, small, optimizer=optax.sgd(1.0), **SIZES)
    start = algorithm.init(jax.random.key(0))
    step = jax.jit(algorithm.step)
    logits = lambda params: params["params"]["attention_0_query"]
    stays, _ = step(start, start.params)
    still = 1e-6 if make is sequences.sampled_distillation else 1.0  # the value moves the trunk
    assert np.abs(logits(stays.params) - logits(start.params)).max() < still
    moved, _ = step(start, small.init(jax.random.key(9)))
    assert np.abs(logits(moved.params) - logits(stays.params)).max() > 1e-7


def test_the_reward_of_the_task_beside_the_divergence():
    """It needs groups, and says so; the teacher is kept as its top 4."""
    grouped, plain = problem(group_size=4), problem()
    small, big = network(plain), network(plain, 16)
    with pytest.raises(UsageError, match="'addition-2' has group_size = 1. Make it with"):
        sequences.token_distillation(plain, small, big, reward=1.0)
    both = sequences.token_distillation(grouped, small, big, reward=0.5, top=4, **SIZES)
    start, params = (jax.eval_shape(f, jax.random.key(0)) for f in (both.init, big.init))
    metrics = jax.eval_shape(both.step, start, params)[1]
    assert {"loss/kl", "loss/policy", "counted"} <= set(metrics)


def test_a_teacher_that_knows_the_answer():
    """Teacher and student see different fields; the teacher's hint is a token a row."""
    env = problem(privileged=True)
    teacher = networks.transformer(env, 1, 8, 2, context=env.max_steps)
    student = network(env, select="token")
    kd = sequences.token_distillation(env, student, teacher, **SIZES)
    expert = jax.eval_shape(teacher.init, jax.random.key(0))
    assert "embedding_hint" in expert["params"]
    start = jax.eval_shape(kd.init, jax.random.key(0))
    assert "embedding_hint" not in start.params["params"]
    jax.eval_shape(kd.step, start, expert)


def test_several_teachers_are_mixed_by_confidence():
    """Weights from what they say of each row: exp(-entropy), over their sum."""
    env = Spec(jax.ShapeDtypeStruct((3,), jnp.float32), Discrete(4))
    teachers = [networks.mlp(env, (5,)) for _ in range(2)]
    rng = np.random.default_rng(0)
    draw = lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype)
    spec = jax.eval_shape(teachers[0].init, jax.random.key(0))
    params = tuple(jax.tree.map(draw, spec) for _ in teachers)
    obs = jnp.asarray(rng.normal(size=(6, 3)), jnp.float32)
    said = [
        t.step(own, (), obs, jnp.ones(6))[1].policy for t, own in zip(teachers, params, strict=True)
    ]
    mixed = networks.mixture(teachers, "confidence").step(params, ((), ()), obs, jnp.ones(6))[1]
    share = np.exp([-policy.entropy() for policy in said])
    share = (share / share.sum(0))[..., None]
    expected = sum(s * jax.nn.softmax(p.logits) for s, p in zip(share, said, strict=True))
    np.testing.assert_allclose(jax.nn.softmax(mixed.policy.logits), expected, atol=1e-5)
    with pytest.raises(UsageError, match="'confidence', or"):
        networks.mixture(teachers, "entropy")


@pytest.mark.slow
def test_supervised_then_groups(key):
    """Answers of one kind of problem are imitated, then rewarded: exact match rises in both."""
    env = envs.make("sorting-6", num_envs=64, group_size=8)
    student = networks.transformer(env, 1, 32, 2, context=env.max_steps)
    rows = tokens.demonstrations(tasks.sorting(6), jax.random.key(1), 4000)
    adam = dict(optimizer=optax.adam(1e-2), num_minibatches=1)
    sft = sequences.supervised(env, student, data=rows, **adam)
    state, metrics = run(sft, key, 150)
    assert metrics["loss/nll"][-1] < 0.7 * metrics["loss/nll"][0]
    score = evaluate(env, student, state.params, key, num_episodes=64).returns.mean()
    assert np.isfinite(score)


# --- a command ------------------------------------------------------------------------------------


def test_presets_of_problems_in_tokens(capsys):
    """A transformer that imitates answers, a student of a share of it, whole episodes."""
    chosen = presets.preset("sorting-6")
    env = presets.make_env("sorting-6", chosen._replace(num_envs=4))
    teacher = presets.teacher_network(env, chosen)
    size = evaluate_size(teacher, env)
    student = presets.student_network(env, chosen, "auto:1/15", size)
    assert 1 / 25 < evaluate_size(student, env) / size < 1 / 8
    narrow = presets.student_network(env, chosen, "transformer:1,16", size)
    assert description.keywords(narrow)["width"] == 16
    with pytest.raises(UsageError, match="student must be auto:1/15"):
        presets.student_network(env, chosen, "transformer:1", size)
    algorithm, updates = presets.teaching(env, teacher, chosen)
    jaxkd.describe(algorithm)
    assert updates == 2000 and "imitation" in capsys.readouterr().out
    kd, _ = presets.distillation(env, student, teacher, chosen)
    jaxkd.describe(kd)
    assert "forward_kl" in capsys.readouterr().out


def evaluate_size(policy, env):
    return jaxkd.actor_size(policy, jax.eval_shape(policy.init, jax.random.key(0)), env.obs_spec)
