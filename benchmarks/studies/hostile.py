"""What reliability.py tries in one process: files that are damaged, and input that is malformed.

Every trial says in a word how it ended. "silent" (another result, and nothing was said) and "bad"
(a traceback, more than a line, a wrong exit code, more than LIMIT seconds of the processor,
something lost) may not be among them. What tyro refuses it explains in a box of its own.
"""

import contextlib
import hashlib
import io
import json
import random
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxkd
from jaxkd.base import ArtifactError
from jaxkd.checkpoint import Checkpoints
from jaxkd.cli import card, directory, log, main, running
from jaxkd.policies import digest
from jaxkd.presets import PRESETS, Preset

LIMIT = 4.0  # seconds of the processor to a refusal; half of it on a machine that is not slow
ENV = "CartPole-v1"
REFUSALS = (2, 3, 4, 5)  # exit codes
JUNK = (None, True, -1, 0, 3, 1e308, "", "x", [], [[]], {}, {"a": 1}, "\x00", "9" * 50, -0.5)


class Begun(NamedTuple):
    """A run's directory, and what is in it."""

    path: Path
    states: list[Any]  # of the checkpoints of steps 1 and 2, on the host
    like: Any
    params: Any
    mark: Any  # of metrics.jsonl


def begun(path: Path) -> Begun:
    """As a run leaves it that was killed: two phases with checkpoints, lines, policies, a card."""
    path.mkdir(parents=True)
    policy = jaxkd.networks.mlp(jaxkd.envs.make(ENV, 2), (4,))
    states = [
        {"w": step * jnp.arange(64.0), "key": jax.random.key(step), "update": jnp.int32(step)}
        for step in (1, 2)
    ]
    for phase in ("teacher", "student"):
        with Checkpoints(path / "checkpoints" / phase) as checkpoints:
            for state in states:
                checkpoints.save(state, int(state["update"]))
    params = jax.device_get(policy.init(jax.random.key(1)))
    for folder in ("teachers", "students"):
        jaxkd.save_policy(path / folder / "00", policy, params)
    run, lines = directory.Directory(path), log.Log(path / log.METRICS)
    for updates in range(9):
        lines.append(phase="teacher", updates=updates, seeds={"return": [1.0, 2.0]})
        run.append("timing.jsonl", phase="teacher", updates=updates, elapsed=1.0)
    run.write("summary.json", {name: {"iqm": 500.0} for name in ("teacher", "student")})
    argv = ["distill", ENV, "--seeds", "2", "--device", "cpu", "--out", str(path)]
    run.write_card(written_card(argv) | {"digests": run.digests()})
    like = jax.eval_shape(lambda: states[0])
    return Begun(path, [host(state) for state in states], like, params, lines.mark())


def written_card(argv: list[str]) -> dict[str, Any]:
    """What `jaxkd distill` writes at its start."""
    import tyro

    from jaxkd.cli import settings

    asked: Any = tyro.cli(settings.COMMANDS, args=argv)
    return dict(
        format=card.FORMAT,
        command=argv[0],
        env=ENV,
        device="cpu, 2 cores",
        versions={},
        settings=vars(asked),
        preset=PRESETS[ENV]._asdict(),
        argv=argv,
        started=0.0,
        status="interrupted",
    )


def host(state: Any) -> Any:
    """Copies of all leaves; keys as their data."""
    is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.tree.map(lambda x: np.array(jax.random.key_data(x) if is_key(x) else x), state)


def equal(ours: Any, theirs: Any) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, ours, theirs))


# --- R4: damaged files --------------------------------------------------------------------------


def spoil(file: Path, other: Path, draw: random.Random) -> str:
    """A flipped bit, a cut, nothing left, gone, or another file's content."""
    content = bytearray(file.read_bytes())
    kind = draw.choice(("flip", "cut", "empty", "delete", "swap"))
    if kind == "flip" and content:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        content = content[: draw.randrange(len(content) + 1)]
    elif kind == "swap":
        content = bytearray(other.read_bytes())
    file.write_bytes(b"" if kind == "empty" else content)
    if kind == "delete":
        file.unlink()
    return kind


def damage(made: Begun, draw: random.Random, scratch: Path) -> str:
    """One file of the directory is spoilt and read as a command does; then all is as before."""
    files = sorted(path for path in made.path.rglob("*") if path.is_file())
    file, other = draw.choices(files, k=2)
    content = file.read_bytes()
    kind = spoil(file, other, draw)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            same = read(made, file)
        spoke = bool(warned) or "warning: " in said.getvalue()
        return "same" if same else "warned" if spoke else f"silent: {kind} of {file.name}"
    except (ArtifactError, card.Damaged) as error:
        return "refused" if "\n" not in str(error) else f"bad: {error}"
    except Exception as error:
        return f"bad: {kind} of {file.name}: {error!r}"
    finally:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def read(made: Begun, file: Path) -> bool:
    """Reads what a file belongs to, and says whether it is what was written."""
    top, *below = file.relative_to(made.path).parts
    if top == "checkpoints":
        with Checkpoints(made.path / top / below[0]) as checkpoints:
            # The newest one is what a run goes on from; the one before is asked for by its step.
            wanted = int(below[1]) if below[1:2] == ["1"] else 2
            state, step = checkpoints.restore(made.like, None if wanted == 2 else wanted)
        assert equal(host(state), made.states[step - 1]), f"step {step} is another state"
        return step == wanted
    if top in ("teachers", "students"):
        return equal(jax.device_get(jaxkd.load_policy(file.with_suffix(".npz"))[1]), made.params)
    if top == log.METRICS:
        lines = log.Log(file)
        lines.believe(made.mark)
        lines.cut()
        return np.array_equal(lines.mark(), made.mark)
    found = card.read(made.path)
    if top == "summary.json":
        return card.summary(made.path, found) == {
            name: {"iqm": 500.0} for name in ("teacher", "student")
        }
    return True  # a card that is whole; timing.jsonl, which nothing depends on


# --- R5: malformed input ------------------------------------------------------------------------


def malformed(made: Begun, draw: random.Random, scratch: Path) -> str:
    """One input of a kind that is drawn."""
    kind = draw.choice((options, options, policies, policies, cards))
    before, begun_with = contents(made.path), draw.getstate()
    for _ in range(2):  # a machine that is busy may be slow once
        draw.setstate(begun_with)
        began = time.process_time()
        end = kind(made, draw, scratch)
        took = time.process_time() - began
        if took < LIMIT:
            return end if contents(made.path) == before else f"bad: something is lost ({end})"
    return f"bad: {took:.1f} s ({kind.__name__})"


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name != card.LOCK
    }


def options(made: Begun, draw: random.Random, scratch: Path) -> str:
    """A command line with one option that cannot be meant."""
    argv = line(made, draw)
    return answered(argv, *called(argv))


def line(made: Begun, draw: random.Random) -> list[str]:
    """One that has to be refused."""
    text = "".join(draw.choices("abzXYZ019-_=,:./ \u00e4\u2603\t", k=draw.randrange(1, 12))) + "~"
    number = draw.choice(("0", "-3", "1.5", "1e3", text, "9" * 40, "nan", "inf", "0x10", "+-1"))
    count = draw.choice([option for option in _COUNTS if (option, number) != ("--seed", "0")])
    field = draw.choice(Preset._fields)
    wrong: list[Callable[[], list[str]]] = [
        lambda: ["distill", ENV, f"{count}={number}"],
        lambda: ["teach", ENV, f"{draw.choice(_COUNTS[:5])}={number}"],
        lambda: ["distill", draw.choice((ENV.lower(), ENV + text, text))],
        lambda: ["distill", ENV, f"--set={draw.choice((text, field + text, field))}"],
        lambda: ["distill", ENV, f"--set={field}={text}"],
        lambda: ["distill", ENV, f"--grid={draw.choice((text, field, field + '=' + text))}"],
        lambda: ["distill", ENV, f"--grid={draw.choice(_SIZES)}=8,16"],
        lambda: ["distill", ENV, f"--student={draw.choice((text, 'mlp:' + text, 'auto:-1'))}"],
        lambda: ["distill", ENV, "--student=mlp:4,mlp:4"],
        lambda: ["distill", ENV, f"--budget={draw.choice((text, '-1s', '0', '1y'))}"],
        lambda: ["distill", ENV, "--budget=60s", "--steps=100000"],
        lambda: ["distill", ENV, f"--method={text}"],
        lambda: ["distill", ENV, f"--device={text}"],
        lambda: ["distill", ENV, f"--devices={draw.choice(('3', '7', '100000'))}"],
        lambda: ["distill", ENV, f"--checkpoint-every={draw.choice(('-1', 'nan', 'inf', text))}"],
        lambda: ["distill", ENV, f"--{text.strip('-')}"],
        lambda: ["distill", ENV, f"--out={made.path}"],
        lambda: ["distill", ENV, f"--out={made.path / 'run.json' / text.replace('/', '')}"],
        lambda: ["distill", ENV, f"--out={'x' * 300}"],
        lambda: ["distill", ENV, f"--teacher={draw.choice(_paths(made, text))}"],
        lambda: ["evaluate", str(draw.choice(_paths(made, text))), ENV],
        lambda: [
            "evaluate",
            str(made.path / "students" / "00.npz"),
            draw.choice((text, "Catch-bsuite")),
        ],
        lambda: ["evaluate", str(made.path / "students" / "00.npz"), ENV, f"--episodes={number}"],
        lambda: ["resume", str(draw.choice(_paths(made, text)))],
        lambda: ["compare", *map(str, draw.choices(_paths(made, text), k=draw.randrange(3)))],
        lambda: [text, ENV],
    ]
    return draw.choice(wrong)()


_COUNTS = ("--seeds", "--lanes", "--episodes", "--steps", "--seed", "--student-steps", "--devices")
_SIZES = [name for name, x in Preset._field_defaults.items() if not isinstance(x, float | None)]


def _paths(made: Begun, text: str) -> list[Path]:
    """That hold no policy and no run."""
    there = [made.path / "metrics.jsonl", made.path / "checkpoints", Path("/dev/null")]
    return [*there, Path("/proc/self/mem"), Path(text), Path("x" * 300), made.path / text]


def called(argv: list[str]) -> tuple[int | None, str]:
    """(exit code, standard error) of a command; None where it went on to work."""
    said, code = io.StringIO(), None
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main(argv)
        except SystemExit as ended:
            code = int(ended.code or 0)
        except Accepted:
            return None, ""
        except Exception as error:
            said.write(f"Traceback: {error!r}")
    return code, said.getvalue()


def answered(argv: list[str], code: int | None, said: str) -> str:
    """How a command ended that had to be refused."""
    usage = "For full helptext" in said  # tyro's own words, in a box
    if code in REFUSALS and "Traceback" not in said and (usage or said.count("\n") == 1):
        return "refused"
    return f"bad: {argv[:3]}: {code} {said[-300:]!r}"


class Accepted(Exception):
    """Instead of a run that would go on."""


@contextlib.contextmanager
def nothing_runs():
    """A command that gets as far as working raises `Accepted`."""

    def accept(*arguments: Any, **keywords: Any):
        raise Accepted

    before = running._go, running.dry_run, running.fitted
    running._go = running.dry_run = running.fitted = accept
    try:
        yield
    finally:
        running._go, running.dry_run, running.fitted = before


def policies(made: Begun, draw: random.Random, scratch: Path) -> str:
    """A policy's files with something else in them, and a digest that is right."""
    path = scratch / "policy.npz"
    with np.load(made.path / "teachers" / "00.npz") as found:
        arrays = dict(found)
    text = json.loads((made.path / "teachers" / "00.json").read_text())
    del text["digest"]
    if draw.random() < 0.5:
        change(arrays, draw)
    else:
        text = junked(text, draw)
    if isinstance(text, dict):
        with contextlib.suppress(TypeError, ValueError):
            text["digest"] = digest(arrays, text)
    np.savez(path, **arrays)
    path.with_suffix(".json").write_text(json.dumps(text))
    try:
        jaxkd.load_policy(path)
        return "another policy"  # a whole one, with other numbers or notes
    except ArtifactError as error:
        return "refused" if "\n" not in str(error) else f"bad: {error}"
    except Exception as error:
        return f"bad: {error!r} of {json.dumps(text)[:300]}"


def change(arrays: dict[str, np.ndarray], draw: random.Random) -> None:
    """One array is another."""
    name = draw.choice(sorted(arrays))
    x = arrays[name]
    arrays[name] = draw.choice(
        (
            x.astype(np.float64),
            x.astype(np.int8),
            x.astype("U8"),
            x.astype(complex),
            x[..., None],
            x[:0],
            np.array(1.0, np.float32),
            np.full_like(x, np.nan),
            np.full_like(x, np.inf),
            np.array([{}], object),
        )
    )
    if draw.random() < 0.3:
        arrays[draw.choice(("x", "../x", "params//w"))] = arrays.pop(name)


def junked(value: Any, draw: random.Random) -> Any:
    """A JSON value, one part of which is junk or missing."""
    if isinstance(value, dict | list) and value and draw.random() < 0.85:
        value = dict(value) if isinstance(value, dict) else list(value)
        at = draw.choice(sorted(value)) if isinstance(value, dict) else draw.randrange(len(value))
        if draw.random() < 0.15:
            del value[at]
        else:
            value[at] = junked(value[at], draw)
        return value
    return draw.choice(JUNK)


def cards(made: Begun, draw: random.Random, scratch: Path) -> str:
    """A run's card with something else in it, and a digest that is right: it is resumed."""
    run = scratch / "run"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir()
    before = card.read(made.path)
    del before["sha256"]
    found = junked(before, draw)
    text = card.sealed(found) if isinstance(found, dict) else found
    (run / card.CARD).write_text(json.dumps(text))
    code, said = called(["resume", str(run)])
    if code is None or code == 0:
        return "resumed"  # what is junk there does not matter
    lines = [line for line in said.splitlines() if not line.startswith("warning: ")]
    if code in REFUSALS and len(lines) == 1 and "Traceback" not in said:
        return "refused"
    changed = {
        k: v for k, v in (found if isinstance(found, dict) else {}).items() if before.get(k) != v
    }
    return f"bad: {code} {said[-200:]!r} of {json.dumps(changed)[:200]}"


TRIALS = {"damage": damage, "malformed": malformed}
