"""Hy-Q's fitted Q iteration beside its authors' code for the combination lock."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from results import references as ref
from shared.task import Spec

FILE = "CLock/algs/FQI.py"
HORIZON, ACTIONS, POOL, FITS = 3, 4, 60, 5


def compare(checkout, undo):
    torch, module = ref.torch_double(), ref.ours("hy_q")
    peer = ref.theirs(checkout, FILE, (*ref.ABSENT, "zmq"))
    rng = np.random.default_rng(0)
    noise = ref.Noise(rng)
    args = module.Args(batch_size=ref.ROWS, horizon=HORIZON, critic_updates=FITS, learning_rate=1e-2)
    agent = ref.agent_of(module, args, rng, Spec((ref.OBS + 1,), ACTIONS, True))
    fits = [
        peer.FQI(ref.OBS, 3, ACTIONS, HORIZON, 0.0, "cpu", num_update=FITS + 1, h=h, lr=1e-2) for h in range(HORIZON)
    ]

    def networks():
        def of(h):
            return ref.tie(jax.tree.map(lambda x: x[h], agent.critic), fits[h].q_function)

        return {f"Q at step {h}": of(h) for h in range(HORIZON)}

    def update():
        """One fit of all steps, the last one first; five gradient steps for each."""
        nonlocal agent
        pools = [next(ref.batches(rng, POOL)) for _ in range(HORIZON)]
        for pool in pools:
            pool["action"] = rng.integers(0, ACTIONS, POOL)
        rows = rng.integers(0, POOL, (HORIZON, FITS, ref.ROWS))
        left = list(rows[::-1])
        pool = jax.tree.map(lambda *x: jnp.stack(x), *map(ref.batch, pools))
        with noise.ours(), mock.patch.object(module, "sample", lambda *_: jnp.asarray(left.pop(0))):
            agent, info = module.update(agent, pool, POOL, 0, jax.random.key(0), args)
        losses = []
        for h in reversed(range(HORIZON)):
            batches = []
            for row in rows[h]:
                obs, reward, next_obs = ref.tensors(
                    {k: x[row] for k, x in pools[h].items()}, "obs", "reward", "next_obs"
                )
                chosen = torch.tensor(np.eye(ACTIONS)[pools[h]["action"][row]])
                batches.append((obs, chosen, reward, next_obs))
            buffer = mock.Mock(sample=mock.Mock(side_effect=batches))
            losses.append(fits[h].update(buffer, fits[h + 1] if h + 1 < HORIZON else None)[0][-1])
        return {"critic": (ref.scalar(info["critic_loss"]), ref.scalar(np.mean(losses)))}

    return ref.side_by_side(networks, update)


NOTE = (
    "The fit of all steps of a lock of 3 steps with 4 actions, on the same rows; as many gradient steps on both sides."
)
CASES = {"": ref.Case("yudasong/HyQ", FILE, compare, note=NOTE)}
