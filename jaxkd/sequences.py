"""Recipes for sequences: who writes what is learnt from, what is compared, on which support, and
whether the task pays too.

Each is `distill` with four arguments chosen, and takes the rest as keywords:

- who writes: `memory.dataset(...)`, or a behaviour: `teacher_acts()`, `student_acts()`, or a
  `mixture` of both by token or by sequence;
- what is compared: any divergence of `losses`;
- on which support: all tokens, the teacher's `networks.top_k`, or the sampled token alone
  (`rewards.teacher_log_ratio`);
- the task's reward: `reward=`, its weight beside the divergence, in groups of equal prompts.

They hold for any environment with discrete actions. All return an `Algorithm` for
`run(algorithm, key, num_updates, teacher_params)`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import check, losses, networks, rewards
from jaxkd.base import Algorithm, Env, LossTerm, Policy, UsageError
from jaxkd.behavior import mixture, teacher_acts
from jaxkd.memory import dataset
from jaxkd.recipes import distill
from jaxkd.returns import group_relative, immediate, monte_carlo

Weight = float | jax.Array | Callable  # a number, or a schedule `update -> number`


def supervised(env: Env, student: Policy, *, data: dict[str, Any], **keywords: Any) -> Algorithm:
    """Maximum likelihood of right answers (SFT); no teacher.

    Args:
        data: rows of `memory.dataset`, such as `envs.tokens.demonstrations(task, key, 10_000)`.

    >>> import jaxkd
    >>> from jaxkd.envs import tasks, tokens
    >>> env = jaxkd.envs.make("sorting-6", num_envs=4)
    >>> student = jaxkd.networks.transformer(env, 1, 8, 2, context=env.max_steps)
    >>> rows = tokens.demonstrations(tasks.sorting(6), jax.random.key(0), 10)
    >>> sft = supervised(env, student, data=rows)
    """
    given: dict[str, Any] = dict(
        losses={"nll": losses.imitation()},
        memory=dataset(**data),
        unroll_length=data["reset"].shape[0],
    )
    return distill(env, student, **given | keywords)


def sequence_distillation(env: Env, student: Policy, teacher: Policy, **keywords: Any) -> Algorithm:
    """Maximum likelihood of what the teacher writes (Kim & Rush 2016).

    >>> import jaxkd
    >>> env = jaxkd.envs.make("sorting-6", num_envs=4)
    >>> big, small = (jaxkd.networks.transformer(env, 1, n, 2, context=13) for n in (16, 8))
    >>> kd = sequence_distillation(env, small, big)
    """
    given: dict[str, Any] = dict(losses={"nll": losses.imitation()}, behavior=teacher_acts())
    return _whole(env, student, teacher, given | keywords)


def token_distillation(
    env: Env,
    student: Policy,
    teacher: Policy,
    *,
    divergence: LossTerm | None = None,
    top: int | None = None,
    reward: Weight | None = None,
    **keywords: Any,
) -> Algorithm:
    """A divergence from the teacher in every token of what the student writes.

    With `behavior=teacher_acts()` it is word-level distillation (Hinton et al. 2015; Kim & Rush
    2016), with `memory=dataset(..., teacher=...)` it is on data labelled before.

    Args:
        divergence: default the reverse KL, `losses.reverse_kl()`.
        top: of the teacher only so many log-probabilities and a tail are kept, `networks.top_k`.
        reward: weight of the task's, compared in groups (GRPO without a deviation, token mean);
            None: the teacher alone. The environment has `group_size=` then.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("sorting-6", num_envs=4, group_size=2)
    >>> big, small = (jaxkd.networks.transformer(env, 1, n, 2, context=13) for n in (16, 8))
    >>> kd = token_distillation(env, small, big, top=4, reward=1.0)
    """
    terms: dict[str, Any] = {"kl": losses.reverse_kl() if divergence is None else divergence}
    given: dict[str, Any] = dict(losses=terms)
    if reward is not None:
        policy = losses.scale(reward, losses.ppo_clip(normalise=False))
        given = dict(losses=terms | {"policy": policy}, returns=_task(env))
    teacher = teacher if top is None else networks.top_k(teacher, top)
    return _whole(env, student, teacher, given | keywords)


def gkd(
    env: Env,
    student: Policy,
    teacher: Policy,
    *,
    on_policy: Weight = 0.5,
    beta: Weight = 0.5,
    **keywords: Any,
) -> Algorithm:
    """Generalised knowledge distillation: some sequences are the student's (Agarwal et al. 2024).

    Args:
        on_policy: share of sequences that the student writes, the paper's lambda; the teacher
            writes the others.
        beta: of the generalised Jensen-Shannon divergence, as in `losses.jsd`.
        keywords: of `token_distillation`.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("sorting-6", num_envs=4)
    >>> big, small = (jaxkd.networks.transformer(env, 1, n, 2, context=13) for n in (16, 8))
    >>> kd = gkd(env, small, big, on_policy=0.9)
    """
    check.number("on_policy", on_policy, low=0, high=1)
    teachers = (lambda update: 1 - on_policy(update)) if callable(on_policy) else 1 - on_policy
    given: dict[str, Any] = dict(
        divergence=losses.jsd(beta), behavior=mixture(teachers, every="rollout")
    )
    return token_distillation(env, student, teacher, **given | keywords)


def distillm(
    env: Env, student: Policy, teacher: Policy, *, alpha: Weight = 0.1, **keywords: Any
) -> Algorithm:
    """A skewed reverse KL, stable where the two are far apart (Ko et al. 2024).

    Args:
        alpha: of `losses.skew_reverse_kl`.
        keywords: of `gkd`; half of the sequences are the student's.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("sorting-6", num_envs=4)
    >>> big, small = (jaxkd.networks.transformer(env, 1, n, 2, context=13) for n in (16, 8))
    >>> kd = distillm(env, small, big)
    """
    given: dict[str, Any] = dict(divergence=losses.skew_reverse_kl(alpha))
    return gkd(env, student, teacher, **given | keywords)


def sampled_distillation(
    env: Env,
    student: Policy,
    teacher: Policy,
    *,
    clip: float | jax.Array = 0.2,
    baseline: bool = False,
    **keywords: Any,
) -> Algorithm:
    """The reverse KL by its sampled tokens: each is paid its log ratio (Lu et al. 2025).

    Each token answers for itself (discount 0). What the task pays is not counted.

    Args:
        clip: of the ratio to the policy that wrote.
        baseline: as in `rewards.teacher_log_ratio`.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("sorting-6", num_envs=4)
    >>> big, small = (jaxkd.networks.transformer(env, 1, n, 2, context=13) for n in (16, 8))
    >>> kd = sampled_distillation(env, small, big)
    """
    paid = {"task": rewards.scale(0.0), "teacher": rewards.teacher_log_ratio(baseline=baseline)}
    given: dict[str, Any] = dict(
        losses={"policy": losses.ppo_clip(clip, normalise=False)},
        rewards=paid,
        returns=immediate(),
    )
    return _whole(env, student, teacher, given | keywords)


def minillm(
    env: Env,
    student: Policy,
    teacher: Policy,
    *,
    clip: float | jax.Array = 0.2,
    **keywords: Any,
) -> Algorithm:
    """The reverse KL of whole sequences: a token answers for those behind it (Gu et al. 2024).

    Its own part is the divergence itself; for those behind it is a policy gradient, whose rewards
    are their divergences instead of single samples of them, and whose baseline is the value instead
    of the paper's division by length. The student always writes.

    Args:
        clip: of the ratio to the student that wrote.

    >>> import jaxkd
    >>> env = jaxkd.envs.make("sorting-6", num_envs=4)
    >>> big, small = (jaxkd.networks.transformer(env, 1, n, 2, context=13) for n in (16, 8))
    >>> kd = minillm(env, small, big)
    """

    def behind(batch, context):
        apart = batch.acting.policy.kl(batch.teacher.policy)
        apart = apart if isinstance(batch.weight, tuple) else apart * batch.weight
        following = jnp.concatenate([apart[1:], jnp.zeros_like(apart[:1])])
        return -following * (1 - batch.terminated) * (1 - batch.truncated)

    paid = {"teacher": rewards.replace(behind)}
    terms = {
        "policy": losses.ppo_clip(clip, normalise=False),
        "value": losses.scale(0.5, losses.td_mse()),
        "single step": losses.reverse_kl(),
    }
    given: dict[str, Any] = dict(losses=terms, rewards=paid, returns=monte_carlo(1.0))
    return _whole(env, student, teacher, given | keywords)


def _whole(env: Env, student: Policy, teacher: Policy, keywords: dict[str, Any]) -> Algorithm:
    """`distill` on rollouts as long as the longest sequence, if there is one."""
    length: dict[str, Any] = {} if env.max_steps is None else {"unroll_length": env.max_steps}
    return distill(env, student, teacher, **length | keywords)


def _task(env: Env) -> Any:
    if env.group_size < 2:
        raise UsageError(
            f"reward= compares sequences with equal prompts, but {env.name!r} has group_size = "
            f"{env.group_size}. Make it with envs.make(..., group_size=8)."
        )
    return group_relative(env.group_size, standardise=False, rows="all")
