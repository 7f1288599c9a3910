"""How an algorithm was assembled, for a person and for `run.json`."""

from typing import Any

from jaxkd import check, description
from jaxkd.assembly import Parts
from jaxkd.base import Algorithm


def table(parts: Parts) -> tuple:
    """("distill", ((name, value), ...)): who, sizes, and a row for each component."""
    o, trained = parts.rollout, parts.optimization
    return "distill", (
        ("env", o.env.name),
        ("student", description.show(o.student)),
        ("teacher", description.show(o.teacher) if o.teacher else "none"),
        ("num_envs", o.env.num_envs),
        ("sticky", description.show(o.env.sticky)),
        ("unroll_length", o.unroll_length),
        ("sequence_length", o.sequence_length),
        ("num_epochs", trained.num_epochs),
        ("num_minibatches", trained.num_minibatches),
        ("shuffle", trained.shuffle),
        ("components", tuple(_rows(parts))),
    )


def _rows(parts: Parts) -> list[tuple[str, str, str, str]]:
    """(kind, name, how it was made, what it reads) of each component."""

    def read(who: str) -> str:
        paths = [path for path in parts.reads[who] if path.split(".")[0] in ("batch", "student")]
        return ", ".join(sorted({check.field(path) for path in paths}))

    rows = []
    for name, term in parts.optimization.losses.items():
        rows.append(("loss", name, made_by(term), read(f"loss {name!r}")))
    for name, transform in parts.rewards.items():
        made = f"{made_by(transform)} of stream {transform.stream!r}"
        rows.append(("reward", name, made, read(f"reward {name!r}")))
    for name, returns in parts.returns.items():
        rows.append(("returns", name, made_by(returns), read(f"returns {name!r}")))
    rows.append(("behavior", "", made_by(parts.rollout.behavior), ""))
    rows.append(("memory", "", made_by(parts.memory), ""))
    return rows


def made_by(component: Any) -> str:
    """How a component was made, with all its settings; of a user's bare function its name."""
    if description.name(component) == "stateless":
        component = description.keywords(component)["fn"]
    given = description.keywords(component)
    if not given:
        return description.show(component)
    settings = ", ".join(f"{name}={description.show(value)}" for name, value in given.items())
    return f"{description.name(component)}({settings})"


def describe(algorithm: Algorithm) -> None:
    """Prints how an algorithm was assembled: sizes, components, their settings, what each reads.

    A reward is paid into a stream, which `returns` of that name turn into their share of
    `batch.advantage` and into `batch.targets` of that name.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=4)
    >>> describe(jaxkd.ppo(env, jaxkd.networks.mlp(env, (8,))))             # doctest: +ELLIPSIS
    distill on CartPole-v1...
    """
    check.kind("algorithm", algorithm, Algorithm, "an Algorithm (jaxkd.ppo, jaxkd.distill)")
    values: dict[str, Any] = dict(algorithm.description[1]) if algorithm.description else {}
    if "components" not in values:  # made by hand, or by a user's own factory
        print(description.show(algorithm))
        return
    name, components = algorithm.description[0], values.pop("components")
    print(f"{name} on {values.pop('env')}")
    for key, value in values.items():
        print(f"  {key:16}{value}")
    for row in components:
        cells = [text.ljust(width) for text, width in zip(row, (8, 10, 48, 0), strict=True)]
        print("  " + "  ".join(cells).rstrip())
