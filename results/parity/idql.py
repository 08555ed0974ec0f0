"""IDQL beside the authors' code; its flow form (--preset ifql) beside the authors of FQL's IFQL."""

from functools import partial

import jax
import optax

from results.jax_references import HIDDEN, N, Space, packages, pairs, plain, read, side_by_side, start, theirs_of, write
from results.references import ACTION, OBS, ROWS, SPEC, Case, constants_in_double, in_double, ours

LEARNER = "jaxrl5/agents/ddpm_iql_simple/ddpm_iql_learner.py"
BLOCKS = 3
LOSSES = ("value", "critic", "actor")


def layers(params):
    """Places of the layers of their diffusion model by our names."""
    net = params["MLPResNet_0"]
    blocks = [net[f"MLPResNetBlock_{b}"] for b in range(BLOCKS)]
    dense = [
        *params["MLP_0"].values(),
        net["Dense_0"],
        *(x[f"Dense_{i}"] for x in blocks for i in (0, 1)),
        net["Dense_1"],
    ]
    norms = {f"LayerNorm_{b}": block["LayerNorm_0"] for b, block in enumerate(blocks)}
    return {f"Dense_{i}": layer for i, layer in enumerate(dense)} | norms


def read_model(params):
    return read(layers(params) | {"frequency": params["FourierFeatures_0"]["kernel"]})


def write_model(params, ours):
    params = plain(params)
    for name, layer in layers(params).items():
        layer.update(ours["params"][name])
    params["FourierFeatures_0"]["kernel"] = ours["params"]["frequency"]
    return params


def diffusion(checkout, undo, algorithm="idql", update="update", rows=1, **changes):
    """Online critics and the model of the actions have a batch (rows) of their own."""
    mine = constants_in_double(in_double(ours(algorithm)))
    learner = packages(checkout)("jaxrl5.agents.ddpm_iql_simple.ddpm_iql_learner").DDPMIQLLearner
    sizes = {"hidden_dims": HIDDEN, "batch_size": ROWS, "n_candidates": N, "residual_blocks": BLOCKS}
    args = mine.Args(**sizes, expectile=0.9, **changes)
    agent = start(mine, args)
    made = learner.create(
        0, Space(OBS), Space(ACTION), critic_hidden_dims=HIDDEN, critic_hyperparam=args.expectile, N=N,
        actor_num_blocks=BLOCKS, actor_dropout_rate=args.dropout, T=args.diffusion_steps, decay_steps=50,
    )  # fmt: skip
    fields = {"score_model": "actor", "target_score_model": "average_actor"}
    fields |= {name: name for name in ("critic", "target_critic", "value")}
    states = {}
    for theirs, name in fields.items():
        state, own = getattr(made, theirs), getattr(agent, name)
        params = write_model(state.params, own) if "score" in theirs else write(plain(state.params), read(own))
        states[theirs] = state.replace(params=params, opt_state=None if "target" in theirs else state.tx.init(params))

    @jax.jit
    def our_step(agent, batches):
        parts = [jax.tree.map(lambda x, i=i: x[i], batches) for i in range(rows)] if rows > 1 else batches
        agent, info = getattr(mine, update)(agent, parts, jax.random.key(0), args)
        losses = {name: info[f"{name}_loss"] for name in LOSSES}
        obs = (parts[0] if rows > 1 else parts).obs[:1]
        return agent, losses | {"action": mine.act(agent, obs, jax.random.key(0), args)[0]}

    def their_step(made, drawn):
        batch, actor_batch = map(theirs_of, drawn if rows > 1 else (drawn, drawn))
        if rows > 1:
            made, info = made.critic_update(batch)
            made, actor_info = made.actor_update(actor_batch)
            info |= actor_info
        else:
            made, info = made.update(batch)
        losses = {name: info[f"{name}_loss"] for name in LOSSES}
        return made, losses | {"action": made.eval_actions(batch["observations"][0])[0]}

    def view(agent, made):
        of_ours, of_theirs = {}, {}
        for theirs, name in fields.items():
            reader, state = read_model if "score" in theirs else read, getattr(made, theirs)
            what = name.replace("_", " ")
            of_ours[what] = (read, getattr(agent, name), getattr(agent, f"{name}_opt", None))
            of_theirs[what] = (reader, state.params, state.opt_state)
        return pairs(of_ours, of_theirs)

    yield from side_by_side(agent, our_step, made.replace(**states), their_step, view, rows=rows)


FILE = "agents/ifql.py"
NAMES = {"critic": "modules_critic", "value": "modules_value", "actor": "modules_actor_flow"}
TARGETS = "target critic"


def flow(checkout, undo, algorithm="idql", update="update"):
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
CASES = {
    "IDQL": Case(
        "philippe-eecs/IDQL", LEARNER, partial(diffusion, updates=50), note=f"Within a decay over 50 updates. {NOTE}"
    ),
    "IFQL": Case("seohongpark/fql", FILE, flow, DEVIATIONS, note=NOTE),
}
