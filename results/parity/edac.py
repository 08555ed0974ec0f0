"""EDAC beside CORL's."""

import jax
import jax.numpy as jnp
import numpy as np

from results import references as ref

FILE = "algorithms/offline/edac.py"
DEVIATIONS = {
    "log det": "log(1 - tanh(u)^2) is computed in its stable form; CORL adds 1e-6 inside the logarithm",
}


def compare(checkout, undo):
    torch, module, peer = ref.torch_double(), ref.ours("edac"), ref.theirs(checkout, FILE)
    rng = np.random.default_rng(0)
    noise, data = ref.Noise(rng), ref.batches(rng)
    args = module.Args(batch_size=ref.ROWS, n_critics=4, diversity_weight=0.7)
    agent = ref.agent_of(module, args, rng)
    actor, critic = peer.Actor(ref.OBS, ref.ACTION, 256), peer.VectorizedCritic(ref.OBS, ref.ACTION, 256, 4)
    optimised = [x for net in (actor, critic) for x in (net, torch.optim.Adam(net.parameters(), lr=3e-4))]
    trainer = peer.EDAC(*optimised, eta=0.7, alpha_learning_rate=3e-4)
    trainer.log_alpha.data = trainer.log_alpha.data.double()
    if "log det" in undo:
        module.tanh_gaussian_log_prob = with_their_epsilon

    def networks():
        return {
            "actor": ref.tie(ref.split_last(agent.actor), actor),
            "critic": ref.tie(agent.critic, critic),
            "target critic": ref.tie(agent.target_critic, trainer.target_critic),
            "log alpha": [ref.Tied(np.asarray(agent.log_alpha).reshape(1), trainer.log_alpha)],
        }

    def update():
        nonlocal agent
        rows = next(data)
        with noise.ours():
            agent, info = module.update(agent, ref.batch(rows), jax.random.key(0), args)
        logged = ref.Draw("uniform", np.zeros_like(rows["action"]))  # for a metric of theirs
        with noise.theirs([*noise.drawn, logged]):
            log = trainer.update(ref.tensors(rows, "obs", "action", "reward", "next_obs", "terminal"))
        return {
            name: (ref.scalar(info[name]), ref.scalar(log[name])) for name in ("critic_loss", "actor_loss", "alpha")
        }

    return ref.side_by_side(networks, update)


def with_their_epsilon(mean, log_std, u):
    log_prob = jax.scipy.stats.norm.logpdf(u, mean, jnp.exp(log_std))
    return (log_prob - jnp.log(1.0 - jnp.tanh(u) ** 2 + 1e-6)).sum(-1)


CASES = {"": ref.Case("corl-team/CORL", FILE, compare, DEVIATIONS, note="4 critics, eta 0.7.")}
