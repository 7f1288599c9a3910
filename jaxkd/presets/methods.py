"""The methods, one record each: the recipe, what it needs, what a preset gives it, the paper.

`jaxkd methods`, `jaxkd distill --method` and benchmarks/README.md read `METHODS`. A method of your
own is one more record, given as it is:

    mine = presets.Method(my_recipe, paper="Doe 2026, Distilling Everything")
    algorithm, num_updates = presets.distillation(env, student, teacher, preset, method=mine)
"""

from collections.abc import Callable
from difflib import get_close_matches
from typing import NamedTuple

from jaxkd import methods, sequences
from jaxkd.base import UsageError
from jaxkd.presets import settings


class Method(NamedTuple):
    """A way to make a student, and everything that presets and commands need to know of it.

    >>> import jaxkd
    >>> from jaxkd import presets
    >>> def copy_values(env, student, teacher, **keywords):
    ...     losses = {"value": jaxkd.losses.value_mse(), "kl": jaxkd.losses.forward_kl()}
    ...     return jaxkd.distill(env, student, teacher, losses=losses, **keywords)
    >>> mine = presets.Method(copy_values, paper="mine")
    >>> chosen = presets.preset("CartPole-v1")
    >>> env = presets.make_env("CartPole-v1", chosen)
    >>> teacher = presets.teacher_network(env, chosen)
    >>> student = presets.student_network(env, chosen, "mlp:44", 0, method=mine)
    >>> kd, num_updates = presets.distillation(env, student, teacher, chosen, method=mine)
    """

    build: Callable  # (env, student, teacher, **keywords) -> Algorithm; see `needs_teacher`
    settings: Callable = settings.supervision  # (env, preset, num_updates) -> keywords of `build`
    paper: str = ""  # authors, year, title; of the idea, where the recipe combines two
    q_student: bool = False  # a Q network, which needs layer normalisation (Gallici et al. 2025)
    heads: tuple[str, ...] = ()  # the student's further value heads, by stream
    group_size: int = 0  # above 0: whole episodes, compared in groups of so many equal starts
    teacher_return: bool = False  # the teacher's return has to be known before
    needs_teacher: bool = True  # False: the student learns alone, build is (env, student, ...)

    @property
    def summary(self) -> str:
        """What it is: the first line of the recipe's docstring."""
        return (self.build.__doc__ or "").strip().partition("\n")[0]

    @property
    def needs(self) -> str:
        """What it needs, in words; "" for a student and a teacher of any kind."""
        found = [
            (self.q_student, "a Q student"),
            (bool(self.heads), f"value heads: {', '.join(self.heads)}"),
            (self.group_size > 0, f"groups of {self.group_size} equal starts"),
            (self.teacher_return, "the teacher's return"),
            (not self.needs_teacher, "no teacher"),
        ]
        return "; ".join(words for needed, words in found if needed)


_AGARWAL = "Agarwal et al. 2024, On-Policy Distillation of Language Models"
_CZARNECKI = "Czarnecki et al. 2019, Distilling Policy Distillation"
_JUMP_START = "Uchendu et al. 2022, Jump-Start Reinforcement Learning"
_RND = "Burda et al. 2018, Exploration by Random Network Distillation"

METHODS: dict[str, Method] = {
    "on_policy_distillation": Method(
        methods.on_policy_distillation,
        paper=_AGARWAL,
    ),
    "policy_distillation": Method(
        methods.policy_distillation,
        paper="Rusu et al. 2015, Policy Distillation",
    ),
    "dagger": Method(
        methods.dagger,
        paper="Ross et al. 2011, A Reduction of Imitation Learning to No-Regret Online Learning",
    ),
    "kickstarting": Method(
        methods.kickstarting,
        settings=settings.fading,
        paper="Schmitt et al. 2018, Kickstarting Deep Reinforcement Learning",
    ),
    "proximal_policy_distillation": Method(
        methods.proximal_policy_distillation,
        settings=settings.reinforcement,
        paper="Spigler 2025, Proximal Policy Distillation",
    ),
    "qdagger": Method(
        methods.qdagger,
        settings=settings.graded,
        paper="Agarwal et al. 2022, Reincarnating Reinforcement Learning",
        q_student=True,
        teacher_return=True,
    ),
    "grpo": Method(
        methods.grpo,
        settings=settings.grouped,
        paper="Shao et al. 2024, DeepSeekMath",
        group_size=8,
    ),
    "distil_then_finetune": Method(
        methods.distil_then_finetune,
        settings=settings.finetuning,
        paper="Baker et al. 2022, Video PreTraining",
    ),
    "jump_start": Method(
        methods.jump_start,
        settings=settings.guided,
        paper=_JUMP_START,
        q_student=True,
    ),
    "exploration": Method(
        methods.exploration,
        settings=settings.exploring,
        paper=_RND,
        heads=("bonus",),
        needs_teacher=False,
    ),
    "guided_exploration": Method(
        methods.guided_exploration,
        settings=settings.guided_exploring,
        paper=f"{_RND}; the teacher's part is kickstarting",
        heads=("bonus",),
    ),
    "jump_start_exploration": Method(
        methods.jump_start_exploration,
        settings=settings.guided,
        paper=f"{_JUMP_START}; the bonus is that of exploration",
        q_student=True,
    ),
    "teacher_distillation": Method(methods.teacher_distillation, paper=_CZARNECKI),
    "n_distillation": Method(
        methods.n_distillation, settings=settings.paid_by_teacher, paper=_CZARNECKI
    ),
    "entropy_regularised": Method(
        methods.entropy_regularised, settings=settings.paid_by_teacher, paper=_CZARNECKI
    ),
    "expected_entropy_regularised": Method(
        methods.expected_entropy_regularised, settings=settings.paid_by_teacher, paper=_CZARNECKI
    ),
    "teacher_value_reward": Method(
        methods.teacher_value_reward, settings=settings.paid_by_teacher, paper=_CZARNECKI
    ),
    "sequence_distillation": Method(
        sequences.sequence_distillation,
        paper="Kim & Rush 2016, Sequence-Level Knowledge Distillation",
    ),
    "token_distillation": Method(sequences.token_distillation, paper=_AGARWAL),
    "gkd": Method(sequences.gkd, paper=_AGARWAL),
    "distillm": Method(sequences.distillm, paper="Ko et al. 2024, DistiLLM"),
    "sampled_distillation": Method(
        sequences.sampled_distillation,
        paper="Lu et al. 2025, On-Policy Distillation",
    ),
    "minillm": Method(sequences.minillm, paper="Gu et al. 2024, MiniLLM"),
}


def find_method(method: str | Method) -> Method:
    """The record of a name, with - or _; a record is given back as it is.

    >>> find_method("on-policy-distillation").build.__name__
    'on_policy_distillation'
    """
    if isinstance(method, Method):
        return method
    name = method.replace("-", "_")
    if name not in METHODS:
        near = get_close_matches(name, METHODS, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UsageError(f"unknown method {method!r}.{hint} (jaxkd methods lists all)")
    return METHODS[name]
