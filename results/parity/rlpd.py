"""RLPD beside the authors' code."""

import jax

from results.jax_references import (
    HIDDEN,
    Space,
    packages,
    pairs,
    read,
    side_by_side,
    start,
    theirs_of,
    two_heads,
    write,
)  # fmt: skip
from results.references import ACTION, OBS, ROWS, Case, ours

FILE = "rlpd/agents/sac/sac_learner.py"
UTD = 2


def actor_of(params):
    return read(params, "MLP", "OutputDenseMean")


def compare(checkout, undo, **setting):
    module, peer = ours("rlpd"), packages(checkout, frozen=True)("rlpd.agents.sac.sac_learner")
    args = module.Args(hidden_dims=HIDDEN, batch_size=ROWS, utd=UTD, n_critics=5, **setting)
    agent = start(module, args)
    made = peer.SACLearner.create(
        0, Space(OBS), Space(ACTION), hidden_dims=HIDDEN, num_qs=args.n_critics, num_min_qs=args.subset_size,
        critic_layer_norm=args.critic_layer_norm, backup_entropy=args.backup_entropy,
    )  # fmt: skip
    params = {
        "actor": write(made.actor.params, two_heads(read(agent.actor), len(HIDDEN)), "MLP", "OutputDenseMean"),
        "critic": write(made.critic.params, read(agent.critic)),
        "temp": write(made.temp.params, [agent.log_alpha]),
    }
    for name, tree in params.items():
        state = getattr(made, name)
        made = made.replace(**{name: state.replace(params=tree, opt_state=state.tx.init(tree))})
    target = write(made.critic.params, read(agent.target_critic))
    made = made.replace(target_critic=made.target_critic.replace(params=target))

    @jax.jit
    def our_step(agent, batches):
        agent, info = module.update(agent, batches, jax.random.key(0), args)
        return agent, {"critic": info["critic_loss"], "actor": info["actor_loss"], "entropy": info["entropy"]}

    @jax.jit
    def critic_losses(made, rows):
        """The reference reports its last critic step's loss only."""
        losses = []
        for x in rows:
            made, info = made.update_critic(x)
            losses.append(info["critic_loss"])
        return sum(losses) / len(losses)

    def their_step(made, rows):
        rows = [theirs_of(x) for x in rows]
        loss = critic_losses(made, rows)
        made, info = made.update(jax.tree.map(lambda *x: jax.numpy.concatenate(x), *rows), UTD)
        return made, {"critic": loss, "actor": info["actor_loss"], "entropy": info["entropy"]}

    def view(agent, made):
        heads = lambda params: two_heads(read(params), len(HIDDEN))  # noqa: E731
        return pairs(
            {
                "actor": (heads, agent.actor, agent.actor_opt),
                "critic": (read, agent.critic, agent.critic_opt),
                "target critic": (read, agent.target_critic, None),
                "temperature": (lambda x: [x], agent.log_alpha, agent.alpha_opt),
            },
            {
                "actor": (actor_of, made.actor.params, made.actor.opt_state),
                "critic": (read, made.critic.params, made.critic.opt_state),
                "target critic": (read, made.target_critic.params, None),
                "temperature": (read, made.temp.params, made.temp.opt_state),
            },
        )

    yield from side_by_side(agent, our_step, made, their_step, view, rows=UTD)


CASES = {
    "": Case("ikostrikov/rlpd", FILE, compare, note=f"One update is {UTD} critic steps and one of the actor."),
    "AntMaze's": Case(
        "ikostrikov/rlpd", FILE, lambda c, u: compare(c, u, backup_entropy=False, subset_size=1), note="As the first."
    ),
}
