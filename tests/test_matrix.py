"""Every component with every other, in four cells: {feed-forward, recurrent} x {discrete,
continuous actions}.

A new component is one new row of a table; without it `test_the_tables_are_complete` fails. A row is
a component, or a function that makes one from a float in (0, 1): then the float is traced, and the
component must depend on it.
"""

from collections import defaultdict
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import behavior, distill, losses, memory, networks, returns, rewards
from jaxkd.base import Algorithm, Box, Discrete, Env, Memory, Outputs, Policy, TimeStep, UsageError
from jaxkd.distributions import Categorical, Normal

jit = partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)
T, B, LIMIT, SEEDS = 4, 4, 3, 8
X, OTHER_X = 0.2, 0.6  # the float of a row, and another one
RECORD = Memory(
    init=lambda spec: (), add=lambda buffer, batch: batch, sample=lambda key, buffer, batch: batch
)
KL, SMALL = (
    losses.forward_kl(),
    rewards.Predictor(hidden=(3,), features=2, learning_rate=0.1, batch_size=8, num_minibatches=1),
)
CENTRE = rewards.Model(  # the smallest model: far from the mean observation is new
    init=lambda key, rows: ((), jnp.zeros(rows.shape[-1])),
    bonus=lambda fixed, params, rows: jnp.sum(jnp.square(rows - params[None]), axis=-1),
    loss=lambda key, fixed, params, rows: jnp.sum(jnp.square(rows - params[None]), axis=-1),
)

# --- the tables: "<public name> <variant>" -------------------------------------------------------

LOSSES = {
    "forward_kl": lambda x: losses.forward_kl(1 + x),
    "forward_kl schedule": lambda x: losses.forward_kl(lambda update: 1 + x * update),
    "reverse_kl": lambda x: losses.reverse_kl(1 + x),
    "jsd": lambda x: losses.jsd(x),
    "jsd temperature": lambda x: losses.jsd(0.3, temperature=1 + x),
    "jsd normalise": lambda x: losses.jsd(x, normalise=True),
    "skew_kl": lambda x: losses.skew_kl(x),
    "skew_reverse_kl": lambda x: losses.skew_reverse_kl(x),
    "standardised_kl": lambda x: losses.standardised_kl(x),
    "total_variation": losses.total_variation(),
    "nll": losses.nll(),
    "imitation": losses.imitation(),
    "action_mse": losses.action_mse(),
    "action_mse delta": lambda x: losses.action_mse(x),
    "cross_entropy": losses.cross_entropy(),
    "reverse_cross_entropy": losses.reverse_cross_entropy(),
    "ce_kd": lambda x: losses.ce_kd(x),
    "ce_kd temperature": lambda x: losses.ce_kd(0.5, 1 + x),
    "logit_mse": losses.logit_mse(),
    "feature_mse": losses.feature_mse(),
    "value_mse": losses.value_mse(),
    "value_mse normalise": losses.value_mse(normalise=True),
    "q_mse": losses.q_mse(),
    "advantage_mse": losses.advantage_mse(),
    "advantage_mse raw": losses.advantage_mse(normalise=False),
    "advantage_kl": lambda x: losses.advantage_kl(x),
    "policy_gradient": losses.policy_gradient(),
    "ppo_clip": lambda x: losses.ppo_clip(x),
    "ppo_clip raw": lambda x: losses.ppo_clip(x, normalise=False),
    "ppo_clip high": lambda x: losses.ppo_clip(0.1, epsilon_high=x),
    "ppo_clip sequence": losses.ppo_clip(normalise=False, sequence=True),
    "td_mse": losses.td_mse(),
    "td_mse clip": lambda x: losses.td_mse(clip=x),
    "entropy": losses.entropy(),
    "scale": lambda x: losses.scale(x, losses.entropy()),
    "scale schedule": lambda x: losses.scale(optax.linear_schedule(1.0, x, 2), KL),
    "gate": losses.gate(lambda student, batch, context: batch.teacher.policy.entropy(), KL),
    "value_gate": losses.gate(losses.value_gate(), KL),
    "performance_gate": lambda x: losses.gate(
        losses.performance_gate(teacher_return=5 + 10 * x, random_return=-5.0), KL
    ),
    "target_kl": losses.gate(losses.target_kl(1.0), KL),
    "agreement": lambda x: losses.gate(losses.agreement(x), KL),
    "one_minus": lambda x: losses.gate(losses.one_minus(losses.agreement(x)), KL),
    "action_gap": losses.gate(losses.action_gap(), losses.nll()),
    "confidence": losses.gate(losses.confidence(), KL),
    "burn_in": losses.gate(losses.burn_in(1), KL),
    "proximal": lambda x: losses.proximal(x, KL),
    "lagrangian": lambda x: losses.lagrangian(x, KL),
    "for_task": losses.for_task(1, KL),
    "stateless": losses.stateless(lambda student, batch: jnp.square(student.value)),
    "watch": losses.watch(lambda student, batch: batch.teacher.value > student.value),
}

BEHAVIORS = {
    "student_acts": behavior.student_acts(),
    "student_acts greedy": behavior.student_acts(greedy=True),
    "teacher_acts": behavior.teacher_acts(),
    "teacher_acts greedy": behavior.teacher_acts(greedy=True),
    "random_acts": behavior.random_acts(),
    "mixture": lambda x: behavior.mixture(x),
    "mixture rollout": lambda x: behavior.mixture(x, every="rollout"),
    "mixture schedule": lambda x: behavior.mixture(lambda update: x * update),
    "epsilon_greedy": lambda x: behavior.epsilon_greedy(x),
    "epsilon_greedy teacher": lambda x: behavior.epsilon_greedy(
        x, behavior.teacher_acts(greedy=True)
    ),
    "guide_then_student": lambda x: behavior.guide_then_student(LIMIT * x),
    "guide_then_student schedule": lambda x: behavior.guide_then_student(
        lambda update, episode_return: LIMIT * x * update
    ),
    "tempered": lambda x: behavior.tempered(x, behavior.student_acts()),
    "tempered teacher": lambda x: behavior.tempered(x, behavior.teacher_acts()),
}

MEMORIES = {"this_rollout": memory.this_rollout(), "ring": memory.ring(2)}

RETURNS = {  # the first is of the environment's stream
    "gae": lambda x: returns.gae(0.9, x),
    "gae gamma": lambda x: returns.gae(x),
    "gae continuing": lambda x: returns.gae(x, episodic=False),
    "q_lambda": lambda x: returns.q_lambda(0.9, x),
    "q_lambda watkins": lambda x: returns.q_lambda(0.9, x, watkins=True),
    "monte_carlo": lambda x: returns.monte_carlo(x),
    "scale": lambda x: returns.scale(x, returns.gae()),
    "group_relative": returns.group_relative(2),
    "group_relative dapo": returns.group_relative(2, rows="all", keep_equal=False),
    "immediate": returns.immediate(),
    "group_relative rloo": returns.group_relative(
        2, standardise=False, leave_one_out=True, rows="sum"
    ),
}

# chained in this order: what is before `replace` is lost, and `normalise` undoes a mere scale
REWARDS = {
    "replace": rewards.replace(lambda batch, context: jnp.square(batch.reward)),
    "clip": lambda x: rewards.clip(-x, x),
    "scale": lambda x: rewards.scale(x),
    "add": lambda x: rewards.add(lambda batch, context: 1 - batch.terminated, x),
    "normalise": lambda x: rewards.normalise(x),
    "teacher_reward": lambda x: rewards.teacher_reward(x),
    "teacher_log_ratio": lambda x: rewards.teacher_log_ratio(x),
    "teacher_log_ratio baseline": lambda x: rewards.teacher_log_ratio(x, baseline=True),
    "normalise continuing": lambda x: rewards.normalise(x, episodic=False),
    "successor": lambda x: rewards.successor(
        lambda student, teacher: teacher.policy.cross_entropy(student.policy), gamma=x
    ),
    "scale schedule": lambda x: rewards.scale(lambda update: 1 + x * update),
    "potential_shaping": lambda x: rewards.potential_shaping(x),
    "rnd": lambda x: rewards.rnd(x, predictor=SMALL),
    "rnd teacher": lambda x: rewards.rnd(x, target="teacher", predictor=SMALL),
    "drnd": lambda x: rewards.drnd(alpha=x, num_targets=2, predictor=SMALL),
    "rdd": lambda x: rewards.rdd(std=x, predictor=SMALL),
    "ensemble": lambda x: rewards.ensemble(share=x, num_predictors=2, predictor=SMALL),
    "icm": lambda x: rewards.icm(x, predictor=SMALL),
    "icm beta": lambda x: rewards.icm(beta=x, predictor=SMALL),
    "learned": lambda x: rewards.learned(CENTRE, lambda batch: batch.next_obs, x, training=SMALL),
    "Predictor": lambda x: rewards.rnd(predictor=SMALL._replace(learning_rate=0.1 * x)),
    "count": lambda x: rewards.count(lambda obs: obs["task"], 2, x),
    "disagreement": lambda x: rewards.disagreement(x),
}

TABLES = {losses: LOSSES, behavior: BEHAVIORS, memory: MEMORIES, returns: RETURNS, rewards: REWARDS}
NO_COMPONENTS = {
    "discounted_sum",
    "check_groups",
    "kept",
    "record",
    "restore",
    "Ring",
    "dataset",  # of its own observations: tests/test_token_losses.py
    "random_statistics",
    "Model",
}  # public, but of another kind

# --- what is refused, and why --------------------------------------------------------------------

DISCRETE = (  # it compares logits, which continuous actions do not have
    "jsd, jsd temperature, jsd normalise, skew_kl, skew_reverse_kl, standardised_kl, "
    "total_variation, logit_mse, q_mse, advantage_mse, advantage_mse raw, advantage_kl, "
    "action_gap, confidence"
).split(", ")
CONTINUOUS = ["action_mse", "action_mse delta"]  # it compares means, which logits do not have
SEQUENCES = ["burn_in"]  # a feed-forward student's sequences have one row
EARNING = (
    "policy_gradient, ppo_clip, ppo_clip raw, ppo_clip high, ppo_clip sequence, td_mse, "
    "td_mse clip, q_mse".split(", ")
)  # without one a reward has no effect
WHO_ACTED = [
    *EARNING,
    "proximal",
    "target_kl",
]  # an older rollout has no advantage, no target, and not the policy that acted
# What the learner computes, or a memory keeps, only for a loss that reads it.
CHOSEN = frozenset(
    f"batch.{field}"
    for field in (
        "action next_obs acting acting_next teacher teacher_next advantage target targets"
    ).split()
)


class Cell(NamedTuple):
    """One of the four."""

    recurrent: bool
    space: Any

    def refused(self) -> dict[str, str]:
        """The losses that do not exist here, with the words of the error."""
        if isinstance(self.space, Box):
            here = dict.fromkeys(DISCRETE, "is for discrete actions")
        else:
            here = dict.fromkeys(CONTINUOUS, "is for continuous actions")
        return here | dict.fromkeys(
            () if self.recurrent else SEQUENCES, "leaves no row of a sequence"
        )

    def losses(self) -> dict:
        """The rows that do exist here."""
        return {name: row for name, row in LOSSES.items() if name not in self.refused()}

    def returns(self) -> dict:
        """The rows that do exist here: a greedy action is a discrete one."""
        discrete = isinstance(self.space, Discrete)
        return {name: row for name, row in RETURNS.items() if discrete or "watkins" not in name}


CELLS = {
    f"{memory}-{actions}": Cell(memory == "recurrent", space)
    for memory in ("feedforward", "recurrent")
    for actions, space in (("discrete", Discrete(3)), ("continuous", Box((2,))))
}
each_cell = pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)


def made(table: dict, x: Any) -> dict:
    """A table's components; x is the float of every row that needs one, or a dict of them."""
    return {
        name: row(x[name] if isinstance(x, dict) else x) if callable(row) else row
        for name, row in table.items()
    }


# --- the smallest environment and networks -------------------------------------------------------


def tiny(space: Any) -> Env:
    """Walks on a line, is paid its place, and ends beyond 1; pairs of environments begin alike; a
    task for every other one.
    """

    def observe(state):
        x = jnp.stack([state["place"], state["time"].astype(jnp.float32)], axis=-1)
        return {"x": x, "task": jnp.arange(B) % 2}

    def reset(key):
        state = {
            "time": jnp.zeros(B, jnp.int32),
            "place": jnp.repeat(0.5 * jax.random.normal(key, (B // 2,)), 2),
        }
        return state, observe(state)

    def step(key, state, action):
        push = (
            action.astype(jnp.float32) - 1.0
            if isinstance(space, Discrete)
            else jnp.mean(jnp.clip(action, -1, 1), axis=-1)
        )
        after = {"time": state["time"] + 1, "place": state["place"] + 0.5 * push}
        terminated = after["place"] > 1
        truncated = (after["time"] == LIMIT) & ~terminated
        now = jax.tree.map(partial(jnp.where, terminated | truncated), reset(key)[0], after)
        flags = terminated.astype(jnp.float32), truncated.astype(jnp.float32)
        return now, TimeStep(observe(now), observe(after), after["place"], *flags)

    spec = {
        "x": jax.ShapeDtypeStruct((2,), jnp.float32),
        "task": jax.ShapeDtypeStruct((), jnp.int32),
    }
    return Env(reset, step, B, spec, space, max_steps=LIMIT, group_size=2, name="Tiny")


def bare(cell: Cell) -> Policy:
    """One linear layer, or a leaky sum below it: what traces quickest."""
    size = cell.space.n if isinstance(cell.space, Discrete) else cell.space.shape[0]

    def step(params, carry, obs, reset):
        x = carry = 0.5 * (1 - reset)[:, None] * carry + obs["x"] if cell.recurrent else obs["x"]
        return carry if cell.recurrent else (), outputs(x @ params)

    def unroll(params, carry, obs, reset):
        if not cell.recurrent:
            return (), outputs(obs["x"] @ params)
        return jax.lax.scan(lambda carry, row: step(params, carry, *row), carry, (obs, reset))

    def outputs(y):
        head = y[..., :size]
        return Outputs(
            Categorical(head)
            if isinstance(cell.space, Discrete)
            else Normal(head, jnp.zeros_like(head)),
            y[..., size],
            y,
        )

    carry = lambda num_envs: jnp.zeros((num_envs, 2)) if cell.recurrent else ()
    return Policy(lambda key: jax.random.normal(key, (2, size + 1)), carry, step, unroll)


def network(cell: Cell, width: int, extra=()) -> Policy:
    """The library's own; its weights are plain normals, because a QR compiles slowly."""
    policy = (networks.lstm if cell.recurrent else networks.mlp)(
        tiny(cell.space), (width,), select="x", extra=extra
    )
    leaves, structure = jax.tree.flatten(jax.eval_shape(policy.init, jax.random.key(0)))

    def init(key):
        keys = jax.random.split(key, len(leaves))
        return structure.unflatten(
            [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves)]
        )

    return policy._replace(init=init)


def build(cell: Cell, terms: dict, **keywords) -> Algorithm:
    """A learner of the smallest kind."""
    return distill(
        tiny(cell.space),
        bare(cell),
        bare(cell),
        losses=terms,
        unroll_length=T,
        num_minibatches=2,
        **keywords,
    )


def types(tree: Any) -> Any:
    """Shape, dtype and weak type of every leaf: what a second call is compiled for anew if it
    differs.
    """
    return jax.tree.map(jax.typeof, tree)


# --- every row is there --------------------------------------------------------------------------


@pytest.mark.parametrize("module", TABLES, ids=lambda module: module.__name__)
def test_the_tables_are_complete(module):
    """Each public factory is in the first word of some row, and nothing else is."""
    here = [
        name
        for name, thing in vars(module).items()
        if getattr(thing, "__module__", "") == module.__name__ and name[0] != "_"
    ]
    public = set(getattr(module, "__all__", here)) - NO_COMPONENTS
    assert public == {name.split()[0] for name in TABLES[module]}


def test_the_refused_are_rows():
    assert set(DISCRETE + CONTINUOUS + SEQUENCES + WHO_ACTED) <= set(LOSSES)


# --- all at once, compiled -----------------------------------------------------------------------


def everything(cell: Cell, tables: dict, x: dict) -> Algorithm:
    """One learner of all losses, reward transforms and returns, which have a stream each; x has the
    floats of each kind.
    """
    terms, gains, paid = (made(table, x[kind]) for kind, table in tables.items())
    main, *streams = gains
    terms |= {f"td_mse {stream}": losses.td_mse(stream=stream) for stream in streams}
    paid |= {
        f"into {stream}": rewards.add(lambda batch, context: batch.reward, stream=stream)
        for stream in streams
    }
    gains = {"": gains.pop(main)} | gains
    sizes = dict(unroll_length=T, num_epochs=4, num_minibatches=2, optimizer=optax.adam(0.1))
    return distill(
        tiny(cell.space),
        network(cell, 3, streams),
        network(cell, 4),
        losses=terms,
        rewards=paid,
        returns=gains,
        **sizes,
    )


def one_float_a_lane(tables: dict) -> tuple[list, dict]:
    """The rows that have a float; its value by kind and name in each lane: X in the first and last,
    OTHER_X in one between them.
    """
    rows = [
        (kind, name)
        for kind, table in tables.items()
        for name, row in table.items()
        if callable(row)
    ]
    x = {kind: {} for kind in tables}
    for lane, (kind, name) in enumerate(rows, 1):
        x[kind][name] = np.where(np.arange(len(rows) + 2) == lane, OTHER_X, X).astype(np.float32)
    return rows, x


@pytest.mark.slow
@each_cell
def test_all_losses_rewards_and_returns_in_one_learner(cell, key):
    """Two updates are finite, move all parameters, keep every type, are traced once; each row's
    float changes what is learnt.

    Returns that begin every update with a reset are left out: no carry would ever be handed on.
    """
    tables = {
        "losses": cell.losses(),
        "returns": {k: row for k, row in cell.returns().items() if not made(RETURNS, X)[k].fresh},
    }
    tables |= {"rewards": REWARDS}
    rows, x = one_float_a_lane(tables)
    over = lambda fn, seeds, lanes: jit(jax.vmap(jax.vmap(fn, lanes), seeds))
    start = over(lambda key, x: everything(cell, tables, x).init(key), (0, None), (None, 0))
    step = over(
        lambda state, x, taught: everything(cell, tables, x).step(state, taught),
        (0, None, None),
        (0, 0, None),
    )
    taught = jit(network(cell, 4).init)(jax.random.key(1))
    before = start(jax.random.split(key, SEEDS), x)
    once, _ = step(before, x, taught)
    after, metrics = step(once, x, taught)
    assert step._cache_size() == 1
    assert types(before) == types(once) == types(after)
    trained = [(state.params, state.loss_params) for state in (before, after)]
    for (path, old), new in zip(
        jax.tree_util.tree_leaves_with_path(trained[0]), jax.tree.leaves(trained[1])
    ):
        assert new.dtype == jnp.float32 and np.all(np.isfinite(new)), jax.tree_util.keystr(path)
        assert np.all(np.any(old != new, axis=tuple(range(2, old.ndim)))), jax.tree_util.keystr(
            path
        )
    for name, values in metrics.items():
        assert np.all(np.isfinite(values)) and values.dtype == jnp.float32, name
    assert {f"loss/{name}" for name in tables["losses"]} | {
        f"reward/{name}" for name in REWARDS
    } <= set(metrics)
    learnt = np.concatenate(
        [leaf.reshape(SEEDS, len(rows) + 2, -1) for leaf in jax.tree.leaves(after.params)], axis=2
    )
    moved = np.abs(learnt - learnt[:, :1]).max(axis=(0, 2))
    assert moved[-1] == 0
    assert not [row for row, far in zip(rows, moved[1:]) if far == 0]  # as equal lanes are


@pytest.mark.slow
@each_cell
def test_all_behaviors_in_one_program(cell, key):
    """Two updates of a learner each: legal actions of the right type, traced once; where a row has
    a float, it changes the actions.
    """
    x, params = jnp.array([X, OTHER_X]), bare(cell).init(jax.random.key(1))
    algorithm = partial(build, cell, {"kl": KL}, memory=RECORD)

    def update(x, states):
        return {
            name: algorithm(behavior=who).step(states[name], params)
            for name, who in made(BEHAVIORS, x).items()
        }

    step = jit(jax.vmap(update))
    state = jit(jax.vmap(lambda x: algorithm().init(key)))(x)
    states, acted = dict.fromkeys(BEHAVIORS, state), {name: [] for name in BEHAVIORS}
    for _ in range(2):
        for name, (after, metrics) in step(x, states).items():
            action = np.asarray(after.memory.action)
            acted[name].append(action)
            states[name] = after._replace(memory=())
            assert types(states[name]) == types(state), name
            assert all(
                np.all(np.isfinite(value)) for value in jax.tree.leaves((after.params, metrics))
            ), name
            if isinstance(cell.space, Discrete):
                assert (
                    action.shape == (2, T, B)
                    and action.dtype == np.int32
                    and action.min() >= 0
                    and action.max() < 3
                ), name
            else:
                assert (
                    action.shape == (2, T, B, 2)
                    and action.dtype == np.float32
                    and np.all(np.isfinite(action))
                ), name
    assert step._cache_size() == 1
    for name, row in BEHAVIORS.items():
        one, other = np.concatenate(acted[name], axis=1)
        assert np.any(one != other) == callable(row), name


# --- all pairs, by their shapes ------------------------------------------------------------------


def alike(algorithm: Algorithm, kind: str) -> list[list[str]]:
    """Names of losses or rewards for which the learner computes and keeps the same: alone or
    together, the rest of it is the same program.
    """
    groups = defaultdict(list)
    for row, name, _, fields in dict(algorithm.description[1])["components"]:
        if row == kind:
            groups[frozenset(fields.split(", ")) & CHOSEN].append(name)
    return list(groups.values())


@pytest.mark.slow
@each_cell
def test_each_loss_with_each_behavior_memory_returns_and_reward(cell):
    """A step gives back the state's own types, or `distill` refuses.

    What reads alike shares a learner, and the tables are walked through side by side: as many
    learners as the longest has rows. Of behaviours and returns only the first words are taken:
    their variants run above.
    """
    who, gains = (
        [row for name, row in made(table, X).items() if " " not in name]
        for table in (BEHAVIORS, RETURNS)
    )
    terms, transforms = made(cell.losses(), X), made(REWARDS, X)
    paid = alike(build(cell, {"td_mse": losses.td_mse()}, rewards=transforms), "reward")
    for names in alike(build(cell, terms), "loss"):
        group = {name: terms[name] for name in names}
        earns, replays = set(names) <= set(EARNING), not set(names) & set(WHO_ACTED)
        for i in range(max(len(who), len(gains), len(paid) * earns)):
            others = dict(behavior=who[i % len(who)], returns=gains[i % len(gains)])
            others |= (
                dict(rewards={name: transforms[name] for name in paid[i % len(paid)]})
                if earns
                else {}
            )
            others |= dict(memory=list(MEMORIES.values())[i % len(MEMORIES)]) if replays else {}
            algorithm = build(cell, group, **others)
            state = jax.eval_shape(algorithm.init, jax.random.key(0))
            after, metrics = jax.eval_shape(algorithm.step, state, state.params)
            assert types(state) == types(after), (names, i)
            assert {(value.shape, value.dtype) for value in metrics.values()} == {
                ((), jnp.dtype(jnp.float32))
            }, (names, i)


@each_cell
def test_what_does_not_exist_is_refused(cell):
    """For continuous actions, for sequences of one row; a memory of older rollouts, which are not
    of the policy that acts; useless rewards.
    """
    terms = made(LOSSES, X)
    for name, words in cell.refused().items():
        with pytest.raises(UsageError, match=f"loss '{name}': .*{words}"):
            build(cell, {name: terms[name]})
    for name in set(WHO_ACTED) - set(cell.refused()):
        with pytest.raises(UsageError, match=f"loss '{name}' reads .* replays older rollouts"):
            build(cell, {name: terms[name]}, memory=MEMORIES["ring"])
    idle = {name: term for name, term in terms.items() if name not in [*EARNING, *cell.refused()]}
    with pytest.raises(UsageError, match="have no effect"):  # for one of them they would
        build(cell, idle, rewards=made(REWARDS, X))
