"""Networks behind `Policy`: built-in ones, a user's own, and wrappers that make a policy of a policy."""

from jaxkd.networks.cnn import cnn
from jaxkd.networks.concat import concat, multihead
from jaxkd.networks.mlp import mlp
from jaxkd.networks.module import feedforward, spec_of
from jaxkd.networks.recurrent import gru, lstm
from jaxkd.networks.wrap import noisy, normalised, q, select, temper

__all__ = [
    "cnn",
    "concat",
    "feedforward",
    "gru",
    "lstm",
    "mlp",
    "multihead",
    "noisy",
    "normalised",
    "q",
    "select",
    "spec_of",
    "temper",
]
