"""TD3+BC beside CORL's."""

import jax
import jax.numpy as jnp
import numpy as np

from results import references as ref

FILE = "algorithms/offline/td3_bc.py"


def compare(checkout, undo):
    torch, module, peer = ref.torch_double(), ref.ours("td3_bc"), ref.theirs(checkout, FILE)
    rng = np.random.default_rng(0)
    noise, data = ref.Noise(rng), ref.batches(rng)
    args = module.Args(batch_size=ref.ROWS)
    agent = ref.agent_of(module, args, rng)
    critics = [peer.Critic(ref.OBS, ref.ACTION) for _ in range(2)]
    nets = [peer.Actor(ref.OBS, ref.ACTION, 1.0), *critics]
    trainer = peer.TD3_BC(1.0, *(x for net in nets for x in (net, torch.optim.Adam(net.parameters(), lr=3e-4))))

    def networks():
        return {
            "actor": ref.tie(agent.actor, trainer.actor),
            "critic": ref.tie(agent.critic, critics),
            "target actor": ref.tie(agent.target_actor, trainer.actor_target),
            "target critic": ref.tie(agent.target_critic, [trainer.critic_1_target, trainer.critic_2_target]),
        }

    def update():
        nonlocal agent
        rows = [next(data) for _ in range(args.policy_delay)]
        both = jax.tree.map(lambda *x: jnp.stack(x), *map(ref.batch, rows))
        with noise.ours():
            agent, info = module.update(agent, both, jax.random.split(jax.random.key(0)), args)
        with noise.theirs():
            logs = [trainer.train(ref.tensors(r, "obs", "action", "reward", "next_obs", "terminal")) for r in rows]
        return {
            "critic": (ref.scalar(info["critic_loss"]), ref.scalar(np.mean([log["critic_loss"] for log in logs]))),
            "actor": (ref.scalar(info["actor_loss"]), ref.scalar(logs[-1]["actor_loss"])),
        }

    return ref.side_by_side(networks, update)


CASES = {"": ref.Case("corl-team/CORL", FILE, compare, note="One update is two critic steps and one of the actor.")}
