"""Training from end to end: every environment, a grid of hyperparameters, how many matmuls."""

import re
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from jaxkd import distill, envs, losses, networks, ppo, pqn, presets, run, seeds

# Compiled quickly, run slowly.
jit = partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)


def small(env, width):
    """A tiny network of the kind that the environment's preset has.

    Its weights are plain normals, because a QR compiles slowly.
    """
    grid = presets.preset(env.name).channels
    policy = networks.cnn(env, (2,), (width,)) if grid else networks.mlp(env, (width,))
    flat, unravel = ravel_pytree(
        jax.tree.map(lambda x: jnp.zeros(x.shape), jax.eval_shape(policy.init, jax.random.key(0)))
    )
    return policy._replace(
        init=lambda key: unravel(0.1 * jax.random.normal(key, flat.shape)), description=()
    )


# --- every environment --------------------------------------------------------------------------


def teach_and_distil(env, keywords, key):
    """-> for the teacher and for the student: params before, params after two updates, metrics."""
    teacher, student = small(env, 8), small(env, 4)
    teaching = ppo(env, teacher, num_epochs=1, **keywords)
    distillation = distill(env, student, teacher, losses={"kl": losses.forward_kl()}, **keywords)
    key_teacher, key_student = jax.random.split(key)
    expert, taught = run(teaching, key_teacher, 2)
    pupil, distilled = run(distillation, key_student, 2, expert.params)
    starts = (
        algorithm.init(key).params
        for algorithm, key in ((teaching, key_teacher), (distillation, key_student))
    )
    return tuple(zip(starts, (expert.params, pupil.params), (taught, distilled), strict=True))


def learn_with_a_teacher(env, keywords, key):
    """PPO and distillation in one learner, half of the program -> the same, of the student."""
    teacher, student = small(env, 8), small(env, 4)
    terms = {"kl": losses.forward_kl()}
    algorithm = ppo(env, student, teacher, losses=terms, num_epochs=1, **keywords)
    key_teacher, key_student = jax.random.split(key)
    start, taught = algorithm.init(key_student), teacher.init(key_teacher)
    update = lambda state, _: algorithm.step(state, taught)
    state, metrics = jax.lax.scan(update, start, length=2)
    return ((start.params, state.params, metrics),)


# Few environments: what compiles fastest. Many: the recipes' own optimizers and shuffled
# minibatches.
FEW = 2, dict(unroll_length=8, num_minibatches=1, optimizer=optax.sgd(0.01))
MANY = 2048, dict(unroll_length=4, num_minibatches=4)


# Prompts are not trained on, and are longer than these rollouts: see tests/test_tokens.py.
NAMES = [name for name in envs.ids() if name not in envs.tasks.NAMED] + ["dialogue"]
UNTRAINED = {learn_with_a_teacher: [()], teach_and_distil: [(), ("value",)]}  # a KL reads no value


@pytest.mark.parametrize(
    "name, program, num_envs, keywords",
    [
        *[pytest.param(name, learn_with_a_teacher, *FEW, id=f"{name}-2") for name in NAMES],
        pytest.param("CartPole-v1", teach_and_distil, *FEW, id="CartPole-v1-2-in-turn"),
        *[
            pytest.param(name, teach_and_distil, *MANY, id=f"{name}-2048", marks=pytest.mark.slow)
            for name in NAMES
        ],
    ],
)
def test_trains_with_ppo_and_distils_in_one_program(name, program, num_envs, keywords, key):
    """All that is trained moves and stays finite.

    The return is -inf until the first episode has ended, and only until then.
    """
    env = presets.make_env(name, presets.Preset(num_envs=num_envs))
    phases = jit(partial(program, env, keywords))(key)
    for untrained, (before, after, metrics) in zip(UNTRAINED[program], phases, strict=True):
        for (path, old), new in zip(
            jax.tree_util.tree_flatten_with_path(before)[0], jax.tree.leaves(after), strict=True
        ):
            assert np.all(np.isfinite(new)), jax.tree_util.keystr(path)
            assert np.any(new != old) != (path[1].key in untrained), jax.tree_util.keystr(path)
        for metric, values in metrics.items():
            finite = np.cumsum(metrics["episodes"]) > 0 if metric == "return" else True
            np.testing.assert_array_equal(np.isfinite(values), finite, err_msg=metric)
            assert not np.any(np.isnan(values))
    assert np.all(metrics["loss/kl"] > 0)


# --- a grid of hyperparameters ------------------------------------------------------------------


def test_a_grid_is_one_call_of_one_program():
    """3 learning rates x 3 temperatures x 4 seeds: one trace, also for other values.

    No two cells are alike, and each is what it is alone.
    """
    env = envs.make("CartPole-v1", 4)
    teacher, student = small(env, 8), small(env, 4)
    teacher_params = jax.tree.map(lambda x: 10 * x, teacher.init(jax.random.key(5)))

    def experiment(key, learning_rate, temperature):
        terms = {"kl": losses.forward_kl(temperature)}
        algorithm = distill(
            env,
            student,
            teacher,
            losses=terms,
            optimizer=optax.sgd(learning_rate),
            unroll_length=4,
            num_minibatches=1,
        )
        state, metrics = run(algorithm, key, 2, teacher_params)
        return ravel_pytree(state.params)[0], metrics["loss/kl"]

    chex.clear_trace_counter()
    # The innermost vmap is outside of the assertion: chex refuses names that contain "vmap.".
    traced_once = jax.vmap(chex.assert_max_traces(experiment, n=1), (0, None, None))
    grid = jit(jax.vmap(jax.vmap(traced_once, (None, None, 0)), (None, 0, None)))
    keys, rates, temperatures = seeds(0, 4), jnp.array([0.1, 0.2, 0.4]), jnp.array([0.5, 1.0, 2.0])
    params, kl = grid(keys, rates, temperatures)
    other_params, other_kl = grid(seeds(1, 4), 3 * rates, 3 * temperatures)
    assert params.shape[:3] == (3, 3, 4) and kl.shape == (3, 3, 4, 2)
    assert all(np.all(np.isfinite(x)) for x in (params, kl, other_params, other_kl))
    cells = np.concatenate([params, other_params]).reshape(72, -1)
    assert min(np.abs(a - b).max() for i, a in enumerate(cells) for b in cells[:i]) > 1e-4
    alone, _ = jit(experiment)(keys[3], rates[1], temperatures[2])
    np.testing.assert_allclose(params[1, 2, 3], alone, rtol=1e-5, atol=1e-5)


# --- the matmuls of one update ------------------------------------------------------------------

# By minor version of JAX: dots outside of all loops, in the scan over steps, in the scan over
# minibatches inside the one over epochs.
# The teacher has three layers with its policy head (and a value head), the student two.
#   ppo:     3 the values of the observations that follow the last row and the cuts, 2 layers +
#            head (its policy is not read)
#            4 acting: 3 layers, and the value that the advantage reads
#            10 gradient: 4 forward, 4 of weights, 2 of hidden layers
#   pqn:     3, 3 and 8: the same without the value head, which a Q network does not have
#   distill: 3 the teacher, once on the stacked observations (its value is not read)
#            2 acting (no value)
#            5 gradient: 2 forward, 2 of weights, 1 of the hidden layer
DOTS = {"0.10": {"ppo": (3, 4, 10), "pqn": (3, 3, 8), "distill": (3, 2, 5)}}
DOTS["0.11"] = DOTS["0.10"]


def dots_by_loop_depth(program, *args):
    """The dots in the optimised HLO of `program(*args)` under 0, 1 and 2 loops.

    Only the program text counts, not how often it runs.
    """
    text = jax.jit(program).lower(*args).compile().as_text()
    bodies = dict(
        re.findall(r"^(?:ENTRY )?%?([\w.\-]+) \(.*?\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL)
    )
    counts = [0, 0, 0]

    def visit(name, depth):
        counts[depth] += len(re.findall(r"\bdot\(", bodies[name]))
        for kind, callee in re.findall(r"\b(body|calls|to_apply)=%?([\w.\-]+)", bodies[name]):
            visit(callee, depth + (kind == "body"))

    visit(re.search(r"^ENTRY %?([\w.\-]+)", text, re.MULTILINE)[1], 0)
    assert sum(counts) == len(re.findall(r"\bdot\(", text))  # none is overlooked
    return tuple(counts)


def recipes():
    """name -> (algorithm, inputs of its step); the last asks the teacher again in a minibatch."""
    env = envs.make("CartPole-v1", 8)
    teacher, student = networks.mlp(env, (32, 16)), networks.mlp(env, (4,))
    sizes = dict(unroll_length=8, num_minibatches=2, num_epochs=2)
    kl, spec = losses.forward_kl(), jax.eval_shape(teacher.init, jax.random.key(0))
    params = jax.tree.map(lambda x: jnp.linspace(-1.0, 1.0, x.size).reshape(x.shape), spec)

    def again(student, batch):
        return teacher.unroll(params, (), batch.obs, batch.reset)[1].policy.kl(student.policy)

    return {
        "ppo": (ppo(env, teacher, **sizes), ()),
        "pqn": (pqn(env, teacher, **sizes), ()),
        "distill": (distill(env, student, teacher, losses={"kl": kl}, **sizes), (spec,)),
        "wasteful": (
            distill(env, student, teacher, losses={"kl": kl, "again": again}, **sizes),
            (spec,),
        ),
    }


@pytest.mark.parametrize("name", ["ppo", "pqn", "distill", "wasteful"])
def test_matmuls_of_one_update(name, key):
    """As many as the table says; one teacher pass too many is seen, and where."""
    version = ".".join(jax.__version__.split(".")[:2])
    if version not in DOTS:
        pytest.skip(f"the dots were not counted with JAX {version}, only with {', '.join(DOTS)}")
    algorithm, inputs = recipes()[name]
    counted = dots_by_loop_depth(algorithm.step, jax.eval_shape(algorithm.init, key), *inputs)
    outside, acting, learning = DOTS[version]["distill" if name == "wasteful" else name]
    assert counted == (outside, acting, learning + (3 if name == "wasteful" else 0))
