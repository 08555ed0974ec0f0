"""ReBRAC beside CORL's."""

import jax
import optax

from results.jax_references import pairs, read, side_by_side, start, theirs_of, write
from results.references import SPEC, Case, ours, theirs

FILE = "algorithms/offline/rebrac.py"
TARGET_ACTOR = "target actor"
DEVIATIONS = {TARGET_ACTOR: "targets follow the actor after its step, in the reference before it"}


def update_actor_of_reference(module):
    """Ours, with the target actor's Polyak step towards the old actor."""
    update_actor = module.update_actor

    def changed(agent, batch, args):
        new, info = update_actor(agent, batch, args)
        old = optax.incremental_update(agent.actor, agent.target_actor, args.tau)
        return new.replace(target_actor=old), info

    return changed


def their_batch(rows):
    x = theirs_of(rows)
    return x | {"states": x["observations"], "next_states": x["next_observations"]}


def their_state(peer, agent, args, hidden):
    size, depth = hidden
    actor = peer.DetActor(action_dim=SPEC.action_dim, hidden_dim=size, layernorm=False, n_hiddens=depth)
    critic = peer.EnsembleCritic(hidden_dim=size, num_critics=2, layernorm=True, n_hiddens=depth)
    obs, action = jax.numpy.zeros((1, *SPEC.obs_shape)), jax.numpy.zeros((1, SPEC.action_dim))
    actor_like, critic_like = actor.init(jax.random.key(0), obs), critic.init(jax.random.key(0), obs, action)
    return {
        "actor": peer.ActorTrainState.create(
            apply_fn=actor.apply,
            params=write(actor_like, read(agent.actor)),
            target_params=write(actor_like, read(agent.target_actor)),
            tx=optax.adam(args.actor_lr),
        ),
        "critic": peer.CriticTrainState.create(
            apply_fn=critic.apply,
            params=write(critic_like, read(agent.critic)),
            target_params=write(critic_like, read(agent.target_critic)),
            tx=optax.adam(args.critic_lr),
        ),
    }


def view(agent, state):
    return pairs(
        {
            "actor": (read, agent.actor, agent.actor_opt),
            "critic": (read, agent.critic, agent.critic_opt),
            "target actor": (read, agent.target_actor, None),
            "target critic": (read, agent.target_critic, None),
        },
        {
            "actor": (read, state["actor"].params, state["actor"].opt_state),
            "critic": (read, state["critic"].params, state["critic"].opt_state),
            "target actor": (read, state["actor"].target_params, None),
            "target critic": (read, state["critic"].target_params, None),
        },
    )


def metrics_of(peer):
    return peer.Metrics.create(("critic_loss", "q_min", "actor_loss", "bc_mse_policy", "bc_mse_random", "action_mse"))


def compare(checkout, undo):
    module, peer = ours("rebrac"), theirs(checkout, FILE)
    if TARGET_ACTOR in undo:
        module.update_actor = update_actor_of_reference(module)
    args = module.Args(hidden_dims=(24, 24, 24), batch_size=16, actor_bc=0.4, critic_bc=0.3)
    agent = start(module, args)
    setting = {"gamma": args.discount, "actor_bc_coef": args.actor_bc, "critic_bc_coef": args.critic_bc}
    setting |= {"tau": args.tau, "policy_noise": args.policy_noise, "noise_clip": args.noise_clip}

    @jax.jit
    def our_step(agent, batches):
        agent, info = module.update(agent, batches, jax.random.split(jax.random.key(0), 2), args)
        return agent, {"critic": info["critic_loss"], "actor": info["actor_loss"]}

    @jax.jit
    def their_step(state, rows):
        """A critic step, then one with the actor's and the targets'."""
        key, metrics = jax.random.key(0), metrics_of(peer)
        _, actor, critic, metrics = peer.update_td3_no_targets(
            key, state["actor"], state["critic"], rows[0], metrics=metrics, **setting
        )
        _, actor, critic, metrics = peer.update_td3(
            key, actor, critic, rows[1], metrics=metrics, normalize_q=True, **setting
        )
        mean = {name: (total / count)[0] for name, (total, count) in metrics.accumulators.items()}
        return {"actor": actor, "critic": critic}, {"critic": mean["critic_loss"], "actor": mean["actor_loss"]}

    state = their_state(peer, agent, args, (24, 3))
    yield from side_by_side(
        agent, our_step, state, lambda s, rows: their_step(s, [their_batch(x) for x in rows]), view, rows=2
    )


NOTE = (
    "One update is two critic steps and one of the actor, on the second batch (the reference's actor moves on the "
    "first of each two)."
)
CASES = {"": Case("corl-team/CORL", FILE, compare, DEVIATIONS, note=NOTE)}
