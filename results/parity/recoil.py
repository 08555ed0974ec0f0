"""ReCOIL beside the authors' code, of which the repository named here keeps a copy with its history."""

import jax
import jax.numpy as jnp
import numpy as np

from results.jax_references import HIDDEN, packages, same_numbers, start
from results.references import ACTION, OBS, ROOT, ROWS, Case, Step, batch, batches, module, ours

FILE = "offline/learner_imitate.py"
iql = module(ROOT / "results/parity/iql.py", "parity_iql")
UPDATES, PULL = 50, 0.1
GUMBEL = {"scale": "the Gumbel loss is rescaled by the largest Q - V of the data, not of data and demonstrations"}
EXPECTILE = {"pull": "with the expectile V is not drawn down on the data and up on the demonstrations"}


def compare(checkout, undo, **setting):
    code, load = ours("recoil"), packages(checkout, "offline")
    peer = load("learner_imitate")
    args = code.Args(hidden_dims=HIDDEN, batch_size=ROWS, updates=UPDATES, beta=0.5, **setting)
    agent, zeros = start(code, args), jnp.zeros
    flags = {"sample_random_times": 0, "grad_pen": False, "noise": False, "num_v_updates": 1}
    learner = peer.Learner(
        0, zeros((1, OBS)), zeros((1, ACTION)), hidden_dims=HIDDEN, expectile=args.expectile, temperature=args.beta,
        layernorm=True, max_steps=UPDATES, loss_temp=args.gumbel_temperature, vanilla=args.maximizer == "expectile",
        beta=PULL, args=Flags(**flags, max_clip=args.gumbel_clip),
    )  # fmt: skip
    iql.give(learner, agent)
    shown = {}
    if "scale" in undo:
        code.value_loss = of_both(code, shown)
    if "pull" in undo:
        code.value_loss = drawn(code, shown, code.value_loss)

    @jax.jit
    def our_step(agent, rows, demos):
        shown["demos"] = demos
        agent, info = code.update(agent, rows, demos, jax.random.key(0), args)
        return agent, {name: info[f"{name}_loss"] for name in ("critic", "value", "actor")}

    data = batches(np.random.default_rng(0))
    yield Step({}, iql.view(agent, learner))
    while True:
        rows, demos = next(data), next(data)
        theirs = iql.batch_of(peer, rows), iql.batch_of(peer, demos)
        mixed = peer.MixedBatch(*theirs[0], is_expert=jnp.arange(ROWS) % 2)
        with same_numbers():
            agent, losses = our_step(agent, batch(rows), batch(demos))
            info = learner.update(mixed, theirs[1])
        yield Step(
            {k: ([np.asarray(losses[k])], [np.asarray(info[f"{k}_loss"])]) for k in losses}, iql.view(agent, learner)
        )


class Flags:
    """The reference's settings; hashable, as its compiled update wants them."""

    def __init__(self, **values):
        self.__dict__.update(values)


def advantage(code, value, agent, batch):
    q = code.q_values(agent.nets.critic, agent.target_critic, batch.obs, batch.action).min(0)
    return q - agent.nets.critic.apply(value, batch.obs)


def of_both(code, shown):
    """V's Gumbel loss with the released code's scale."""

    def loss(value, agent, batch, args):
        both = jnp.concatenate([advantage(code, value, agent, x) for x in (batch, shown["demos"])])
        return code.maximizer_loss(both, args)[:ROWS].mean(), {"v": both.mean()}

    return loss


def drawn(code, shown, loss):
    """V's expectile loss with the released code's second term."""

    def with_pull(value, agent, batch, args):
        found, info = loss(value, agent, batch, args)
        of_data, of_demos = (agent.nets.critic.apply(value, x.obs) for x in (batch, shown["demos"]))
        return found + PULL * (of_data - of_demos).mean(), info

    return with_pull


NOTE = "The authors' last commit in that copy, with its setting of layer norm in V; the draws of batches are left out."


def case(deviations, **setting):
    return Case("chufanchen/ReCOIL", FILE, lambda c, u: compare(c, u, **setting), deviations, note=NOTE)


CASES = {
    "": case(GUMBEL, gumbel_temperature=2.0),
    "expectile": case(EXPECTILE, maximizer="expectile"),
}
