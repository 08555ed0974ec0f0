"""C-MORL beside the authors' code: PPO of one policy on given steps, of a weighted sum and with the barrier."""

import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from results import references as ref

FOLDER = "externals/pytorch-a2c-ppo-acktr-gail"
FILE = f"{FOLDER}/a2c_ppo_acktr/algo/ppo.py"
DEVIATIONS = {
    "norm": "gradients are scaled to the clipped norm exactly; the reference adds 1e-6 to their norm",
    "deviation": "the advantages' variance divides by the steps; in the reference by one less",
    "scale": "values are in units of their targets' root mean square; the reference scales rewards instead",
}
BARRIER = {
    "barrier": "the constraint is on mean returns, of the other objective; in the reference on the ratios of single "
    "actions, of both objectives, without the row that has the number of the one that is maximised",
}
K, ENVS, STEPS = 2, 2, 16
ABSENT = (*ref.ABSENT, "baselines", "a2c_ppo_acktr.envs")


def compare(checkout, undo, constrained):
    torch, module = ref.torch_double(), ref.ours("c_morl")
    sys.path.insert(0, str(checkout / FOLDER))
    peer = ref.theirs(checkout, FILE, ABSENT)
    policies = ref.theirs(checkout, str(Path(FILE).parents[1] / "model.py"), ABSENT)
    rng = np.random.default_rng(0)
    args = module.Args(
        steps_per_iteration=ENVS * STEPS, n_envs=ENVS, ppo_epochs=2, n_batches=1, entropy_cost=0.01, archive_size=1,
        weight_divisions=1,
    )  # fmt: skip
    ref.replace(jax.random, "permutation", lambda key, n: jnp.arange(n))  # theirs drop a row by its number
    if "norm" in undo:
        ref.replace(module, "optimizer", with_their_norm)
    if "scale" in undo:
        ref.replace(module, "scale", lambda learner: jnp.ones(K))
    actor_loss = module.actor_loss
    if "deviation" in undo:
        ref.replace(module, "actor_loss", lambda *given: actor_loss(*given[:4], one_less(given[4]), *given[5:]))
    if "barrier" in undo:
        ref.replace(module, "constraint_loss", their_barrier)
    spec = ref.SPEC._replace(obs_shape=(ref.OBS + K,))
    agent = ref.agent_of(module, args, rng, spec)
    nets, learner = agent.nets, jax.tree.map(lambda x: x[0], agent.learners)
    learner = learner._replace(actor=ref.shaken(learner.actor, rng), value=ref.shaken(learner.value, rng))
    moments = module.Moments(jnp.full(K, 0.5), jnp.full(K, 2.0), jnp.asarray(100.0))
    learner = learner._replace(returns=moments)
    policy = policies.Policy((ref.OBS,), Box(), obj_num=K)
    settings = {"value_loss_coef": args.value_coefficient, "entropy_coef": args.entropy_cost, "lr": args.learning_rate}
    settings |= {"eps": 1e-5, "max_grad_norm": args.max_grad_norm}
    trainer = peer.PPO(
        policy, args.ratio_clip, args.ppo_epochs, 1, t=args.barrier_sharpness, beta=args.constraint_share, **settings
    )
    weights = np.array([1.0, 0.0] if constrained else [0.3, 0.7])
    aim = module.Aim(jnp.asarray(weights), jnp.asarray([0.0, 1.0 if constrained else 0.0]))

    @jax.jit
    def our_update(learner, steps):
        return module.update(learner, steps, jnp.full(K, jnp.nan), aim, jax.random.key(0), nets, args)

    @jax.jit
    def seen(learner, steps):
        """What the reference is told: observations as the networks see them, values, returns, log probabilities."""
        unit, batch = module.scale(learner), steps.batch
        obs, next_obs = (module.normalize(learner, x) for x in (batch.obs, batch.next_obs))
        v, next_v = (unit * nets.value.apply(learner.value, x) for x in (obs, next_obs))
        adv = module.advantages(v, next_v, batch, steps.ended, args)
        return obs, v, adv + v, module.log_prob_and_entropy(nets, nets.actor.apply(learner.actor, obs), batch.action)[0]

    def networks():
        actor, critic = policy.base.actor, policy.base.critic
        return {
            "actor": ref.tie(learner.actor, actor, {"log_std": actor.actor_logstd}),
            "value": ref.tie(learner.value, critic),
        }

    def update():
        nonlocal learner
        shape = STEPS, ENVS
        obs, next_obs = (rng.standard_normal((*shape, ref.OBS)) for _ in range(2))
        action, reward = rng.standard_normal((*shape, ref.ACTION)), 1.0 + rng.random((*shape, K))
        terminal = (rng.random(shape) < 0.1).astype(float)
        batch = module.Batch(obs=obs, action=action, reward=reward, terminal=terminal, next_obs=next_obs)
        steps = module.Steps(batch, np.zeros(shape), terminal)
        normal, v, returns, log_prob = seen(learner, steps)
        old = np.asarray(log_prob) + 0.3 * rng.standard_normal(shape)  # of another policy: some ratios are clipped
        learner, _, info = our_update(learner, steps._replace(log_prob=old))
        given = Rollouts(torch, normal, action, old, v, returns)
        if constrained:
            found = trainer.ipo_update(given, 0, K)
        else:
            found = trainer.update(given, Weighted(torch.tensor(weights)))
        value_loss, action_loss, entropy = found
        named = {"actor_loss": action_loss - args.entropy_cost * entropy, "value_loss": value_loss, "entropy": entropy}
        return {name: (ref.scalar(info[name]), ref.scalar(x)) for name, x in named.items()}

    return ref.side_by_side(networks, update)


class Box:
    """Their actions."""

    shape = (ref.ACTION,)


class Weighted:
    """Their scalarisation."""

    def __init__(self, weights):
        self.weights = weights

    def evaluate(self, values):
        return (values * self.weights).sum(-1)


class Rollouts:
    """Their storage, of which all steps are one batch; behind the last one is another, which they leave out."""

    def __init__(self, torch, obs, action, log_prob, v, returns):
        self.rows = [torch.tensor(np.asarray(x).reshape(ENVS * STEPS, -1)) for x in (obs, action, v, returns, log_prob)]
        more = [torch.tensor(np.concatenate([x, np.ones_like(x[:1])])) for x in map(np.asarray, (v, returns))]
        self.value_preds, self.returns = more

    def feed_forward_generator(self, advantages, parts):
        obs, action, v, returns, log_prob = self.rows
        yield obs, None, action, v, returns, None, log_prob, advantages.reshape(-1, 1)


def with_their_norm(args):
    def clip(grads, state, params=None):
        scale = jnp.minimum(1.0, args.max_grad_norm / (optax.global_norm(grads) + 1e-6))
        return jax.tree.map(lambda x: scale * x, grads), state

    clipping = optax.GradientTransformation(lambda params: optax.EmptyState(), clip)
    return optax.chain(clipping, optax.adam(args.learning_rate, eps=1e-5))


def one_less(adv):
    """Advantages whose last column is divided by the deviation of n - 1, not of n; 1e-5 is added to either."""
    n, now = len(adv), adv[:, -1].std()
    std = 1e-5 * now / (1.0 - now)
    return adv.at[:, -1].multiply((std + 1e-5) / (std * jnp.sqrt(n / (n - 1)) + 1e-5))


def their_barrier(ratio, adv, mean_return, kept_return, args):
    near = jnp.clip(ratio, 1.0 - args.ratio_clip, 1.0 + args.ratio_clip)[:, None] * mean_return
    above = jnp.maximum(near - args.constraint_share * mean_return, 0.001)
    barrier = -jnp.log(above[1:]).mean() / args.barrier_sharpness
    return jnp.full(K, barrier), jnp.zeros(K)


NOTE = (
    "The steps are given, with their log probabilities, values and returns; an update is two passes over all steps in "
    "one batch. The archive and the selection are not compared."
)
CASES = {
    "sum": ref.Case("RuohLiuq/C-MORL", FILE, partial(compare, constrained=False), DEVIATIONS, note=NOTE),
    "barrier": ref.Case("RuohLiuq/C-MORL", FILE, partial(compare, constrained=True), DEVIATIONS | BARRIER, note=NOTE),
}
