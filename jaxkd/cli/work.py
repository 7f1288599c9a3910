"""The work of each phase of `jaxkd distill`: every function here makes a `work` of `phases.Phase`.

Legend of shapes: `n` seeds.
"""

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxkd import sharding
from jaxkd.base import Algorithm, Env, Evaluation, Policy, UsageError
from jaxkd.cli import grid, measure
from jaxkd.cli.failure import Interrupted
from jaxkd.cli.phases import Job
from jaxkd.cli.saving import identify
from jaxkd.cli.summary import Result, summarise
from jaxkd.cli.training import Trained, train
from jaxkd.policies import save_policy
from jaxkd.presets import random_policy
from jaxkd.run import lanes


class Learnt(NamedTuple):
    """A policy that a phase leaves, and how it came about."""

    policy: Policy
    params: Any  # [n, ...]; without [n] where it is shared
    shared: bool  # the same for all seeds
    trained: Trained
    source: str = "trained in this run"
    point: grid.Point = {}  # of a grid


class Course(NamedTuple):
    """A training: what the updates of all seeds are made of."""

    algorithm: Algorithm  # of one seed
    num_updates: int
    steps_per_update: int  # environment steps of one seed
    at_once: int | None  # seeds computed together; None: all
    points: list[grid.Point] = [{}]  # where it is swept, `algorithm` takes one as its last input
    mesh: Mesh | None = None  # of the devices it is spread over


class Made(NamedTuple):
    """What is known of a phase's policy before it runs."""

    policy: Policy
    course: Course | None  # None: it is from a file
    params: Any = None  # of the file


def load(env: Env, policy: Policy, params: Any, *, source: str, folder: str) -> Callable:
    """A policy from a file, for all seeds; the run's directory gets a copy in `folder`."""

    def work(job: Job) -> Learnt:
        save_policy(job.directory.path / folder / "00", policy, params, env=env.name)
        everyone = np.ones(len(job.keys), bool)
        nothing = Trained(None, everyone, 0, 0, 0.0, 0.0)
        return Learnt(policy, params, True, nothing, source)

    return work


def mesh_of(devices: int, num_lanes: int, num_envs: int) -> Mesh | None:
    """The mesh that lanes, and where they do not suffice environments, are spread over.

    Raises:
        UsageError: they cannot be divided.
    """
    if devices == 1:
        return None
    of_lanes = math.gcd(devices, num_lanes)
    of_envs = devices // of_lanes
    if num_envs % of_envs:
        raise UsageError(
            f"--devices {devices}: {num_lanes} seeds of {num_envs} environments cannot be divided "
            f"among them. Take --seeds {devices}, or fewer devices."
        )
    axes = dict(seeds=of_lanes, envs=of_envs)
    return sharding.mesh(**{name: size for name, size in axes.items() if size > 1})


class Together(NamedTuple):
    """A course of all its lanes, point after point, and in each seed after seed."""

    algorithm: Algorithm
    keys: jax.Array  # [G n]
    inputs: list  # leading with [G n] unless the teacher is shared


def together(course: Course, keys: jax.Array, params: Sequence[Any], shared: bool) -> Together:
    """What the compiled update of a course takes.

    Args:
        keys: [n].
        params: of its teachers, [n, ...]; without [n] if shared.
    """
    n, num_points, inputs = len(keys), len(course.points), list(params)
    if course.points[0]:
        lanes_of_seeds = np.tile(np.arange(n), num_points)
        spread = lambda x: jnp.broadcast_to(x, (len(lanes_of_seeds), *x.shape))
        each = spread if shared else lambda x: jnp.asarray(x)[lanes_of_seeds]
        inputs = [jax.tree.map(each, x) for x in inputs] + [grid.lanes_of(course.points, n)]
        keys, shared = keys[lanes_of_seeds], False
    algorithm = lanes(course.algorithm, shared=shared, at_once=course.at_once)
    if course.mesh is not None:
        algorithm = sharding.shard(algorithm, course.mesh)
        inputs = jax.device_put(inputs, NamedSharding(course.mesh, PartitionSpec()))
    return Together(algorithm, keys, inputs)


def learn(name: str, env: Env, policy: Policy, course: Course, *, folder: str = "") -> Callable:
    """Trains `policy` with every seed, from the teachers it is given, and saves it in `folder`.

    The work leaves a `Learnt`; where the course is swept a list of them, by point.
    """

    def work(job: Job, *teachers: Learnt) -> Any:
        alive = np.ones(len(job.keys), bool)
        for teacher in teachers:
            alive = alive & teacher.trained.alive  # a seed whose teacher is lost learns nothing
        shared = all(teacher.shared for teacher in teachers)
        params = [teacher.params for teacher in teachers]
        algorithm, keys, inputs = together(course, job.keys, params, shared)
        trained = train(
            job._replace(keys=keys),
            name,
            algorithm,
            course.num_updates,
            *inputs,
            alive=np.tile(alive, len(course.points)),
            steps_per_update=course.steps_per_update,
            names=_names(course, len(job.keys)),
            points=len(course.points),
            mesh=course.mesh,
            teachers=[
                identify(each.policy, each.params, each.source, env.obs_spec, each.shared)
                for each in teachers
            ],
        )
        found = _apart(course, policy, trained, len(job.keys))
        if folder:
            for number, learnt in enumerate(found, 1):
                _save(job, folder if number == 1 else f"{folder}-{number}", policy, env, learnt)
        if trained.updates < course.num_updates:
            done = f"{trained.updates} of {course.num_updates} updates"
            raise Interrupted(f"{job.stop()}: stopped after {done} ({name}).")
        return found if len(found) > 1 else found[0]

    return work


def pick(number: int) -> Callable:
    """One point of what `learn` leaves of a grid."""

    def work(job: Job, found: list[Learnt]) -> Learnt:
        return found[number]

    return work


def _names(course: Course, n: int) -> list[str]:
    """Of the lanes, in the words of the user."""
    return [
        f"{seed} ({grid.in_words(point)})" if point else str(seed)
        for point in course.points
        for seed in range(n)
    ]


def _apart(course: Course, policy: Policy, trained: Trained, n: int) -> list[Learnt]:
    """Point by point; the seconds are those of all, and count once."""
    found = []
    for number, point in enumerate(course.points):
        own = slice(number * n, (number + 1) * n)
        state = jax.tree.map(lambda x, own=own: x[own], trained.state) if point else trained.state
        part = trained._replace(state=state, alive=trained.alive[own])
        if number:
            part = part._replace(earlier=(0.0, 0.0))
        found.append(Learnt(policy, state.params, False, part, point=point))
    return found


def evaluate(env: Env, names: Sequence[str], episodes: int) -> Callable:
    """A `Result` by name for every policy, acting alone, greedily and sampled."""
    whole_rounds = -(-episodes // env.num_envs) * env.num_envs  # what `evaluate` rounds up to

    def work(job: Job, *policies: Learnt) -> dict[str, Result]:
        job.progress.begin("evaluate", f"{whole_rounds} episodes of each policy and seed")
        results = {}
        for name, learnt in zip(names, policies, strict=True):
            policy, params, shared, trained = learnt[:4]
            played, sampled = measure.returns(
                env, policy, params, job.keys, episodes=episodes, shared=shared
            )
            if job.stop():
                raise Interrupted(f"{job.stop()}: stopped while evaluating.")
            _warn_left_out(name, env, played, trained.alive)
            _warn_left_out(f"{name}, sampled,", env, sampled, trained.alive)
            params_of_one = params if shared else jax.tree.map(lambda x: x[0], params)
            cost = measure.cost(env, policy, params_of_one)
            results[name] = Result(policy, played, sampled, cost, trained, learnt.point)
        return results

    return work


def compare(
    env: Env, student_env: Env, students: Sequence[str], episodes: int, length: int
) -> Callable:
    """The summary: the results, a random policy, and how alike students and teacher are.

    Args:
        students: their names among the results.
        length: steps of the rollout on which they are compared.
    """

    def work(
        job: Job, results: dict[str, Result], teacher: Learnt, *learnt: Learnt
    ) -> dict[str, Any]:
        likeness = {
            name: measure.likeness(
                student_env,
                student.policy,
                teacher.policy,
                job.keys,
                student.trained.state,
                teacher.params,
                shared=teacher.shared,
                length=length,
            )
            for name, student in zip(students, learnt, strict=True)
        }
        return summarise(
            results,
            _floor(job, env, episodes),
            likeness,
            starts=measure.different_starts(env, job.keys[0]),
            kl=job.log.curve("student", "loss/kl"),
        )

    return work


def rank(env: Env, episodes: int) -> Callable:
    """The summary of a teacher alone: its results beside a random policy's."""

    def work(job: Job, results: dict[str, Result]) -> dict[str, Any]:
        starts = measure.different_starts(env, job.keys[0])
        return summarise(results, _floor(job, env, episodes), {}, starts=starts)

    return work


def _floor(job: Job, env: Env, episodes: int) -> Evaluation:
    """Of a random policy."""
    random = random_policy(env)
    params = random.init(job.keys[0])
    (floor,) = measure.returns(
        env, random, params, job.keys, episodes=episodes, shared=True, greedy=(False,)
    )
    return floor


def _warn_left_out(name: str, env: Env, played: Evaluation, alive: np.ndarray) -> None:
    """One line on standard error where episodes of a policy are in no mean."""
    returns, lengths = played.returns[alive], played.lengths[alive]
    left_out, unfinished = int(np.sum(~np.isfinite(returns))), int(np.sum(lengths == 0))
    if left_out:
        print(
            f"warning: {left_out} of {returns.size} episodes of the {name} are in no mean: "
            f"{unfinished} did not end within twice the limit of {env.max_steps} steps, "
            f"{left_out - unfinished} have a return that is not finite.",
            file=sys.stderr,
            flush=True,
        )


def _save(job: Job, folder: str, policy: Policy, env: Env, learnt: Learnt) -> None:
    """The policy of every seed that is alive, as <folder>/<seed>.npz with its card."""
    params, trained = jax.device_get(learnt.params), learnt.trained
    notes = dict(env=env.name, updates=trained.updates, env_steps=trained.env_steps, **learnt.point)
    for seed in np.flatnonzero(trained.alive).tolist():
        of_seed = jax.tree.map(lambda x, seed=seed: x[seed], params)
        path = job.directory.path / folder / f"{seed:02d}"
        save_policy(path, policy, of_seed, seed=seed, **notes)
