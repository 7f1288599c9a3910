"""The same numbers as without what is done for XLA on a CPU."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import sharding
from jaxkd.cpu import grad, unrolled, where_any

pytestmark = pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="elsewhere both are the plain thing"
)


@pytest.mark.parametrize(
    "draw",
    [
        lambda key: jax.random.uniform(key, (7, 3)),
        lambda key: jax.random.normal(key, (5,)),
        lambda key: jax.random.gumbel(key),
        lambda key: jax.random.randint(key, (4, 2), 0, 1000),
        lambda key: jax.random.permutation(key, 33),
        lambda key: jax.random.bits(key, (9,), "uint8"),
        lambda key: jax.random.bits(key, (9,), "uint16"),
        lambda key: jax.random.uniform(jax.random.fold_in(key, 2**32 - 1)),
        lambda key: jax.random.key_data(jax.random.split(key, (3, 2))),
        lambda key: jax.vmap(lambda key: jax.random.categorical(key, jnp.arange(4.0)))(
            jax.random.split(key, 50)
        ),
    ],
)
def test_unrolled_threefry_has_the_same_bits(draw):
    keys = jax.vmap(jax.random.key)(jnp.array([0, 1, 2**31 - 1]))
    for found in (
        jax.jit(jax.vmap(draw))(unrolled(keys)),
        jnp.stack([draw(unrolled(key)) for key in keys]),
    ):
        np.testing.assert_array_equal(found, jax.vmap(draw)(keys))


def test_unrolled_threefry_has_the_same_bits_in_64():
    with jax.enable_x64(True):
        key = jax.random.key(3)
        np.testing.assert_array_equal(
            jax.random.bits(unrolled(key), (9,), "uint64"), jax.random.bits(key, (9,), "uint64")
        )
        np.testing.assert_array_equal(
            jax.random.normal(unrolled(key), (9,), "float64"),
            jax.random.normal(key, (9,), "float64"),
        )


def test_a_hash_of_a_hash_compiles_at_once():
    """Without the barriers this takes minutes on jax 0.11."""

    def draw(key):
        for _ in range(3):
            key = jax.random.split(key)[1]
        return jax.vmap(lambda key: jax.random.uniform(key, (4,))[0])(jax.random.split(key, 64))

    key = jax.random.key(0)
    start = time.perf_counter()
    found = jax.jit(draw)(unrolled(key))
    assert time.perf_counter() - start < 20
    np.testing.assert_array_equal(found, draw(key))


def test_other_keys_stay_as_they_are():
    for key in (jax.random.key(0, impl="rbg"), jax.random.PRNGKey(0), unrolled(jax.random.key(0))):
        assert unrolled(key) is key
    with jax.threefry_partitionable(False):
        assert unrolled(jax.random.key(0)).dtype == jax.random.key(0).dtype


def test_gradient_as_a_batch_of_one(key):
    weights = {"w": jax.random.normal(key, (8, 4)), "b": jnp.zeros(4)}
    x = jax.random.normal(jax.random.fold_in(key, 1), (16, 8))

    def loss(weights, x, key):
        noise = jax.random.normal(key, (16, 4))
        out = jnp.tanh(x @ weights["w"] + weights["b"][None] + noise)
        return jnp.mean(jnp.square(out)), {"mean": jnp.mean(out)}

    found, aux = grad(loss, has_aux=True)(weights, x, key)
    wanted, wanted_aux = jax.grad(loss, has_aux=True)(weights, x, key)
    for name in weights:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(aux["mean"], wanted_aux["mean"], rtol=1e-6)
    second = jax.grad(lambda w: jnp.sum(grad(lambda w: jnp.sum(w**3))(w)))(
        x
    )  # through it: learning rates that are learnt
    np.testing.assert_allclose(second, 6 * x, rtol=1e-5)


@pytest.mark.parametrize("wanted", [(False, False), (False, True)])
def test_a_side_that_nobody_wants_is_not_computed(wanted):
    zero, one = jnp.zeros(()), jnp.ones(())
    assert where_any(jnp.array(wanted), lambda: one, zero) == any(wanted)
    both = jax.vmap(lambda wanted: where_any(wanted, lambda: one, zero))(
        jnp.array([wanted, (True, True)])
    )
    np.testing.assert_array_equal(both, [any(wanted), 1])
    square = jax.grad(
        lambda x: where_any(jnp.array(wanted), lambda: x**2, x * x)
    )  # an environment that is differentiated
    assert square(3.0) == 6
    with jax.sharding.use_abstract_mesh(sharding.mesh(envs=2).abstract_mesh):
        assert (
            where_any(jnp.array(wanted), lambda: one, zero) == 1
        )  # a branch would have to ask every device
