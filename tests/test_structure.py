"""The rules of the source itself: size, direction of imports, what is never written, what is
public.

Each gate is a function of (source, ...) -> list of violations. One test runs it over the tree, one
shows that it can fail.
"""

import ast
import io
import pydoc
import subprocess
import sys
import textwrap
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]

MAX_FUNCTION_LINES, MAX_FILE_LINES, MAX_ARGUMENTS = 40, 300, 14

LAYERS = (
    ("base", "keys", "runtime"),
    ("description", "distributions", "moments", "cpu"),
    ("envs", "networks", "behavior", "returns", "memory", "check"),
    ("losses", "rewards"),
    ("successors", "metrics"),
    ("rollout", "optimize"),
    ("assembly",),
    ("describe",),
    ("learner",),
    ("recipes",),
    ("methods", "sequences"),
    ("checkpoint_card",),
    (
        "run",
        "evaluate",
        "policies",
        "checkpoint",
        "sharding",
        "cache",
        "presets",
        "tracking",
        "export",
    ),
    ("__init__",),  # what imports `jaxkd` itself imports this
    ("cli", "report"),
    ("__main__",),
)
LAYER = {module: layer for layer, modules in enumerate(LAYERS) for module in modules}
FRONT = ("cli", "report", "__main__")  # may draw; the rest is the engine
DRAWING = {"rich", "tyro", "matplotlib", "PIL", "jinja2", "tensorboardX", "wandb"}
HEAVY = ("gymnax", "orbax", "matplotlib", "rich", "tyro")
SERIALISERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
NOT_CODE = {
    getattr(tokenize, name)
    for name in "COMMENT NL NEWLINE INDENT DEDENT ENCODING ENDMARKER".split()
}
SHAPELESS_NAMES = {"utils", "util", "common", "helpers", "helper", "types"}


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def walk(node: ast.AST, into_functions: bool = True) -> Iterator[ast.AST]:
    """Every node below `node`; without the bodies of functions, what runs at import."""
    for child in ast.iter_child_nodes(node):
        yield child
        if into_functions or not isinstance(
            child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
        ):
            yield from walk(child, into_functions)


# --- size ----------------------------------------------------------------------------------------


def code_lines(source: str) -> set[int]:
    """The numbers of the lines that hold code: no blank lines, no comments, no docstrings."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NOT_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        if (
            not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            or not body
        ):
            continue
        if (
            isinstance(body[0], ast.Expr)
            and isinstance(body[0].value, ast.Constant)
            and isinstance(body[0].value.value, str)
        ):
            lines.difference_update(
                range(body[0].lineno, (body[0].end_lineno or body[0].lineno) + 1)
            )
    return lines


def num_arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    arguments = function.args
    named = len(arguments.posonlyargs) + len(arguments.args) + len(arguments.kwonlyargs)
    return named + (arguments.vararg is not None) + (arguments.kwarg is not None)


def size_violations(source: str, name: str) -> list[str]:
    lines, violations = code_lines(source), []
    if len(lines) > MAX_FILE_LINES:
        violations.append(f"{name}: {len(lines)} lines of code, at most {MAX_FILE_LINES}")
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        length = len(lines & set(range(node.lineno, (node.end_lineno or node.lineno) + 1)))
        if length > MAX_FUNCTION_LINES:
            violations.append(
                f"{name}:{node.lineno}: {node.name} has {length} lines of code, at most "
                f"{MAX_FUNCTION_LINES}"
            )
        if num_arguments(node) > MAX_ARGUMENTS:
            violations.append(
                f"{name}:{node.lineno}: {node.name} has {num_arguments(node)} arguments, at most "
                f"{MAX_ARGUMENTS}"
            )
    return violations


@pytest.mark.parametrize(
    "path", sources("jaxkd", "benchmarks"), ids=lambda path: str(path.relative_to(ROOT))
)
def test_size(path: Path):
    violations = size_violations(path.read_text(), str(path.relative_to(ROOT)))
    assert violations == []


def test_size_gate_counts_code_only():
    body = "".join(f"    x = {i}  # why\n\n    # a comment\n" for i in range(39))
    function = f'def f():\n    """One.\n\n    Two.\n    """\n{body}'
    assert len(code_lines(function)) == 40
    assert not size_violations(function, "f")
    assert len(code_lines('x = """a\nb\nc"""\n')) == 3  # a string that is not a docstring is code


@pytest.mark.parametrize(
    "source, message",
    [
        ("def f():\n" + "    x = 1\n" * 40, "f has 41 lines"),
        (
            "def outer():\n    def inner():\n" + "        x = 1\n" * 39 + "    return inner\n",
            "outer has 42 lines",
        ),
        ("x = 1\n" * 301, "301 lines of code"),
        (f"def f({', '.join(f'a{i}' for i in range(15))}): pass\n", "15 arguments"),
        (f"def f(*, {', '.join(f'a{i}' for i in range(14))}, **more): pass\n", "15 arguments"),
        ("class C:\n    async def f(self):\n" + "        x = 1\n" * 40, "f has 41 lines"),
    ],
)
def test_size_gate_can_fail(source, message):
    violations = size_violations(source, "bad")
    assert len(violations) == 1 and message in violations[0]


# --- imports -------------------------------------------------------------------------------------


def imported(node: ast.AST, package: tuple[str, ...]) -> list[str]:
    """Absolute dotted names that one node imports; `package` is the package that the file is in."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        parent = package[: len(package) + 1 - node.level] if node.level else ()
        origin = ".".join((*parent, node.module) if node.module else parent)
        # `from jaxkd import losses` imports a module, `from jaxkd.losses import forward_kl` need
        # not: the layer is the same.
        return [f"{origin}.{alias.name}" for alias in node.names]
    if (
        isinstance(node, ast.Call)
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    ):
        function = (
            node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        )
        return [node.args[0].value] if function in ("import_module", "__import__") else []
    return []


def top_module(dotted: str) -> str:
    """The first name below `jaxkd`: "jaxkd.losses.policy" -> "losses"; "jaxkd" itself and its
    attributes -> "__init__".
    """
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LAYER else "__init__"


def import_violations(source: str, name: str) -> list[str]:
    """`name` is the path below the root, "jaxkd/losses/policy.py"."""
    path = Path(name)
    package, tree = path.parent.parts, ast.parse(source)
    module = path.parts[1] if len(path.parts) > 2 else path.stem
    if module not in LAYER:
        return [
            f"{name}: no layer for '{module}'; give it one in LAYERS of tests/test_structure.py"
        ]
    violations = []
    for node in walk(tree):
        for target in imported(node, package):
            where = f"{name}:{getattr(node, 'lineno', 0)}: imports {target}"
            if target.split(".")[0] == "jaxkd" and LAYER[top_module(target)] > LAYER[module]:
                violations.append(f"{where}, which is above '{module}'")
            if target.split(".")[0] == "gymnax" and name != "jaxkd/envs/gymnax.py":
                violations.append(f"{where}; only jaxkd/envs/gymnax.py may")
    if module not in FRONT:
        for node in walk(tree, into_functions=False):
            for target in imported(node, package):
                if target.split(".")[0] in DRAWING:
                    violations.append(
                        f"{name}:{getattr(node, 'lineno', 0)}: the engine imports {target} at "
                        "module level"
                    )
    return violations


@pytest.mark.parametrize("path", sources("jaxkd"), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path):
    violations = import_violations(path.read_text(), path.relative_to(ROOT).as_posix())
    assert violations == []


@pytest.mark.parametrize(
    "name, source, message",
    [
        ("jaxkd/base.py", "import jaxkd.losses", "above 'base'"),
        ("jaxkd/base.py", "from . import distributions", "above 'base'"),
        ("jaxkd/losses/policy.py", "from ..learner import learner", "above 'losses'"),
        ("jaxkd/losses/__init__.py", "from jaxkd import rollout", "above 'losses'"),
        ("jaxkd/learner.py", "def f():\n    from jaxkd.cli import main", "above 'learner'"),
        ("jaxkd/learner.py", "import jaxkd", "above 'learner'"),
        (
            "jaxkd/learner.py",
            "import importlib\nimportlib.import_module('jaxkd.report')",
            "above 'learner'",
        ),
        ("jaxkd/networks/mlp.py", "import gymnax", "only jaxkd/envs/gymnax.py"),
        (
            "jaxkd/envs/combine.py",
            "def f():\n    from gymnax.environments import spaces",
            "only jaxkd/envs/gymnax.py",
        ),
        (
            "jaxkd/run.py",
            "try:\n    import rich.live\nexcept ImportError:\n    pass",
            "at module level",
        ),
        ("jaxkd/evaluate.py", "class A:\n    from matplotlib import pyplot", "at module level"),
        ("jaxkd/common_sense.py", "import jax", "no layer"),
    ],
)
def test_import_gate_can_fail(name, source, message):
    violations = import_violations(source, name)
    assert len(violations) == 1 and message in violations[0]


@pytest.mark.parametrize(
    "name, source",
    [
        (
            "jaxkd/losses/policy.py",
            "from ..base import LossTerm\nfrom .combine import stateless\n"
            "from jaxkd import rewards",
        ),
        ("jaxkd/envs/gymnax.py", "import gymnax\nfrom gymnax.environments import spaces"),
        ("jaxkd/envs/combine.py", "from . import gymnax\nfrom jaxkd.envs.gymnax import make"),
        ("jaxkd/run.py", "def f():\n    import rich.live"),
        ("jaxkd/cli/main.py", "import rich\nfrom jaxkd import learner, report"),
    ],
)
def test_import_gate_can_pass(name, source):
    assert not import_violations(source, name)


# --- what is never written -----------------------------------------------------------------------


def safety_violations(source: str, name: str) -> list[str]:
    """Nothing that executes data: no pickle and its kin, no eval, no exec, no allow_pickle other
    than False.
    """
    violations = []
    for node in walk(ast.parse(source)):
        found = [
            target for target in imported(node, ("jaxkd",)) if SERIALISERS & set(target.split("."))
        ]
        if isinstance(node, ast.Name) and node.id in ("eval", "exec"):
            found.append(node.id)
        if (
            isinstance(node, ast.Attribute)
            and node.attr in ("eval", "exec")
            and getattr(node.value, "id", "") in ("builtins", "__builtins__")
        ):
            found.append(f"builtins.{node.attr}")
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                found.append("allow_pickle")
        violations += [f"{name}:{getattr(node, 'lineno', 0)}: {what}" for what in found]
    return violations


@pytest.mark.parametrize(
    "path", sources("jaxkd", "benchmarks"), ids=lambda path: str(path.relative_to(ROOT))
)
def test_nothing_executes_data(path: Path):
    violations = safety_violations(path.read_text(), str(path.relative_to(ROOT)))
    assert violations == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "def f():\n    import cloudpickle as c",
        "__import__('pickle')",
        "from jax.experimental import pickle",
        "eval('1')",
        "run = exec",
        "import builtins\nbuiltins.eval('1')",
        "numpy.load('f', allow_pickle=True)",
        "numpy.load('f', allow_pickle=flag)",
    ],
)
def test_safety_gate_can_fail(source):
    assert len(safety_violations(source, "bad")) == 1


def test_safety_gate_can_pass():
    assert not safety_violations(
        "import jax\njax.eval_shape(f)\nnumpy.load('f', allow_pickle=False)\nmodel.eval()\n", "good"
    )


def name_violations(paths: list[Path]) -> list[str]:
    return [
        str(path)
        for path in paths
        if SHAPELESS_NAMES & {part.removesuffix(".py").strip("_") for part in path.parts}
    ]


def test_no_room_for_everything_else():
    assert not name_violations(
        [path.relative_to(ROOT) for path in sources("jaxkd", "benchmarks", "tests")]
    )


@pytest.mark.parametrize(
    "name", ["jaxkd/utils.py", "jaxkd/losses/_common.py", "jaxkd/helpers/tree.py", "tests/types.py"]
)
def test_name_gate_can_fail(name):
    assert name_violations([Path(name)]) == [name]


# --- what is public ------------------------------------------------------------------------------


def public_violations(module: ModuleType) -> list[str]:
    """Public names that do not resolve, and those without a docstring of their own."""
    violations = []
    for name in module.__all__:
        if not hasattr(module, name):
            violations.append(f"{name} is in __all__ but not there")
            continue
        thing = getattr(module, name)
        doc = thing.__doc__ if isinstance(thing, ModuleType) or callable(thing) else "a constant"
        generated = (
            isinstance(thing, type)
            and issubclass(thing, tuple)
            and (doc or "").startswith(f"{thing.__name__}(")
        )
        if not (doc or "").strip() or generated:
            violations.append(f"{name} has no docstring")
    return violations


def test_public_names_resolve_and_are_documented():
    import jaxkd

    assert len(set(jaxkd.__all__)) == len(jaxkd.__all__)
    assert not public_violations(jaxkd)


def test_public_gate_can_fail():
    class Bare(NamedTuple):
        x: int

    class Good(NamedTuple):
        """Has one."""

        x: int

    module = ModuleType("bad")
    module.__dict__.update(
        Bare=Bare, Good=Good, bare=lambda: None, good=public_violations, VERSION="0", path=Path
    )
    module.__dict__["__all__"] = ["missing", "bare", "good", "Bare", "Good", "VERSION", "path"]
    assert public_violations(module) == [
        "missing is in __all__ but not there",
        "bare has no docstring",
        "Bare has no docstring",
    ]


def test_help_shows_every_field():
    """Signatures and shapes, as they stand beside the fields, and an example."""
    from jaxkd import base

    records = [
        x for x in vars(base).values() if hasattr(x, "_fields") and x.__module__ == base.__name__
    ]
    assert len(records) == 17
    for record in records:
        for field in record._fields:
            said = getattr(record, field).__doc__
            assert field == "description" or not said.startswith("Alias for field"), (record, field)
        made_of_functions = "description" in record._fields or record is base.Env
        assert not made_of_functions or ">>> " in str(record.__doc__)
    text = pydoc.plain(pydoc.render_doc(base.Policy))
    assert "(params, carry, obs [L, N], reset [L, N]) -> (last carry, Outputs [L, N])" in text


# --- warnings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["jaxkd", "jaxkd.losses.policy"])
def test_warnings_from_jaxkd_are_errors(module):
    with pytest.raises(DeprecationWarning):
        warnings.warn_explicit("old", DeprecationWarning, "file.py", 1, module=module)


def test_warnings_from_elsewhere_are_not_errors():
    with pytest.warns(DeprecationWarning):
        warnings.warn_explicit("old", DeprecationWarning, "file.py", 1, module="jaxkdx")


# --- what an import costs ------------------------------------------------------------------------


def heavy_imports(statement: str) -> list[str]:
    """Which HEAVY packages `statement` loads in a fresh interpreter, beyond what jaxkd's own
    foundation loads (flax loads rich).
    """
    program = f"""
        import sys
        import chex, flax.linen, jax, optax
        before = {{name.split(".")[0] for name in sys.modules}}
        {statement}
        after = {{name.split(".")[0] for name in sys.modules}}
        print(*sorted((after - before) & set({HEAVY!r})))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_import_is_light():
    assert heavy_imports("import jaxkd") == []


def test_import_gate_sees_what_is_loaded():
    assert heavy_imports("import jaxkd, tyro, matplotlib") == ["matplotlib", "tyro"]
