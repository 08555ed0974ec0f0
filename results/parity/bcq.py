"""BCQ beside the authors' code."""

import jax
import numpy as np

from results import references as ref

FILE = "continuous_BCQ/BCQ.py"


def compare(checkout, undo):
    torch, module, peer = ref.torch_double(), ref.ours("bcq"), ref.theirs(checkout, FILE)
    rng = np.random.default_rng(0)
    noise, data = ref.Noise(rng), ref.batches(rng)
    args = module.Args(batch_size=ref.ROWS)
    agent = ref.agent_of(module, args, rng)
    trainer = peer.BCQ(ref.OBS, ref.ACTION, 1.0, "cpu")

    def layers(net, *numbers):
        return torch.nn.ModuleList([getattr(net, f"l{i}") for i in numbers])

    def critics(net):
        return [layers(net, 1, 2, 3), layers(net, 4, 5, 6)]

    def vae_pairs():
        encoder, decoder = (agent.vae["params"][name] for name in ("encoder", "decoder"))
        vae = trainer.vae
        parts = torch.nn.ModuleList([vae.e1, vae.e2, vae.mean, vae.log_std])
        made = torch.nn.ModuleList([vae.d1, vae.d2, vae.d3])
        return ref.tie(ref.split_last({"params": encoder}), parts) + ref.tie({"params": decoder}, made)

    def networks():
        return {
            "perturbation": ref.tie(agent.actor, trainer.actor),
            "critic": ref.tie(agent.critic, critics(trainer.critic)),
            "VAE": vae_pairs(),
            "target perturbation": ref.tie(agent.target_actor, trainer.actor_target),
            "target critic": ref.tie(agent.target_critic, critics(trainer.critic_target)),
        }

    def update():
        nonlocal agent
        rows, losses = next(data), []
        with noise.ours():
            agent, info = module.update(agent, ref.batch(rows), jax.random.key(0), args)
        backward = torch.Tensor.backward
        ref.replace(torch.Tensor, "backward", lambda loss: (losses.append(loss.item()), backward(loss))[1])
        rows["not_done"] = 1.0 - rows["terminal"]
        batch = ref.tensors(rows, "obs", "action", "next_obs", "reward", "not_done")
        flat = [d._replace(array=in_their_order(d.array)) for d in noise.drawn]
        with noise.theirs(flat):
            trainer.train(ref.Buffer(batch), 1, ref.ROWS)
        torch.Tensor.backward = backward
        names = ("vae_loss", "critic_loss", "actor_loss")
        return {name: (ref.scalar(info[name]), ref.scalar(np.array(x))) for name, x in zip(names, losses, strict=True)}

    return ref.side_by_side(networks, update)


def in_their_order(z):
    """[n, B, Z] -> [B n, Z]: they repeat every state n times in its place."""
    return z if z.ndim == 2 else z.swapaxes(0, 1).reshape(-1, z.shape[-1])


CASES = {"": ref.Case("sfujim/BCQ", FILE, compare)}
