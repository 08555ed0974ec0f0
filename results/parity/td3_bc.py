"""TD3+BC beside CORL's."""

import jax
import jax.numpy as jnp
import numpy as np

from results.references import (
    ACTION,
    OBS,
    ROWS,
    SPEC,
    Case,
    Noise,
    batch,
    batches,
    in_general_position,
    ours,
    scalar,
    side_by_side,
    tensors,
    theirs,
    tie,
    torch_double,
)

FILE = "algorithms/offline/td3_bc.py"


def compare(checkout, undo):
    torch, module, peer = torch_double(), ours("td3_bc"), theirs(checkout, FILE)
    rng = np.random.default_rng(0)
    noise, data = Noise(rng), batches(rng)
    args = module.Args(batch_size=ROWS)
    agent = in_general_position(module.init(jax.random.key(0), args, SPEC), rng)
    parts = [peer.Actor(OBS, ACTION, 1.0), peer.Critic(OBS, ACTION), peer.Critic(OBS, ACTION)]
    parts = [part for net in parts for part in (net, torch.optim.Adam(net.parameters(), lr=3e-4))]
    trainer = peer.TD3_BC(1.0, *parts)

    def networks():
        return {
            "actor": tie(agent.actor, trainer.actor),
            "critic": tie(agent.critic, [trainer.critic_1, trainer.critic_2]),
            "target actor": tie(agent.target_actor, trainer.actor_target),
            "target critic": tie(agent.target_critic, [trainer.critic_1_target, trainer.critic_2_target]),
        }

    def update():
        nonlocal agent
        rows = [next(data) for _ in range(args.policy_delay)]
        both = jax.tree.map(lambda *x: jnp.stack(x), *map(batch, rows))
        with noise.ours():
            agent, info = module.update(agent, both, jax.random.split(jax.random.key(0)), args)
        with noise.theirs():
            logs = [trainer.train(tensors(row, "obs", "action", "reward", "next_obs", "terminal")) for row in rows]
        return {
            "critic": (scalar(info["critic_loss"]), scalar(np.mean([log["critic_loss"] for log in logs]))),
            "actor": (scalar(info["actor_loss"]), scalar(logs[-1]["actor_loss"])),
        }

    return side_by_side(networks, update)


CASES = {"": Case("corl-team/CORL", FILE, compare, note="One update is two critic steps and one of the actor.")}
