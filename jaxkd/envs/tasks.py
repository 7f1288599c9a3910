"""Small problems in tokens whose answers a program judges: factories of `tokens.Task`, and the
environments that `envs.make` knows by these names.

Legend of shapes: `P` prompt, `C` answer with its end.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import check
from jaxkd.base import UsageError
from jaxkd.envs.dialogue import Dialogue
from jaxkd.envs.tokens import Task, TokenEnv

_DIGITS = tuple("0123456789")
_TRIES = 8  # expressions of which one is worth 0 to 99; the last one adds, and always is


def _exact(prompt: jax.Array, answer: jax.Array, written: jax.Array) -> jax.Array:
    return jnp.all(written == answer).astype(jnp.float32)


def _share(prompt: jax.Array, answer: jax.Array, written: jax.Array) -> jax.Array:
    """Of places that are right."""
    return jnp.mean((written == answer).astype(jnp.float32))


def _with_end(tokens: jax.Array, end: int) -> jax.Array:
    return jnp.concatenate([tokens, jnp.full(1, end)]).astype(jnp.int32)


def addition(digits: int = 3) -> Task:
    """a + b of so many digits; the sum's last digit comes first (Lee et al. 2023).

    "123+456=" is answered by "9750", reversed and with all places, and the end.

    >>> task = addition(3)
    >>> prompt, answer = task.draw(jax.random.key(0))
    >>> len(task.symbols), prompt.shape, answer.shape
    (14, (8,), (5,))
    """
    check.count("digits", digits)
    if digits > 8:
        raise UsageError(f"addition is of at most 8 digits (int32), got {digits}.")
    plus, equals, end = 10, 11, 13
    places = 10 ** np.arange(digits + 1, dtype=np.int32)  # no jax array: a device may come later

    def draw(key):
        a, b = jax.random.randint(key, (2,), 0, 10**digits)
        written = lambda x, number: x // places[:number] % 10  # the last digit first
        prompt = [written(a, digits)[::-1], jnp.full(1, plus), written(b, digits)[::-1]]
        prompt = jnp.concatenate([*prompt, jnp.full(1, equals)]).astype(jnp.int32)
        return prompt, _with_end(written(a + b, digits + 1), end)

    return Task(draw, _exact, (*_DIGITS, "+", "=", "_", "."), _share)


def sorting(length: int = 6) -> Task:
    """So many digits in rising order: "312=" is answered by "123" and the end.

    >>> sorting(6).draw(jax.random.key(0))[1].shape
    (7,)
    """
    check.count("length", length)

    def draw(key):
        given = jax.random.randint(key, (length,), 0, 10)
        return _with_end(given, 10), _with_end(jnp.sort(given), 11)

    return Task(draw, _exact, (*_DIGITS, "=", "."), _share)


def countdown(numbers: int = 3) -> Task:
    """An expression of the given numbers, each used once, that is worth the target, 0 to 99.

    In reverse Polish notation with + - *: "37219=" (3, 7, 2 and the target 19) is answered by
    "37*2-" and the end, or by anything else that is worth 19. Credit is given for an expression
    that uses each number once, whatever it is worth.

    Args:
        numbers: how many, each 1 to 9; 2 to 5.

    >>> countdown(3).draw(jax.random.key(0))[1].shape
    (6,)
    """
    check.count("numbers", numbers)
    if not 2 <= numbers <= 5:
        raise UsageError(f"countdown has 2 to 5 numbers, got {numbers}.")
    equals, end, least, most = 13, 15, 0, 99

    def one_try(key, added):
        """(numbers given, expression); with `added` all of them are added."""
        key_numbers, key_operations, key_order, key_form = jax.random.split(key, 4)
        given = jax.random.randint(key_numbers, (numbers,), 1, 10)
        drawn = jax.random.randint(key_operations, (numbers - 1,), 10, 13)
        operations = jnp.where(added, 10, drawn)
        form = _form(key_form, numbers)
        number = jax.random.permutation(key_order, given)[_count_before(form, numbers - 1)]
        operation = operations[_count_before(~form, numbers - 2)]
        return given, _with_end(jnp.where(form, number, operation), end)

    def draw(key):
        added = jnp.arange(_TRIES) == _TRIES - 1
        given, expressions = jax.vmap(one_try)(jax.random.split(key, _TRIES), added)
        values, _ = jax.vmap(lambda tokens: _value(tokens, end))(expressions)
        chosen = jnp.argmax((values >= least) & (values <= most))
        target = values[chosen]
        prompt = [given[chosen], jnp.stack([target // 10, target % 10]), jnp.full(1, equals)]
        return jnp.concatenate(prompt).astype(jnp.int32), expressions[chosen]

    def legal(prompt, answer, written):
        _, sound = _value(written, end)
        used = jnp.where(jnp.cumsum(written == end) > 0, end, written)
        count = lambda tokens: jnp.sum(jnp.arange(10)[:, None] == tokens[None], axis=1)
        once = jnp.all(count(used) == count(prompt[:numbers]))
        return (sound & once).astype(jnp.float32)

    def judge(prompt, answer, written):
        target = 10 * prompt[numbers] + prompt[numbers + 1]
        right = _value(written, end)[0] == target
        return legal(prompt, answer, written) * right.astype(jnp.float32)

    return Task(draw, judge, (*_DIGITS, "+", "-", "*", "=", "_", "."), legal)


def _form(key: jax.Array, numbers: int) -> jax.Array:
    """Where numbers stand in a random expression, bool [2 numbers - 1]; operations elsewhere.

    Of the rotations of n numbers and n - 1 operations exactly one is an expression, the one that
    begins behind the last least sum (the cycle lemma, Dvoretzky & Motzkin 1947).
    """
    length = 2 * numbers - 1
    number = jax.random.permutation(key, jnp.arange(length) < numbers)
    sums = jnp.cumsum(jnp.where(number, 1, -1))
    least = length - 1 - jnp.argmin(sums[::-1])
    return number[(jnp.arange(length) + least + 1) % length]


def _count_before(where: jax.Array, most: int) -> jax.Array:
    """The number of each place among those that are `where`, at most `most`."""
    return jnp.clip(jnp.cumsum(where) - 1, 0, most)


def _value(tokens: jax.Array, end: int) -> tuple[jax.Array, jax.Array]:
    """What an expression [C] up to its end is worth, int32 [], and whether it is one, bool []."""
    length = tokens.shape[0]
    place = jnp.arange(length)

    def read(state, token):
        stack, depth, sound, over = state
        over = over | (token == end)
        operation = (token >= 10) & (token <= 12)
        a, b = stack[jnp.maximum(depth - 2, 0)], stack[jnp.maximum(depth - 1, 0)]
        result = jnp.where(token == 10, a + b, jnp.where(token == 11, a - b, a * b))
        sound = sound & (over | (token < 10) | (operation & (depth >= 2)))
        after = jnp.where(operation, depth - 1, depth + 1)
        moved = jnp.where(place == after - 1, jnp.where(operation, result, token), stack)
        keep = over | ~sound
        return (jnp.where(keep, stack, moved), jnp.where(keep, depth, after), sound, over), None

    start = jnp.zeros(length, jnp.int32), jnp.int32(0), jnp.asarray(True), jnp.asarray(False)
    (stack, depth, sound, _), _ = jax.lax.scan(read, start, tokens)
    sound = sound & (depth == 1)
    return jnp.where(sound, stack[0], -1), sound


def sudoku(empty: int = 6) -> Task:
    """A 4x4 sudoku with so many empty cells: all 16 cells, row by row, and the end.

    The 288 grids are equally likely. Any grid that keeps the given cells is right; credit is the
    share of cells as in one of them.

    Args:
        empty: cells that are not given, "." in the prompt; 1 to 16.

    >>> prompt, answer = sudoku(6).draw(jax.random.key(0))
    >>> prompt.shape, answer.shape, int((prompt == 0).sum())
    ((17,), (17,), 6)
    """
    check.count("empty", empty)
    if empty > 16:
        raise UsageError(f"sudoku has 16 cells, got empty={empty}.")
    equals, end = 5, 6

    def draw(key):
        key_grid, key_rows, key_columns, key_symbols, key_empty = jax.random.split(key, 5)
        grid = jnp.asarray(_GRIDS)[jax.random.randint(key_grid, (), 0, len(_GRIDS))]
        grid = grid[_shuffled_bands(key_rows)][:, _shuffled_bands(key_columns)]
        cells = (1 + jax.random.permutation(key_symbols, 4))[grid - 1].reshape(-1)
        given = jax.random.permutation(key_empty, jnp.arange(16) >= empty)
        prompt = _with_end(jnp.where(given, cells, 0), equals)
        return prompt, _with_end(cells, end)

    def judge(prompt, answer, written):
        cells, clues = written[:16], prompt[:16]
        kept = jnp.all((clues == 0) | (clues == cells))
        grid = cells.reshape(4, 4)
        blocks = grid.reshape(2, 2, 2, 2).swapaxes(1, 2).reshape(4, 4)
        units = jnp.concatenate([grid, grid.T, blocks])  # [12, 4]
        whole = jnp.all(jnp.sort(units, axis=1) == jnp.arange(1, 5)[None])
        return (kept & whole & (written[16] == end)).astype(jnp.float32)

    return Task(draw, judge, (".", "1", "2", "3", "4", "=", "/"), _share)


# One of each class of grids that exchanging rows and columns within and of bands, and symbols,
# makes of each other: 3 x 96.
_GRIDS = tuple(
    tuple(tuple(map(int, row)) for row in grid.split())
    for grid in ("1234 3412 2143 4321", "1234 3412 2341 4123", "1234 3421 2143 4312")
)


def _shuffled_bands(key: jax.Array) -> jax.Array:
    """0 to 3 with the two pairs in random order, and so each pair, [4]."""
    swap = jax.random.randint(key, (3,), 0, 2)
    band = jnp.array([0, 0, 1, 1]) ^ swap[0]
    inside = jnp.array([0, 1, 0, 1]) ^ jnp.repeat(swap[1:], 2)
    return 2 * band + inside


NAMED = {
    "addition-2": partial(TokenEnv, "addition-2", addition(2)),
    "addition-3": partial(TokenEnv, "addition-3", addition(3)),
    "sorting-6": partial(TokenEnv, "sorting-6", sorting(6)),
    "countdown-3": partial(TokenEnv, "countdown-3", countdown(3)),
    "sudoku-4x4": partial(TokenEnv, "sudoku-4x4", sudoku(6)),
    "dialogue": Dialogue,
}
