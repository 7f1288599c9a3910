"""`check_env` finds what is planted, and of gymnax's environments what is known."""

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import cli
from jaxkd.base import Discrete
from jaxkd.envs import checking

SPACE = SimpleNamespace(shape=(2,), dtype=jnp.float32, low=-10.0, high=30.0)


class Place(NamedTuple):
    x: Any
    time: Any


class Walk:
    """Three actions on a line; beyond 3 it ends, after 20 steps it is cut."""

    name = "Walk"

    def action_space(self, params=None):
        return Discrete(3)

    def observation_space(self, params=None):
        return SPACE

    def obs(self, state):
        return jnp.stack([state.x, state.time.astype(jnp.float32)])

    def reset_env(self, key, params=None):
        state = Place(jax.random.uniform(key, minval=-1.0), jnp.int32(0))
        return self.obs(state), state

    def step_env(self, key, state, action, params=None):
        state = Place(state.x + action - 1.0, state.time + 1)
        state = state._replace(x=state.x.astype(jnp.float32))
        return self.obs(state), state, -jnp.abs(state.x), jnp.abs(state.x) > 3, {}

    def is_truncated(self, state, params=None):
        return state.time >= 20


def stepping(change):
    """A Walk whose step gives what `change(self, key, before, action, ended)` makes of it."""

    class Changed(Walk):
        def step_env(self, key, state, action, params=None):
            return change(self, key, state, action, super().step_env(key, state, action))

    return Changed()


def beginning(change):
    """A Walk whose reset gives what `change(self, key, first)` makes of it."""

    class Changed(Walk):
        def reset_env(self, key, params=None):
            return change(self, key, super().reset_env(key))

    return Changed()


def replaced(i, make):
    return lambda self, key, state, action, ended: (
        *ended[:i],
        make(ended[i], ended[1]),
        *ended[i + 1 :],
    )


def with_attributes(**attributes):
    return type("Changed", (Walk,), attributes)()


def mutate(self, key, state, action, params=None):
    x = state["x"] = state["x"] + action - 1.0
    time = state["time"] = state["time"] + 1
    return jnp.stack([x, time.astype(jnp.float32)]), dict(state), -x, jnp.abs(x) > 3, {}


def of_a_dict(**attributes):
    first = lambda self, key, params=None: (
        jnp.zeros(2),
        {"x": jax.random.normal(key), "time": jnp.int32(0)},
    )
    cut = lambda self, state, params=None: state["time"] >= 20
    return with_attributes(reset_env=first, is_truncated=cut, **attributes)


def count(self, key, state, action, ended):
    self.calls = getattr(self, "calls", 0) + 1
    return ended


def leak(self, key, state, action, ended):
    self.last = ended[2]
    return ended


def twice(self, key, state, action, ended):
    noise = jax.random.normal(key) * jax.random.uniform(key)
    return *ended[:2], ended[2] + noise, *ended[3:]


def from_numpy(self, key, state, action, ended):
    return *ended[:2], ended[2] + np.random.default_rng().normal(), *ended[3:]


def stands(self, key, state, action, ended):
    return Walk.step_env(self, key, state, jnp.int32(2))


def in_done(self, key, state, action, ended):
    return *ended[:3], (ended[3] | (ended[1].time >= 20)), {}


def in_python(self, key, state, action, ended):
    return ended if state.x > 0 else ended


def in_half(self, key, params=None):
    obs, state = Walk.reset_env(self, key)
    return obs, state._replace(x=state.x.astype(jnp.float16))


def never(self, key, state, action, params=None):
    return *Walk.step_env(self, key, state, action)[:3], jnp.asarray(False), {}


PLANTED = {  # a Walk with one fault: the names of what is found
    "interface: no methods": (object(), "interface"),
    "interface: no action space": (with_attributes(action_space=None), "interface"),
    "interface: five values": (
        stepping(lambda self, key, state, action, ended: ended[:4]),
        "interface",
    ),
    "interface: shapes": (stepping(replaced(0, lambda obs, _: obs[:1])), "interface"),
    "interface: if": (stepping(in_python), "interface"),
    "interface: a reward for each": (
        stepping(replaced(2, lambda reward, _: jnp.stack([reward, reward]))),
        "interface",
    ),
    "interface: text in the state": (
        beginning(lambda self, key, first: (first[0], ("text", first[1]))),
        "interface",
    ),
    "raises": (stepping(replaced(0, lambda obs, _: obs @ jnp.zeros((3, 3)))), "raises"),
    "purity: numpy's random numbers": (stepping(from_numpy), "purity"),
    "mutation": (of_a_dict(step_env=mutate), "mutation"),
    "key reuse": (stepping(twice), "key reuse"),
    "dtype": (with_attributes(reset_env=in_half), "dtype"),
    "weak type": (
        beginning(lambda self, key, first: (first[0], first[1]._replace(x=0.5))),
        "weak type",
    ),
    "space: shape": (
        with_attributes(
            observation_space=lambda self, params: SimpleNamespace(shape=(3,), dtype=jnp.float32)
        ),
        "space",
    ),
    "space: dtype": (
        with_attributes(
            observation_space=lambda self, params: SimpleNamespace(shape=(2,), dtype=jnp.int32)
        ),
        "space",
    ),
    "bounds": (
        with_attributes(
            observation_space=lambda self, params: SimpleNamespace(
                shape=(2,), dtype=jnp.float32, low=-1.0, high=1.0
            )
        ),
        "bounds",
    ),
    "one start": (
        beginning(lambda self, key, first: (first[0] * 0, Place(jnp.float32(0), jnp.int32(0)))),
        "one start",
    ),
    "finite: reward": (
        stepping(replaced(2, lambda reward, state: jnp.where(state.time == 3, jnp.inf, reward))),
        "finite",
    ),
    "finite: observation": (
        stepping(replaced(0, lambda obs, state: obs.at[0].set(jnp.sqrt(state.x)))),
        "finite",
    ),
    "done": (stepping(replaced(3, lambda done, _: 0.5 * done)), "done"),
    "time limit": (stepping(in_done), "time limit"),
    "endless": (
        with_attributes(
            is_truncated=lambda self, state, params=None: False,
            step_env=never,
        ),
        "endless",
    ),
    "action": (stepping(stands), "action"),
    "one observation": (
        stepping(replaced(0, lambda obs, _: jnp.zeros_like(obs))),
        "one observation",
    ),
    "kept state": (stepping(count), "kept state"),
    "leak": (stepping(leak), "leak"),
}


def found(environment, **given):
    return checking.check_env(environment, num_steps=64, num_envs=8, **given)


def test_the_command(capsys, tmp_path, monkeypatch):
    (tmp_path / "mazes.py").write_text(
        "from test_check_env import Walk\n"
        "class Maze(Walk):\n"
        "    name = 'Maze'\n"
        "    def observation_space(self, params): return None\n"
    )
    monkeypatch.chdir(tmp_path)
    assert cli.main(["check-env", "mazes:Maze", "--steps", "32"]) == 0
    assert capsys.readouterr().out.endswith("mazes:Maze: no faults\n")
    for given, said in (
        ("mazes:Labyrinth", "module 'mazes' has no 'Labyrinth'"),
        ("labyrinths:Maze", "'labyrinths' cannot be imported"),
        ("Maze", "unknown environment 'Maze'"),
    ):
        assert cli.main(["check-env", given]) == 2
        assert said in capsys.readouterr().err


def test_a_sound_environment_has_no_fault():
    assert found(Walk()) == ()


QUICK = ("interface: if", "purity: numpy's random numbers", "time limit", "kept state")


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in PLANTED],
)
def test_a_planted_fault_is_found(name):
    environment, wanted = PLANTED[name]
    faults = found(environment)
    assert wanted in {fault.name for fault in faults}, faults
    fault = next(fault for fault in faults if fault.name == wanted)
    assert "\n" not in fault.cause + fault.fix and fault.fix
    others = {fault.name for fault in faults if fault.grave} - {wanted}
    assert not others, faults


WEAK, ONE = "weak type", "one start"  # a clock that is a Python 0; the same beginning each time
# Of 4 x 32 random steps. Asterix ([WEAK, ONE]), Freeway ([WEAK]), Seaquest ([ONE]) take too long.
KNOWN = {
    "CartPole-v1": [WEAK],
    "Pendulum-v1": [WEAK],
    "Acrobot-v1": [],
    "MountainCar-v0": [WEAK],
    "MountainCarContinuous-v0": [WEAK],
    "Breakout-MinAtar": [WEAK],
    "SpaceInvaders-MinAtar": [WEAK, ONE],
    "Catch-bsuite": ["space"],  # float32 where the space says int32
    "DeepSea-bsuite": [WEAK, ONE],
    "MemoryChain-bsuite": ["bounds"],  # a cue of -1, the space begins at 0
    "UmbrellaChain-bsuite": [WEAK],
    "DiscountingChain-bsuite": [WEAK, ONE],
    "SimpleBandit-bsuite": [WEAK, "one observation"],
    "FourRooms-misc": [WEAK, "space", ONE],  # int32 where the space says float32
    "MetaMaze-misc": [WEAK],
    "PointRobot-misc": [WEAK],
    "BernoulliBandit-misc": [WEAK],
    "GaussianBandit-misc": [WEAK, "bounds"],  # rewards below 0 are seen
    "Reacher-misc": [WEAK],
    "Swimmer-misc": [WEAK],
    "Pong-misc": [WEAK, ONE],
    "FrozenLake-misc": [WEAK, ONE],
    "addition-2": ["space"],  # none
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN)
def test_gymnax_has_the_known_quirks(name):
    faults = checking.check_env(name, num_steps=32, num_envs=4)
    assert [fault.name for fault in faults] == KNOWN[name]
    assert not any(fault.grave for fault in faults)
