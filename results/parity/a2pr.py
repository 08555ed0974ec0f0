"""A2PR beside its authors' code."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from results import references as ref

FILE = "A2PR.py"
DEVIATIONS = {
    "new V": "V in the VAE's and the actor's loss is the one after its step of this update; the authors' is the old one"
}


def compare(checkout, undo):
    torch, module, peer = ref.torch_double(), ref.ours("a2pr"), ref.theirs(checkout, FILE)
    rng = np.random.default_rng(0)
    noise, data = ref.Noise(rng), ref.batches(rng)
    args = module.Args(batch_size=ref.ROWS, guide_weight=0.4, vae_weight=1.5)
    agent = ref.agent_of(module, args, rng)
    trainer = peer.A2PR(ref.OBS, ref.ACTION, 1.0, "cpu", mask=0.4, vae_weight=1.5)
    if "new V" in undo:
        use_the_old_value(module)

    def layers(net, first, last, letter="l"):
        return torch.nn.ModuleList([getattr(net, f"{letter}{i}") for i in range(first, last + 1)])

    def networks():
        encoder, decoder = ({"params": agent.vae["params"][name]} for name in ("encoder", "decoder"))
        vae, q, target = trainer.vae, trainer.critic, trainer.critic_target
        heads = torch.nn.ModuleList([vae.e1, vae.e2, vae.mean, vae.log_std])
        return {
            "actor": ref.tie(agent.actor, trainer.actor),
            "critic": ref.tie(agent.critic, [layers(q, 1, 5), layers(q, 6, 10)]),
            "value": ref.tie(agent.value, trainer.value),
            "VAE": ref.tie(ref.split_last(encoder), heads) + ref.tie(decoder, layers(vae, 1, 3, "d")),
            "target actor": ref.tie(agent.target_actor, trainer.actor_target),
            "target critic": ref.tie(agent.target_critic, [layers(target, 1, 5), layers(target, 6, 10)]),
        }

    def update():
        nonlocal agent
        rows = [next(data) for _ in range(args.policy_delay)]
        both = jax.tree.map(lambda *x: jnp.stack(x), *map(ref.batch, rows))
        keys = jax.random.split(jax.random.key(0))
        with noise.ours():
            agent, info = module.update(agent, both, (keys, keys, keys), args)
        logs = []
        with noise.theirs():
            for row in rows:
                tensors = ref.tensors({**row, "terminal": 1 - row["terminal"]}, *ORDER)
                logs.append(trainer.train(mock.Mock(sample=lambda n, tensors=tensors: tensors), ref.ROWS))
        return {
            "critic": (ref.scalar(info["critic_loss"]), ref.scalar(np.mean([log["critic_loss"] for log in logs]))),
            "VAE": (ref.scalar(info["vae_loss"]), ref.scalar(np.mean([log["vae_loss"] for log in logs]))),
            "actor": (ref.scalar(info["actor_loss"]), ref.scalar(logs[-1]["combined_loss"])),
        }

    return ref.side_by_side(networks, update)


def use_the_old_value(module):
    """Wherever V is not what is being fitted, it is the one that the update began with."""
    update_values, value_of, old = module.update_values, module.value_of, None

    def updating(agent, batch, keys, args):
        nonlocal old
        old = agent.value
        return update_values(agent, batch, keys, args)

    def value(agent, parameters, obs):
        return value_of(agent, old if parameters is agent.value else parameters, obs)

    module.update_values, module.value_of = updating, value


ORDER = "obs", "action", "reward", "next_obs", "terminal"
NOTE = "One update is two of critics, V and VAE and one of the actor."
CASES = {"": ref.Case("ltlhuuu/A2PR", FILE, compare, DEVIATIONS, note=NOTE)}
