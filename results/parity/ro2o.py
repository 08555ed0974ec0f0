"""RO2O's offline phase, which online goes on unchanged, beside its authors' code."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from results import references as ref

FILE = "algorithms/offline/ro2o_mujoco.py"
DEVIATIONS = {
    "log det": "log(1 - tanh(u)^2) is computed in its stable form; the authors add 1e-6 inside the logarithm",
    "together": "all losses of an update are of the parameters before it; the authors step one after the other, "
    "the temperature first, with a draw of its own",
}


def compare(checkout, undo):
    torch, module, peer = ref.torch_double(), ref.ours("ro2o"), ref.theirs(checkout, FILE)
    rng = np.random.default_rng(0)
    noise, data = ref.Noise(rng), ref.batches(rng)
    args = module.Args(
        batch_size=ref.ROWS,
        n_critics=4,
        n_samples=5,
        policy_smooth_eps=0.02,
        q_smooth_eps=0.03,
        ood_eps=0.04,
        q_smooth_reg=1e-4,
        ood_reg=0.3,
        uncertainty=1.0,
        uncertainty_min=0.6,
        uncertainty_decay=0.1,
    )
    agent = ref.agent_of(module, args, rng)
    actor, critic = peer.Actor(ref.OBS, ref.ACTION, 256), peer.VectorizedCritic(ref.OBS, ref.ACTION, 256, 4)
    optimised = [x for net in (actor, critic) for x in (net, torch.optim.Adam(net.parameters(), lr=3e-4))]
    trainer = peer.RO2O(
        *optimised,
        beta_ood=0.3,
        q_smooth_eps=0.03,
        policy_smooth_eps=0.02,
        ood_smooth_eps=0.04,
        sample_size=5,
        q_ood_uncertainty_reg=1.0,
        q_ood_uncertainty_reg_min=0.6,
        q_ood_uncertainty_decay=0.1,
        alpha_learning_rate=3e-4,
        device="cpu",
    )
    trainer.log_alpha.data = trainer.log_alpha.data.double()
    if "log det" in undo:
        module.tanh_gaussian_log_prob = with_their_epsilon
    ours = one_after_the_other if "together" in undo else lambda module, *inputs: module.update(*inputs)

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
            agent, info = ours(module, agent, ref.batch(rows), jax.random.key(0), args)
        *alpha, action, near, following, near_q, near_ood, ood = noise.drawn
        ood = ood._replace(array=ood.array.swapaxes(0, 1))  # [n, B, A] is [B, n, A]
        unused = [ref.Draw("normal", np.zeros((n * ref.ROWS, ref.ACTION))) for n in (args.n_samples, 1)]
        logged = ref.Draw("uniform", np.zeros_like(rows["action"]))
        draws = [*(alpha or [action]), action, near, *unused, following, near_q, near_ood, ood, logged]
        with noise.theirs(draws):
            log = trainer.update(ref.tensors(rows, "obs", "action", "reward", "next_obs", "terminal"))
        return {name: (ref.scalar(info[name]), ref.scalar(log[name])) for name in ("critic_loss", "actor_loss")}

    return ref.side_by_side(networks, update)


def with_their_epsilon(mean, log_std, u):
    log_prob = jax.scipy.stats.norm.logpdf(u, mean, jnp.exp(log_std))
    return (log_prob - jnp.log(1.0 - jnp.tanh(u) ** 2 + 1e-6)).sum(-1)


def one_after_the_other(module, agent, batch, key, args):
    """Our losses in the authors' order."""

    def stepped(name, learning_rate, grads):
        updates, opt = optax.adam(learning_rate).update(grads, getattr(agent, f"{name.removeprefix('log_')}_opt"))
        new = {name: optax.apply_updates(getattr(agent, name), updates), f"{name.removeprefix('log_')}_opt": opt}
        return agent.replace(**new)

    _, log_prob = module.sample_tanh_gaussian(*agent.nets.actor.apply(agent.actor, batch.obs), key)
    entropy = -log_prob.mean()
    agent = stepped("log_alpha", args.actor_lr, jax.grad(module.alpha_loss)(agent.log_alpha, entropy, ref.ACTION))
    grad = jax.value_and_grad(module.actor_loss, has_aux=True)
    (actor_loss, _), grads = grad(agent.actor, agent, batch, key, args)
    agent = stepped("actor", args.actor_lr, grads)
    grad = jax.value_and_grad(module.critic_loss, has_aux=True)
    (critic_loss, _), grads = grad(agent.critic, agent, batch, key, args)
    agent = stepped("critic", args.critic_lr, grads)
    target_critic = optax.incremental_update(agent.critic, agent.target_critic, args.tau)
    agent = agent.replace(target_critic=target_critic, step=agent.step + 1)
    return agent, {"actor_loss": actor_loss, "critic_loss": critic_loss}


NOTE = "4 critics, 5 perturbations; all three terms, lambda falling from 1 to 0.6 within the updates compared."
CASES = {"": ref.Case("BattleWen/RO2O", FILE, compare, DEVIATIONS, note=NOTE)}
