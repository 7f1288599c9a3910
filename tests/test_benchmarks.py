"""The scripts of benchmarks/ run, at their tiniest; their committed figures are test_results.py's."""

import json
import os
import subprocess
import sys
from pathlib import Path

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
    out = tmp_path / "accelerator.json"
    rows = ("device", "correct", "distil-CartPole")
    done = script("--size", "tiny", "--rows", *rows, "--out", str(out))
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert list(result["rows"]) == list(rows)
    assert not [row["error"] for row in result["rows"].values() if "error" in row]
    assert all(e["right"] for e in result["rows"]["correct"]["entries"])
    points = result["rows"]["distil-CartPole"]["entries"]
    assert len(points) == 3 and all(e["steps_per_second"] > 0 for e in points)
    assert script("--draw", "--out", str(out)).returncode == 0
    assert out.with_suffix(".png").stat().st_size > 1000


def test_accelerator_names_an_unknown_row():
    done = script("--rows", "device", "nonsense")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: unknown rows nonsense. There are: device, ")


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
    out = tmp_path / "accelerator.json"
    done = script(
        "--size", "tiny", "--minutes", "60", "--out", str(out), "--rows", *rows, timeout=3000
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())["rows"]
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


def told(option: str) -> dict[Path, dict]:
    """What each script says to one option, and what has been imported by then."""
    program = ALL_SCRIPTS.format(files=[str(file) for file in SCRIPTS], option=option)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=200, cwd=ROOT
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(SCRIPTS), done.stderr
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


def test_committed_results_are_written_only_with_commit(monkeypatch, tmp_path):
    from benchmarks import frame, protocol

    monkeypatch.setattr(frame, "RESULTS", tmp_path / "committed")
    for options, where in (
        ([], tmp_path / "runs" / "benchmarks"),
        (["--out", "there"], tmp_path / "there"),
        (["--commit"], tmp_path / "committed" / "studies"),
    ):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["drnd.py", *options])
        monkeypatch.setenv("JAXKD_BENCHMARK_RESULTS", "")
        frame.start(frame.Given, "one", "benchmarks/studies/drnd.py")
        protocol.write("drnd", {"figure": 1})
        assert [file.parent for file in tmp_path.rglob("drnd.json")] == [where]
        (where / "drnd.json").unlink()


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
