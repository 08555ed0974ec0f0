"""IDQL fine-tuning beside the authors' code: the online updates of IDQL, and of IFQL, its flow form."""

import jax

from results.jax_references import HIDDEN, N, Space, packages, pairs, plain, read, side_by_side, start, theirs_of, write
from results.references import ACTION, OBS, ROOT, ROWS, Case, constants_in_double, in_double, module, ours

ifql = module(ROOT / "results/parity/idql.py", "parity_idql")
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


def compare(checkout, undo):
    """Batches of their own for the critics and for the model of the actions, which is trained online, too."""
    mine = constants_in_double(in_double(ours("idql_finetune")))
    learner = packages(checkout)("jaxrl5.agents.ddpm_iql_simple.ddpm_iql_learner").DDPMIQLLearner
    sizes = {"hidden_dims": HIDDEN, "batch_size": ROWS, "n_candidates": N, "residual_blocks": BLOCKS}
    args = mine.Args(**sizes, expectile=0.9, online_actor=True, offline_updates=30, env_steps=20)
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
        batch, actor_batch = (jax.tree.map(lambda x, i=i: x[i], batches) for i in (0, 1))
        agent, info = mine.update_online(agent, (batch, actor_batch), jax.random.key(0), args)
        losses = {name: info[f"{name}_loss"] for name in LOSSES}
        return agent, losses | {"action": mine.explore(agent, batch.obs[:1], jax.random.key(0), args)[0]}

    def their_step(made, rows):
        batch, actor_batch = map(theirs_of, rows)
        made, info = made.critic_update(batch)
        made, actor_info = made.actor_update(actor_batch)
        losses = {name: (info | actor_info)[f"{name}_loss"] for name in LOSSES}
        return made, losses | {"action": made.eval_actions(batch["observations"][0])[0]}

    def view(agent, made):
        of_ours, of_theirs = {}, {}
        for theirs, name in fields.items():
            reader, state = read_model if "score" in theirs else read, getattr(made, theirs)
            what = name.replace("_", " ")
            of_ours[what] = (read, getattr(agent, name), getattr(agent, f"{name}_opt", None))
            of_theirs[what] = (reader, state.params, state.opt_state)
        return pairs(of_ours, of_theirs)

    yield from side_by_side(agent, our_step, made.replace(**states), their_step, view, rows=2)


def online(checkout, undo):
    yield from ifql.compare(checkout, undo, algorithm="idql_finetune", update="update_online")


NOTE = "With --online-actor, within a decay over 50 updates; and the action that is chosen, of 4 candidates."
CASES = {
    "IDQL": Case("philippe-eecs/IDQL", LEARNER, compare, note=NOTE),
    "IFQL": Case("seohongpark/fql", ifql.FILE, online, ifql.DEVIATIONS, note=ifql.NOTE),
}
