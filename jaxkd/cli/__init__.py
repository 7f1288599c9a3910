"""The command `jaxkd`.

This module and `settings` import no jax: `--help` and a mistyped option are answered at once.
"""

import sys
from collections.abc import Sequence

from jaxkd.cli.settings import COMMANDS, Distill, Doctor, Envs, Methods

_DESCRIPTION = """Distil a reinforcement-learning teacher into a small student.

Exit codes: 2 usage, 3 device, 4 file, 5 diverged, 75 interrupted."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code.

    tyro itself exits for `--help` (0) and a mistyped option (2).
    """
    import tyro

    argv = list(sys.argv[1:] if argv is None else argv)
    command = tyro.cli(COMMANDS, args=argv, prog="jaxkd", description=_DESCRIPTION)
    from jaxkd.cli import failure

    try:
        return _call(command, argv)
    except KeyboardInterrupt:
        return failure.KILLED
    except Exception as error:
        code, cause = failure.explain(error)
        if code is None or getattr(command, "traceback", False):
            raise
        print(f"error: {cause}", file=sys.stderr)
        return code


def _call(command: Distill | Methods | Envs | Doctor, argv: list[str]) -> int:
    if isinstance(command, Distill):
        from jaxkd.cli.distill import distill

        return distill(command, argv)
    from jaxkd.cli import listing

    if isinstance(command, Doctor):
        return listing.doctor(command)
    return listing.envs() if isinstance(command, Envs) else listing.methods()
