"""Who acts: frequencies over many environments, the step of a switch, schedules, and what passes
through the learner.

The mixture itself, its share of the teacher's actions and its schedule in an environment are tested
in `test_rollout.py`.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import behavior, description
from jaxkd.base import Context, Outputs, UsageError
from jaxkd.distributions import Categorical, Normal

N = 40_000
OURS, THEIRS = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.3, 0.5])
STUDENT, TEACHER = (
    Outputs(Categorical(jnp.tile(jnp.log(jnp.array(p, jnp.float32)), (N, 1))))
    for p in (OURS, THEIRS)
)
KEY = jax.random.key(3)


def context(step=None, update=1, episode_return=0.0):
    steps = jnp.zeros(N, jnp.int32) if step is None else jnp.asarray(step, jnp.int32)
    return Context(jnp.int32(update), jnp.float32(episode_return), steps, KEY)


def act(made, student=STUDENT, teacher=TEACHER, context=context(), key=KEY):
    """The actions, with the teacher only where the behaviour says that it needs one."""
    return np.asarray(
        jax.jit(made.act)(key, student, teacher if made.needs_teacher else (), context)
    )


def shares(actions):
    assert actions.shape == (N,) and actions.dtype == np.int32
    return np.bincount(actions, minlength=3) / N


def assert_shares(actions, p):
    """Within 5 standard errors; exact where p is 0 or 1."""
    p = np.asarray(p)
    np.testing.assert_array_less(np.abs(shares(actions) - p), 5 * np.sqrt(p * (1 - p) / N) + 1e-9)


# --- one policy ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "p"),
    [
        (behavior.student_acts(), OURS),
        (behavior.student_acts(greedy=True), [1, 0, 0]),
        (behavior.teacher_acts(), THEIRS),
        (behavior.teacher_acts(greedy=True), [0, 0, 1]),
        (behavior.random_acts(), [1 / 3] * 3),
        (behavior.mixture(1.0), THEIRS),
        (behavior.mixture(0.25), 0.75 * OURS + 0.25 * THEIRS),
        (behavior.epsilon_greedy(0.0), [1, 0, 0]),
        (behavior.epsilon_greedy(0.3), [0.7 + 0.1, 0.1, 0.1]),
        (behavior.epsilon_greedy(1.0), [1 / 3] * 3),
        (behavior.epsilon_greedy(lambda update: 0.6 * update), [0.4 + 0.2, 0.2, 0.2]),
        (behavior.epsilon_greedy(0.3, behavior.teacher_acts()), 0.7 * THEIRS + 0.1),
        (behavior.epsilon_greedy(0.3, behavior.mixture(0.5)), 0.35 * OURS + 0.35 * THEIRS + 0.1),
        (behavior.tempered(0.5, behavior.student_acts()), OURS**2 / np.sum(OURS**2)),
        (behavior.tempered(0.5, behavior.mixture(1.0)), THEIRS**2 / np.sum(THEIRS**2)),
        (
            behavior.tempered(1e6, behavior.epsilon_greedy(0.0, behavior.student_acts())),
            [1 / 3] * 3,
        ),
    ],
    ids=lambda value: description.show(value) if hasattr(value, "act") else "",
)
def test_frequencies(made, p):
    assert_shares(act(made), p)


def test_a_teacher_is_needed_where_it_acts():
    needing = [behavior.teacher_acts(), behavior.mixture(0.5), behavior.guide_then_student(3)]
    alone = [behavior.student_acts(), behavior.random_acts(), behavior.epsilon_greedy(0.1)]
    wrap = [
        lambda inner: inner,
        partial(behavior.epsilon_greedy, 0.1),
        partial(behavior.tempered, 2.0),
    ]
    assert all(w(made).needs_teacher for w in wrap for made in needing)
    assert not any(w(made).needs_teacher for w in wrap for made in alone)


def test_greedy_ignores_the_key():
    for made in (
        behavior.student_acts(greedy=True),
        behavior.teacher_acts(greedy=True),
        behavior.epsilon_greedy(0.0),
    ):
        np.testing.assert_array_equal(act(made), act(made, key=jax.random.key(9)))
    for made in (behavior.student_acts(), behavior.random_acts(), behavior.epsilon_greedy(0.5)):
        assert np.any(act(made) != act(made, key=jax.random.key(9)))


# --- random actions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "made", [behavior.random_acts(), behavior.epsilon_greedy(1.0)], ids=["random", "epsilon"]
)
def test_an_illegal_action_is_never_taken(made):
    """Whatever the logits of the legal ones are, and different ones in every environment."""
    first = jnp.arange(N) % 2 == 0
    logits = jnp.where(
        first[:, None], jnp.array([[50.0, -1e9, -50.0]]), jnp.array([[-1e9, 0.0, -1e9]])
    )
    actions = act(made, Outputs(Categorical(logits)))
    assert np.all(actions[1::2] == 1) and set(actions[::2]) == {0, 2}
    assert abs(np.mean(actions[::2] == 0) - 0.5) < 5 * 0.5 / np.sqrt(N / 2)


def test_a_random_continuous_action_is_uniform_in_the_box():
    """[-1, 1]^2: mean 0, variance 1/3, dimensions uncorrelated, whole actions from one side."""
    student = Outputs(Normal(jnp.full((N, 2), 7.0), jnp.zeros((N, 2))))
    actions = act(behavior.random_acts(), student)
    assert actions.shape == (N, 2) and actions.dtype == np.float32 and np.abs(actions).max() <= 1
    np.testing.assert_allclose(actions.mean(0), 0, atol=5 * np.sqrt(1 / 3 / N))
    np.testing.assert_allclose(np.cov(actions.T), np.eye(2) / 3, atol=5 * 0.3 / np.sqrt(N))
    mixed = act(behavior.epsilon_greedy(0.25), student)
    random = np.all(np.abs(mixed) <= 1, axis=1)
    assert np.all(random | np.all(mixed == 7, axis=1)) and abs(random.mean() - 0.25) < 5 * np.sqrt(
        0.1875 / N
    )


# --- the guide -----------------------------------------------------------------------------------


def certain(action):
    return Outputs(Categorical(jnp.tile(jnp.where(jnp.arange(3) == action, 1e3, 0.0), (N, 1))))


@pytest.mark.parametrize(
    ("horizon", "steps"),
    [
        (0, 0),
        (3, 3),
        (2.5, 3),
        (lambda update, episode_return: 2 + update, 5),
        (lambda update, episode_return: episode_return / 2, 10),
    ],
    ids=["0", "3", "2.5", "by time", "by success"],
)
def test_the_guide_leaves_at_the_exact_step(horizon, steps):
    """Step 0 is the first of an episode: the teacher plays steps 0 to horizon - 1 of each
    environment, the student the rest.
    """
    now = context(np.arange(N) % 20, update=3, episode_return=20.0)
    actions = act(behavior.guide_then_student(horizon), certain(0), certain(1), now)
    np.testing.assert_array_equal(actions, np.arange(N) % 20 < steps)


def test_before_the_first_episode_the_return_is_below_any():
    """A horizon that compares with it must say what that means; where it is used bare, nothing is
    below -inf: the student acts.
    """
    now = context(episode_return=-np.inf)
    assert np.all(
        act(
            behavior.guide_then_student(lambda update, episode_return: episode_return),
            certain(0),
            certain(1),
            now,
        )
        == 0
    )
    until = lambda update, episode_return: jnp.where(episode_return > 9, 0, 5)
    assert np.all(act(behavior.guide_then_student(until), certain(0), certain(1), now) == 1)


def test_guide_and_student_are_sampled():
    """Neither is greedy."""
    now = context(np.arange(N) % 2)
    actions = act(behavior.guide_then_student(1), context=now)
    both = [np.bincount(actions[i::2], minlength=3) / (N / 2) for i in (0, 1)]
    np.testing.assert_allclose(both, [THEIRS, OURS], atol=5 * 0.5 / np.sqrt(N / 2))


# --- numbers -------------------------------------------------------------------------------------


def test_numbers_may_be_traced():
    """A grid of epsilons, temperatures and horizons is one vmap."""

    def actions(epsilon, horizon):
        made = behavior.tempered(
            epsilon + 0.5, behavior.epsilon_greedy(epsilon, behavior.guide_then_student(horizon))
        )
        return made.act(KEY, certain(0), certain(1), context())

    grid = np.asarray(
        jax.jit(jax.vmap(actions))(jnp.array([0.0, 0.0, 1.0]), jnp.array([0.0, 1.0, 0.0]))
    )
    assert np.all(grid[0] == 0) and np.all(grid[1] == 1)
    assert_shares(grid[2], [1 / 3] * 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: behavior.epsilon_greedy(1.5), r"epsilon must be in \[0, 1\], got 1.5"),
        (
            lambda: behavior.epsilon_greedy(0.1, behavior.student_acts),
            "behavior must be a Behavior",
        ),
        (lambda: behavior.guide_then_student(-1), r"horizon must be in \[0, inf\], got -1"),
        (
            lambda: behavior.tempered(0, behavior.student_acts()),
            r"temperature must be in \(0, inf\], got 0",
        ),
    ],
    ids=["epsilon", "behavior", "horizon", "temperature"],
)
def test_mistakes(call, message):
    with pytest.raises(UsageError, match=message):
        call()


@pytest.mark.parametrize("mask", [-1e9, -jnp.inf])
def test_heat_does_not_make_an_action_legal(mask):
    """Fault A7: tempered(11, random_acts()) took the masked action in a third of the steps."""
    student = Outputs(Categorical(jnp.broadcast_to(jnp.array([0.0, 1.0, mask]), (N, 3))))
    for made in (behavior.random_acts(), behavior.student_acts(), behavior.epsilon_greedy(0.5)):
        hot = behavior.tempered(11.0, made)
        action = act(hot, student)
        assert set(np.unique(action)) == {0, 1}, made
