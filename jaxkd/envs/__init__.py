"""Batches of environments with exact automatic reset; gymnax itself is imported by the first `make`
or `ids`.
"""

from jaxkd.envs import tasks, tokens
from jaxkd.envs.combine import concat, pad, view
from jaxkd.envs.gymnax import ids, make

__all__ = ["concat", "ids", "make", "pad", "tasks", "tokens", "view"]
