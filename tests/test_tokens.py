"""Token environments: prompts, ends, weights, groups, hints; judges against plain Python."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import envs
from jaxkd.base import UsageError
from jaxkd.envs import tasks
from jaxkd.envs.tokens import Task, TokenEnv, demonstrations

CASES = 10_000


# --- judges -----------------------------------------------------------------------------------


def text_of(task, tokens):
    return task.text(np.asarray(tokens))


def plain_addition(prompt, answer):
    a, b = prompt.rstrip("=").split("+")
    return answer == str(int(a) + int(b)).zfill(len(a) + 1)[::-1]


def plain_sorting(prompt, answer):
    return answer == "".join(sorted(prompt.rstrip("=")))


def plain_countdown(prompt, answer):
    stack: list[Any] = []
    used = []
    for symbol in answer:
        if symbol.isdigit():
            used.append(symbol)
            stack.append(int(symbol))
        elif symbol in "+-*" and len(stack) >= 2:
            b, a = stack.pop(), stack.pop()
            stack.append({"+": a + b, "-": a - b, "*": a * b}[symbol])
        else:
            return False
    return sorted(used) == sorted(prompt[:3]) and stack == [int(prompt[3:5])]


def plain_sudoku(prompt, answer):
    if len(answer) != 16 or any(
        c not in (".", a) for c, a in zip(prompt[:16], answer, strict=True)
    ):
        return False
    rows = [answer[4 * i : 4 * i + 4] for i in range(4)]
    columns = ["".join(row[i] for row in rows) for i in range(4)]
    blocks = [rows[i][j : j + 2] + rows[i + 1][j : j + 2] for i in (0, 2) for j in (0, 2)]
    return all(set(unit) == set("1234") for unit in rows + columns + blocks)


JUDGES = {
    "addition": (tasks.addition(3), plain_addition),
    "sorting": (tasks.sorting(6), plain_sorting),
    "countdown": (tasks.countdown(3), plain_countdown),
    "sudoku": (tasks.sudoku(6), plain_sudoku),
}
every = pytest.mark.parametrize("name", JUDGES)


def cases(task):
    """Problems, and answers: right, with one or two other tokens, ended early, of others."""
    rng = np.random.default_rng(0)
    prompt, answer = jax.jit(jax.vmap(task.draw))(jax.random.split(jax.random.key(0), CASES))
    written, length = np.array(answer), answer.shape[1]
    for i in range(CASES // 4, CASES):
        kind = i % 3
        if kind == 0:  # of these, some countdowns are right by chance
            places = rng.integers(0, length, rng.integers(1, 3))
            written[i, places] = rng.integers(0, len(task.symbols), len(places))
        elif kind == 1:
            written[i, rng.integers(0, length) :] = task.end
        else:
            written[i] = written[rng.integers(0, CASES // 4)]
    for row in written:  # what an environment writes has nothing behind the end
        ended = np.flatnonzero(row == task.end)
        if len(ended):
            row[ended[0] :] = task.end
    return prompt, answer, jnp.asarray(written)


@every
def test_judges_as_plain_python_does(name):
    task, plain = JUDGES[name]
    prompt, answer, written = cases(task)
    graded = np.asarray(jax.jit(jax.vmap(task.judge))(prompt, answer, written))
    exact = [
        plain(text_of(task, p), text_of(task, w)) and task.end in w
        for p, w in zip(np.asarray(prompt), np.asarray(written), strict=True)
    ]
    np.testing.assert_array_equal(graded, np.float32(exact))
    assert np.all(graded[: CASES // 4] == 1) and 0.01 < graded[CASES // 4 :].mean() < 0.5
    near = jax.jit(jax.vmap(task.credit))(prompt, answer, written)
    assert np.all((near >= graded) | (name == "sudoku")) and 0 <= np.min(near) <= np.max(near) <= 1


def test_draws_are_spread_evenly():
    """All 288 grids of a sudoku; countdown's targets and forms; sums with and without carry."""
    draw = lambda task, n: jax.jit(jax.vmap(task.draw))(jax.random.split(jax.random.key(1), n))
    _, grids = draw(tasks.sudoku(6), 6000)
    found, counts = np.unique(np.asarray(grids), axis=0, return_counts=True)
    assert len(found) == 288 and counts.min() > 5 and counts.max() < 45
    prompts, expressions = draw(tasks.countdown(3), 4000)
    forms = {tuple(np.asarray(row[:5]) < 10) for row in expressions}
    assert len(forms) == 2 and len(np.unique(np.asarray(prompts[:, 3:5]), axis=0)) > 90
    prompts, answers = draw(tasks.addition(3), 2000)
    assert 0.45 < np.mean(np.asarray(answers[:, 3])) < 0.55  # the first digit of the sum
    assert abs(np.mean(np.asarray(prompts[:, 0])) - 4.5) < 0.3


# --- the environment ------------------------------------------------------------------------------


def played(env, answers, key, steps=None):
    """Acts with `answers` [T, B] from a reset on: TimeSteps [T, B] and the first observation."""
    env_state, obs = env.reset(key)
    step = jax.jit(env.step)
    rows, before = [], [obs]
    for t in range(steps or env.max_steps):
        env_state, row = step(jax.random.fold_in(key, t), env_state, answers(env_state, t))
        rows.append(row)
        before.append(row.obs)
    return jax.tree.map(lambda *x: np.stack(x), *rows), np.stack(before)


def test_one_episode_by_hand(key):
    """Prompt tokens are forced and weigh 0; the right answer earns 1 with its end."""
    env = envs.make("addition-3", num_envs=4)
    task = tasks.addition(3)
    assert (env.max_steps, env.action_space.n, env.obs_spec.shape) == (12, 14, ())

    def right(state, t):
        return state.answer[:, max(t - 7, 0)] if t >= 7 else jnp.full(4, 13)

    rows, tokens = played(env, right, key)
    np.testing.assert_array_equal(rows.weight[:, 0], [0] * 7 + [1] * 5)
    np.testing.assert_array_equal(rows.reward[:, 0], [0] * 11 + [1])
    np.testing.assert_array_equal(rows.terminated[:, 0], [0] * 11 + [1])
    assert not np.any(rows.truncated)
    prompt, answer = task.text(tokens[:8, 0]), task.text(rows.next_obs[7:, 0])
    assert plain_addition(prompt, answer) and prompt[3] == "+" and prompt[7] == "="
    assert np.all(tokens[12] < 10)  # the next episode has begun, with a digit


@pytest.mark.parametrize(("late", "grade"), [(7, 0.0), (9, 2 / 5)])
def test_an_early_end_and_partial_credit(late, grade, key):
    """What ends early is wrong; with credit=1 what is paid is the share of right places."""
    env = envs.make("addition-3", num_envs=8, credit=1.0)
    end = 13

    def ended(state, t):
        return jnp.where(t < late, state.answer[:, max(t - 7, 0)], end)

    rows, _ = played(env, ended, key, late + 1)
    assert np.all(rows.terminated[-1] == 1) and np.all(rows.terminated[:-1] == 0)
    zeros = rows.reward[-1]  # a place is right by chance where nothing is: none, the end is last
    np.testing.assert_allclose(
        zeros, grade + 1 / 5, atol=1e-6
    )  # the end in the last place is right


def test_groups_begin_alike_and_hints_show_the_answer(key):
    env = envs.make("addition-3", num_envs=6, group_size=3, privileged=True)
    right = lambda state, t: state.inner.answer[:, max(t - 7, 0)]
    env_state, obs = env.reset(key)
    tokens, hints = [obs["token"]], [obs["hint"]]
    for t in range(11):
        env_state, row = env.step(jax.random.fold_in(key, t), env_state, right(env_state, t))
        tokens.append(row.obs["token"])
        hints.append(row.obs["hint"])
    tokens, hints = np.stack(tokens), np.stack(hints)
    np.testing.assert_array_equal(tokens[:, :3], np.repeat(tokens[:, :1], 3, axis=1))
    assert np.any(tokens[:, 0] != tokens[:, 3])
    np.testing.assert_array_equal(hints[:4], tokens[8:])
    assert np.all(hints[4:] == 13)


def test_prompts_of_different_lengths(key):
    """Filled up with the end; each is forced as long as it lasts."""

    def draw(key):
        length = 1 + jax.random.randint(key, (), 0, 3)
        return jnp.where(jnp.arange(3) < length, 0, 2), jnp.array([1, 2])

    judge = lambda prompt, answer, written: jnp.float32(jnp.all(written == answer))
    env = envs.make(TokenEnv("short", Task(draw, judge, ("a", "b", "."))), num_envs=16)
    length = np.asarray(jnp.sum(env.reset(key)[0].prompt == 0, axis=1))
    right = lambda state, t: jnp.where(state.time + 1 == length, 1, 2)
    rows, tokens = played(env, right, key)
    assert env.max_steps == 4 and set(length) == {1, 2, 3}
    for i, own in enumerate(length):
        np.testing.assert_array_equal(rows.weight[: own + 1, i], [0] * (own - 1) + [1, 1])
        np.testing.assert_array_equal(rows.reward[: own + 1, i], [0] * own + [1])
        np.testing.assert_array_equal(tokens[: own + 1, i], [0] * own + [1])


@every
def test_demonstrations_are_what_the_environment_pays_for(name):
    task, _ = JUDGES[name]
    rows = demonstrations(task, jax.random.key(0), 50)
    env = TokenEnv("x", task)
    P, C = env.prompt_length, env.answer_length
    assert {x.shape for x in rows.values()} == {(P - 1 + C, 50)}
    np.testing.assert_array_equal(
        rows["action"][:-1][rows["weight"][1:] > 0], rows["obs"][1:][rows["weight"][1:] > 0]
    )
    answers = np.asarray(rows["action"][P - 1 :]).T
    prompts = np.asarray(rows["obs"][:P]).T
    graded = jax.vmap(task.judge)(jnp.asarray(prompts), jnp.asarray(answers), jnp.asarray(answers))
    assert np.all(graded == 1) and np.all(rows["reset"][0] == 1) and rows["reset"].sum() == 50


# --- a dialogue -----------------------------------------------------------------------------------


def test_a_dialogue_by_hand(key):
    """Without noise: ask for three slots, offer three values; 6 turns cost 0.3."""
    env = envs.make("dialogue", num_envs=3, noise=0.0)
    ask = lambda state, t: jnp.full(3, t) if t < 3 else 27 + state.goal[:, t - 3]
    rows, obs = played(env, ask, key, 6)
    np.testing.assert_allclose(rows.reward.sum(axis=0), 0.7, atol=1e-6)
    assert np.all(rows.terminated[5] == 1) and not np.any(rows.terminated[:5])
    heard = obs[1:4, :, 3:11].argmax(-1)  # three requests, three answers
    again = env.reset(key)[0].goal
    np.testing.assert_array_equal(heard, np.asarray(again).T)
    assert np.all(obs[4:6, :, 0] == 1)  # silent once an offer has begun
    confirm = lambda state, t: 3 + 8 + (state.goal[:, 1] + t) % 8
    _, obs = played(env, confirm, key, 2)
    assert np.all(obs[1, :, 1] == 1) and np.all(obs[2, :, 2] == 1)  # yes, no


def test_a_dialogue_is_noisy_and_ends(key):
    env = envs.make("dialogue", num_envs=2000)
    rows, obs = played(env, lambda state, t: jnp.full(2000, 0), key, 20)
    assert np.all(rows.truncated[19] == 1) and not np.any(rows.terminated)
    heard = obs[1:20, :, 3:11].argmax(-1)
    agree = (heard == np.median(heard, axis=0)[None]).mean()
    assert 0.88 < agree < 0.92
    wrong = lambda state, t: 27 + (state.goal[:, t] + (t == 1)) % 8
    rows, _ = played(env, wrong, key, 3)
    np.testing.assert_allclose(rows.reward.sum(axis=0), -0.15, atol=1e-6)


# --- errors ---------------------------------------------------------------------------------------


def test_errors():
    fine = tasks.addition(1)
    with pytest.raises(UsageError, match=r"judge of task 'x' must give one number.*got \(3,\)"):
        TokenEnv("x", fine._replace(judge=lambda prompt, answer, written: written == answer))
    with pytest.raises(UsageError, match=r"draw of task 'x' must give \(prompt \[P\], answer"):
        TokenEnv("x", fine._replace(draw=lambda key: jnp.zeros(3, jnp.int32)))
    with pytest.raises(UsageError, match="Did you mean 'addition-3'"):
        envs.make("adition-3", 2)
    with pytest.raises(UsageError, match="countdown has 2 to 5 numbers, got 9"):
        tasks.countdown(9)
    with pytest.raises(UsageError, match="'addition-3' does not take hint"):
        envs.make("addition-3", 2, hint=True)
    assert {"addition-3", "sorting-6", "countdown-3", "sudoku-4x4", "dialogue"} < set(envs.ids())
