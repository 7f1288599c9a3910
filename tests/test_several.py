"""Several students, a grid, a budget, devices: one call of the command."""

import io
import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
from jax.experimental.compilation_cache import compilation_cache

import jaxkd
from jaxkd import methods, presets
from jaxkd.base import UsageError
from jaxkd.cli import grid, main, pace, plan, training, work
from jaxkd.presets.settings import paid_by_teacher, supervision
from jaxkd.report import several

SIZES = (
    "--seeds 2 --steps 1024 --student-steps 512 --episodes 8 --quiet --no-cache --no-report".split()
)
NINE = "--set num_envs=9 --set num_minibatches=3".split()
SMALL = "--set num_envs=8 --set unroll_length=16 --set hidden=8 --set num_epochs=1".split()


def distil(folder: Path, *arguments: str, sizes=SIZES) -> dict:
    """The summary of a run."""
    asked = ["distill", "CartPole-v1", *sizes, "--out", str(folder), *arguments]
    assert main(asked) == 0
    return json.loads((folder / "summary.json").read_text())


# --- what is asked for --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("auto:1/15", ["auto:1/15"]),
        ("1/15,1/30,0.01", ["1/15", "1/30", "0.01"]),
        ("mlp:32,32", ["mlp:32,32"]),
        (
            "mlp:32,32,mlp:8,auto:1/15,1/30,cnn:4,32",
            ["mlp:32,32", "mlp:8", "auto:1/15", "1/30", "cnn:4,32"],
        ),
    ],
)
def test_students_are_told_apart_from_layers(text, wanted):
    assert plan._NEXT_STUDENT.split(text) == wanted


def test_points_are_all_combinations():
    assert grid.points([]) == [{}]
    assert grid.points(["a=1,2", "b=3"]) == [{"a": 1.0, "b": 3.0}, {"a": 2.0, "b": 3.0}]
    assert grid.in_words({"a": 1e-3, "b": 2.0}) == "a=0.001, b=2"


@pytest.mark.parametrize(
    "options, message",
    [
        (["a"], "takes NAME=NUMBER,NUMBER"),
        (["a="], "takes NAME=NUMBER,NUMBER"),
        (["a=1,x"], "takes NAME=NUMBER,NUMBER"),
        (["a=nan"], "takes NAME=NUMBER,NUMBER"),
        (["a=1,1"], "given twice"),
        (["a=1", "a=2"], "given twice"),
        ([f"{name}={','.join(map(str, range(11)))}" for name in "abc"], "1331 points"),
    ],
)
def test_a_grid_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        grid.points(options)


def test_what_can_be_swept_is_what_the_training_reads():
    chosen = presets.preset("CartPole-v1")
    env = presets.make_env("CartPole-v1", chosen)
    known = grid.sweepable("it", methods.on_policy_distillation, supervision, env, chosen)
    assert known.fields == {"student_learning_rate"}
    assert known.keywords == {"beta", "temperature"}
    assert grid.renamed("learning_rate", known) == "student_learning_rate"
    both = grid.sweepable("it", methods.n_distillation, paid_by_teacher, env, chosen)
    assert {"learning_rate", "gamma", "lambda_", "entropy"} <= both.fields
    assert grid.renamed("learning_rate", both) == "learning_rate"
    grid.check_names({"learning_rate": 1.0, "temperature": 2.0}, known)
    with pytest.raises(UsageError, match="gamma: it does not read it. What can be swept here: be"):
        grid.check_names({"gamma": 1.0}, known)
    with pytest.raises(UsageError, match="every value compiles another.*--set hidden="):
        grid.check_names({"hidden": 1.0}, known)


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["--student", "mlp:4,mlp:4"], 2, "names one twice"),
        (["--student", "mlp:4,mlp:8", "--grid", "temperature=1,2"], 2, "do not go together"),
        (["--student", "mlp:4,tiny"], 2, "student must be auto:1/15"),
        (["--grid", "temperature=1,-1"], 2, "temperature must be in"),
        (["--grid", "num_envs=8,16"], 2, "--set num_envs="),
        (["--budget", "1y"], 2, "--budget takes a time such as 60s"),
        (["--budget", "0s"], 2, "--budget takes a time such as 60s"),
        (["--budget", "60s", "--steps", "4096"], 2, "Leave out --steps"),
        (["--devices", "0"], 2, "--devices must be a positive int"),
        (["--devices", "2", "--seeds", "3", *NINE], 2, "cannot be divided"),
        (["--devices", "100000"], 3, "--devices 100000: jax finds"),
    ],
)
def test_what_is_refused(arguments, code, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["distill", "CartPole-v1", "--no-cache", *arguments]) == code
    said = capsys.readouterr().err
    assert message in said and said.startswith("error: ") and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_second_student_has_the_keys_of_the_first():
    keys = jaxkd.seeds(0, 2)
    data = lambda phase: jax.random.key_data(training.phase_keys(keys, phase)).tolist()
    assert data("student-2") == data("student") != data("control-2") == data("control")


def test_lanes_of_a_grid_are_points_of_seeds():
    points = grid.points(["a=1,2"])
    course = work.Course(jaxkd.base.Algorithm(None, None), 1, 1, None, points)
    made = work.together(course, jaxkd.seeds(0, 3), [{"w": jnp.arange(3.0)}], shared=False)
    teacher, point = made.inputs
    np.testing.assert_array_equal(teacher["w"], [0, 1, 2, 0, 1, 2])
    np.testing.assert_array_equal(point["a"], [1, 1, 1, 2, 2, 2])
    shared = work.together(course, jaxkd.seeds(0, 3), [{"w": jnp.ones(2)}], shared=True)
    assert shared.inputs[0]["w"].shape == (6, 2)
    assert work._names(course, 2) == ["0 (a=1)", "1 (a=1)", "0 (a=2)", "1 (a=2)"]


@pytest.mark.parametrize(
    "devices, lanes, envs, axes",
    [(2, 4, 8, {"seeds": 2}), (2, 3, 8, {"envs": 2}), (1, 3, 7, None)],
)
def test_seeds_are_spread_first(devices, lanes, envs, axes):
    mesh = work.mesh_of(devices, lanes, envs)
    assert (mesh and dict(mesh.shape)) == axes


def test_a_budget_is_a_time():
    assert [plan.budget_seconds(text) for text in ("60s", "60", "1.5m", "2h")] == [60, 60, 90, 7200]
    for text in ("", "-1s", "0", "1 s", "s", "1e3"):
        with pytest.raises(UsageError, match="takes a time"):
            plan.budget_seconds(text)


# --- what is said -------------------------------------------------------------------------------


def row(size: int, iqm: float | None, kept: float | None = None, **more) -> dict:
    scores = dict(iqm=iqm, interval=[iqm and iqm - 1, iqm and iqm + 1])
    made = dict(network=f"mlp:{size}", actor_parameters=size, actor_bytes=4 * size, kept=kept)
    return scores | made | dict(sampled=scores) | more


SUMMARY = {
    "env": "CartPole-v1",
    "teacher": row(4000, 500.0, 1.0),
    "student": row(300, 499.0, 0.99),
    "control": row(300, 300.0, 0.6),
    "student-2": row(30, 480.0, 0.96),
    "control-2": row(30, 100.0, 0.2),
    "student-3": row(8, 200.0, 0.4),
    "control-3": row(8, None),
    "random": {"mean": 20.0, "interval": [19.0, 21.0]},
}


def shown(summary: dict) -> str:
    to = rich.console.Console(file=io.StringIO(), width=128)
    several.show(summary, to)
    return to.file.getvalue()


def test_the_smallest_student_that_is_enough_is_named():
    said = shown(SUMMARY)
    assert "the smallest student that keeps 95 % of the teacher's return: mlp:30, 30" in said
    assert [size in said for size in ("mlp:300", "mlp:30", "mlp:8")] == [True] * 3
    nobody = {
        name: x | {"kept": None} if "kept" in x else x
        for name, x in SUMMARY.items()
        if name != "env"
    }
    assert "no student keeps 95 %" in shown(nobody)
    assert shown({name: SUMMARY[name] for name in ("teacher", "student", "control")}) == ""


def test_the_best_point_is_named():
    points = [{"point": {"temperature": x}} for x in (1.0, 2.0)]
    rows = [row(30, iqm, 0.9, **point) for iqm, point in zip((400.0, 450.0), points)]
    said = shown({"teacher": SUMMARY["teacher"], "student": rows[0], "student-2": rows[1]})
    assert "the best of 2 points: temperature 2 (450.00)" in said
    said = shown({"teacher": rows[0], "teacher-2": rows[1]})
    assert "the best of 2 points: temperature 2 (450.00)" in said


def test_a_picture_is_there_as_a_whole(tmp_path):
    several.picture(SUMMARY, tmp_path / "pareto.png")
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 1


# --- whole runs ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hurried(tmp_path_factory):
    """Compiles for running once, and what one run has compiled the next one need not."""
    kept = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = dict(zip(kept, (False, None, 1.0, 0)))  # jax's defaults
    for values in (kept, before):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if values is kept:
            yield


def without_times(summary: dict) -> dict:
    import interruptions

    return interruptions.without_times(summary)


@pytest.mark.slow
@pytest.mark.usefixtures("hurried")
def test_several_students_are_those_of_runs_of_their_own(tmp_path, monkeypatch):
    """And stopped in the second one, in its control and while judging, the run ends the same."""
    both = distil(tmp_path / "both", "--student", "mlp:4,mlp:8", *SMALL)
    alone = distil(tmp_path / "alone", "--student", "mlp:8", *SMALL)
    assert both["student-2"]["returns"] == alone["student"]["returns"]
    assert both["control-2"]["returns"] == alone["control"]["returns"]
    assert both["student-2"]["kl"] == alone["kl"]
    assert both["student"]["network"] == "mlp:4" and (tmp_path / "both" / "pareto.png").exists()
    for name in ("students/01.npz", "students-2/01.npz"):
        assert (tmp_path / "both" / name).exists()
    stopped = tmp_path / "stopped"
    asked = ["distill", "CartPole-v1", *SIZES, *SMALL, "--student", "mlp:4,mlp:8"]
    code = stopping(monkeypatch, "student-2", [*asked, "--out", str(stopped)])
    assert code == 75
    for where in ("control-2", "evaluate"):
        assert stopping(monkeypatch, where, ["resume", str(stopped), "--quiet"]) == 75
    assert main(["resume", str(stopped), "--quiet"]) == 0
    again = json.loads((stopped / "summary.json").read_text())
    assert without_times(again) == without_times(both)
    lines = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("both", "stopped")]
    assert lines[0] == lines[1]


def stopping(monkeypatch, where: str, argv: list[str]) -> int:
    """The exit code of a command that is asked to stop when a phase begins."""
    from jaxkd.cli import progress, signals

    with monkeypatch.context() as patch:
        begin, asked = progress.Progress.begin, []

        def began(self, phase: str, *words: str):
            asked.extend([phase] if phase == where else [])
            return begin(self, phase, *words)

        patch.setattr(progress.Progress, "begin", began)
        patch.setattr(signals.Stop, "__call__", lambda self: "SIGTERM" if asked else "")
        return main(argv)


@pytest.mark.slow
@pytest.mark.usefixtures("hurried")
def test_points_of_a_grid_are_those_of_runs_of_their_own(tmp_path, monkeypatch, capsys):
    asked = ["--student", "mlp:4", *SMALL]
    swept = ["--grid", "learning_rate=1e-3,3e-3", "--grid", "temperature=1,3"]
    found = distil(tmp_path / "grid", *asked, *swept)
    assert "the best of 4 points" in capsys.readouterr().out
    said = (tmp_path / "grid" / "metrics.jsonl").read_text().splitlines()
    by_phase = {line["phase"]: len(line["seeds"]["return"]) for line in map(json.loads, said)}
    students = ("student", "student-2", "student-3", "student-4")
    assert by_phase == dict.fromkeys(("teacher", *students, "control"), 2)
    assert found["student-4"]["point"] == {"learning_rate": 3e-3, "temperature": 3.0}
    alone = distil(tmp_path / "alone", *asked, "--set", "student_learning_rate=1e-3")
    ours, theirs = (
        jaxkd.load_policy(tmp_path / name / "students" / "01.npz")[1] for name in ("grid", "alone")
    )
    assert jax.tree.all(jax.tree.map(lambda a, b: np.allclose(a, b, atol=1e-5), ours, theirs))
    other = jaxkd.load_policy(tmp_path / "grid" / "students-2" / "01.npz")[1]
    assert not jax.tree.all(jax.tree.map(np.array_equal, ours, other))
    assert found["teacher"]["returns"] == alone["teacher"]["returns"]
    stopped = tmp_path / "stopped"
    whole = ["distill", "CartPole-v1", *SIZES, *asked, *swept, "--out", str(stopped)]
    assert stopping(monkeypatch, "student", whole) == 75
    assert main(["resume", str(stopped), "--quiet"]) == 0
    again = json.loads((stopped / "summary.json").read_text())
    assert without_times(again) == without_times(found)


@pytest.mark.slow
@pytest.mark.usefixtures("hurried")
def test_devices_share_a_run(tmp_path, monkeypatch):
    """Resumed on two it ends with the same bits, and on one it goes on."""
    asked = ["--student", "mlp:4", *SMALL, "--devices", "2"]
    whole = distil(tmp_path / "whole", *asked)
    stopped = str(tmp_path / "stopped")
    argv = ["distill", "CartPole-v1", *SIZES, *asked, "--out", stopped]
    assert stopping(monkeypatch, "student", argv) == 75
    on_one = shutil.copytree(stopped, tmp_path / "one")
    assert main(["resume", stopped, "--quiet"]) == 0
    again = json.loads((Path(stopped) / "summary.json").read_text())
    assert without_times(again) == without_times(whole)
    assert main(["resume", str(on_one), "--quiet", "--devices", "1"]) == 0


@pytest.mark.slow
@pytest.mark.usefixtures("hurried")
def test_a_budget_becomes_steps(tmp_path, monkeypatch, capsys):
    """Resumed, a run keeps the steps it began with."""
    sizes = ["--seeds", "1", "--episodes", "8", "--quiet", "--no-cache"]
    monkeypatch.setattr(pace, "pace", lambda *_: pace.Pace(1.0, 0.1))
    distil(tmp_path / "run", "--budget", "2s", *SMALL, sizes=sizes)
    assert "--budget 2s: --steps " in capsys.readouterr().out
    asked = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    updates = (asked["steps"] + 2 * asked["student_steps"]) / (8 * 16)
    assert 15 <= updates <= 20
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["student"]["env_steps"] == asked["student_steps"]


def test_virtual_devices_are_there_at_once():
    """In a process of its own, where no backend has begun."""
    import subprocess
    import sys

    program = (
        "from jaxkd.cli import device; import jax; print(device.choose('cpu', 3), jax.devices())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"XLA_FLAGS": ""},
    )
    assert done.stdout.count("id=") == 3 or done.stdout.count("Cpu") >= 3, done.stderr
