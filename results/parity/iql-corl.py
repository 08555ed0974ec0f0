"""IQL beside CORL's."""

import types

import jax
import numpy as np

from results import references as ref

FILE = "algorithms/offline/iql.py"
DEVIATIONS = {
    "order": "Q's target and the actor's weights are of the new V, as in the authors' code; CORL's are of the old one",
    "sum": "the two critics' errors are summed, as in the authors' code; CORL takes their mean, "
    "which Adam only sees in its epsilon",
}
UPDATES = 20
"""So few that the cosine of the actor's step size is seen."""


def compare(checkout, undo):
    torch, module, peer = ref.torch_double(), ref.ours("iql"), ref.theirs(checkout, FILE)
    rng = np.random.default_rng(0)
    noise, data = ref.Noise(rng), ref.batches(rng)
    args = module.Args(batch_size=ref.ROWS, updates=UPDATES)
    agent = ref.agent_of(module, args, rng)
    nets = peer.GaussianPolicy(ref.OBS, ref.ACTION, 1.0), peer.TwinQ(ref.OBS, ref.ACTION), peer.ValueFunction(ref.OBS)
    nets[0].double()
    optimised = [x for net in nets for x in (net, torch.optim.Adam(net.parameters(), lr=3e-4))]
    trainer = peer.ImplicitQLearning(1.0, *optimised, max_steps=UPDATES)
    if "sum" in undo:
        peer.F = types.SimpleNamespace(mse_loss=lambda x, y: 2 * torch.nn.functional.mse_loss(x, y))

    def networks():
        target = trainer.q_target
        return {
            "actor": ref.tie(agent.actor, nets[0], {"log_std": nets[0].log_std}),
            "critic": ref.tie(agent.critic, [nets[1].q1, nets[1].q2]),
            "value": ref.tie(agent.value, nets[2]),
            "target critic": ref.tie(agent.target_critic, [target.q1, target.q2]),
        }

    def their_parts_in_our_order(obs, action, reward, next_obs, terminal):
        log = {}
        trainer._update_v(obs, action, log)
        with torch.no_grad():
            adv, next_v = trainer.q_target(obs, action) - trainer.vf(obs), trainer.vf(next_obs)
        trainer._update_policy(adv, obs, action, log)
        trainer._update_q(next_v, obs, action, reward[:, 0], terminal[:, 0], log)
        return log

    def update():
        nonlocal agent
        rows = next(data)
        with noise.ours():
            agent, info = module.update(agent, ref.batch(rows), jax.random.key(0), args)
        with noise.theirs():
            tensors = ref.tensors(rows, "obs", "action", "reward", "next_obs", "terminal")
            log = their_parts_in_our_order(*tensors) if "order" in undo else trainer.train(tensors)
        names = {"critic_loss": "q_loss", "value_loss": "value_loss", "actor_loss": "actor_loss"}
        return {ours: (ref.scalar(info[ours]), ref.scalar(log[theirs])) for ours, theirs in names.items()}

    return ref.side_by_side(networks, update)


CASES = {"": ref.Case("corl-team/CORL", FILE, compare, DEVIATIONS, note="The Gaussian policy, without dropout.")}
