"""Descriptions: what a factory was given, shown, as a JSON value, and made again."""

import json
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.base import Box, Discrete, LossTerm, Policy, UsageError
from jaxkd.description import (
    Description,
    Spec,
    described,
    keywords,
    name,
    plain,
    rebuild,
    show,
    spec,
)

SPEC = Spec(jax.ShapeDtypeStruct((4,), jnp.float32), Discrete(2))


class Seen(NamedTuple):
    camera: object
    speed: object = 1.0


def tanh(x):
    return 1.7159 * jnp.tanh(2 * x / 3)


@described
def term(temperature=1.0, *, weights=(), inner=None, fn=jnp.tanh, **more):
    """Its docstring."""
    return LossTerm(lambda key, spec: (), lambda params, student, batch, context: temperature)


@described
def outer(inner, *others):
    return term(7.0)


@described
def network(env, hidden, *, activation=nn.tanh, dtype=jnp.float32, module=None):
    return Policy(lambda key: (), lambda n: (), env, hidden)


@described
def wrapped(policy, value=1.0):
    return policy._replace(step=None)


@described
def select(policy, name):
    return policy._replace(step=None)


@described
def weight(power=1):
    def weighing(student, batch, context):
        return power

    return weighing


def test_a_description_names_everything_that_was_given():
    made = term(2.0, inner=term(), also=3).description
    assert made == Description(
        f"{__name__}:term",
        (
            ("temperature", 2.0),
            ("weights", ()),
            ("inner", term()),
            ("fn", jnp.tanh),
            ("also", 3),
        ),
    )
    assert made != term(2.0, inner=term(3.0), also=3).description
    assert hash(made) == hash(term(2.0, inner=term(), also=4).description)
    assert term.__doc__ == "Its docstring." and term.__name__ == "term"
    assert (
        keywords(outer(term(), 1, 2))["others"] == (1, 2) and name(outer(1)) == "outer"
    )  # the outermost is described
    assert name(LossTerm(None, None)) == "" and keywords(None) == {}


def test_a_description_may_hold_traced_values_and_arrays():
    seen = []

    def loss(temperature):
        made = term(temperature, weights=jnp.ones(3), inner=jax.random.key(0))
        seen.append((show(made), made.description == made.description, hash(made.description)))
        return temperature

    jax.grad(loss)(1.0)
    shown = "term(temperature=traced, weights=float32[3], inner=key<fry>[])"
    assert seen[0][:2] == (shown, True)
    assert term(weights=jnp.ones(3)).description == term(weights=np.ones(3)).description
    assert term(weights=jnp.ones(3)).description != term(weights=np.zeros(3)).description
    assert term(1).description != term(True).description


def local():
    def inside(student, batch):
        return 0.0

    return inside


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (term(), "term"),
        (term(2), "term(temperature=2)"),
        (outer(term(2.0), 1), "outer(inner=term(temperature=2.0), others=(1,))"),
        (term(fn=tanh), "term(fn=tanh)"),
        (term(fn=lambda x: x), "term(fn=lambda)"),
        (term(extra="x"), "term(extra='x')"),
        (weight(2), "weight(power=2)"),
        (local(), "local.inside"),
        (LossTerm(lambda key, spec: (), local()), "local.inside"),
        (Seen(1), "Seen(camera=1)"),
        (nn.Dense(2), "Dense(features=2)"),
        (term(jnp.float32(0.5), inner=jnp.bfloat16), "term(temperature=0.5, inner=bfloat16)"),
        (SimpleNamespace(obs_spec=1, action_space=2, name="CartPole"), "CartPole"),
        ({"a": [1, None]}, "{'a': (1, None)}"),
        (partial(tanh, 1), "partial(tanh)"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_show(value, words):
    assert show(value) == words


@pytest.mark.parametrize(
    "record",
    [
        term(),
        term(0.5, weights=[1, (2.0, "x", None, True)], inner=term(float("inf")), fn=tanh),
        term(np.float32(0.25), inner=jnp.int32(3), weights={"a": 1, "b": {"c": (1,)}}),
        outer(term(2.0), term(3.0), 1),
        network(SPEC, [8, 8], activation=nn.relu, dtype=jnp.bfloat16),
        network(
            SimpleNamespace(obs_spec=(1, {"cam/left": SPEC.obs_spec}), action_space=Box((2,))), 3
        ),
        network(Spec(Seen(SPEC.obs_spec, 2), Discrete(1), ("one", "two")), 1, module=nn.Dense(3)),
        network(SPEC, 8, module=nn.Sequential([nn.Dense(2), nn.relu])),
        network(SPEC, 8, activation=nn.LayerNorm, module=weight(2)),
        wrapped(network(SPEC, (8,)), 3.0),
    ],
    ids=lambda record: show(record)[:60],
)
def test_round_trip_through_json(record):
    again = rebuild(json.loads(json.dumps(plain(record.description), allow_nan=False)))
    assert type(again) is type(record) and again.description == record.description
    assert plain(again.description) == plain(record.description)


def test_a_function_comes_back_as_itself():
    """A9: an own tanh was saved by its name and came back as jnp.tanh."""
    for fn in (tanh, jnp.tanh, nn.relu, nn.tanh, jax.nn.gelu, jax.nn.silu, jnp.sin, nn.Dense):
        assert rebuild(plain(fn)) is fn
    assert plain(tanh) == {"function": f"{__name__}:tanh"}
    assert plain(nn.tanh)["function"].split(":")[0] in ("jax.nn", "jax.numpy")
    stranger = jax.jit(lambda x: x)
    stranger.__name__ = "tanh"
    with pytest.raises(UsageError, match="no importable name"):
        plain(stranger)


class Methods:
    def method(self, x):
        return x


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (lambda x: x, r"term\(fn=...\): lambda has no importable name"),
        (local(), "local.inside has no importable name"),
        (partial(tanh, 1), r"partial\(tanh\) has no importable name"),
        (Methods().method, "no bound method"),
        (Methods(), "no importable name"),
        (np, "no importable name"),
        (len, "a part of Python"),
        (jnp.ones(3), r"term\(fn=...\): an array or a traced value"),
        (jax.random.key(0), "an array or a traced value"),
        ({1: 2}, "no importable name"),
        (nn.Dense(2, kernel_init=lambda key, shape, dtype: 0), "kernel_init: .*lambda has no"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_cannot_be_written_down(value, words):
    with pytest.raises(UsageError, match=words) as raised:
        plain(term(fn=value))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"function": "os:system"}, "a part of Python"),
        ({"function": "builtins:exec"}, "a part of Python"),
        ({"function": "subprocess:run"}, "a part of Python"),
        ({"function": "jax.numpy:load"}, "has no 'load'"),
        ({"function": "jax.numpy:linalg"}, "has no 'linalg'"),
        ({"function": "jax.nn:nothing"}, "has no 'nothing'"),
        ({"function": "jax.nn:initializers.os"}, "has no 'initializers.os'"),
        ({"function": "jaxkd.run:jax.jit"}, "is not defined there"),
        ({"function": "jaxkd.policies:rebuild"}, "is not defined there"),
        ({"function": f"{__name__}:described"}, "is not defined there"),  # imported here
        ({"function": "jaxkd.nothing:x"}, "there is no 'x' in 'jaxkd.nothing'"),
        ({"function": "antigravity_of_mine:fly"}, "import antigravity_of_mine first"),
        ({"function": f"{__name__}:nothing"}, "there is no 'nothing'"),
        ({"function": "noname"}, "import noname first"),
        ({"function": ":"}, "import"),
        ({"factory": "jaxkd.run:run", "keywords": {}}, "no factory of described records"),
        ({"factory": f"{__name__}:tanh", "keywords": {"x": 1}}, "no factory of described"),
        ({"factory": f"{__name__}:weight", "keywords": {"x": 1}}, "has no keyword 'x'"),
        ({"record": f"{__name__}:Methods", "fields": {}}, "no NamedTuple"),
        ({"record": "flax.linen:relu", "fields": {}}, "no NamedTuple"),
        ({"code": "1 + 1"}, "no value of a description"),
        ({"float": "1e5"}, "no value of a description"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_file_names_nothing_else(value, words):
    with pytest.raises(UsageError, match=words):
        rebuild(value)


def test_what_a_policy_was_made_for():
    env = SimpleNamespace(obs_spec=SPEC.obs_spec, action_space=Discrete(2), name="X", tasks=("a",))
    assert spec(network(env, 1)) == spec(wrapped(network(env, 1))) == SPEC._replace(tasks=("a",))
    assert spec(select(network(env, 1), "x")) is None and spec(Policy(*[None] * 4)) is None
