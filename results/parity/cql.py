"""CQL beside CORL's."""

from functools import partial

import jax
import numpy as np

from results import references as ref

FILE = "algorithms/offline/cql.py"


def compare(checkout, undo, lagrange, algorithm="cql", file=FILE, layers=None, online=()):
    """`layers`: arguments of the reference's critics; `online`: the penalty's weight in the environment, or nothing."""
    torch, module, peer = ref.torch_double(), ref.ours(algorithm), ref.theirs(checkout, file)
    rng = np.random.default_rng(0)
    noise, data = ref.Noise(rng), ref.batches(rng)
    args = module.Args(
        batch_size=ref.ROWS,
        n_actions=3,
        cql_temperature=0.7,
        lagrange=lagrange,
        target_gap=2.0,
        max_q_backup=lagrange,
        backup_entropy=lagrange,
        clip_diff_min=-1.0 if lagrange else -1e9,
        **({"online_cql_alpha": online[0]} if online else {}),
    )
    agent = ref.agent_of(module, args, rng)
    critics = [peer.FullyConnectedQFunction(ref.OBS, ref.ACTION, **(layers or {})) for _ in range(2)]
    actor = peer.TanhGaussianPolicy(ref.OBS, ref.ACTION, 1.0).double()
    optimised = [x for net in (*critics, actor) for x in (net, torch.optim.Adam(net.parameters(), lr=3e-4))]
    trainer = peer.ContinuousCQL(
        *optimised,
        backup_entropy=lagrange,
        cql_alpha=5.0,
        cql_lagrange=lagrange,
        target_entropy=-ref.ACTION,
        bc_steps=0,
        cql_n_actions=3,
        cql_temp=0.7,
        cql_target_action_gap=2.0,
        cql_max_target_backup=lagrange,
        cql_clip_diff_min=args.clip_diff_min,
    )
    step = partial(module.update_online, t=0) if online else module.update
    trainer.cql_alpha = online[0] if online else 5.0
    scalars = trainer.log_alpha.double(), trainer.log_alpha_prime.double()

    def networks():
        others = {"log_std_scale": actor.log_std_multiplier.constant, "log_std_offset": actor.log_std_offset.constant}
        targets = [trainer.target_critic_1, trainer.target_critic_2]
        return {
            "actor": ref.tie(agent.actor, actor, others),
            "critic": ref.tie(agent.critic, critics),
            "target critic": ref.tie(agent.target_critic, targets),
            "log alpha": [ref.Tied(np.asarray(agent.log_alpha), scalars[0].constant)],
            "log alpha prime": [ref.Tied(np.asarray(agent.log_alpha_prime), scalars[1].constant)],
        }

    def update():
        nonlocal agent
        rows = next(data)
        with noise.ours():
            agent, info = step(agent, ref.batch(rows), jax.random.key(0), args)
        with noise.theirs([d._replace(array=d.array.swapaxes(0, -2)) for d in noise.drawn]):  # [n, B, A] is [B, n, A]
            log = trainer.train(ref.tensors(rows, "obs", "action", "reward", "next_obs", "terminal"))
        critic = sum(log[f"{name}_loss"] for name in ("qf1", "qf2", "cql_min_qf1", "cql_min_qf2"))
        return {
            "critic": (ref.scalar(info["critic_loss"]), ref.scalar(critic)),
            "actor": (ref.scalar(info["actor_loss"]), ref.scalar(log["policy_loss"])),
        }

    return ref.side_by_side(networks, update)


CASES = {
    "": ref.Case(
        "corl-team/CORL",
        FILE,
        partial(compare, lagrange=False),
        still=("log alpha prime",),
        note="3 actions of each kind, temperature 0.7.",
    ),
    "Lagrange": ref.Case(
        "corl-team/CORL",
        FILE,
        partial(compare, lagrange=True),
        note="With the Lagrange multiplier, the largest Q of 3 next actions less their entropy, the gap bounded.",
    ),
}
