"""The command `jaxkd`.

This module, `settings`, `signals`, `card`, `runs` and `comparing` import no jax: `--help`, a
mistyped option, `jaxkd runs` and `jaxkd compare` are answered at once.
"""

import sys
from collections.abc import Sequence
from typing import Any

from jaxkd.cli import signals

_DESCRIPTION = """Distil a reinforcement-learning teacher into a small student.

Exit codes: 2 usage, 3 device, 4 file, 5 diverged, 75 interrupted."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    tyro itself exits for `--help` (0) and a mistyped option (2).
    """
    with signals.heard() as stop:  # before anything that takes time
        import tyro

        from jaxkd.cli import settings

        argv = list(sys.argv[1:] if argv is None else argv)
        command = tyro.cli(settings.COMMANDS, args=argv, prog="jaxkd", description=_DESCRIPTION)
        if isinstance(command, settings.Runs):
            from jaxkd.cli import runs

            return runs.runs(command)
        if isinstance(command, settings.Compare):
            from jaxkd.cli import comparing

            return comparing.answer(command)
        from jaxkd.cli import failure, others

        try:
            with others.unheard():
                return _call(command, argv, stop)
        except Exception as error:
            code, cause = failure.explain(error)
            if code is None or getattr(command, "traceback", False):
                raise
            print(f"error: {cause}", file=sys.stderr)
            return code


def _call(command: Any, argv: list[str], stop: signals.Stop) -> int:
    from jaxkd.cli import settings

    if isinstance(command, settings.Distill | settings.Teach | settings.Resume):
        from jaxkd.cli import running

        if isinstance(command, settings.Resume):
            return running.resume(command, stop)
        return running.begin(command, argv, stop)
    if isinstance(command, settings.Report):
        from jaxkd.cli.reporting import report

        return report(command)
    if isinstance(command, settings.Evaluate):
        from jaxkd.cli.playing import evaluate

        return evaluate(command)
    if isinstance(command, settings.Bench):
        from jaxkd.cli.bench import bench

        return bench(command)
    if isinstance(command, settings.Doctor):
        from jaxkd.cli.doctor import doctor

        return doctor(command)
    if isinstance(command, settings.Export | settings.Check):
        from jaxkd.cli import exporting

        if isinstance(command, settings.Check):
            return exporting.check(command)
        return exporting.export(command)
    if isinstance(command, settings.CheckEnv):
        from jaxkd.cli.checking import check_env

        return check_env(command)
    from jaxkd.cli import listing

    return listing.envs() if isinstance(command, settings.Envs) else listing.methods()
