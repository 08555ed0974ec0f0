"""MOPO beside OfflineRL-Kit's: the model's phase, rollouts with their penalty, and SAC's step."""

import jax

from results import kit_references as kit
from results import references as ref

FILE = "offlinerlkit/policy/model_based/mopo.py"
DEVIATIONS = {"log det": kit.LOG_DET}
UPDATES = 20
"""Of the whole run: over which the actor's cosine falls."""


def compare(checkout, undo):
    sides = kit.start(checkout, "mopo", undo, updates=UPDATES, real_share=0.25, reward_penalty=2.5)
    torch, module, args = sides.torch, sides.module, sides.args
    from offlinerlkit.policy import MOPOPolicy

    optimizers = [torch.optim.Adam(sides.actor.parameters(), lr=args.actor_lr)]
    optimizers += [torch.optim.Adam(critic.parameters(), lr=args.critic_lr) for critic in sides.critics]
    policy = MOPOPolicy(sides.dynamics, sides.actor, *sides.critics, *optimizers, alpha=sides.alpha)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizers[0], UPDATES)
    batches = ref.batches(sides.rng)

    def networks():
        return kit.networks(sides, [policy.critic1_old, policy.critic2_old])

    def update():
        losses, data = kit.fit_both(sides)
        losses |= kit.roll_both(sides, policy, data)
        rows = next(batches)
        with sides.noise.ours():
            sides.agent, info = module.update(sides.agent, ref.batch(rows), jax.random.key(0), args)
        with sides.noise.theirs():
            log = policy.learn(kit.parts(sides, rows))
        cosine.step()
        return losses | kit.update_losses(info, log)

    return ref.side_by_side(networks, update)


CASES = {"": ref.Case(kit.REFERENCE, FILE, compare, DEVIATIONS, note=f"{kit.PARTS} {kit.COSINE}")}
