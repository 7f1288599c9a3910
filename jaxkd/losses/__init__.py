"""What the student minimises: terms from `[L, N]` to `[L, N]`; the engine alone averages."""

from jaxkd.losses.combine import for_task, gate, proximal, scale, stateless, watch
from jaxkd.losses.feature import feature_mse
from jaxkd.losses.policy import (
    ce_kd,
    cross_entropy,
    forward_kl,
    jsd,
    logit_mse,
    nll,
    reverse_cross_entropy,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    standardised_kl,
    total_variation,
)
from jaxkd.losses.rl import entropy, policy_gradient, ppo_clip, td_mse
from jaxkd.losses.value import advantage_kl, advantage_mse, q_mse, value_mse
from jaxkd.losses.weights import (
    action_gap,
    agreement,
    burn_in,
    confidence,
    one_minus,
    performance_gate,
    value_gate,
)

__all__ = [
    "action_gap",
    "advantage_kl",
    "advantage_mse",
    "agreement",
    "burn_in",
    "ce_kd",
    "confidence",
    "cross_entropy",
    "entropy",
    "feature_mse",
    "for_task",
    "forward_kl",
    "gate",
    "jsd",
    "logit_mse",
    "nll",
    "one_minus",
    "performance_gate",
    "policy_gradient",
    "ppo_clip",
    "proximal",
    "q_mse",
    "reverse_cross_entropy",
    "reverse_kl",
    "scale",
    "skew_kl",
    "skew_reverse_kl",
    "standardised_kl",
    "stateless",
    "td_mse",
    "total_variation",
    "value_gate",
    "value_mse",
    "watch",
]
