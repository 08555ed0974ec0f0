"""AWAC beside CORL's."""

import jax
import numpy as np

from results import references as ref

FILE = "algorithms/offline/awac.py"


def compare(checkout, undo, algorithm="awac", file=FILE):
    torch, module, peer = ref.torch_double(), ref.ours(algorithm), ref.theirs(checkout, file)
    rng = np.random.default_rng(0)
    noise, data = ref.Noise(rng), ref.batches(rng)
    args = module.Args(batch_size=ref.ROWS, temperature=1 / 3)
    agent = ref.agent_of(module, args, rng)
    critics = [peer.Critic(ref.OBS, ref.ACTION, 256) for _ in range(2)]
    nets = [peer.Actor(ref.OBS, ref.ACTION, 256).double(), *critics]
    optimised = [x for net in nets for x in (net, torch.optim.Adam(net.parameters(), lr=3e-4))]
    trainer = peer.AdvantageWeightedActorCritic(*optimised, awac_lambda=1 / 3)

    def networks():
        return {
            "actor": ref.tie(agent.actor, nets[0], {"log_std": nets[0]._log_std}),
            "critic": ref.tie(agent.critic, critics),
            "target critic": ref.tie(agent.target_critic, [trainer._target_critic_1, trainer._target_critic_2]),
        }

    def update():
        nonlocal agent
        rows = next(data)
        with noise.ours():
            agent, info = module.update(agent, ref.batch(rows), jax.random.key(0), args)
        with noise.theirs():
            log = trainer.update(ref.tensors(rows, "obs", "action", "reward", "next_obs", "terminal"))
        return {name: (ref.scalar(info[name]), ref.scalar(log[name])) for name in ("critic_loss", "actor_loss")}

    return ref.side_by_side(networks, update)


CASES = {"": ref.Case("corl-team/CORL", FILE, compare)}
