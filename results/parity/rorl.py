"""RORL beside its authors' code."""

import jax
import jax.numpy as jnp
import numpy as np

from results import references as ref

FILE = "lifelong_rl/trainers/q_learning/sac.py"
DEVIATIONS = {"log det": "log(1 - tanh(u)^2) is computed in its stable form; the authors add 1e-6 inside the logarithm"}


def compare(checkout, undo):
    stand_ins = (*ref.ABSENT, "lifelong_rl.core")
    ref.torch_double()
    module, peer = ref.ours("rorl"), ref.theirs(checkout, FILE, stand_ins)
    peer.ptu.set_gpu_mode(False)
    policies = ref.theirs(checkout, "lifelong_rl/policies/models/tanh_gaussian_policy.py", stand_ins)
    ensembles = ref.theirs(checkout, "lifelong_rl/models/networks.py", stand_ins)
    rng = np.random.default_rng(0)
    noise, data = ref.Noise(rng), ref.batches(rng)
    alike = {"policy_smooth_eps": 0.02, "policy_smooth_reg": 0.7, "q_smooth_eps": 0.03, "q_smooth_reg": 0.5}
    args = module.Args(
        batch_size=ref.ROWS,
        n_critics=4,
        n_samples=5,
        ood_eps=0.04,
        ood_reg=0.3,
        uncertainty=1.0,
        uncertainty_min=0.6,
        uncertainty_decay=0.1,
        **alike,
    )
    agent = ref.agent_of(module, args, rng)
    hidden = [256, 256, 256]
    policy = policies.TanhGaussianPolicy(hidden, ref.OBS, ref.ACTION)
    critics = [ensembles.ParallelizedEnsembleFlattenMLP(4, hidden, ref.OBS + ref.ACTION, 1).double() for _ in range(2)]
    trainer = peer.SACTrainer(
        None,
        policy,
        *critics,
        target_entropy=-ref.ACTION,
        num_qs=4,
        num_samples=5,
        q_ood_eps=0.04,
        q_ood_reg=0.3,
        q_ood_uncertainty_reg=1.0,
        q_ood_uncertainty_reg_min=0.6,
        q_ood_uncertainty_decay=0.1,
        **alike,
    )
    trainer._num_train_steps = 0
    if "log det" in undo:
        module.tanh_gaussian_log_prob = with_their_epsilon

    def layers(tree, ensemble):
        """Their stacked layers call what they hold W and b."""
        kinds = [(f"Dense_{i}", layer) for i, layer in enumerate([*ensemble.fcs, ensemble.last_fc])]
        tied = []
        for name, layer in kinds:
            ours = tree["params"][name]
            tied.append(ref.Tied(np.asarray(ours["kernel"]), layer.W))
            tied.append(ref.Tied(np.asarray(ours["bias"])[:, None], layer.b))
        if len(tied) != len(jax.tree.leaves(tree)) or len(tied) != len(list(ensemble.parameters())):
            raise ref.InputError("The critics have other parameters than those of their layers.")
        return tied

    def networks():
        return {
            "actor": ref.tie(ref.split_last(agent.actor), policy),
            "critic": layers(agent.critic, critics[0]),
            "target critic": layers(agent.target_critic, critics[1]),
            "log alpha": [ref.Tied(np.asarray(agent.log_alpha).reshape(1), trainer.log_alpha)],
        }

    def update():
        nonlocal agent
        rows = next(data)
        with noise.ours():
            agent, info = module.update(agent, ref.batch(rows), jax.random.key(0), args)
        action, near, following, near_q, near_ood, ood = noise.drawn
        ood = ood._replace(array=ood.array.swapaxes(0, 1))  # [n, B, A] is [B, n, A]
        unused = ref.Draw("normal", np.zeros((args.n_samples * ref.ROWS, ref.ACTION)))
        names = "obs", "next_obs", "action", "reward", "terminal"
        theirs = "observations", "next_observations", "actions", "rewards", "terminals"
        trainer._need_to_update_eval_statistics = True
        with noise.theirs([action, near, unused, following, near_q, near_ood, ood]):
            trainer.train_from_torch(dict(zip(theirs, ref.tensors(rows, *names))), None)
        critic = 4 * trainer.eval_statistics["QFs Loss"]  # the terms are added to it in place
        return {"critic": (ref.scalar(info["critic_loss"]), ref.scalar(critic))}

    return ref.side_by_side(networks, update)


def with_their_epsilon(mean, log_std, u):
    log_prob = jax.scipy.stats.norm.logpdf(u, mean, jnp.exp(log_std))
    return (log_prob - jnp.log(1.0 - jnp.tanh(u) ** 2 + 1e-6)).sum(-1)


NOTE = "4 critics, 5 perturbations; all three terms, lambda falling from 1 to 0.6 within the updates compared."
CASES = {"": ref.Case("YangRui2015/RORL", FILE, compare, DEVIATIONS, note=NOTE)}
