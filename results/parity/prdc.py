"""PRDC beside its authors' code."""

import types
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from results import references as ref

FILE = "prdc.py"


def halves(torch, critic):
    """Both critics of one module that has six layers."""
    layers = [getattr(critic, f"l{i}") for i in range(1, 7)]
    return [torch.nn.ModuleList(layers[:3]), torch.nn.ModuleList(layers[3:])]


def compare(checkout, undo):
    torch, module, peer = ref.torch_double(), ref.ours("prdc"), ref.theirs(checkout, FILE)
    rng = np.random.default_rng(0)
    noise, dataset = ref.Noise(rng), next(ref.batches(rng, rows=200))
    args = module.Args(batch_size=ref.ROWS, search="all")
    pairs = module.pairs_of(types.SimpleNamespace(obs=dataset["obs"], action=dataset["action"]), args)
    agent = ref.agent_of(module, args, rng)
    points = np.concatenate([args.state_weight * dataset["obs"], dataset["action"]], axis=1)
    trainer = peer.PRDC(points, ref.OBS, ref.ACTION, 1.0, "cpu", alpha=args.alpha, beta=args.state_weight)

    def networks():
        return {
            "actor": ref.tie(agent.actor, trainer.actor),
            "critic": ref.tie(agent.critic, halves(torch, trainer.critic)),
            "target actor": ref.tie(agent.target_actor, trainer.actor_target),
            "target critic": ref.tie(agent.target_critic, halves(torch, trainer.critic_target)),
        }

    def update():
        nonlocal agent
        index = rng.integers(0, 200, (args.policy_delay, ref.ROWS))
        rows = [{name: x[i] for name, x in dataset.items()} for i in index]
        both = jax.tree.map(lambda *x: jnp.stack(x), *map(ref.batch, rows))
        with noise.ours():
            keys = jax.random.split(jax.random.key(0))
            agent, info = module.update(agent, both, jnp.asarray(index), keys, pairs, args)
        logs = []
        with noise.theirs():
            for row in rows:
                tensors = ref.tensors({**row, "terminal": 1 - row["terminal"]}, *ORDER)
                logs.append(trainer.train(mock.Mock(sample=lambda n, tensors=tensors: tensors), ref.ROWS))
        return {
            "critic": (ref.scalar(info["critic_loss"]), ref.scalar(np.mean([log["critic_loss"] for log in logs]))),
            "actor": (ref.scalar(info["actor_loss"]), ref.scalar(logs[-1]["combined_loss"])),
            "nearest": (ref.scalar(info["dc_loss"]), ref.scalar(logs[-1]["dc_loss"])),
        }

    return ref.side_by_side(networks, update)


ORDER = "obs", "action", "reward", "next_obs", "terminal"
CASES = {"": ref.Case("LAMDA-RL/PRDC", FILE, compare, note="The nearest pair of 200, by comparing with all of them.")}
