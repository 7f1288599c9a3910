"""The command line that the scripts of these folders share. It imports no jax: `--help` answers at
once.

A script calls `start` before its other imports, so that nothing heavy happens before the words on
its command line are understood. The checkout's root has to be on the path: an editable install puts
it there (`make` does that), or PYTHONPATH=. Results go to runs/benchmarks/; only `--commit` writes
committed ones.
"""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import tyro

RESULTS = Path(__file__).parent / "results"
_FOLDER = (
    "JAXKD_BENCHMARK_RESULTS"  # in the environment, so that a script's children write there, too
)


@dataclass
class Given:
    """What every script takes."""

    commit: bool = False  # write benchmarks/results, which are committed
    out: Path = Path("runs/benchmarks")  # folder of the results without --commit
    device: Literal["cpu", "gpu", "tpu"] | None = None  # default: the first that JAX finds


@dataclass
class Named(Given):
    """And parts of the experiment by name."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()  # default all


@dataclass
class Quick(Given):
    """And a small version of itself."""

    quick: bool = False  # a few points, nothing written


@dataclass
class Peers(Named):
    """What peers.py takes."""

    quick: bool = False  # one short round, nothing written
    verify: bool = False  # does each of them learn?


@dataclass
class Turns(Named):
    """What turns.py takes."""

    against: str = "HEAD"  # the commit to compare with
    pairs: int = 2  # of processes, a row


@dataclass
class Headline(Given):
    """What headline.py takes."""

    env: tyro.conf.Positional[str] = "CartPole-v1"
    seeds: int = 16
    seed: int = 0
    episodes: int = 128  # greedy, of each policy and seed


Kind = TypeVar("Kind", bound=Given)


def start(kind: type[Kind], doc: str | None, file: str) -> Kind:
    """Reads the command line, says how long it will take, and chooses device and folder."""
    place, name = Path(file).parent.name, Path(file).stem
    given = tyro.cli(kind, description=doc, prog=f"benchmarks/{place}/{name}.py")
    os.environ[_FOLDER] = str(RESULTS / place if given.commit else given.out.absolute())
    if given.device:
        os.environ["JAX_PLATFORMS"] = {"gpu": "cuda"}.get(given.device, given.device)
    print(f"results: {folder()}; {how_long(place, name)}", file=sys.stderr, flush=True)
    return given


def folder() -> Path:
    """Where results are written."""
    return Path(os.environ.get(_FOLDER, "runs/benchmarks"))


def how_long(place: str, name: str) -> str:
    """Minutes of the committed run, as far as its JSON files tell."""
    committed = RESULTS / place
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
