"""`jaxkd distill`: teachers, students, the same network without a teacher, and the table that compares them.

Legend of shapes: `n` seeds.
"""

import sys
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxkd import check, report
from jaxkd.base import Algorithm, Env, Policy, UsageError
from jaxkd.cli import device as devices
from jaxkd.cli import directory, measure, watching
from jaxkd.cli.failure import INTERRUPTED, Diverged, Interrupted
from jaxkd.cli.progress import Progress
from jaxkd.cli.settings import Distill
from jaxkd.cli.summary import FORMAT, Result, summarise, versions
from jaxkd.cli.training import Job, Trained, train
from jaxkd.evaluate import actor_size
from jaxkd.policies import load_policy, save_policy
from jaxkd.presets import (
    Preset,
    distillation,
    make_env,
    method_env,
    preset,
    random_policy,
    student_network,
    teacher_network,
    teaching,
)
from jaxkd.run import lanes, seeds


class Plan(NamedTuple):
    """What is to be trained, known to fit together before anything is compiled."""

    env: Env
    student_env: Env  # of the student's training
    preset: Preset
    teacher: Policy
    student: Policy
    teacher_params: Any  # of the file, shared by all seeds; None: every seed trains its own
    phases: dict[str, tuple[Algorithm, int]]  # (lanes of all seeds, updates) by name, in order


def distill(settings: Distill, argv: list[str]) -> int:
    """Runs the command; returns its exit code.

    Raises:
        UsageError, DeviceError, ArtifactError: before anything is written.
        Diverged: when no seed is left.
    """
    started = time.time()
    device = devices.choose(settings.device)
    print(f"device: {devices.describe(device)}", flush=True)
    made = plan(settings)
    run = directory.make(settings.env, settings.out)
    print(f"run directory: {run.path}/", flush=True)
    console = report.console()
    facts: dict[str, Any] = dict(
        format=FORMAT, env=settings.env, device=devices.describe(device), versions=versions()
    )
    card = facts | dict(
        settings=vars(settings), preset=made.preset._asdict(), argv=argv, started=started
    )

    def finish(status: str) -> None:
        run.write(
            "run.json", card | dict(status=status, finished=time.time(), digests=run.digests())
        )

    with watching.compilation() as compile_seconds, watching.signals() as stop:
        progress = Progress(console, settings.quiet)
        job = Job(run, progress, seeds(settings.seed, settings.seeds), 0, compile_seconds, stop)
        try:
            summary = facts | _work(job, made, settings.episodes)
        except (Interrupted, Diverged) as error:
            finish(type(error).__name__.lower())
            if isinstance(error, Diverged):
                raise
            print(f"{error} Kept in {run.path}/: {kept(run)}.", file=sys.stderr)
            return INTERRUPTED
        finally:
            progress.close()
        compiling = compile_seconds()
        summary |= dict(
            wall_seconds=round(time.time() - started - compiling, 3),
            compile_seconds=round(compiling, 3),
        )
    run.write("summary.json", summary)
    finish("finished")
    report.headline(directory.plain(summary), console)
    return 0


def plan(settings: Distill) -> Plan:
    """Everything that can be refused, refused now."""
    for name in ("seeds", "lanes", "episodes", "steps", "student_steps"):
        value = getattr(settings, name)
        if value is not None:
            check.count(f"--{name.replace('_', '-')}", value)
    if not 0 <= settings.seed < 2**32:
        raise UsageError(f"--seed must be in [0, 2**32), got {settings.seed}.")
    chosen = preset(settings.env)
    num_steps, student_steps = (
        settings.steps or chosen.num_steps,
        settings.student_steps or chosen.student_steps,
    )
    chosen = chosen._replace(num_steps=num_steps, student_steps=student_steps)
    env = make_env(settings.env, chosen)
    if settings.teacher:
        teacher, params = load_policy(settings.teacher)
        check.fits("teacher", teacher, env)
    else:
        teacher, params = teacher_network(env, chosen), None
    size = actor_size(teacher, jax.eval_shape(teacher.init, jax.random.key(0)), env.obs_spec)
    student = student_network(env, chosen, settings.student, size, settings.method)
    phases = {} if settings.teacher else {"teacher": teaching(env, teacher, chosen)}
    student_env = method_env(env, settings.method)
    phases["student"] = distillation(student_env, student, teacher, chosen, settings.method)
    phases["control"] = teaching(env, student, chosen, num_steps=student_steps)
    of_all = {
        name: (lanes(algorithm, shared=params is not None, at_once=settings.lanes), count)
        for name, (algorithm, count) in phases.items()
    }
    return Plan(env, student_env, chosen, teacher, student, params, of_all)


def _work(job: Job, made: Plan, episodes: int) -> dict[str, Any]:
    """Trains all phases, then measures; returns the summary."""
    n, shared = len(job.keys), made.teacher_params is not None
    trained: dict[str, Trained] = {}
    teacher_params, alive = made.teacher_params, np.ones(n, bool)
    if shared:
        save_policy(
            job.directory.path / "teachers" / "00", made.teacher, teacher_params, env=made.env.name
        )
    for phase, (algorithm, num_updates) in made.phases.items():
        inputs = (teacher_params,) if phase == "student" else ()
        began = alive if phase == "student" else np.ones(n, bool)
        steps = made.env.num_envs * dict(algorithm.description[1])["unroll_length"]
        trained[phase] = train(
            job._replace(steps_per_update=steps),
            phase,
            algorithm,
            num_updates,
            *inputs,
            alive=began,
        )
        if phase != "control":
            _save(
                job,
                f"{phase}s",
                made.teacher if phase == "teacher" else made.student,
                made.env,
                trained[phase],
            )
        if phase == "teacher":
            teacher_params, alive = trained[phase].state.params, trained[phase].alive
        if job.stop():
            raise Interrupted(
                f"{job.stop()}: stopped after {trained[phase].updates} of {num_updates} updates ({phase})."
            )
    job.progress.begin("evaluate", f"{episodes} episodes of each policy and seed")
    results = _evaluate(job, made, trained, episodes, teacher_params, shared)
    random = random_policy(made.env)
    floor = measure.returns(
        made.env,
        random,
        random.init(job.keys[0]),
        job.keys,
        episodes=episodes,
        shared=True,
        greedy=False,
    )
    state, length = trained["student"].state, made.preset.unroll_length
    likeness = measure.likeness(
        made.student_env,
        made.student,
        made.teacher,
        job.keys,
        state,
        teacher_params,
        shared=shared,
        length=length,
    )
    return summarise(results, floor, likeness)


def _evaluate(
    job: Job,
    made: Plan,
    trained: dict[str, Trained],
    episodes: int,
    teacher_params: Any,
    shared: bool,
) -> dict[str, Result]:
    """A row for every policy, acting alone."""
    results = {}
    for name in ("teacher", "student", "control"):
        policy, one = (made.teacher, shared) if name == "teacher" else (made.student, False)
        params = teacher_params if name == "teacher" else trained[name].state.params
        evaluation = measure.returns(
            made.env, policy, params, job.keys, episodes=episodes, shared=one
        )
        if job.stop():
            raise Interrupted(f"{job.stop()}: stopped while evaluating.")
        cost = measure.cost(
            made.env, policy, params if one else jax.tree.map(lambda x: x[0], params)
        )
        if name in trained:
            done = trained[name]
            took = done.alive, done.env_steps, done.wall_seconds, done.compile_seconds
        else:
            took = np.ones(len(job.keys), bool), 0, 0.0, 0.0
        results[name] = Result(policy, evaluation, took[0], cost, *took[1:])
    return results


def _save(job: Job, folder: str, policy: Policy, env: Env, trained: Trained) -> None:
    """The policy of every seed that is alive, as <folder>/<seed>.npz with its card."""
    params = jax.device_get(trained.state.params)
    for seed in np.flatnonzero(trained.alive).tolist():
        one = jax.tree.map(lambda x, seed=seed: x[seed], params)
        path = job.directory.path / folder / f"{seed:02d}"
        save_policy(
            path,
            policy,
            one,
            env=env.name,
            seed=seed,
            updates=trained.updates,
            env_steps=trained.env_steps,
        )


def kept(run: directory.Directory) -> str:
    """What an interrupted run leaves, in words."""
    folders = {
        name: len(list((run.path / name).glob("*.npz"))) for name in ("teachers", "students")
    }
    return ", ".join(
        [f"{number} {name}" for name, number in folders.items() if number] + ["metrics.jsonl"]
    )
