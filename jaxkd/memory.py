"""What the learner learns from: factories of `Memory`."""

from jaxkd.base import Memory


def this_rollout() -> Memory:
    """No memory: the fresh rollout, with everything that was recorded of the policy that acted."""
    return Memory(init=lambda spec: (), add=lambda buffer, batch: buffer, sample=lambda key, buffer, batch: batch)
