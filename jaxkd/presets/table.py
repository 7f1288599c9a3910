"""Settings that work, one row an environment."""

from typing import NamedTuple

from jaxkd import envs
from jaxkd.base import Box
from jaxkd.envs.tasks import NAMED
from jaxkd.envs.tokens import TokenEnv


class Preset(NamedTuple):
    """How to train a teacher with PPO, and how to distil it; steps are those of one seed."""

    num_envs: int = 64
    unroll_length: int = 32
    num_epochs: int = 4
    num_minibatches: int = 4
    learning_rate: float = 3e-3  # decays linearly to 0
    gamma: float = 0.99
    lambda_: float = 0.95
    entropy: float = 0.01
    normalise_obs: bool = False
    normalise_reward: bool = False
    enlarge_reward: bool = True  # normalised; False only makes rewards smaller
    num_steps: int = 250_000
    hidden: tuple[int, ...] = (64, 64)  # of an MLP, actor and critic apart
    channels: tuple[int, ...] = ()  # of a CNN with dense layers `hidden`, one torso
    blocks: tuple[int, ...] = ()  # of a transformer: layers, width, heads; it imitates answers
    student_steps: int = 100_000
    student_epochs: int = 4
    student_learning_rate: float = 3e-3  # decays linearly to 0
    gate: float | None = None  # mean greedy return that the teacher reaches over 10 seeds
    sticky: float = 0.0  # probability that an action is repeated, in training and in judging


_MINATAR = Preset(
    unroll_length=128,
    num_minibatches=8,
    learning_rate=1e-3,
    num_steps=1_500_000,
    hidden=(128,),
    channels=(16,),
    student_steps=4_000_000,  # with 1M and a rate of 1e-3 Breakout's student keeps half
    student_epochs=2,
    sticky=0.1,
)

_SWING = Preset(
    num_envs=32,
    unroll_length=64,
    num_epochs=8,
    num_minibatches=8,
    learning_rate=1e-3,
    entropy=0.0,
    normalise_reward=True,
)

PRESETS: dict[str, Preset] = {
    "CartPole-v1": Preset(normalise_reward=True, gate=500.0),
    "Acrobot-v1": Preset(
        num_envs=32,
        unroll_length=64,
        learning_rate=2e-3,
        entropy=0.005,
        normalise_obs=True,
        normalise_reward=True,
        num_steps=400_000,
        gate=-83.0,
    ),
    "MountainCar-v0": Preset(
        num_envs=16,
        unroll_length=128,
        num_epochs=8,
        num_minibatches=8,
        learning_rate=4e-3,
        lambda_=0.98,
        entropy=0.0,
        normalise_obs=True,
        normalise_reward=True,
        num_steps=300_000,
        student_steps=250_000,
        gate=-112.0,
    ),
    "Pendulum-v1": _SWING._replace(gamma=0.95, gate=-185.0),
    "MountainCarContinuous-v0": Preset(
        num_envs=16,
        unroll_length=256,
        num_epochs=8,
        num_minibatches=8,
        learning_rate=1e-3,
        gamma=0.999,
        entropy=0.0,
        normalise_obs=True,
        normalise_reward=True,
        num_steps=300_000,
        gate=92.0,
    ),
    "Catch-bsuite": Preset(unroll_length=16, num_steps=100_000, gate=1.0),
    "FourRooms-misc": Preset(normalise_obs=True, num_steps=150_000),
    # With a learning rate of 1e-3 it stays at 7.0.
    "Breakout-MinAtar": _MINATAR._replace(learning_rate=5e-3),
    "SpaceInvaders-MinAtar": _MINATAR,
    "Freeway-MinAtar": _MINATAR._replace(student_steps=2_000_000),
    "Asterix-MinAtar": _MINATAR._replace(num_steps=3_000_000),
}


# Return of a random policy, "random" in benchmarks/results/gates/*.json.
RANDOM_RETURNS: dict[str, float] = {
    "CartPole-v1": 22.5,
    "Acrobot-v1": -499.5,
    "MountainCar-v0": -200.0,
    "Catch-bsuite": -0.6,
}


# Of an environment that has no row, by its kind of actions.
_DISCRETE = Preset(
    normalise_obs=True,
    normalise_reward=True,
    enlarge_reward=False,  # DeepSea's costs hide its treasure, see benchmarks/NOTES.md
    num_steps=500_000,
    student_steps=1_600_000,  # an LSTM of MetaMaze keeps .66 with 400k
)
_CONTINUOUS = _SWING._replace(normalise_obs=True, num_steps=2_000_000, student_steps=2_000_000)

# Of a problem in tokens: what a transformer takes to imitate right answers. Newer than its
# evidence: no return has been measured.
_TOKENS = Preset(
    num_envs=128,
    num_epochs=1,
    num_minibatches=1,
    learning_rate=2e-3,
    blocks=(2, 64, 4),
    student_epochs=1,
    student_learning_rate=5e-3,
)
_UPDATES = 2000  # of teacher and student there


def preset(name: str) -> Preset:
    """The preset of an environment id; for any other the default of discrete or of continuous
    actions, for a problem in tokens a transformer and rollouts of whole episodes.

    Raises:
        UsageError: there is no such environment.

    >>> preset("CartPole-v1").gate, preset("addition-3").unroll_length
    (500.0, 12)
    >>> preset("Reacher-misc").num_steps
    2000000
    """
    if name in PRESETS:
        return PRESETS[name]
    problem = NAMED[name]() if name in NAMED else None
    if isinstance(problem, TokenEnv):
        length = problem.default_params.max_steps_in_episode
        steps = _UPDATES * _TOKENS.num_envs * length
        return _TOKENS._replace(unroll_length=length, num_steps=steps, student_steps=steps)
    return _CONTINUOUS if isinstance(envs.make(name, 1).action_space, Box) else _DISCRETE
