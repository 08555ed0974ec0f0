"""IDQL's flow form (--preset ifql) beside the authors of FQL's IFQL."""

import jax
import optax

from results.jax_references import HIDDEN, N, packages, pairs, plain, read, side_by_side, start, theirs_of, write
from results.references import ROWS, SPEC, Case, ours

FILE = "agents/ifql.py"
NAMES = {"critic": "modules_critic", "value": "modules_value", "actor": "modules_actor_flow"}
TARGETS = "target critic"


def compare(checkout, undo, algorithm="idql", update="update"):
    module, load = ours(algorithm), packages(checkout)
    peer = load("agents.ifql")
    preset = {**module.PRESETS["ifql"], "hidden_dims": HIDDEN, "batch_size": ROWS, "n_candidates": N}
    args = module.Args(**preset)
    agent = start(module, args)
    config = peer.get_config()
    config.update(actor_hidden_dims=HIDDEN, value_hidden_dims=HIDDEN, batch_size=ROWS, num_samples=N)
    zeros = jax.numpy.zeros
    made = peer.IFQLAgent.create(0, zeros((1, *SPEC.obs_shape)), zeros((1, SPEC.action_dim)), config)
    params = plain(made.network.params)
    for name, key in (*NAMES.items(), ("target_critic", "modules_target_critic")):
        params[key] = write(params[key], read(getattr(agent, name)))
    network = made.network.replace(params=params, opt_state=made.network.tx.init(params))

    @jax.jit
    def our_step(agent, batch):
        batches = batch if update == "update" else (batch, batch)
        new, info = getattr(module, update)(agent, batches, jax.random.key(0), args)
        if TARGETS in undo:
            old = optax.incremental_update(agent.critic, agent.target_critic, args.tau)
            new = new.replace(target_critic=old)
        losses = {name: info[f"{name}_loss"] for name in NAMES}
        return new, losses | {"action": module.act(new, batch.obs[:1], jax.random.key(0), args)[0]}

    def their_step(made, rows):
        batch = theirs_of(rows)
        made, info = made.update(batch)
        losses = {name: info[f"{name}/{name}_loss"] for name in NAMES}
        return made, losses | {"action": made.sample_actions(batch["observations"][0], seed=jax.random.key(0))}

    def view(agent, made):
        part = lambda key: lambda params: read(params[key])  # noqa: E731
        of_ours = {name: (read, getattr(agent, name), getattr(agent, f"{name}_opt")) for name in NAMES}
        of_theirs = {name: (part(key), made.network.params, made.network.opt_state) for name, key in NAMES.items()}
        of_ours["target critic"] = (read, agent.target_critic, None)
        of_theirs["target critic"] = (part("modules_target_critic"), made.network.params, None)
        return pairs(of_ours, of_theirs)

    yield from side_by_side(agent, our_step, made.replace(network=network), their_step, view)


DEVIATIONS = {TARGETS: "the target critic follows the critics after their step, in the reference before it"}
NOTE = "The losses and the action that is chosen, of 4 candidates."
CASES = {"IFQL": Case("seohongpark/fql", FILE, compare, DEVIATIONS, note=NOTE)}
