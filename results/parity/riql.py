"""RIQL beside its authors' code."""

from functools import partial

import jax
import numpy as np

from results import references as ref

FILE = "RIQL.py"
UPDATES = 20
"""So few that the cosine of the actor's step size is seen."""


def compare(checkout, undo, deterministic):
    torch, module, peer = ref.torch_double(), ref.ours("riql"), ref.theirs(checkout, FILE)
    rng = np.random.default_rng(0)
    noise, data = ref.Noise(rng), ref.batches(rng)
    args = module.Args(
        batch_size=ref.ROWS,
        updates=UPDATES,
        deterministic=deterministic,
        huber_sigma=1.5,
        quantile=0.1,
        min_target=-0.5,
    )
    agent = ref.agent_of(module, args, rng)
    peer.TrainConfig.sigma, peer.TrainConfig.quantile = 1.5, 0.1
    clamp = torch.clamp
    near = lambda x, low, high: clamp(x, -0.5 if low == -100 else low, high)  # noqa: E731 (these targets reach it)
    ref.replace(torch, "clamp", near)
    policy = peer.DeterministicPolicy if deterministic else peer.GaussianPolicy
    nets = policy(ref.OBS, ref.ACTION, 1.0), peer.VectorizedQ(ref.OBS, ref.ACTION), peer.ValueFunction(ref.OBS)
    nets[0].double()
    optimised = [x for net in nets for x in (net, torch.optim.Adam(net.parameters(), lr=3e-4))]
    trainer = peer.ImplicitQLearning(1.0, *optimised, max_steps=UPDATES)

    def networks():
        return {
            "actor": ref.tie(agent.actor, nets[0], {} if deterministic else {"log_std": nets[0].log_std}),
            "critic": ref.tie(agent.critic, nets[1]),
            "value": ref.tie(agent.value, nets[2]),
            "target critic": ref.tie(agent.target_critic, trainer.q_target),
        }

    def update():
        nonlocal agent
        rows = next(data)
        with noise.ours():
            agent, info = module.update(agent, ref.batch(rows), jax.random.key(0), args)
        with noise.theirs():
            tensors = ref.tensors(rows, "obs", "action", "reward", "next_obs", "terminal")
            log = trainer.train([*tensors, torch.arange(ref.ROWS) % 2])  # which rows are corrupted, for metrics
        names = {"critic_loss": "q_loss", "value_loss": "value_loss", "actor_loss": "actor_loss"}
        return {ours: (ref.scalar(info[ours]), ref.scalar(log[theirs])) for ours, theirs in names.items()}

    return ref.side_by_side(networks, update)


NOTE = "sigma 1.5, quantile 0.1, targets clipped from -0.5 on, 5 critics."
CASES = {
    name: ref.Case("YangRui2015/RIQL", FILE, partial(compare, deterministic=not name), note=NOTE)
    for name in ("", "Gaussian")
}
