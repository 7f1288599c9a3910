"""Many devices, one process or many: seeds and environments spread over a mesh.

XLA adds the communication.

Legend of shapes: `n` seeds, `B` environments.
"""

from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxkd import check
from jaxkd.base import Algorithm, UsageError

AXES = ("seeds", "envs")  # in the order in which they lead a leaf [n, B, ...]


def mesh(*, seeds: int | None = None, envs: int | None = None) -> Mesh:
    """A mesh of seeds x envs devices, of all processes; an axis that is not named is not there.

    Seeds need no communication: spread them first.

    Args:
        seeds, envs: devices along that axis; their product is the number of all devices, or of the
            first ones of a single process.

    Raises:
        UsageError: more devices than there are, or fewer than all in several processes.

    >>> mesh(envs=1).axis_names
    ('envs',)
    """
    sizes = {name: size for name, size in zip(AXES, (seeds, envs), strict=True) if size is not None}
    for name, size in sizes.items():
        check.count(name, size)
    wanted, devices = int(np.prod(list(sizes.values()))), jax.devices()
    if not sizes:
        raise UsageError("mesh needs seeds= or envs=, such as mesh(envs=jax.device_count()).")
    if wanted > len(devices) or (wanted < len(devices) and jax.process_count() > 1):
        asked = " x ".join(f"{size} {name}" for name, size in sizes.items())
        raise UsageError(
            f"a mesh of {asked} takes {wanted} devices, and there are {len(devices)}. "
            f"On a CPU, jax.config.update('jax_num_cpu_devices', {wanted}) before the first use "
            "of jax makes that many."
        )
    return jax.make_mesh(
        tuple(sizes.values()),
        tuple(sizes),
        axis_types=(AxisType.Auto,) * len(sizes),
        devices=devices[:wanted],
    )


def shard(algorithm: Algorithm, over: Mesh) -> Algorithm:
    """`algorithm` with its state spread over a mesh: the numbers of one device, to rounding.

    Seeds are the first axis of every leaf of `lanes(algorithm)`; environments are the first axis of
    what is in a field named `actors`, after the seeds. Everything else is a copy on each device:
    gradients and running statistics are summed over the environments of all of them. Metrics are
    whole on every device. Save or load the state as any other.

    Args:
        algorithm: of `distill`, `ppo`, ...; of `lanes` for a mesh with seeds.
        over: `sharding.mesh(...)`, or a mesh of your own with axes called "seeds" and "envs", of
            type Auto.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("CartPole-v1", num_envs=4)
    >>> ppo = shard(jaxkd.ppo(env, jaxkd.networks.mlp(env, (8,))), mesh(envs=1))
    >>> state, metrics = jaxkd.run(ppo, jaxkd.seeds(0, 1)[0], 2)
    """
    check.kind("algorithm", algorithm, Algorithm, "an Algorithm (jaxkd.ppo, jaxkd.distill)")
    check.kind("over", over, Mesh, "a mesh (jaxkd.sharding.mesh)")
    unknown = [name for name in over.axis_names if name not in AXES]
    if unknown or any(kind != AxisType.Auto for kind in over.axis_types):
        raise UsageError(
            f"the mesh must have axes among {AXES}, all of type Auto, got {over}. "
            "Use jaxkd.sharding.mesh."
        )

    def init(key):
        with jax.sharding.use_abstract_mesh(over.abstract_mesh):
            return spread(over, algorithm.init(key))

    def step(state, *inputs):
        with jax.sharding.use_abstract_mesh(over.abstract_mesh):
            state, metrics = algorithm.step(spread(over, state), *inputs)
            return spread(over, state), _constrain(over, metrics, PartitionSpec())

    return Algorithm(init, step, algorithm.description)


def spread(over: Mesh, state: Any) -> Any:
    """A state whose leaves are spread as `shard` says, inside or outside of jit."""
    seeds = tuple(name for name in over.axis_names if name == "seeds")

    def of_actors(path) -> bool:
        return any(getattr(part, "name", getattr(part, "key", None)) == "actors" for part in path)

    def one(path, x):
        by_env = "envs" in over.axis_names and of_actors(path)
        axes = (*seeds, "envs") if by_env else seeds
        for axis, name in enumerate(axes):
            devices = over.shape[name]
            if x.ndim <= axis or x.shape[axis] % devices:
                hint = "wrap the algorithm in lanes, and " if name == "seeds" else ""
                raise UsageError(
                    f"{jax.tree_util.keystr(path)} {x.shape} cannot be divided among {devices} "
                    f"devices along {name!r}: {hint}let their number divide that of {name}."
                )
        return _constrain(over, x, PartitionSpec(*axes))

    return jax.tree_util.tree_map_with_path(one, state)


def _constrain(over: Mesh, tree: Any, spec: PartitionSpec) -> Any:
    """Inside jit as a constraint; outside the arrays are moved, wherever they were."""
    place = NamedSharding(over, spec)

    def one(x: Any) -> Any:
        inside = isinstance(x, Tracer)
        return jax.lax.with_sharding_constraint(x, place) if inside else jax.device_put(x, place)

    return jax.tree.map(one, tree)
