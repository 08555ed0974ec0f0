"""ReBRAC fine-tuning beside CORL's: the offline phase, and the online one."""

import jax
import jax.numpy as jnp

from results.jax_references import side_by_side, start
from results.references import ROOT, Case, module, ours, theirs

FILE = "algorithms/finetune/rebrac.py"
STEPS = 30
"""Environment steps of the run, over which the actor's weight decays."""
rebrac = module(ROOT / "results/parity/rebrac.py", "parity_rebrac")


def both(checkout, undo):
    code, peer = ours("rebrac_finetune"), theirs(checkout, FILE)
    if rebrac.TARGET_ACTOR in undo:
        code.update_actor = rebrac.update_actor_of_reference(code)
    args = code.Args(hidden_dims=(24, 24, 24), batch_size=16, actor_bc=0.4, critic_bc=0.3, env_steps=STEPS)
    agent = start(code, args)
    setting = {"gamma": args.discount, "tau": args.tau, "policy_noise": args.policy_noise}
    setting |= {"noise_clip": args.noise_clip, "use_calibration": False}
    return code, peer, args, agent, rebrac.their_state(peer, agent, args, (24, 3)), setting


def offline(checkout, undo):
    code, peer, args, agent, state, setting = both(checkout, undo)
    setting |= {"actor_bc_coef": args.actor_bc, "critic_bc_coef": args.critic_bc}

    @jax.jit
    def our_step(agent, batches):
        agent, info = code.update(agent, batches, jax.random.split(jax.random.key(0), 2), args)
        return agent, {"critic": info["critic_loss"], "actor": info["actor_loss"]}

    @jax.jit
    def their_step(state, rows):
        first, second = (rebrac.their_batch(x) for x in rows)
        key, metrics = jax.random.key(0), rebrac.metrics_of(peer)
        _, actor, critic, metrics = peer.update_td3_no_targets(
            key, state["actor"], state["critic"], first, metrics=metrics, **setting
        )
        _, actor, critic, metrics = peer.update_td3(
            key, actor, critic, second, metrics=metrics, normalize_q=True, **setting
        )
        mean = {name: (total / count)[0] for name, (total, count) in metrics.accumulators.items()}
        return {"actor": actor, "critic": critic}, {"critic": mean["critic_loss"], "actor": mean["actor_loss"]}

    yield from side_by_side(agent, our_step, state, their_step, rebrac.view, rows=2)


def online(checkout, undo):
    """The reference's loop chooses update and weights by the environment step; that is written out here."""
    code, peer, args, agent, state, setting = both(checkout, undo)

    @jax.jit
    def our_step(now, batch):
        agent, t = now
        agent, info = code.update_online(agent, batch._replace(next_action=None), jax.random.key(0), args, t)
        moves = t % args.policy_delay == 0
        return (agent, t + 1), {"critic": info["critic_loss"], "actor": jnp.where(moves, info["actor_loss"] / 2, 0.0)}

    @jax.jit
    def their_step(now, rows):
        state, t = now
        decay = jnp.maximum(0.5, (STEPS - t) / STEPS)
        weights = {"actor_bc_coef": args.actor_bc * decay, "critic_bc_coef": 0.0}
        arguments = {"key": jax.random.key(0), "actor": state["actor"], "critic": state["critic"]}
        arguments |= {"batch": rebrac.their_batch(rows), "metrics": rebrac.metrics_of(peer), **setting, **weights}
        _, actor, critic, metrics = jax.lax.cond(
            t % 2 == 0,
            lambda: peer.update_td3(normalize_q=True, **arguments),
            lambda: peer.update_td3_no_targets(**arguments),
        )
        total = {name: total[0] for name, (total, _) in metrics.accumulators.items()}
        losses = {"critic": total["critic_loss"], "actor": total["actor_loss"]}
        return ({"actor": actor, "critic": critic}, t + 1), losses

    def view(ours, theirs):
        return rebrac.view(ours[0], theirs[0])

    first = jnp.int64(0)  # dividing it is exact in float64
    yield from side_by_side((agent, first), our_step, (state, first), their_step, view)


CASES = {
    "offline": Case("corl-team/CORL", FILE, offline, rebrac.DEVIATIONS, note=rebrac.NOTE),
    "online": Case(
        "corl-team/CORL",
        FILE,
        online,
        rebrac.DEVIATIONS,
        note="Of the environment steps 0, 1, ...: the weights that the reference's loop passes are written out.",
    ),
}
