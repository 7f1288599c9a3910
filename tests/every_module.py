"""A plugin that fails a part of the suite which leaves a module of jaxkd out.

`python -m pytest -p tests.every_module FILES`: a module is met when a test runs one of its
functions, in this process or in one of pytest-xdist's. Python 3.12 or newer, whose monitoring costs
nothing here.
"""

import ast
import sys
from pathlib import Path
from types import CodeType

PACKAGE = Path(__file__).resolve().parents[1] / "jaxkd"
MET: set[str] = set()


def functional() -> set[str]:
    """The files that define a function: the others are met by importing them."""
    return {
        str(file)
        for file in PACKAGE.rglob("*.py")
        if any(isinstance(node, ast.FunctionDef) for node in ast.walk(ast.parse(file.read_text())))
    }


def note(code: CodeType, offset: int) -> object:
    if code.co_name != "<module>" and code.co_filename.startswith(str(PACKAGE)):
        MET.add(code.co_filename)
    return sys.monitoring.DISABLE  # this function is not told again


def pytest_collection_finish():
    """From here on: what runs while files are imported is no test."""
    tool, started = sys.monitoring.PROFILER_ID, sys.monitoring.events.PY_START
    sys.monitoring.use_tool_id(tool, "every module")
    sys.monitoring.register_callback(tool, started, note)
    sys.monitoring.set_events(tool, started)


def pytest_testnodedown(node, error):
    """Of pytest-xdist: what a worker has met."""
    MET.update(getattr(node, "workeroutput", {}).get("met", ()))


def pytest_sessionfinish(session):
    if sys.monitoring.get_tool(sys.monitoring.PROFILER_ID):  # not where xdist only hands out tests
        sys.monitoring.set_events(sys.monitoring.PROFILER_ID, 0)
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["met"] = sorted(MET)
        return
    missing = sorted(functional() - MET)
    if missing:
        print("\nerror: no function was called of", *missing, sep="\n  ")
        session.exitstatus = 1
