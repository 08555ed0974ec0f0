"""BC beside CORL's."""

import jax
import numpy as np

from results import references as ref

FILE = "algorithms/offline/any_percent_bc.py"


def compare(checkout, undo):
    torch, module, peer = ref.torch_double(), ref.ours("bc"), ref.theirs(checkout, FILE)
    rng = np.random.default_rng(0)
    data = ref.batches(rng)
    args = module.Args(batch_size=ref.ROWS)
    agent = ref.agent_of(module, args, rng)
    actor = peer.Actor(ref.OBS, ref.ACTION, 1.0)
    trainer = peer.BC(1.0, actor, torch.optim.Adam(actor.parameters(), lr=3e-4))

    def networks():
        return {"actor": ref.tie(agent.actor, actor)}

    def update():
        nonlocal agent
        rows = next(data)
        agent, info = module.update(agent, ref.batch(rows), jax.random.key(0), args)
        log = trainer.train(ref.tensors(rows, "obs", "action", "reward", "next_obs", "terminal"))
        return {"actor": (ref.scalar(info["actor_loss"]), ref.scalar(log["actor_loss"]))}

    return ref.side_by_side(networks, update)


CASES = {"": ref.Case("corl-team/CORL", FILE, compare, note="The deterministic head.")}
