"""Speed as ratios, which any machine can check: the engine against the floor of its parts, and the
size of the programs that are compiled.
"""

import jax
import pytest
import throughput

import jaxkd
from jaxkd import presets

# Lines of StableHLO of one PPO update of a preset's teacher: what tracing and compiling take time
# for. A third more is a change to look at.
# 700 to 1000 of them are the hash of cpu.py, once for each shape it is called with.
LINES = {
    "CartPole-v1": 3516,
    "Acrobot-v1": 4613,
    "MountainCar-v0": 3645,
    "Pendulum-v1": 3284,
    "Catch-bsuite": 3422,
    "Breakout-MinAtar": 3805,
}


@pytest.mark.parametrize("name", LINES)
def test_programs_stay_small(name, key):
    p = presets.preset(name)
    env = presets.make_env(name, p)
    algorithm, _ = presets.teaching(env, presets.teacher_network(env, p), p)
    lines = jax.jit(algorithm.step).lower(jax.eval_shape(algorithm.init, key)).as_text().count("\n")
    assert 0.5 * LINES[name] < lines < 1.33 * LINES[name], lines


@pytest.mark.slow
def test_the_engine_stays_near_its_floor():
    """Measured alone: see benchmarks/results/speed/throughput.json; here beside other tests, so far
    below that is a regression.
    """
    sources = throughput.parts(jaxkd.envs.make("CartPole-v1", 64), 1)
    wanted = {name for floor in throughput.FLOOR.values() for name in floor} | set(throughput.FLOOR)
    seconds, _ = throughput.measure(
        {name: source for name, source in sources.items() if name in wanted}
    )
    for name, floor in throughput.FLOOR.items():
        assert throughput.ratio(sum(seconds[part] for part in floor), seconds[name]) > 0.5, name
