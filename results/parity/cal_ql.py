"""Cal-QL beside the authors' code."""

import jax

from results.jax_references import (
    HIDDEN,
    N,
    member,
    packages,
    pairs,
    read,
    side_by_side,
    stack,
    start,
    theirs_of,
    write,
)
from results.references import ACTION, OBS, ROWS, Case, ours

FILE = "JaxCQL/conservative_sac.py"
OFFSET = "params/log_std_offset"
"""Read before the scale, as our file's names stand."""


def compare(checkout, undo, **setting):
    module, load = ours("cal_ql"), packages(checkout)
    peer, model, tools = (load(f"JaxCQL.{name}") for name in ("conservative_sac", "model", "jax_utils"))
    args = module.Args(actor_hidden_dims=HIDDEN, hidden_dims=HIDDEN, batch_size=ROWS, n_actions=N, **setting)
    agent = start(module, args)
    tools.init_rng(0)
    arch = "-".join(map(str, HIDDEN))
    config = {
        "discount": args.discount, "target_entropy": -float(ACTION), "policy_lr": args.actor_lr,
        "qf_lr": args.critic_lr, "cql_n_actions": N, "cql_importance_sample": args.importance_sampling,
        "cql_lagrange": args.lagrange, "cql_target_action_gap": args.target_gap,
        "cql_max_target_backup": args.max_q_backup,
    }  # fmt: skip
    policy = model.TanhGaussianPolicy(OBS, ACTION, arch, True)
    peers = peer.ConservativeSAC(config, policy, model.FullyConnectedQFunction(OBS, ACTION, arch, True))
    like = {name: state.params for name, state in peers.train_states.items()}
    params = {
        "policy": write(like["policy"], read(agent.actor, OFFSET), OFFSET),
        "qf1": write(like["qf1"], member(read(agent.critic), 0)),
        "qf2": write(like["qf2"], member(read(agent.critic), 1)),
        "log_alpha": write(like["log_alpha"], [agent.log_alpha]),
    }
    if args.lagrange:
        params["log_alpha_prime"] = write(like["log_alpha_prime"], [agent.log_alpha_prime])
    peers._train_states = {
        name: state.replace(params=params[name], opt_state=state.tx.init(params[name]))
        for name, state in peers.train_states.items()
    }
    targets = read(agent.target_critic)
    peers._target_qf_params = {f"qf{i + 1}": write(like["qf1"], member(targets, i)) for i in (0, 1)}

    @jax.jit
    def our_step(agent, batch):
        agent, info = module.update(agent, batch, jax.random.key(0), args)
        return agent, {"critic": info["critic_loss"], "actor": info["actor_loss"], "gap": info["gap"]}

    def their_step(peers, rows):
        info = peers.train(theirs_of(rows), True, args.cql_alpha, enable_calql=args.calibrate)
        gap = (info["cql/cql_qf1_diff"] + info["cql/cql_qf2_diff"]) / 2
        return peers, {"critic": info["qf1_loss"] + info["qf2_loss"], "actor": info["policy_loss"], "gap": gap}

    def view(agent, peers):
        scalar, both = (lambda x: [x]), (lambda trees: stack(*map(read, trees)))
        state = peers.train_states
        made = pairs(
            {
                "actor": (lambda p: read(p, OFFSET), agent.actor, agent.actor_opt),
                "target critic": (read, agent.target_critic, None),
                "temperature": (scalar, agent.log_alpha, agent.alpha_opt),
            },
            {
                "actor": (lambda p: read(p, OFFSET), state["policy"].params, state["policy"].opt_state),
                "target critic": (both, peers._target_qf_params.values(), None),
                "temperature": (read, state["log_alpha"].params, state["log_alpha"].opt_state),
            },
        )
        for i in (0, 1):
            one = lambda p, i=i: member(read(p), i)  # noqa: E731
            theirs = state[f"qf{i + 1}"]
            made |= pairs(
                {f"critic {i + 1}": (one, agent.critic, agent.critic_opt)},
                {f"critic {i + 1}": (read, theirs.params, theirs.opt_state)},
            )
        if args.lagrange:
            theirs = state["log_alpha_prime"]
            made |= pairs(
                {"multiplier": (scalar, agent.log_alpha_prime, agent.alpha_prime_opt)},
                {"multiplier": (read, theirs.params, theirs.opt_state)},
            )
        return made

    yield from side_by_side(agent, our_step, peers, their_step, view)


def case(**setting):
    return Case("nakamotoo/Cal-QL", FILE, lambda c, u: compare(c, u, **setting))


CASES = {
    "": case(),
    "AntMaze's": case(lagrange=True, target_gap=0.8),
    "Kitchen's": case(importance_sampling=False, max_q_backup=False),
    "CQL": case(calibrate=False),
}
