"""COMBO beside OfflineRL-Kit's: the model's phase, rollouts, and the agent's step with both sides of the penalty."""

import types

import jax
import numpy as np
import optax

from results import kit_references as kit
from results import references as ref

FILE = "offlinerlkit/policy/model_based/combo.py"
DEVIATIONS = {
    "order": "critics take their step before the actor and the temperature, in the Kit after them",
    "soft maximum": "it is over all actions of a state; the Kit's is over three, one of each kind, and then averaged",
    "log det": kit.LOG_DET,
}
UPDATES = 20
"""Of the whole run: over which the actor's cosine falls."""


def compare(checkout, undo):
    sides = kit.start(checkout, "combo", undo, updates=UPDATES, n_actions=3, cql_alpha=0.8)
    torch, module, args = sides.torch, sides.module, sides.args
    from offlinerlkit.policy import COMBOPolicy

    if "soft maximum" in undo:
        ref.replace(jax.nn, "logsumexp", over_three(jax.nn.logsumexp))
    step = actor_first(module) if "order" in undo else module.update
    optimizers = [torch.optim.Adam(sides.actor.parameters(), lr=args.actor_lr)]
    optimizers += [torch.optim.Adam(critic.parameters(), lr=args.critic_lr) for critic in sides.critics]
    policy = COMBOPolicy(
        sides.dynamics, sides.actor, *sides.critics, *optimizers, alpha=sides.alpha, cql_weight=args.cql_alpha,
        action_space=types.SimpleNamespace(low=-np.ones(ref.ACTION), high=np.ones(ref.ACTION), shape=(ref.ACTION,)),
        with_lagrange=False, num_repeart_actions=args.n_actions,
    )  # fmt: skip
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizers[0], UPDATES)
    batches = ref.batches(sides.rng)

    def networks():
        return kit.networks(sides, [policy.critic1_old, policy.critic2_old])

    def update():
        losses, data = kit.fit_both(sides)
        losses |= kit.roll_both(sides, policy, data)
        rows = next(batches)
        with sides.noise.ours():
            sides.agent, info = step(sides.agent, ref.batch(rows), jax.random.key(0), args)
        drawn = [d._replace(array=d.array.swapaxes(0, -2)) for d in sides.noise.drawn]  # [n, B, A] is [B, n, A]
        with sides.noise.theirs(drawn if "order" in undo else [drawn[-1], *drawn[:-1]]):
            log = policy.learn(kit.parts(sides, rows))
        cosine.step()
        return losses | kit.update_losses(info, log)

    return ref.side_by_side(networks, update)


def over_three(logsumexp):
    """Of the first, second, ... action of each kind: [E, 3 n, B] -> [E, n B]."""
    return lambda x, axis: logsumexp(x.reshape(len(x), 3, -1, x.shape[-1]), axis=axis).reshape(len(x), -1)


def actor_first(module):
    def update(agent, batch, key, args):
        actor_key, critic_key = jax.random.split(key)
        grad = jax.value_and_grad(module.actor_loss, has_aux=True)
        (loss_pi, info), grads = grad(agent.actor, agent, batch, actor_key, args)
        updates, actor_opt = module.actor_optimizer(args).update(grads, agent.actor_opt)
        actor = optax.apply_updates(agent.actor, updates)
        grads = jax.grad(module.alpha_loss)(agent.log_alpha, info["entropy"], batch.action.shape[-1])
        updates, alpha_opt = optax.adam(args.actor_lr).update(grads, agent.alpha_opt)
        log_alpha = optax.apply_updates(agent.log_alpha, updates)
        agent = agent.replace(actor=actor, actor_opt=actor_opt, log_alpha=log_alpha, alpha_opt=alpha_opt)
        grad = jax.value_and_grad(module.critic_loss, has_aux=True)
        (loss_q, _), grads = grad(agent.critic, agent, batch, critic_key, args)
        updates, critic_opt = optax.adam(args.critic_lr).update(grads, agent.critic_opt)
        critic = optax.apply_updates(agent.critic, updates)
        target = optax.incremental_update(critic, agent.target_critic, args.tau)
        agent = agent.replace(critic=critic, critic_opt=critic_opt, target_critic=target)
        return agent, {"critic_loss": loss_q, "actor_loss": loss_pi, "alpha": module.temperature(agent)}

    return update


NOTE = f"{kit.PARTS} {kit.COSINE} 3 actions of each kind."
CASES = {"": ref.Case(kit.REFERENCE, FILE, compare, DEVIATIONS, note=NOTE)}
