"""The committed figures: made with today's settings, and at their gates."""

import copy
import json
from pathlib import Path

import gates
import pytest

from jaxkd.presets import PRESETS

NAMES = list(PRESETS)


@pytest.fixture(params=NAMES)
def named(request):
    return request.param, json.loads((gates.RESULTS / f"{request.param}.json").read_text())


def test_figures_belong_to_these_settings_and_reach_their_gates(named):
    name, result = named
    assert result["settings"]["digest"] == gates.settings(name)["digest"], "settings changed: run benchmarks/gates.py again"
    assert gates.gate(name, result) == result["failed"] == []
    number = 1 if PRESETS[name].channels else 10
    assert len(result["student"]["seeds"]) == len(result["control"]["seeds"]) == number
    assert sum(result["student"]["seeds"]) / number == pytest.approx(result["student"]["mean"])


def test_a_gate_can_fail():
    result = json.loads((gates.RESULTS / "CartPole-v1.json").read_text())
    for role in ("teacher", "student"):
        worse = copy.deepcopy(result)
        worse[role]["mean"] -= 20
        assert len(gates.gate("CartPole-v1", worse)) == 1


def test_readme_quotes_the_figures():
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    for name in ("CartPole-v1", "Acrobot-v1", "MountainCar-v0", "Pendulum-v1"):
        r = json.loads((gates.RESULTS / f"{name}.json").read_text())
        figures = (
            f"{r['the_teacher']['return']:.1f} | {r['student']['mean']:.1f} ({r['student']['worst']:.1f}) | {r['control']['mean']:.1f}"
        )
        assert f"| {name} | {figures} |" in readme


def test_readme_quotes_the_headline():
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    for row in json.loads((gates.protocol.RESULTS / "headline.json").read_text())["rows"].values():
        low, high = row["interval"]
        assert f"| {row['iqm']:.1f} [{low:.1f}, {high:.1f}] | {row['actor_parameters']:,} |" in readme
