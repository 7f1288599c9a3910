"""The work of each phase of `jaxkd distill`: every function here makes a `work` of `phases.Phase`.

Legend of shapes: `n` seeds.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxkd.base import Algorithm, Env, Evaluation, Policy
from jaxkd.cli import measure
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


class Course(NamedTuple):
    """A training: what the updates of all seeds are made of."""

    algorithm: Algorithm  # of one seed
    num_updates: int
    steps_per_update: int  # environment steps of one seed
    at_once: int | None  # seeds computed together; None: all


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


def learn(name: str, env: Env, policy: Policy, course: Course, *, folder: str = "") -> Callable:
    """Trains `policy` with every seed, from the teachers it is given, and saves it in `folder`."""

    def work(job: Job, *teachers: Learnt) -> Learnt:
        alive = np.ones(len(job.keys), bool)
        for teacher in teachers:
            alive = alive & teacher.trained.alive  # a seed whose teacher is lost learns nothing
        shared = all(teacher.shared for teacher in teachers)
        trained = train(
            job,
            name,
            lanes(course.algorithm, shared=shared, at_once=course.at_once),
            course.num_updates,
            *[teacher.params for teacher in teachers],
            alive=alive,
            steps_per_update=course.steps_per_update,
            teachers=[
                identify(each.policy, each.params, each.source, env.obs_spec, each.shared)
                for each in teachers
            ],
        )
        if folder:
            _save(job, folder, policy, env, trained)
        if trained.updates < course.num_updates:
            done = f"{trained.updates} of {course.num_updates} updates"
            raise Interrupted(f"{job.stop()}: stopped after {done} ({name}).")
        return Learnt(policy, trained.state.params, False, trained)

    return work


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
            results[name] = Result(policy, played, sampled, cost, trained)
        return results

    return work


def compare(env: Env, student_env: Env, episodes: int, length: int) -> Callable:
    """The summary: the results, a random policy, and how alike student and teacher are.

    Args:
        length: steps of the rollout on which they are compared.
    """

    def work(
        job: Job, teacher: Learnt, student: Learnt, results: dict[str, Result]
    ) -> dict[str, Any]:
        likeness = measure.likeness(
            student_env,
            student.policy,
            teacher.policy,
            job.keys,
            student.trained.state,
            teacher.params,
            shared=teacher.shared,
            length=length,
        )
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


def _save(job: Job, folder: str, policy: Policy, env: Env, trained: Trained) -> None:
    """The policy of every seed that is alive, as <folder>/<seed>.npz with its card."""
    params = jax.device_get(trained.state.params)
    notes = dict(env=env.name, updates=trained.updates, env_steps=trained.env_steps)
    for seed in np.flatnonzero(trained.alive).tolist():
        of_seed = jax.tree.map(lambda x, seed=seed: x[seed], params)
        path = job.directory.path / folder / f"{seed:02d}"
        save_policy(path, policy, of_seed, seed=seed, **notes)
