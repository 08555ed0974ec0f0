"""IQL beside the authors' code."""

import jax

from results.jax_references import HIDDEN, member, packages, pairs, read, side_by_side, stack, start, theirs_of, write
from results.references import ACTION, OBS, ROWS, Case, ours

FILE = "learner.py"


def give(learner, agent):
    """Our weights to a learner of the reference (or of one that began as it)."""
    critics = read(agent.critic), read(agent.target_critic)
    both = lambda like, arrays: {f"Critic_{i}": write(like[f"Critic_{i}"], member(arrays, i)) for i in (0, 1)}  # noqa: E731
    for name, params in {
        "actor": write(learner.actor.params, read(agent.actor)),
        "value": write(learner.value.params, read(agent.value)),
        "critic": both(learner.critic.params, critics[0]),
        "target_critic": both(learner.target_critic.params, critics[1]),
    }.items():
        model = getattr(learner, name)
        state = model.tx.init(params) if model.tx else None
        setattr(learner, name, model.replace(params=params, opt_state=state))


def critics(params):
    return stack(*(read(params[f"Critic_{i}"]) for i in (0, 1)))


def view(agent, learner):
    return pairs(
        {
            "actor": (read, agent.actor, agent.actor_opt),
            "critic": (read, agent.critic, agent.critic_opt),
            "value": (read, agent.value, agent.value_opt),
            "target critic": (read, agent.target_critic, None),
        },
        {
            "actor": (read, learner.actor.params, learner.actor.opt_state),
            "critic": (critics, learner.critic.params, learner.critic.opt_state),
            "value": (read, learner.value.params, learner.value.opt_state),
            "target critic": (critics, learner.target_critic.params, None),
        },
    )


def batch_of(peer, rows):
    x = theirs_of(rows)
    return peer.Batch(**{name: x[name] for name in peer.Batch._fields if name in x})


def their_step(peer):
    def step(learner, rows):
        info = learner.update(batch_of(peer, rows))
        return learner, {name: info[f"{name}_loss"] for name in ("critic", "value", "actor")}

    return step


def our_step(module, args):
    @jax.jit
    def step(agent, batch):
        agent, info = module.update(agent, batch, jax.random.key(0), args)
        return agent, {name: info[f"{name}_loss"] for name in ("critic", "value", "actor")}

    return step


def compare(checkout, undo, algorithm="iql", schedule="cosine", root="", **setting):
    module, peer = ours(algorithm), packages(checkout, root, frozen=True)("learner")
    extra = {"updates": 50} if algorithm == "iql" else {}
    args = module.Args(hidden_dims=HIDDEN, batch_size=ROWS, **extra, **setting)
    agent, zeros = start(module, args), jax.numpy.zeros
    learner = peer.Learner(
        0, zeros((1, OBS)), zeros((1, ACTION)), hidden_dims=HIDDEN, expectile=args.expectile, temperature=args.beta,
        dropout_rate=args.dropout or None, max_steps=50, opt_decay_schedule=schedule,
    )  # fmt: skip
    give(learner, agent)
    yield from side_by_side(agent, our_step(module, args), learner, their_step(peer), view)


REFERENCE = "ikostrikov/implicit_q_learning"
CASES = {
    "": Case(REFERENCE, FILE, compare),
    "dropout": Case(REFERENCE, FILE, lambda c, u: compare(c, u, dropout=0.1, beta=0.5)),
}
