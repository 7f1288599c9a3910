"""What the student minimises. A term takes `[L, N]` and returns `[L, N]`; the engine alone averages."""

from jaxkd.losses.combine import gate, scale, stateless, watch
from jaxkd.losses.policy import forward_kl, reverse_kl
from jaxkd.losses.rl import entropy, ppo_clip, td_mse
from jaxkd.losses.value import value_mse

__all__ = ["entropy", "forward_kl", "gate", "ppo_clip", "reverse_kl", "scale", "stateless", "td_mse", "value_mse", "watch"]
