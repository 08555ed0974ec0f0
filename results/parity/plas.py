"""PLAS beside the authors' code: a VAE's update and the agent's, with and without the perturbation network."""

from functools import partial

import jax
import numpy as np

from results import references as ref

FILE = "algos.py"
STAND_INS = (*ref.ABSENT, "logger")


def compare(checkout, undo, perturbation):
    torch, module, peer = ref.torch_double(), ref.ours("plas"), ref.theirs(checkout, FILE, STAND_INS)
    rng = np.random.default_rng(0)
    noise, data = ref.Noise(rng), ref.batches(rng)
    args = module.Args(batch_size=ref.ROWS, perturbation=perturbation)
    agent = ref.agent_of(module, args, rng)
    vae = peer.VAEModule(ref.OBS, ref.ACTION, 2 * ref.ACTION, 1.0)
    # the released commands train the actor more slowly than the class's default
    sizes, rates = (ref.OBS, ref.ACTION, 2 * ref.ACTION, 1.0), {"actor_lr": args.actor_lr, "critic_lr": args.critic_lr}
    if perturbation:
        trainer = peer.LatentPerturbation(vae.vae, *sizes, **rates, phi=perturbation)
    else:
        trainer = peer.Latent(vae.vae, *sizes, **rates)

    def layers(net, *numbers):
        return torch.nn.ModuleList([getattr(net, f"l{i}") for i in numbers])

    def critics(net):
        return [layers(net, 1, 2, 3), layers(net, 4, 5, 6)]

    def actor_pairs(tree, net):
        change = ref.tie({"params": tree["params"]["change_net"]}, layers(net, 4, 5, 6)) if perturbation else []
        return ref.tie({"params": tree["params"]["latent_net"]}, layers(net, 1, 2, 3)) + change

    def vae_pairs():
        encoder, decoder = (agent.vae["params"][name] for name in ("encoder", "decoder"))
        parts = torch.nn.ModuleList([vae.vae.e1, vae.vae.e2, vae.vae.mean, vae.vae.log_std])
        made = torch.nn.ModuleList([vae.vae.d1, vae.vae.d2, vae.vae.d3])
        return ref.tie(ref.split_last({"params": encoder}), parts) + ref.tie({"params": decoder}, made)

    def networks():
        return {
            "actor": actor_pairs(agent.actor, trainer.actor),
            "critic": ref.tie(agent.critic, critics(trainer.critic)),
            "VAE": vae_pairs(),
            "target actor": actor_pairs(agent.target_actor, trainer.actor_target),
            "target critic": ref.tie(agent.target_critic, critics(trainer.critic_target)),
        }

    def update():
        nonlocal agent
        rows, losses = next(data), []
        with noise.ours():
            agent, info_vae = module.update_vae(agent, ref.batch(rows), jax.random.key(0), args)
            latent = noise.drawn[:1]  # the others are a metric's
            agent, info = module.update(agent, ref.batch(rows), args)
        dataset = {"observations": rows["obs"], "actions": rows["action"]}
        ref.replace(np.random, "randint", lambda low, high, size: np.arange(size))  # the batch in its order
        backward = torch.Tensor.backward
        ref.replace(torch.Tensor, "backward", lambda loss: (losses.append(loss.item()), backward(loss))[1])
        with noise.theirs(latent):
            vae.train_step(dataset, ref.ROWS)
        rows["not_done"] = 1.0 - rows["terminal"]
        trainer.train(ref.Buffer(ref.tensors(rows, "obs", "action", "next_obs", "reward", "not_done")), 1, ref.ROWS)
        ref.restore()
        found = {**info_vae, **info}
        names = ("vae_loss", "critic_loss", "actor_loss")
        return {name: (ref.scalar(found[name]), ref.scalar(np.array(x))) for name, x in zip(names, losses, strict=True)}

    return ref.side_by_side(networks, update)


_case = partial(ref.Case, "Wenxuan-Zhou/PLAS", FILE)
CASES = {
    "": _case(partial(compare, perturbation=0.0)),
    "perturbation": _case(partial(compare, perturbation=0.05), note="phi 0.05."),
}
