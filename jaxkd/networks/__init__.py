"""Networks behind `Policy`: built-in ones, a user's own, wrappers, and one policy of several."""

from jaxkd.networks.cnn import cnn
from jaxkd.networks.combine import concat, mixture, multihead, per_env
from jaxkd.networks.mlp import mlp
from jaxkd.networks.module import feedforward
from jaxkd.networks.noisy import noisy
from jaxkd.networks.recurrent import gru, lstm
from jaxkd.networks.transformer import transformer
from jaxkd.networks.wrap import normalised, q, select, temper, top_k

__all__ = [
    "cnn",
    "concat",
    "feedforward",
    "gru",
    "lstm",
    "mixture",
    "mlp",
    "multihead",
    "noisy",
    "normalised",
    "per_env",
    "q",
    "select",
    "temper",
    "top_k",
    "transformer",
]
