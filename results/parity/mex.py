"""MEX beside the authors' code, model-free: TD3 whose critics maximise one optimism or the other."""

from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from results import references as ref

FILE = "MEX_MF/IO.py"
DEVIATIONS = {
    "own": "in the soft maximum each critic takes its own value of the data's action; in the reference both take the "
    "first one's",
}


def compare(checkout, undo, optimism):
    torch, module = ref.torch_double(), ref.ours("mex")
    peer = ref.theirs(checkout, FILE)
    rng = np.random.default_rng(0)
    noise, data = ref.Noise(rng), ref.batches(rng)
    args = module.Args(batch_size=ref.ROWS, optimism=optimism, optimism_weight=0.1)
    agent = ref.agent_of(module, args, rng)
    if "own" in undo:
        ref.replace(module, "optimism", with_the_first_value(module))
    baseline = optimism == "advantage"
    trainer = peer.IO(ref.OBS, ref.ACTION, 1.0, args.discount, args.tau, eta=0.1, use_baseline=baseline)
    steps = 0

    def critics(net):
        layers = [getattr(net, f"l{i}") for i in range(1, 7)]
        return [torch.nn.ModuleList(layers[:3]), torch.nn.ModuleList(layers[3:])]

    def networks():
        return {
            "actor": ref.tie(agent.actor, trainer.actor),
            "target actor": ref.tie(agent.target_actor, trainer.actor_target),
            "critic": ref.tie(agent.critic, critics(trainer.critic)),
            "target critic": ref.tie(agent.target_critic, critics(trainer.critic_target)),
        }

    @jax.jit
    def our_update(agent, batch, z, u, t):
        draws = {"normal": lambda *_: z, "uniform": lambda *_, **__: 2.0 * u - 1.0}
        with mock.patch.multiple(jax.random, **draws):
            return module.update(agent, batch, jax.random.key(0), args, t)

    def update():
        nonlocal agent, steps
        pairs = []
        for _ in range(args.policy_delay):
            steps += 1
            rows, shape = next(data), (ref.ROWS, ref.ACTION)
            z, u = rng.standard_normal(shape), rng.random(shape)
            agent, info = our_update(agent, ref.batch(rows), z, u, steps)
            given = {**rows, "alive": 1.0 - rows["terminal"]}
            sample = ref.Buffer(ref.tensors(given, "obs", "action", "next_obs", "reward", "alive"))
            with noise.theirs([ref.Draw("normal", z), *[ref.Draw("uniform", u)] * baseline]):
                critic_loss, actor_loss, _ = trainer.train(sample, ref.ROWS)
            pairs.append((float(info["critic_loss"]), float(critic_loss.detach())))
        return {
            "critic": tuple([np.array(x)] for x in zip(*pairs)),
            "actor": (ref.scalar(info["actor_loss"] / args.policy_delay), ref.scalar(actor_loss)),
        }

    return ref.side_by_side(networks, update)


def with_the_first_value(module):
    def optimism(critic, agent, batch, key, args):
        q_of = lambda action: module.q_values(agent.nets.critic, critic, batch.obs, action)  # noqa: E731
        pi, next_pi = (agent.nets.actor.apply(agent.actor, obs) for obs in (batch.obs, batch.next_obs))
        random = jax.random.uniform(key, pi.shape, minval=-1.0, maxval=1.0)
        of_data = q_of(batch.action)
        first = jnp.stack([of_data[0], of_data[0]])
        return q_of(pi) - jax.nn.logsumexp(jnp.stack([first, q_of(next_pi), q_of(random)]), axis=0)

    return optimism


NOTE = "Two steps of the critics, of which the second is followed by the actor's, count as one; eta' is 0.1."
CASES = {
    "value": ref.Case("agentification/MEX", FILE, partial(compare, optimism="value"), note=NOTE),
    "advantage": ref.Case("agentification/MEX", FILE, partial(compare, optimism="advantage"), DEVIATIONS, note=NOTE),
}
