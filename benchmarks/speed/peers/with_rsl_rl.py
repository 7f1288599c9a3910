"""rsl_rl: its DistillationRunner in a Pendulum of torch, all environments one batch, the dynamics
of gymnax's.

The student acts and regresses the teacher's mean. 32 steps in gradients of 8 are 4 gradients of 512
rows, as in 4 minibatches. No log directory, no check for NaN, and one thread of torch; its teacher
is random, as ours is.
"""

import math

import child
import torch
from rsl_rl.env import VecEnv
from rsl_rl.runners import DistillationRunner
from tensordict import TensorDict

torch.set_num_threads(1)

MAX_SPEED, MAX_TORQUE, SECONDS, GRAVITY, LIMIT = 8.0, 2.0, 0.05, 10.0, 200


class Pendulums(VecEnv):
    """Pendulum-v1 for `num_envs` [B]; an episode that is over starts again at once."""

    num_envs, num_actions, max_episode_length, device, cfg = child.NUM_ENVS, 1, LIMIT, "cpu", {}

    def __init__(self):
        self.angle, self.speed = self.start()
        self.episode_length_buf = torch.zeros(self.num_envs, dtype=torch.long)

    def start(self) -> tuple[torch.Tensor, torch.Tensor]:
        angle, speed = 2 * torch.rand(2, self.num_envs) - 1
        return math.pi * angle, speed

    def get_observations(self) -> TensorDict:
        return TensorDict(
            {"policy": torch.stack([self.angle.cos(), self.angle.sin(), self.speed], -1)},
            [self.num_envs],
        )

    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict]:
        torque = actions[:, 0].clamp(-MAX_TORQUE, MAX_TORQUE)
        upright = (self.angle + math.pi) % (2 * math.pi) - math.pi
        reward = -(upright**2 + 0.1 * self.speed**2 + 0.001 * torque**2)
        speed = (self.speed + (1.5 * GRAVITY * self.angle.sin() + 3.0 * torque) * SECONDS).clamp(
            -MAX_SPEED, MAX_SPEED
        )
        angle = self.angle + speed * SECONDS
        length = self.episode_length_buf + 1
        over = length >= LIMIT
        fresh = self.start()
        self.angle, self.speed = (
            torch.where(over, fresh[0], angle),
            torch.where(over, fresh[1], speed),
        )
        self.episode_length_buf = torch.where(over, 0, length)
        return self.get_observations(), reward, over, {"time_outs": over}


def runner() -> DistillationRunner:
    torch.manual_seed(0)
    network = {"class_name": "MLPModel", "activation": "tanh"}
    config = {
        "algorithm": {
            "class_name": "Distillation",
            "num_learning_epochs": 1,
            "gradient_length": child.UNROLL_LENGTH // child.NUM_MINIBATCHES,
            "learning_rate": child.KD_RATE,
        },
        "student": network
        | {
            "hidden_dims": list(child.STUDENT),
            "distribution_cfg": {"class_name": "GaussianDistribution"},
        },
        "teacher": network | {"hidden_dims": list(child.TEACHER)},
        "obs_groups": {"student": ["policy"], "teacher": ["policy"]},
        "num_steps_per_env": child.UNROLL_LENGTH,
        "check_for_nan": False,
    }
    made = DistillationRunner(Pendulums(), config)
    made.alg.teacher_loaded = True  # a random one
    return made


def distill(updates: int):
    made = runner()
    return lambda: made.learn(updates), 0.0


def verify() -> dict:
    made, losses = runner(), []
    update = made.alg.update
    made.alg.update = lambda: losses.append(update()) or losses[-1]
    made.learn(child.KD_UPDATES)
    first, last = losses[0]["behavior"], losses[-1]["behavior"]
    return {"loss_first": first, "loss_last": last, "learnt": first >= child.KD_FALL * last}


if __name__ == "__main__":
    child.main({"distill": child.Work(distill, verify)}, ["rsl-rl-lib", "torch", "tensordict"])
