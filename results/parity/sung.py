"""SUNG's online phase beside its authors' code."""

from unittest import mock

import jax
import numpy as np

from results import references as ref

FILE = "TD3_BC/TD3.py"
ORDER = "obs", "action", "next_obs", "reward", "terminal"


def compare(checkout, undo):
    torch, module, peer = ref.torch_double(), ref.ours("sung"), ref.theirs(checkout, FILE)
    rng = np.random.default_rng(0)
    noise, data = ref.Noise(rng), ref.batches(rng)
    args = module.Args(batch_size=ref.ROWS, constrained_share=0.25, online_bc=0.1)
    agent = ref.agent_of(module, args, rng)
    trainer = peer.TD3(ref.OBS, ref.ACTION, 1.0, constrained="greedy", filter_prob=0.25, alpha=2.5, lamda=0.1)

    def layers(net, first, last, letter="l"):
        return torch.nn.ModuleList([getattr(net, f"{letter}{i}") for i in range(first, last + 1)])

    def networks():
        encoder, decoder = ({"params": agent.vae["params"][name]} for name in ("encoder", "decoder"))
        vae, q, target = trainer.vae, trainer.critic, trainer.critic_target
        heads = torch.nn.ModuleList([vae.e1, vae.e2, vae.mean, vae.log_std])
        return {
            "actor": ref.tie(agent.actor, trainer.actor),
            "critic": ref.tie(agent.critic, [layers(q, 1, 3), layers(q, 4, 6)]),
            "VAE": ref.tie(ref.split_last(encoder), heads) + ref.tie(decoder, layers(vae, 1, 3, "d")),
            "target actor": ref.tie(agent.target_actor, trainer.actor_target),
            "target critic": ref.tie(agent.target_critic, [layers(target, 1, 3), layers(target, 4, 6)]),
        }

    def update():
        """Two environment steps: the actor moves at the second."""
        nonlocal agent
        for t in (1, 2):
            row = next(data)
            with noise.ours():
                agent, info = module.update_online(agent, ref.batch(row), jax.random.key(0), args, t)
            tensors = ref.tensors({**row, "terminal": 1 - row["terminal"]}, *ORDER)
            with noise.theirs(noise.drawn[:3]):  # the two after them are of a metric
                log = trainer.train(mock.Mock(sample=lambda n, tensors=tensors: tensors), ref.ROWS)
        found = {
            "critic": (info["critic_loss"], log["training/Critic Loss"]),
            "VAE": (info["vae_loss"], log["training/VAE Loss"]),
            "actor": (info["actor_loss"] / args.policy_delay, log["training/Actor Loss"]),
        }
        return {name: (ref.scalar(a), ref.scalar(b)) for name, (a, b) in found.items()}

    return ref.side_by_side(networks, update)


NOTE = "The update of the online phase, greedy choice of the constrained quarter of the batch; one update is two steps."
CASES = {"": ref.Case("guosyjlu/SUNG", FILE, compare, note=NOTE)}
