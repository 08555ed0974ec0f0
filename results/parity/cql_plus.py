"""CQL+ beside the authors' code."""

import jax

from results.jax_references import HIDDEN, N, member, packages, pairs, read, side_by_side, start, theirs_of, write
from results.references import ACTION, OBS, ROWS, Case, ours

FILE = "algos/mf_algos/cql.py"
ARCH = "-".join(map(str, HIDDEN))
ORDER = ("params/base_network", "params/log_std_offset")


def actor_of(params):
    """Ours has the mean's layers first, too."""
    return read(params, *ORDER)


def compare(checkout, undo, **setting):
    module, load = ours("cql_plus"), packages(checkout)
    peer, model, tools = load("algos.mf_algos.cql"), load("algos.mf_algos.model"), load("utilities.jax_utils")
    args = module.Args(hidden_dims=HIDDEN, batch_size=ROWS, n_actions=N, **setting)
    agent = start(module, args)
    tools.init_rng(0)
    config = {
        "discount": args.discount, "policy_lr": args.actor_lr, "qf_lr": args.critic_lr, "n_actions": N,
        "target_entropy": -float(ACTION), "lagrange": args.lagrange, "target_action_gap": args.target_gap,
        "max_target_backup": args.max_q_backup, "backup_entropy": args.backup_entropy, "temp": args.cql_temperature,
        "min_q_weight": args.cql_alpha, "use_target_policy": args.use_target_actor,
    }  # fmt: skip
    policy = model.TanhGaussianPolicy(OBS, ACTION, ARCH)
    qf = model.FullyConnectedQFunction(OBS, ACTION, ARCH, activation=args.critic_activation)
    peers = peer.CQL(config, policy, qf, 100)
    like = {name: state.params for name, state in peers.train_states.items()}
    arrays = {"policy": [actor_of(agent.actor), actor_of(agent.target_actor)]}
    arrays |= {f"qf{i + 1}": [member(read(x), i) for x in (agent.critic, agent.target_critic)] for i in (0, 1)}
    params = {name: [write(like[name], x, *ORDER) for x in both] for name, both in arrays.items()}
    params["log_alpha"] = [write(like["log_alpha"], [agent.log_alpha])]
    if args.lagrange:
        params["log_alpha_prime"] = [write(like["log_alpha_prime"], [agent.log_alpha_prime])]
    peers._train_states = {
        name: state.replace(params=params[name][0], opt_state=state.tx.init(params[name][0]))
        for name, state in peers.train_states.items()
    }
    peers._target_params = {name: params[name][1] for name in arrays}

    @jax.jit
    def our_step(agent, batch):
        agent, info = module.update(agent, batch, jax.random.key(0), args)
        return agent, {"critic": info["critic_loss"], "actor": info["actor_loss"], "gap": info["gap"]}

    def their_step(peers, rows):
        info = peers.train(theirs_of(rows), True)
        gap = (info["cql/qf1_diff"] + info["cql/qf2_diff"]) / 2
        return peers, {"critic": info["qf1_loss"] + info["qf2_loss"], "actor": info["policy_loss"], "gap": gap}

    def view(agent, peers):
        state, target, scalar = peers.train_states, peers._target_params, lambda x: [x]
        mine = {
            "actor": (actor_of, agent.actor, agent.actor_opt),
            "target actor": (actor_of, agent.target_actor, None),
            "temperature": (scalar, agent.log_alpha, agent.alpha_opt),
        }
        theirs = {
            "actor": (actor_of, state["policy"].params, state["policy"].opt_state),
            "target actor": (actor_of, target["policy"], None),
            "temperature": (read, state["log_alpha"].params, state["log_alpha"].opt_state),
        }
        if args.lagrange:
            multiplier = state["log_alpha_prime"]
            mine["multiplier"] = (scalar, agent.log_alpha_prime, agent.alpha_prime_opt)
            theirs["multiplier"] = (read, multiplier.params, multiplier.opt_state)
        for i in (0, 1):
            one, name = (lambda p, i=i: member(read(p), i)), f"qf{i + 1}"
            mine |= {f"critic {i + 1}": (one, agent.critic, agent.critic_opt)}
            mine |= {f"target critic {i + 1}": (one, agent.target_critic, None)}
            theirs |= {f"critic {i + 1}": (read, state[name].params, state[name].opt_state)}
            theirs |= {f"target critic {i + 1}": (read, target[name], None)}
        return pairs(mine, theirs)

    yield from side_by_side(agent, our_step, peers, their_step, view)


CASES = {
    "": Case("sail-sg/offbench", FILE, compare),
    "all options": Case(
        "sail-sg/offbench",
        FILE,
        lambda c, u: compare(
            c,
            u,
            lagrange=True,
            max_q_backup=True,
            backup_entropy=True,
            use_target_actor=True,
            critic_activation="relu",
            cql_temperature=0.7,
        ),  # fmt: skip
    ),
}
