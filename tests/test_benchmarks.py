"""The scripts of benchmarks/ run, at their tiniest; committed figures are test_results.py's."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import pytest

ROOT = Path(__file__).resolve().parents[1]
SPEED = ROOT / "benchmarks" / "speed"


@pytest.fixture
def accelerator(monkeypatch):
    """The module, as a script sees it."""
    monkeypatch.syspath_prepend(str(SPEED))
    import accelerator

    return accelerator


def script(*arguments: str, timeout: float = 280) -> subprocess.CompletedProcess:
    """accelerator.py in a process of its own."""
    path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return subprocess.run(
        [sys.executable, str(SPEED / "accelerator.py"), *arguments],
        env=os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def test_accelerator_measures_on_a_cpu(tmp_path):
    out = tmp_path / "tiny" / "accelerator.json"
    rows = ("device", "correct", "distil-CartPole")
    done = script("--size", "tiny", "--rows", *rows, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert list(result["rows"]) == list(rows)
    assert not [row["error"] for row in result["rows"].values() if "error" in row]
    assert all(e["right"] for e in result["rows"]["correct"]["entries"])
    points = result["rows"]["distil-CartPole"]["entries"]
    assert ["skipped" in point for point in points] == [False, True, False, False]  # too large
    assert all(point.get("steps_per_second", 1) > 0 for point in points)
    assert script("--size", "tiny", "--draw", "--out", str(tmp_path)).returncode == 0
    assert out.with_suffix(".png").stat().st_size > 1000


def test_accelerator_names_an_unknown_row():
    done = script("--rows", "device", "nonsense")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: no part nonsense. There are: device, ")


def test_a_row_that_fails_is_recorded_and_the_next_one_runs(accelerator, monkeypatch, tmp_path):
    out, seen = tmp_path / "some.json", []

    def broken(size):
        yield {"what": "before"}
        seen.append(json.loads(out.read_text()))  # there after the first entry
        raise ValueError("no such thing")

    def fine(size):
        yield {"what": "after", "gain": float("nan")}

    monkeypatch.setattr(accelerator, "ROWS", {"broken": broken, "fine": fine})
    accelerator.run_rows(("broken", "fine"), accelerator.SIZES["tiny"], out, 8.0)
    rows = json.loads(out.read_text())["rows"]
    assert seen[0]["rows"]["broken"]["entries"] == [{"what": "before"}]
    assert rows["broken"]["entries"] == [{"what": "before"}]
    assert rows["broken"]["error"] == "ValueError: no such thing"
    assert rows["fine"]["entries"] == [{"what": "after", "gain": None}]


def test_a_row_that_would_not_fit_is_left_out(accelerator, monkeypatch, tmp_path):
    monkeypatch.setattr(accelerator, "ROWS", {name: lambda size: iter(()) for name in "ab"})
    result = accelerator.run_rows(("a", "b"), accelerator.SIZES["tiny"], tmp_path / "x.json", 0.5)
    assert list(result["rows"]) == ["a"]


def test_a_wrong_update_is_not_right(accelerator):
    from accelerator_correct import beside

    reference = {"changes": [1.0, 2.0], "losses": [1e-5]}
    assert beside({"changes": [1.0, 2.0], "losses": [1.1e-5]}, reference)["right"]
    assert not beside({"changes": [1.0, 2.001], "losses": [1e-5]}, reference)["right"]
    assert not beside({"changes": [1.0], "losses": [1e-5]}, reference)["right"]


@pytest.mark.slow
def test_other_rows_run(tmp_path):
    """One of each kind; the levers and the games with a convolution compile for minutes here."""
    rows = ["ppo-CartPole", "seeds", "compiling", "raw", "memory"]
    given = ("--size", "tiny", "--minutes", "60", "--out", str(tmp_path), "--rows", *rows)
    done = script(*given, timeout=3000)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "tiny" / "accelerator.json").read_text())["rows"]
    assert list(result) == rows
    assert not [row["error"] for row in result.values() if "error" in row]


# --- the command line of every script ------------------------------------------------------------

SCRIPTS = sorted(
    file
    for file in (ROOT / "benchmarks").rglob("*.py")
    if '__name__ == "__main__"' in file.read_text()
    and file.parent.name != "peers"  # children of peers.py
    # compares two checkouts, writes the README, is a child of turns.py
    and file.name not in ("same.py", "tables.py", "turns_rows.py")
)
# Every script in one process: a line of JSON each. What is heavy is not loaded before the command
# line is read; one that loads it all the same is told at every script after it, too.
ALL_SCRIPTS = """
import contextlib, io, json, runpy, sys, time
for file in {files!r}:
    sys.argv, sys.path[0] = [file, {option!r}], file.rpartition("/")[0]
    code, printed, began = None, io.StringIO(), time.perf_counter()
    try:
        with contextlib.redirect_stdout(printed):
            runpy.run_path(file, run_name="__main__")
    except SystemExit as done:
        code = done.code or 0
    heavy = sorted({{"jax", "jaxkd", "matplotlib", "flax"}} & set(sys.modules))
    spent = time.perf_counter() - began
    print(json.dumps(dict(code=code, out=printed.getvalue(), heavy=heavy, spent=spent)))
"""


def committed() -> dict[Path, int]:
    """When each committed result was written."""
    return {file: file.stat().st_mtime_ns for file in (ROOT / "benchmarks/results").rglob("*")}


def told(option: str) -> dict[Path, dict]:
    """What each script says to one option, and what has been imported by then."""
    before = committed()
    program = ALL_SCRIPTS.format(files=[str(file) for file in SCRIPTS], option=option)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=200, cwd=ROOT
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(SCRIPTS), done.stderr
    assert committed() == before
    return dict(zip(SCRIPTS, map(json.loads, lines), strict=True))


def test_all_scripts_are_found():
    assert len(SCRIPTS) >= 20


def test_help_imports_nothing_heavy_and_starts_nothing():
    for file, said in told("--help").items():
        assert (said["code"], said["heavy"]) == (0, []), (file, said)
        assert f"usage: benchmarks/{file.parent.name}/{file.name}" in said["out"]
        assert said["spent"] < 10  # .1 s alone; other tests run beside this one


def test_an_unknown_option_starts_nothing():
    for file, said in told("--nonsense").items():
        assert (said["code"], said["heavy"]) == (2, []), (file, said)


# --- what the scripts share ----------------------------------------------------------------------


@pytest.fixture
def begin(monkeypatch, tmp_path):
    """Calls `frame.start` with options, as drnd.py of a folder of its own."""
    from benchmarks import frame

    monkeypatch.setattr(frame, "RESULTS", tmp_path / "committed")
    monkeypatch.setenv("JAXKD_BENCHMARK", "{}")
    monkeypatch.chdir(tmp_path)

    def call(*options: str, kind: type[frame.Given] = frame.Study) -> frame.Given:
        monkeypatch.setattr(sys, "argv", ["drnd.py", *options])
        return frame.start(kind, "one", "benchmarks/studies/drnd.py")

    return call


@pytest.mark.parametrize(
    "options, where",
    [
        ([], "runs/benchmarks"),
        (["--out", "there"], "there"),
        (["--size", "tiny"], "runs/benchmarks/tiny"),
        (["--size", "cpu", "--seeds", "3"], "runs/benchmarks/cpu-3-seeds"),
        (["--commit"], "committed/studies"),
    ],
)
def test_a_result_goes_where_no_other_size_writes(begin, tmp_path, options, where):
    from benchmarks import protocol

    begin(*options)
    protocol.write("drnd", {"figure": 1})
    assert list(tmp_path.rglob("drnd.json")) == [tmp_path / where / "drnd.json"]
    made = json.loads((tmp_path / where / "drnd.json").read_text())
    assert made.get("size") == (None if "--size" not in options else Path(where).name)


@pytest.mark.parametrize(
    "options, line",
    [
        (["--commit", "--size", "tiny"], "error: --commit writes what the full size and its own "),
        (["--commit", "--seeds", "3"], "error: --commit writes what the full size and its own "),
        (["--seeds", "0"], "error: --seeds 0: there must be one at least."),
    ],
)
def test_what_contradicts_itself_is_refused_in_one_line(begin, tmp_path, capsys, options, line):
    with pytest.raises(SystemExit) as refused:
        begin(*options)
    assert refused.value.code == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(line)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_size_is_refused(begin, tmp_path, capsys):
    with pytest.raises(SystemExit) as refused:
        begin("--size", "huge")
    assert refused.value.code == 2
    assert "'huge'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_part_is_refused():
    from benchmarks import frame

    assert frame.chosen((), ("a", "b")) == ("a", "b")
    assert frame.chosen(("b",), ("a", "b")) == ("b",)
    with pytest.raises(SystemExit):
        frame.chosen(("b", "c"), ("a", "b"))


def test_a_size_has_as_many_seeds_as_were_asked_for(begin):
    import who_acts

    from benchmarks import frame

    assert frame.sized(begin(), who_acts.SIZES, "students").students == 10
    few = frame.sized(begin("--seeds", "2"), who_acts.SIZES, "students")
    assert few == who_acts.SIZES["full"]._replace(students=2)
    digests = {who_acts.settings(size)["digest"] for size in [few, *who_acts.SIZES.values()]}
    assert len(digests) == 4


class Arms:
    """Two arms that count how often they are run."""

    def __init__(self):
        self.runs = []

    def __call__(self, seen: dict) -> dict:
        from benchmarks import protocol

        def run(arm: str) -> dict:
            self.runs.append(arm)
            if seen[arm] is None:
                raise KeyboardInterrupt
            return {"values": jax.numpy.arange(2), "seen": seen[arm]}

        runs = {arm: lambda arm=arm: run(arm) for arm in seen}
        found, seconds = protocol.arms("study/game", runs, lambda arm: {"rate": seen[arm]})
        assert set(seconds) == set(found) == set(seen)
        return found


def test_a_cut_run_goes_on_where_it_stopped(begin, capsys):
    arms = Arms()
    begin("--size", "tiny")
    with pytest.raises(KeyboardInterrupt):
        arms({"a": 1, "b": None})
    assert arms({"a": 1, "b": 2}) == {
        "a": {"values": [0, 1], "seen": 1},
        "b": {"values": [0, 1], "seen": 2},
    }
    assert arms.runs == ["a", "b", "b"]
    told = capsys.readouterr()
    assert "study/game: b, 1 of 2 done" in told.err  # the live line, in a log
    assert "kept from an earlier run" in told.out


def test_an_arm_is_run_again_where_it_would_differ(begin, monkeypatch):
    from benchmarks import protocol

    arms = Arms()
    begin("--size", "tiny")
    arms({"a": 1, "b": 2})
    arms({"a": 1, "b": 3})  # other settings
    assert arms.runs == ["a", "b", "b"]
    begin("--size", "cpu")
    arms({"a": 1})
    begin("--size", "tiny", "--seeds", "2")
    arms({"a": 1})
    begin("--size", "tiny", "--fresh")
    arms({"a": 1})
    assert arms.runs[3:] == ["a", "a", "a"]
    begin("--size", "tiny")
    arms({"a": 1})
    assert len(arms.runs) == 6
    monkeypatch.setattr(protocol, "engine", lambda: "other code")
    arms({"a": 1})
    monkeypatch.setattr(protocol.digest, "__defaults__", (protocol.STREAMS + 1,))
    arms({"a": 1})
    assert len(arms.runs) == 8
    protocol.forget("study/game")
    arms({"a": 1})
    assert len(arms.runs) == 9


def test_gates_are_the_full_sizes(begin, capsys):
    from benchmarks import protocol

    begin("--size", "tiny")
    assert protocol.verdict(["too slow"]) == 0
    assert protocol.verdict([]) == 0
    begin()
    assert protocol.verdict(["too slow"]) == 1
    assert protocol.verdict([]) == 0
    assert capsys.readouterr().out.count("too slow") == 2


def test_a_teacher_is_kept_with_its_parameters(begin, key):
    import numpy as np

    import jaxkd
    from benchmarks import protocol

    env = jaxkd.envs.make("CartPole-v1", 2)
    policy = jaxkd.networks.mlp(env, (4,), normalise=True)
    params = jax.jit(policy.init)(key)
    made = protocol.Teacher(params, 1.5, 0.5, 0, np.ones(2), np.zeros(2))
    begin("--size", "tiny")
    for _ in range(2):
        found, _ = protocol.arms("teacher", {"ppo": lambda: protocol.as_lists(made)}, lambda _: {})
        teacher = protocol.as_teacher(policy, found["ppo"], 3.0)
        assert jax.tree.structure(teacher.params) == jax.tree.structure(params)
        for kept, own in zip(*map(jax.tree.leaves, (teacher.params, params)), strict=True):
            assert kept.dtype == own.dtype and (kept == own).all()
        assert (teacher.score, teacher.seconds, teacher.returns.sum()) == (1.5, 3.0, 2.0)


def test_how_long_it_takes_is_what_the_committed_files_say(monkeypatch, tmp_path):
    from benchmarks import frame

    monkeypatch.setattr(frame, "RESULTS", tmp_path)
    assert frame.how_long("studies", "study") == "how long it takes is unknown"
    (tmp_path / "studies" / "study").mkdir(parents=True)
    for name, made in {
        "one": {"seconds": 90, "arms": {"x": {"seconds": 80}}},  # the whole has the part in it
        "two": {"arms": {"x": {"seconds": 60}, "y": {"seconds": 30.0}}},
        "three": {"arms": {"x": {"seconds": [1, 2]}}},
    }.items():
        (tmp_path / "studies" / "study" / f"{name}.json").write_text(json.dumps(made))
    assert frame.how_long("studies", "study") == "all of it took 3 minutes when it was committed"


# --- every script, end to end --------------------------------------------------------------------


@pytest.mark.slow
def test_every_lever_fits_the_engine(key):
    """The tiniest size pulls three of them."""
    import levers

    import jaxkd

    env = jaxkd.envs.make("CartPole-v1", 4)
    ppo = jaxkd.ppo(env, jaxkd.networks.mlp(env, (4,)), unroll_length=4)
    state = jax.eval_shape(ppo.init, key)
    for change in levers.LEVERS.values():
        after = jax.eval_shape(levers.within(change, ppo.step), state)[0]
        assert jax.tree.structure(after) == jax.tree.structure(state)


OPTIONS = {"accelerator.py": ["--rows", "device"]}  # its other rows have tests of their own
SKIPPED = {
    "peers.py": "it builds environments of other libraries with pip",
    "reliability.py": "dozens of processes, the most important of which test_resume.py starts",
}


@pytest.fixture
def hurried(monkeypatch):
    """Compiles for running once; otherwise jax as a script has it."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")  # of children
    jax.config.update("jax_disable_most_optimizations", True)
    with jax.numpy_rank_promotion("allow"):
        yield
    jax.config.update("jax_disable_most_optimizations", False)
    plt.close("all")


@pytest.mark.slow
@pytest.mark.parametrize("file", SCRIPTS, ids=lambda file: file.stem)
def test_every_script_runs_at_its_tiniest(file, hurried, monkeypatch, tmp_path):
    if file.name in SKIPPED:
        pytest.skip(SKIPPED[file.name])
    before = committed()
    options = ["--size", "tiny", "--out", str(tmp_path), *OPTIONS.get(file.name, [])]
    monkeypatch.setattr(sys, "argv", [str(file), *options])
    monkeypatch.setenv("JAXKD_BENCHMARK", "{}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.syspath_prepend(str(file.parent))
    try:
        runpy.run_path(str(file), run_name="__main__")
    except SystemExit as done:
        assert not done.code
    results = [f for f in tmp_path.glob("tiny/**/*.json") if "kept" not in f.parts]
    assert results
    for made in [json.loads(file.read_text()) for file in results]:
        assert made.get("size", "tiny") == "tiny" and ("device" in made or "made" in made)
    assert committed() == before
