"""SAC beside the most used PyTorch implementation of its second version."""

import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from results import references as ref

FILE = "sac.py"
DEVIATIONS = {
    "log det": "log(1 - tanh(u)^2) is computed in its stable form; the reference adds 1e-6 inside the logarithm",
    "temperature": "the temperature's loss is alpha (H + dim A) as in eq. 18; the reference's is log alpha (H + dim A)",
}


def compare(checkout, undo):
    torch, module, peer = ref.torch_double(), ref.ours("sac"), ref.theirs(checkout, FILE)
    rng = np.random.default_rng(0)
    noise, data = ref.Noise(rng), ref.batches(rng)
    args = module.Args(batch_size=ref.ROWS, hidden_dims=(256, 256), learning_rate=3e-4, discount=0.99, tau=0.005)
    agent = ref.agent_of(module, args, rng)
    settings = types.SimpleNamespace(
        gamma=0.99,
        tau=0.005,
        alpha=float(jnp.exp(agent.log_alpha)),
        policy="Gaussian",
        target_update_interval=1,
        automatic_entropy_tuning=True,
        cuda=False,
        hidden_size=256,
        lr=3e-4,
    )
    space = types.SimpleNamespace(shape=(ref.ACTION,), low=-np.ones(ref.ACTION), high=np.ones(ref.ACTION))
    trainer = peer.SAC(ref.OBS, space, settings)
    if "log det" in undo:
        module.tanh_gaussian_log_prob = with_their_epsilon
    if "temperature" in undo:
        module.alpha_loss = lambda log_alpha, entropy, action_dim: log_alpha * (entropy + action_dim)

    def critics(q):
        layers = [getattr(q, f"linear{i}") for i in range(1, 7)]
        return [torch.nn.ModuleList(layers[:3]), torch.nn.ModuleList(layers[3:])]

    def networks():
        return {
            "actor": ref.tie(ref.split_last(agent.actor), trainer.policy),
            "critic": ref.tie(agent.critic, critics(trainer.critic)),
            "target critic": ref.tie(agent.target_critic, critics(trainer.critic_target)),
            "log alpha": [ref.Tied(np.asarray(agent.log_alpha).reshape(1), trainer.log_alpha)],
        }

    def update():
        nonlocal agent
        rows = next(data)
        with noise.ours():
            agent, info = module.update(agent, ref.batch(rows), jax.random.key(0), args)
        theirs = [rows[name] for name in ("obs", "action", "reward", "next_obs")] + [1 - rows["terminal"]]
        with noise.theirs():
            q1, q2, actor, _, _ = trainer.update_parameters(mock.Mock(sample=lambda batch_size: theirs), ref.ROWS, 0)
        return {
            "critic": (ref.scalar(info["critic_loss"]), ref.scalar(q1 + q2)),
            "actor": (ref.scalar(info["actor_loss"]), ref.scalar(actor)),
        }

    return ref.side_by_side(networks, update)


def with_their_epsilon(mean, log_std, u):
    log_prob = jax.scipy.stats.norm.logpdf(u, mean, jnp.exp(log_std))
    return (log_prob - jnp.log(1.0 - jnp.tanh(u) ** 2 + 1e-6)).sum(-1)


CASES = {"": ref.Case("pranz24/pytorch-soft-actor-critic", FILE, compare, DEVIATIONS)}
