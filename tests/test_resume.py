"""Runs that are stopped go on: the same bits, whatever stopped them and whenever."""

import io
import json
import logging
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import interruptions
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
from interruptions import RESUME, differs, outcome

import jaxkd
from jaxkd.base import Algorithm, UsageError
from jaxkd.cli import (
    card,
    directory,
    log,
    main,
    others,
    phases,
    progress,
    running,
    saving,
    settings,
    training,
)
from jaxkd.cli.plan import Plan
from jaxkd.presets import preset

UPDATES = 450  # a line of metrics.jsonl every third one
SAVED = Path(__file__).parent / "artifacts" / "run-1"  # stopped while judging; never made anew


# --- one phase, with an algorithm that only counts ----------------------------------------------


class Counter(NamedTuple):
    """A State that has nothing else."""

    params: jax.Array  # [n, 1]
    update: jax.Array  # []


def counting() -> Algorithm:
    """For four seeds: every update adds what depends on all before."""

    def step(state):
        params = jnp.sin(state.params + state.update)
        return Counter(params, state.update + 1), {"return": params[:, 0], "loss/x": params[:, 0]}

    start = jnp.arange(4.0)[:, None]
    return Algorithm(lambda keys: Counter(start, jnp.zeros((), jnp.int32)), step)


def job(folder: Path, stop=lambda: "", every: float = 0.0) -> phases.Job:
    shown = progress.Progress(rich.console.Console(file=io.StringIO()), quiet=True)
    run, lines = directory.Directory(folder), log.Log(folder / "metrics.jsonl")
    return phases.Job(run, shown, jaxkd.seeds(0, 4), lambda: 0.0, stop, lines, "settings", every)


def train(job, phase="student", teachers=(), algorithm=None) -> training.Trained:
    everyone = np.ones(4, bool)
    return training.train(
        job,
        phase,
        algorithm or counting(),
        UPDATES,
        alive=everyone,
        steps_per_update=10,
        teachers=teachers,
    )


def stopping(after: int):
    """Asks to stop when it has been asked so often."""
    asked = iter(range(after))
    return lambda: "" if next(asked, None) is not None else "SIGTERM"


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """(folder, Trained) of two phases that nothing stops."""
    folder = tmp_path_factory.mktemp("straight")
    whole = job(folder)
    return folder, train(whole, "teacher"), train(whole)


def lines(folder: Path) -> bytes:
    return (folder / "metrics.jsonl").read_bytes()


def assert_same(trained, folder, straight):
    jax.tree.map(np.testing.assert_array_equal, trained.state, straight[2].state)
    assert lines(folder) == lines(straight[0])


def test_lines_come_at_fixed_updates(straight):
    found = [json.loads(line) for line in lines(straight[0]).splitlines()]
    assert [(line["phase"], line["updates"]) for line in found] == [
        (phase, updates) for phase in ("teacher", "student") for updates in range(3, 451, 3)
    ]
    assert set(found[0]) == {"phase", "updates", "env_steps", "seeds"}  # and no time
    one = counting()
    state, values = one.init(None), []
    for _ in range(3):
        state, metrics = one.step(state)
        values.append(metrics["return"])
    np.testing.assert_allclose(found[0]["seeds"]["return"], np.mean(values, axis=0), rtol=1e-6)


@pytest.mark.parametrize("stops", [(1,), (50, 7), (2, 3, 400)])
def test_a_phase_goes_on_with_the_same_bits(straight, tmp_path, stops):
    for number, after in enumerate(stops):
        first = job(tmp_path, stopping(after))
        if not number:
            train(first._replace(stop=lambda: ""), "teacher")
        else:
            assert train(first, "teacher").updates == UPDATES  # is read, not trained again
        assert train(first).updates < UPDATES
    last = job(tmp_path)
    train(last, "teacher")
    assert_same(train(last), tmp_path, straight)


def test_a_process_that_was_killed_has_written_more_than_its_checkpoint_knows(straight, tmp_path):
    begun = job(tmp_path)
    train(begun, "teacher")
    train(begun._replace(stop=stopping(20)))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "student", "upd')
    (tmp_path / "checkpoints" / "control").mkdir()  # of a phase that will come again
    last = job(tmp_path)
    train(last, "teacher")
    assert_same(train(last), tmp_path, straight)
    assert not (tmp_path / "checkpoints" / "control").exists()


def test_a_damaged_checkpoint_is_passed_over(straight, tmp_path, capsys):
    begun = job(tmp_path)
    train(begun, "teacher")
    for after in (20, 20):
        train(begun._replace(stop=stopping(after)))
    folder = tmp_path / "checkpoints" / "student"
    older, newer = sorted(int(path.name) for path in folder.iterdir())
    damage(folder / str(newer))
    last = job(tmp_path)
    train(last, "teacher")
    assert_same(train(last), tmp_path, straight)
    assert f"{newer} is damaged" in capsys.readouterr().err
    for path in folder.iterdir():
        damage(path)
    last = job(tmp_path)
    train(last, "teacher")
    assert_same(train(last), tmp_path, straight)
    assert "The phase 'student' begins anew." in capsys.readouterr().err


def damage(checkpoint: Path) -> None:
    (file, *_) = [path for path in checkpoint.rglob("d/*") if path.is_file()]
    file.write_bytes(file.read_bytes()[:-1] + b"x")


def test_damaged_lines_are_not_passed_over_in_silence(straight, tmp_path, capsys):
    begun = job(tmp_path)
    train(begun, "teacher")
    train(begun._replace(stop=stopping(20)))
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(file.read_bytes().replace(b"30,", b"31,", 1))
    last = job(tmp_path)
    train(last, "teacher")
    trained = train(last)
    jax.tree.map(np.testing.assert_array_equal, trained.state, straight[2].state)
    assert "metrics.jsonl is not what was written" in capsys.readouterr().err


def test_another_run_or_teacher_is_refused(tmp_path):
    env = jaxkd.envs.make("CartPole-v1", 2)
    policy, other = jaxkd.networks.mlp(env, (4,)), jaxkd.networks.mlp(env, (4,), activation=jnp.sin)
    params = policy.init(jax.random.key(0))

    def known(policy, seed=0):
        params = policy.init(jax.random.key(seed))
        return saving.identify(policy, params, "file", env.obs_spec, shared=True)

    begun = job(tmp_path, stopping(5))
    train(begun, teachers=[known(policy)])
    with pytest.raises(UsageError, match="another settings: saved 'settings', now 'others'"):
        train(begun._replace(settings_digest="others"), teachers=[known(policy)])
    with pytest.raises(UsageError, match="another teachers: saved "):
        train(begun, teachers=[known(policy, seed=1)])
    with pytest.raises(UsageError, match="answers otherwise than when it was saved"):
        train(begun, teachers=[known(other)])
    assert params is not None
    assert train(job(tmp_path), teachers=[known(policy)]).updates == UPDATES


# --- directories and cards ----------------------------------------------------------------------


def test_a_second_process_is_refused(tmp_path):
    program = (
        "import sys; from pathlib import Path; from jaxkd.cli import directory\n"
        "directory.make('CartPole-v1', Path(sys.argv[1]))"
    )
    ask = [sys.executable, "-c", program, str(tmp_path / "out")]
    with directory.make("CartPole-v1", tmp_path / "out"):
        done = subprocess.run(ask, capture_output=True, text=True, timeout=60)
    assert "is at work in" in done.stderr.splitlines()[-1]
    assert subprocess.run(ask, capture_output=True, timeout=60).returncode == 0


def test_a_full_disk_names_the_file():
    with pytest.raises(OSError, match="/dev/full not written: No space left on device"):
        log.Log(Path("/dev/full")).append(x=1)


def test_what_follows_from_a_full_disk_is_not_told_beside_it(caplog, monkeypatch):
    """Anything else that libraries say is."""
    heard = []
    monkeypatch.setattr(sys, "unraisablehook", lambda said: heard.append(str(said.exc_value)))
    fonts = logging.getLogger("matplotlib.font_manager")
    kept = "Error writing persistent compilation cache entry for 'jit_f': OSError: [Errno 28] "
    with warnings.catch_warnings(record=True) as warned, others.unheard():
        for text in ("No space left on device", "Permission denied"):
            warnings.warn(kept + text, stacklevel=1)
        cut = kept.replace("writing", "reading") + "incomplete or truncated stream"
        warnings.warn(cut, stacklevel=1)
        for text in ("Event loop is closed", "something else"):
            sys.unraisablehook(SimpleNamespace(exc_value=RuntimeError(text)))
        fonts.warning("Could not save font_manager cache %s", "[Errno 28]")
        fonts.warning("findfont: none")
    assert [str(each.message)[-17:] for each in warned] == ["Permission denied"]
    assert heard == ["something else"]
    assert caplog.messages == ["findfont: none"] and fonts.filters == []


CARD = dict(
    format=card.FORMAT,
    command="distill",
    env="CartPole-v1",
    device="cpu, 2 cores",
    versions={},
    settings={"seeds": 3, "set": []},
    preset={},
    started=0.0,
    status="running",
)


def written(folder: Path, **values) -> Path:
    folder.mkdir()
    directory.Directory(folder).write_card(CARD | values)
    return folder


def test_the_card_is_believed_only_as_it_was_written(tmp_path):
    whole = written(tmp_path / "whole")
    assert card.read(whole)["settings"]["seeds"] == 3
    text = (whole / "run.json").read_text()
    for name, content in {
        "changed": text.replace("3", "4", 1),
        "cut": text[:-20],
        "deep": "[" * 100_000,
        "old": json.dumps({"format": 1}),
        "list": "[]",
    }.items():
        (whole / "run.json").write_text(content)
        with pytest.raises(card.Damaged, match="changed|damaged|has format"):
            card.read(whole)
        assert main(["resume", str(whole)]) == 4, name
    with pytest.raises(card.Damaged, match="is not there"):
        card.read(tmp_path / "none")


@pytest.mark.parametrize(
    ("values", "code", "message"),
    [
        (dict(status="finished"), 0, "has finished already"),
        (dict(status="diverged"), 5, "has diverged, and would again"),
        (dict(command="dance"), 2, "run of another version of jaxkd"),
        (dict(settings={"set": [], "new": 1}), 2, "run of another version of jaxkd"),
    ],
)
def test_what_is_not_resumed(values, code, message, tmp_path, capsys):
    assert main(["resume", str(written(tmp_path / "run", **values))]) == code
    printed = capsys.readouterr()
    said = printed.err or printed.out
    assert message in said and said.count("\n") == 1


def test_a_run_goes_on_with_its_own_copy_of_the_teacher(tmp_path):
    run = written(tmp_path / "run")
    given = dict(env="CartPole-v1", set=["gamma=0.9"], teacher="gone.npz", device="cpu")
    before = card.read(run) | dict(settings=given)
    wanted = settings.Resume(run, device="gpu", quiet=True)
    asked = running._asked(before, wanted)
    assert asked.teacher == Path("gone.npz") and asked.device == "gpu" and asked.quiet
    assert asked.set == ("gamma=0.9",)
    (run / "teachers").mkdir()
    (run / "teachers" / "00.npz").touch()
    assert running._asked(before, wanted).teacher == run / "teachers" / "00.npz"


def test_another_preset_is_refused_with_both_sides(tmp_path):
    chosen = preset("CartPole-v1")
    before = CARD | dict(preset=directory.plain(chosen._asdict()), versions={"jaxkd-rl": "0.1"})
    asked = settings.Distill("CartPole-v1")
    running._check_same(before, asked, Plan(chosen, []))
    with pytest.raises(UsageError, match="gamma then 0.99, now 0.9. Resume it with jaxkd 0.1"):
        running._check_same(before, asked, Plan(chosen._replace(gamma=0.9), []))


def test_a_new_field_of_presets_changes_nothing_until_it_is_used(monkeypatch):
    """A later version's preset has one more field, which an earlier one's runs know nothing of."""

    class Later(NamedTuple):
        gamma: float = 0.99
        hidden: tuple[int, ...] = (64, 64)
        momentum: float = 0.0

    monkeypatch.setattr(running, "Preset", Later)
    asked = settings.Distill("CartPole-v1")
    before = CARD | dict(preset={"gamma": 0.9, "hidden": [8]}, versions={"jaxkd-rl": "0.2"})
    running._check_same(before, asked, Plan(Later(0.9, (8,)), []))
    refused = {
        "momentum then 0.0, now 0.5": Later(0.9, (8,), momentum=0.5),
        "gamma then 0.9, now 0.99": Later(hidden=(8,)),
    }
    for both_sides, now in refused.items():
        with pytest.raises(UsageError, match=both_sides):
            running._check_same(before, asked, Plan(now, []))


def test_checkpoints_know_a_run_by_what_its_card_says():
    """Not by what this version would write there."""
    first = card.read(SAVED)
    about = SAVED / "checkpoints" / "teacher" / "4" / "_CHECKPOINT_METADATA"
    saved = json.loads(about.read_text())["custom_metadata"]["about"]["settings"]
    assert running._digest(first) == saved
    elsewhere = first["settings"] | dict(device="gpu", devices=2, budget=None, quiet=False)
    assert running._digest(first | dict(settings=elsewhere)) == saved
    for other in (
        dict(command="teach"),
        dict(settings=first["settings"] | dict(seed=1)),
        dict(preset=first["preset"] | dict(gamma=0.9)),
    ):
        assert running._digest(first | other) != saved


def test_runs_are_listed(tmp_path, capsys):
    begun = written(tmp_path / "killed")
    running = directory.Directory(written(tmp_path / "running"))
    directory.Directory(written(tmp_path / "finished", status="finished")).write(
        "summary.json", {name: {"iqm": 500.0} for name in ("teacher", "student")}
    )
    (written(tmp_path / "broken") / "run.json").write_text("{}")
    with running.lock():
        assert main(["runs", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "killed;" in printed and "500, 500" in printed and "cannot be read" in printed
    assert " running " in printed and str(begun.name) in printed
    assert (
        main(["runs", str(tmp_path / "none")]) == 0 and "no runs below" in capsys.readouterr().out
    )


def test_runs_are_compared(tmp_path, capsys):
    row = dict(iqm=400.0, interval=[300.0, 500.0], network="mlp:44", actor_parameters=310)
    for name, seeds in (("a", 3), ("b", 4)):
        folder = written(
            tmp_path / name, settings={"seeds": seeds, "lanes": None}, status="finished"
        )
        summary = dict(teacher=row, wall_seconds=5.0)
        summary |= dict(student=row | dict(iqm=300.0, kept=0.75)) if name == "b" else {}
        directory.Directory(folder).write("summary.json", summary)
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    assert main(["compare", a, b]) == 0
    cells = [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in capsys.readouterr().out.splitlines()
    ]
    assert ["seeds", "3", "4"] in cells and "lanes" not in {first for first, *_ in cells}
    assert ["student: return IQM", "-", "300.00 [300.00, 500.00]"] in cells
    assert ["student keeps", "-", "75.0 %"] in cells
    assert main(["compare", a]) == 2 and "two runs or more" in capsys.readouterr().err
    assert main(["compare", a, str(written(tmp_path / "c"))]) == 4
    assert "c has no whole summary.json. `jaxkd resume" in capsys.readouterr().err


def test_a_run_of_an_earlier_version_is_read(tmp_path, capsys):
    """A run that jaxkd 0.2 left: its card, its lines and its policies."""
    found = card.read(SAVED)
    assert (found["status"], found["settings"]["seeds"]) == ("interrupted", 2)
    whole = log.Log(SAVED / "metrics.jsonl").curve("student", "loss/kl")
    assert whole.shape == (4, 2) and np.isfinite(whole).all()
    for name in ("teachers/00", "teachers/01", "students/00", "students/01"):
        policy, params = jaxkd.load_policy(SAVED / f"{name}.npz")
        assert jax.tree.structure(params) == jax.tree.structure(policy.init(jax.random.key(0)))
    assert main(["runs", str(SAVED)]) == 0
    assert "interrupted; jaxkd resume" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_a_run_of_an_earlier_version_goes_on(tmp_path, capsys):
    """Trained, it only has to be judged: what it learnt is what was learnt then."""
    shutil.copytree(SAVED, tmp_path / "run")
    assert main(["resume", str(tmp_path / "run"), "--quiet"]) == 0
    assert "other versions than the run was begun with" in capsys.readouterr().err
    found = card.read(tmp_path / "run")
    assert found["status"] == "finished"
    for role in ("teacher", "student", "control"):
        assert np.isfinite(card.summary(tmp_path / "run", found)[role]["iqm"])
    for file in ("metrics.jsonl", "teachers/00.npz", "students/01.npz"):
        assert (tmp_path / "run" / file).read_bytes() == (SAVED / file).read_bytes()


# --- whole runs, in processes -------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(folder, outcome, counts) of a run that nothing stops."""
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    return folder, *interruptions.undisturbed(folder)


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(undisturbed):
    """Between updates, inside saves and restores, in each of the three phases."""
    folder, whole, counts = undisturbed
    kills = interruptions.chain(counts, 10)
    with interruptions.Forked(folder.parent) as forked:
        ends = interruptions.killed(folder.parent / "killed", kills, forked)
    assert sum(ends.values()) == 10 and min(ends[kind] for kind in interruptions.KINDS) > 0, ends
    assert differs(outcome(folder.parent / "killed"), whole) == []


@pytest.mark.slow
def test_a_signal_is_answered_with_75_from_the_first_millisecond(undisturbed):
    folder, whole, _ = undisturbed
    ends = []
    for number, (delay, asked) in enumerate(((0.1, "SIGINT"), (1.0, "SIGTERM"), (7.0, "SIGINT"))):
        place = folder.parent / f"stopped{number}"
        code, said = interruptions.stopped(place, delay, getattr(signal, asked))
        assert said.splitlines()[-1].startswith(asked) and "Traceback" not in said, said
        ends.append(interruptions.ended_well(place, code, said, whole))
    assert ends[0] == "before it began" and not [end for end in ends if "bad" in end], ends
    assert "silent" not in ends


@pytest.mark.slow
def test_a_full_disk_ends_with_4_and_a_run_that_goes_on(undisturbed):
    folder, whole, _ = undisturbed
    place = folder.parent / "full"
    done = interruptions.full(place, 2500)
    assert done.returncode == 4, done.stderr
    (said,) = done.stderr.splitlines()  # nothing of caches that found no room, of Orbax's threads
    assert "checkpoint could not be written" in said and "Make room there, or " in said
    done = interruptions.run(place, RESUME)
    assert done.returncode == 0, done.stderr
    assert differs(outcome(place), whole) == []
