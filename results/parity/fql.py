"""FQL beside the authors' code."""

import jax
import optax

from results.jax_references import HIDDEN, packages, pairs, plain, read, side_by_side, start, theirs_of, write
from results.references import ROWS, SPEC, Case, ours

FILE = "agents/fql.py"
NAMES = {"critic": "modules_critic", "flow": "modules_actor_bc_flow", "actor": "modules_actor_onestep_flow"}
TARGETS = "target critic"


def compare(checkout, undo, algorithm="fql", **setting):
    module, load = ours(algorithm), packages(checkout)
    peer = load("agents.fql")
    args = module.Args(hidden_dims=HIDDEN, batch_size=ROWS, distillation_weight=3.0, **setting)
    agent = start(module, args)
    config = peer.get_config()
    config.update(actor_hidden_dims=HIDDEN, value_hidden_dims=HIDDEN, alpha=args.distillation_weight, batch_size=ROWS)
    config.update(q_agg=args.q_aggregation, normalize_q_loss=args.normalize_q)
    zeros = jax.numpy.zeros
    made = peer.FQLAgent.create(0, zeros((1, *SPEC.obs_shape)), zeros((1, SPEC.action_dim)), config)
    params = plain(made.network.params)
    for name, key in (*NAMES.items(), ("target_critic", "modules_target_critic")):
        params[key] = write(params[key], read(getattr(agent, name)))
    network = made.network.replace(params=params, opt_state=made.network.tx.init(params))

    @jax.jit
    def our_step(agent, batch):
        new, info = module.update(agent, batch, jax.random.key(0), args)
        if TARGETS in undo:
            old = optax.incremental_update(agent.critic, agent.target_critic, args.tau)
            new = new.replace(target_critic=old)
        return new, {"critic": info["critic_loss"], "actor and flow": info["actor_loss"] + info["flow_loss"]}

    def their_step(made, rows):
        made, info = made.update(theirs_of(rows))
        return made, {"critic": info["critic/critic_loss"], "actor and flow": info["actor/actor_loss"]}

    def view(agent, made):
        part = lambda key: lambda params: read(params[key])  # noqa: E731
        of_ours = {name: (read, getattr(agent, name), getattr(agent, f"{name}_opt")) for name in NAMES}
        of_theirs = {name: (part(key), made.network.params, made.network.opt_state) for name, key in NAMES.items()}
        of_ours["target critic"] = (read, agent.target_critic, None)
        of_theirs["target critic"] = (part("modules_target_critic"), made.network.params, None)
        return pairs(of_ours, of_theirs)

    yield from side_by_side(agent, our_step, made.replace(network=network), their_step, view)


DEVIATIONS = {TARGETS: "the target critic follows the critics after their step, in the reference before it"}
CASES = {
    "": Case("seohongpark/fql", FILE, compare, DEVIATIONS),
    "raw, minimum": Case(
        "seohongpark/fql", FILE, lambda c, u: compare(c, u, normalize_q=False, q_aggregation="min"), DEVIATIONS
    ),
}
