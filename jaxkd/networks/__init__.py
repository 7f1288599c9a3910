"""Networks behind `Policy`: built-in ones, a user's own, and wrappers that make a policy of a policy."""

from jaxkd.networks.cnn import cnn
from jaxkd.networks.mlp import mlp
from jaxkd.networks.module import feedforward, spec_of
from jaxkd.networks.wrap import normalised, select, temper

__all__ = ["cnn", "feedforward", "mlp", "normalised", "select", "spec_of", "temper"]
