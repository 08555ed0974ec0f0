"""CRR+ beside the authors' code."""

import jax

from results.jax_references import HIDDEN, N, member, packages, pairs, read, side_by_side, start, theirs_of, write
from results.references import ACTION, OBS, ROWS, Case, ours

FILE = "algos/mf_algos/crr.py"
ARCH = "-".join(map(str, HIDDEN))
OFFSET = "params/log_std_offset"
UNUSED = f"LayerNorm_{len(HIDDEN)}"
"""The reference's networks have a normalisation after the last layer, whose output goes nowhere."""
MEAN = ("params/base_network", "params/mean", OFFSET)
"""The mean's network comes before the deviation's, on either side."""


def used(tree):
    return {k: used(v) if hasattr(v, "items") else v for k, v in tree.items() if k != UNUSED}


def unused(params, arrays, *first):
    """`params` with `arrays` in all that is used."""

    def back(full, part):
        return {k: back(v, part[k]) if hasattr(v, "items") and k in part else part.get(k, v) for k, v in full.items()}

    return back(params, write(used(params), arrays, *first))


def actor_of(params):
    return read(used(params), *MEAN)


def compare(checkout, undo, **setting):
    module, load = ours("crr_plus"), packages(checkout)
    peer, model, tools = load("algos.mf_algos.crr"), load("algos.mf_algos.model"), load("utilities.jax_utils")
    args = module.Args(hidden_dims=HIDDEN, batch_size=ROWS, value_samples=N, **setting)
    agent = start(module, args)
    tools.init_rng(0)
    config = {
        "discount": args.discount, "policy_lr": args.actor_lr, "qf_lr": args.critic_lr, "sample_actions": N,
        "crr_fn": args.weight_mode, "avg_fn": args.baseline, "use_expectile": args.critic_expectile != 0.5,
        "exp_tau": args.critic_expectile, "crr_beta": args.temperature,
    }  # fmt: skip
    policy = model.TanhGaussianPolicy(OBS, ACTION, ARCH, use_layer_norm=args.layer_norm)
    qf = model.FullyConnectedQFunction(OBS, ACTION, ARCH, use_layer_norm=args.layer_norm)
    peers = peer.CRR(config, policy, qf, 100)
    like = {name: state.params for name, state in peers.train_states.items()}
    give = {"policy": (agent.actor, agent.target_actor), "qf": (agent.critic, agent.target_critic)}
    arrays = {"policy": [actor_of(x) for x in give["policy"]]}
    arrays |= {f"qf{'2' * i}": [member(read(x), i) for x in give["qf"]] for i in (0, 1)}
    params = {name: [unused(like[name], x, *MEAN) for x in both] for name, both in arrays.items()}
    peers._train_states = {
        name: state.replace(params=params[name][0], opt_state=state.tx.init(params[name][0]))
        for name, state in peers.train_states.items()
    }
    peers._target_params = {name: both[1] for name, both in params.items()}

    @jax.jit
    def our_step(agent, batch):
        agent, info = module.update(agent, batch, jax.random.key(0), args)
        return agent, {"actor": info["actor_loss"], "advantage": info["adv"], "weight": info["weight"], "q": info["q"]}

    def their_step(peers, rows):
        info = peers.train(theirs_of(rows), True)
        q = (info["average_qf"] + info["q2_pred"]) / 2
        return peers, {"actor": info["policy_loss"], "advantage": info["adv"], "weight": info["coef"], "q": q}

    def view(agent, peers):
        state, target, part = peers.train_states, peers._target_params, lambda p: read(used(p))
        mine = {
            "actor": (actor_of, agent.actor, agent.actor_opt),
            "target actor": (actor_of, agent.target_actor, None),
        }
        theirs = {
            "actor": (actor_of, state["policy"].params, state["policy"].opt_state),
            "target actor": (actor_of, target["policy"], None),
        }
        for i in (0, 1):
            one, name = (lambda p, i=i: member(read(p), i)), f"qf{'2' * i}"
            mine |= {f"critic {i + 1}": (one, agent.critic, agent.critic_opt)}
            mine |= {f"target critic {i + 1}": (one, agent.target_critic, None)}
            theirs |= {f"critic {i + 1}": (part, state[name].params, state[name].opt_state)}
            theirs |= {f"target critic {i + 1}": (part, target[name], None)}
        return pairs(mine, theirs)

    yield from side_by_side(agent, our_step, peers, their_step, view)


NOTE = "The reference's critics report no loss with an expectile; their gradients are compared."
CASES = {
    "": Case("sail-sg/offbench", FILE, compare, note=NOTE),
    "indicator, no layer norm": Case(
        "sail-sg/offbench",
        FILE,
        lambda c, u: compare(c, u, weight_mode="indicator", layer_norm=False, baseline="max"),
        note=NOTE,
    ),
}
