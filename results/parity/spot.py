"""SPOT beside CORL's."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from results import references as ref

FILE = "algorithms/finetune/spot.py"


def vae_pairs(tree, vae):
    """Our encoder ends in one layer, theirs in one for the mean and one for the deviation."""
    import torch

    encoder, decoder = tree["params"]["encoder"], tree["params"]["decoder"]
    parts = torch.nn.ModuleList([vae.encoder_shared, vae.mean, vae.log_std])
    return ref.tie(ref.split_last({"params": encoder}), parts) + ref.tie({"params": decoder}, vae.decoder)


def compare(checkout, undo, density, algorithm="spot", online=False):
    """`online`: the update in the environment, of spot_finetune."""
    torch, module, peer = ref.torch_double(), ref.ours(algorithm), ref.theirs(checkout, FILE)
    rng = np.random.default_rng(0)
    noise, data = ref.Noise(rng), ref.batches(rng)
    args = module.Args(
        batch_size=ref.ROWS,
        dropout=0.0,
        vae_hidden_dims=(64, 64),
        density=density,
        latent_samples=3,
        support_weight=0.3,
        **({"env_steps": 30, "min_decay": 0.4, "online_discount": 0.9} if online else {}),
    )
    agent = ref.agent_of(module, args, rng)
    actor = peer.Actor(ref.OBS, ref.ACTION, 1.0)
    critics = [peer.Critic(ref.OBS, ref.ACTION) for _ in range(2)]
    vae = peer.VAE(ref.OBS, ref.ACTION, None, 1.0, 64)
    vae.device = "cpu"  # read where nobody sets it
    optimised = [x for net in (actor, *critics) for x in (net, torch.optim.Adam(net.parameters(), lr=3e-4))]
    trainer = peer.SPOT(
        1.0,
        *optimised,
        vae,
        torch.optim.Adam(vae.parameters(), lr=1e-3),
        lambd=0.3,
        num_samples=3,
        iwae=density == "iwae",
        lambd_cool=online,
        lambd_end=0.4,
        max_online_steps=30,
    )
    trainer.is_online, trainer.discount, t = online, 0.9 if online else trainer.discount, 0
    names = "obs", "action", "reward", "next_obs", "terminal"

    def networks():
        return {
            "actor": ref.tie(agent.actor, actor),
            "critic": ref.tie(agent.critic, critics),
            "VAE": vae_pairs(agent.vae, vae),
            "target actor": ref.tie(agent.target_actor, trainer.actor_target),
            "target critic": ref.tie(agent.target_critic, [trainer.critic_1_target, trainer.critic_2_target]),
        }

    def update():
        nonlocal agent
        rows = [next(data) for _ in range(args.policy_delay)]
        with noise.ours():
            agent, of_vae = module.update_vae(agent, ref.batch(rows[0]), jax.random.key(0), args)
        with noise.theirs():
            vae_log = trainer.vae_train(ref.tensors(rows[0], *names))
        trainer.total_it = 0  # counts the VAE's updates, too
        both = jax.tree.map(lambda *x: jnp.stack(x), *map(ref.batch, rows))
        keys = jax.random.split(jax.random.key(0))
        with noise.ours():
            agent, info = module.update(agent, both, (keys, keys), args)
        with noise.theirs([d._replace(array=d.array.swapaxes(0, -2)) for d in noise.drawn]):  # [n, B, Z] is [B, n, Z]
            logs = [trainer.train(ref.tensors(r, *names)) for r in rows]
        return {
            "VAE": (ref.scalar(of_vae["vae_loss"]), ref.scalar(vae_log["VAE/vae_loss"])),
            "critic": (ref.scalar(info["critic_loss"]), ref.scalar(np.mean([log["critic_loss"] for log in logs]))),
            "actor": (ref.scalar(info["actor_loss"]), ref.scalar(logs[-1]["actor_loss"])),
        }

    def update_online():
        nonlocal agent, t
        losses = []
        for rows in (next(data) for _ in range(args.policy_delay)):
            t += 1
            with noise.ours():
                agent, info = module.update_online(agent, ref.batch(rows), jax.random.key(0), args, t)
            trainer.total_it = trainer.online_it = t - 1
            with noise.theirs([d._replace(array=d.array.swapaxes(0, -2)) for d in noise.drawn]):
                log = trainer.train(ref.tensors(rows, *names))
            losses.append((ref.scalar(info["critic_loss"]), ref.scalar(log["critic_loss"])))
        actor = ref.scalar(info["actor_loss"] / args.policy_delay), ref.scalar(log["actor_loss"])
        return {"critic": tuple(sum(side, []) for side in zip(*losses)), "actor": actor}

    return ref.side_by_side(networks, update_online if online else update)


NOTE = "Without dropout; one update is one of the VAE, two of the critics and one of the actor; 3 latent samples."
CASES = {
    density: ref.Case("corl-team/CORL", FILE, partial(compare, density=density), note=NOTE)
    for density in ("elbo", "iwae")
}
