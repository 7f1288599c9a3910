"""stable-baselines3: its PPO, and a distillation written on its rollouts, in gymnasium's CartPole.

As its documentation advises for cheap environments and small networks: DummyVecEnv, the processor,
one thread of torch (its issue 121); and no logging. The distillation has the student act, forward
KL to the teacher, and a critic of one layer, because rollouts ask for values.
"""

import child
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv
from torch.distributions import kl_divergence

torch.set_num_threads(1)


def cartpoles():
    return make_vec_env("CartPole-v1", n_envs=child.NUM_ENVS, seed=0, vec_env_cls=DummyVecEnv)


def ppo(learning_rate: float) -> PPO:
    return PPO(
        "MlpPolicy",
        cartpoles(),
        learning_rate=learning_rate,
        n_steps=child.UNROLL_LENGTH,
        batch_size=child.STEPS // child.NUM_MINIBATCHES,
        n_epochs=child.PPO_EPOCHS,
        ent_coef=child.ENTROPY,
        max_grad_norm=child.CLIP_NORM,
        policy_kwargs={"net_arch": {"pi": list(child.TEACHER), "vf": list(child.TEACHER)}},
        seed=0,
        device="cpu",
    )


class Distillation(OnPolicyAlgorithm):
    """Forward KL to a teacher on the student's own rollouts, one epoch."""

    def __init__(self, env, teacher: ActorCriticPolicy):
        super().__init__(
            ActorCriticPolicy,
            env,
            learning_rate=child.KD_RATE,
            n_steps=child.UNROLL_LENGTH,
            gamma=0.99,
            gae_lambda=0.95,
            ent_coef=0.0,
            vf_coef=0.0,
            max_grad_norm=0.0,
            use_sde=False,
            sde_sample_freq=-1,
            policy_kwargs={
                "net_arch": {"pi": list(child.STUDENT), "vf": []},
                "optimizer_kwargs": {"eps": 1e-8},
            },
            seed=1,
            device="cpu",
        )
        self.teacher = teacher
        self.kl = []  # of every update's last minibatch

    def train(self) -> None:
        self.policy.set_training_mode(True)
        for rows in self.rollout_buffer.get(child.STEPS // child.NUM_MINIBATCHES):
            with torch.no_grad():
                theirs = self.teacher.get_distribution(rows.observations).distribution
            kl = kl_divergence(
                theirs, self.policy.get_distribution(rows.observations).distribution
            ).mean()
            self.policy.optimizer.zero_grad()
            kl.backward()
            self.policy.optimizer.step()
        self.kl.append(kl.detach())


def learning(model: OnPolicyAlgorithm, updates: int):
    """What makes the updates, going on where the last call stopped."""
    return lambda: model.learn(updates * child.STEPS, log_interval=None, reset_num_timesteps=False)


def taught() -> tuple[PPO, Distillation]:
    """A trained teacher, so that episodes are long and resets, which cost much here, are rare; and
    a new student.
    """
    teacher = ppo(3e-3)
    learning(teacher, 50)()
    teacher.policy.set_training_mode(False)
    return teacher, Distillation(cartpoles(), teacher.policy)


def score(model) -> float:
    return float(evaluate_policy(model, cartpoles(), n_eval_episodes=child.NUM_ENVS)[0])


def verify_ppo() -> dict:
    model = ppo(1e-3)  # rl-baselines3-zoo's
    learning(model, child.PPO_TRAINING // child.STEPS)()
    reached = score(model)
    return {"return": reached, "learnt": reached >= child.PPO_GOAL}


def verify_distillation() -> dict:
    teacher, student = taught()
    learning(student, child.KD_UPDATES)()
    first, last, theirs, reached = (
        float(student.kl[0]),
        float(student.kl[-1]),
        score(teacher),
        score(student),
    )
    learnt = reached >= child.KD_SHARE * theirs and first >= child.KD_FALL * last
    return {
        "return": reached,
        "teacher": theirs,
        "loss_first": first,
        "loss_last": last,
        "learnt": learnt,
    }


if __name__ == "__main__":
    works = {
        "ppo": child.Work(
            lambda updates: (learning(ppo(child.PPO_RATE), updates), 0.0), verify_ppo
        ),
        "distill": child.Work(
            lambda updates: (learning(taught()[1], updates), 0.0), verify_distillation
        ),
    }
    child.main(works, ["stable-baselines3", "torch", "gymnasium", "numpy"])
