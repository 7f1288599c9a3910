"""The command line that the scripts of these folders share. It imports no jax: `--help` answers at
once.

A script calls `start` before its other imports, so that nothing heavy happens before the words on
its command line are understood. The checkout's root has to be on the path: an editable install puts
it there (`make` does that), or PYTHONPATH=. Results go to runs/benchmarks/, those of a smaller size
or of other seeds to a folder of their own in it; only `--commit` writes committed ones.

A script has a table of what its sizes differ in, and takes the row that `sized` gives:

    class Sizes(NamedTuple):
        seeds: int = 10

    SIZES = {"full": Sizes(), "cpu": Sizes(seeds=3), "tiny": Sizes(seeds=1)}
"""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, TypeVar

import tyro

RESULTS = Path(__file__).parent / "results"
FULL = "full"
# In the environment, so that a script's children know it, too.
_PLACE = "JAXKD_BENCHMARK"
_MINUTES = {"tiny": "some seconds", "cpu": "a few minutes on two cores"}


@dataclass
class Given:
    """What every script takes."""

    # tiny: every line in seconds; cpu: a few minutes that say something; full: what is committed
    size: Literal["tiny", "cpu", "full"] = "full"
    commit: bool = False  # write benchmarks/results, which are committed
    out: Path = Path("runs/benchmarks")  # folder of the results without --commit
    device: Literal["cpu", "gpu", "tpu"] | None = None  # default: the first that JAX finds
    fresh: bool = False  # run again what an earlier call has left


@dataclass
class Named(Given):
    """And parts of the experiment by name."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()  # default all


@dataclass
class Long(Named):
    """And a time."""

    minutes: float | None = None  # of each part, which then writes what there is; default no limit


@dataclass
class Seeded(Given):
    """And a number of seeds."""

    seeds: int | None = None  # default what the size says


@dataclass
class Study(Named):
    """Parts by name and a number of seeds."""

    seeds: int | None = None  # of the students, where there are some; default what the size says


@dataclass
class Peers(Named):
    """What peers.py takes."""

    verify: bool = False  # does each of them learn?


@dataclass
class Turns(Named):
    """What turns.py takes."""

    against: str = "HEAD"  # the commit to compare with
    pairs: int | None = None  # of processes, a row; default what the size says


@dataclass
class Headline(Seeded):
    """What headline.py takes."""

    env: tyro.conf.Positional[str] = "CartPole-v1"
    seed: int = 0
    episodes: int | None = None  # greedy, of each policy and seed; default what the size says


@dataclass
class Accelerator(Given):
    """What accelerator.py takes."""

    rows: tuple[str, ...] = ()  # by name; default all but levers, flags and their like
    minutes: float = 8.0  # in which all rows are done
    draw: bool = False  # measure nothing: the table of the JSON, and the picture beside it
    first_update: bool = False  # print what a fresh process needs to its first update, and end
    write_reference: bool = False  # make the numbers of row "correct" anew, on a CPU, and end


Kind = TypeVar("Kind", bound=Given)


def start(kind: type[Kind], doc: str | None, file: str) -> Kind:
    """Reads the command line, says how long it will take, and chooses device and folders."""
    folder, name = Path(file).parent.name, Path(file).stem
    given = tyro.cli(kind, description=doc, prog=f"benchmarks/{folder}/{name}.py")
    _check(given)
    label = _label(given)
    own = given.out.absolute() / ("" if label == FULL else label)
    results = RESULTS / folder if given.commit else own
    made = Place(str(results), str(own / "kept"), label, given.fresh)
    os.environ[_PLACE] = json.dumps(made._asdict())
    if given.device:
        os.environ["JAX_PLATFORMS"] = {"gpu": "cuda"}.get(given.device, given.device)
    takes = _MINUTES.get(given.size) or how_long(folder, name)
    print(f"results: {results}; size {label}: {takes}", file=sys.stderr, flush=True)
    return given


def sized(given: Given, sizes: dict[str, Any], seeds: str = "seeds") -> Any:
    """The row of a script's table, with as many seeds as were asked for.

    Args:
        sizes: {"tiny", "cpu", "full": a NamedTuple}.
        seeds: the name of the field that holds their number.
    """
    row, number = sizes[given.size], getattr(given, "seeds", None)
    return row if number is None else row._replace(**{seeds: number})


def chosen(names: tuple[str, ...], known: tuple[str, ...]) -> tuple[str, ...]:
    """The parts that were named, default all; ends the program where there is no such part."""
    unknown = [name for name in names if name not in known]
    if unknown:
        refuse(f"no part {', '.join(unknown)}. There are: {', '.join(known)}.")
    return names or known


def refuse(why: str) -> NoReturn:
    """Ends the program with one line."""
    print(f"error: {why}", file=sys.stderr)
    sys.exit(2)


def _check(given: Given) -> None:
    """Refuses what contradicts itself."""
    number = getattr(given, "seeds", None)
    if number is not None and number < 1:
        refuse(f"--seeds {number}: there must be one at least.")
    if given.commit and _label(given) != FULL:
        refuse(
            f"--commit writes what the full size and its own seeds find, this is {_label(given)}. "
            "Leave out --commit, or --size and --seeds."
        )


def _label(given: Given) -> str:
    """What tells these figures from those of another size: "full", "tiny", "full-3-seeds"."""
    number = getattr(given, "seeds", None)
    return given.size if number is None else f"{given.size}-{number}-seeds"


class Place(NamedTuple):
    """Where a call of a script writes, and what its figures are of."""

    folder: str = "runs/benchmarks"  # of results
    kept: str = "runs/benchmarks/kept"  # of finished arms, see `protocol.arms`
    label: str = FULL  # the size, and the number of seeds where it was given
    fresh: bool = False  # kept arms are run again


def place() -> Place:
    """What `start` chose, for this process and its children."""
    return Place(**json.loads(os.environ.get(_PLACE, "{}")))


def how_long(folder: str, name: str) -> str:
    """Minutes of the committed run, as far as its JSON files tell."""
    committed = RESULTS / folder
    files = [committed / f"{name}.json", *(committed / name).glob("*.json")]
    found = [second for f in files if f.exists() for second in seconds(json.loads(f.read_text()))]
    if not found:
        return "how long it takes is unknown"
    return f"all of it took {sum(found) / 60:.0f} minutes when it was committed"


def seconds(result: object) -> Iterator[float]:
    """Every "seconds" that is one number and has none above it."""
    if not isinstance(result, dict):
        return
    whole = result.get("seconds")
    if isinstance(whole, int | float):
        yield float(whole)
        return
    for part in result.values():
        yield from seconds(part)
