"""Settings that work: rows (`table`), methods (`methods`), and what the main job makes of them."""

from jaxkd.presets.build import (
    distillation,
    make_env,
    method_env,
    q_network,
    q_teaching,
    random_policy,
    rollout_length,
    student_network,
    teacher_network,
    teaching,
    updates,
)
from jaxkd.presets.methods import METHODS, Method, find_method
from jaxkd.presets.table import PRESETS, RANDOM_RETURNS, Preset, preset

__all__ = [
    "METHODS",
    "PRESETS",
    "RANDOM_RETURNS",
    "Method",
    "Preset",
    "distillation",
    "find_method",
    "make_env",
    "method_env",
    "preset",
    "q_network",
    "q_teaching",
    "random_policy",
    "rollout_length",
    "student_network",
    "teacher_network",
    "teaching",
    "updates",
]
