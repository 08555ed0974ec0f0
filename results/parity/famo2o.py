"""FamO2O (on IQL) beside the authors' code: the offline phase, and the online one."""

from unittest import mock

import jax
import jax.numpy as jnp

from results.jax_references import HIDDEN, packages, pairs, read, side_by_side, start, write
from results.references import ACTION, OBS, ROOT, ROWS, Case, module, ours

FILE = "jax_iql/family_learner.py"
WEIGHTS = "weights"
iql = module(ROOT / "results/parity/iql.py", "parity_iql")


def weights_of_reference(code):
    """Ours, with the reference's product of advantages [B] and betas [B, 1]: weights [B, B]."""

    def actor_loss(actor, agent, batch, beta, key, args):
        q = code.q_values(agent.nets.critic, agent.target_critic, batch.obs, batch.action).min(0)
        adv = q - agent.nets.critic.apply(agent.value, batch.obs)
        weight = jnp.minimum(jnp.exp(adv * beta[:, None]), args.max_weight)
        mean, log_std = agent.nets.actor.apply(actor, batch.obs, beta)
        log_prob = jax.scipy.stats.norm.logpdf(batch.action, mean, jnp.exp(log_std)).sum(-1)
        return -(weight * log_prob).mean(), {"adv": adv.mean(), "weight": weight.mean()}

    return actor_loss


def compare(checkout, undo, online):
    code, peer = ours("famo2o"), packages(checkout, "jax_iql", frozen=True)("family_learner")
    if WEIGHTS in undo:
        code.actor_loss = weights_of_reference(code)
    args = code.Args(hidden_dims=HIDDEN, batch_size=ROWS, beta_min=0.5, beta_max=2.0)
    agent, zeros = start(code, args), jnp.zeros
    learner = peer.FamilyLearner(
        0, zeros((1, OBS)), zeros((1, ACTION)), hidden_dims=HIDDEN, expectile=args.expectile,
        family_coefficient_range=(args.beta_min, args.beta_max), opt_decay_schedule=None,
    )  # fmt: skip
    iql.give(learner, agent)
    log_std = lambda arrays: [*arrays[:-1], jnp.reshape(arrays[-1], 1)]  # noqa: E731
    balance = write(learner.hierarchical_actor.params, log_std(read(agent.balance)))
    temperature = write(learner.hierarchical_temp.params, [agent.log_alpha])
    for name, params in (("hierarchical_actor", balance), ("hierarchical_temp", temperature)):
        model = getattr(learner, name)
        setattr(learner, name, model.replace(params=params, opt_state=model.tx.init(params)))
    names = {"critic": "critic_loss", "value": "value_loss", "actor": "actor_loss"}

    @jax.jit
    def our_step(agent, batch):
        agent, info = code.update(agent, batch, jax.random.key(0), args, online=online)
        return agent, {name: info[key] for name, key in {**names, "balance": "balance_loss"}.items()}

    def their_step(learner, rows):
        with mock.patch.object(jnp, "float32", jnp.float64):
            info = learner.update(iql.batch_of(peer, rows), random_hierarchical_coefficients=not online)
        return learner, {name: info[key] for name, key in {**names, "balance": "hierarchical_loss"}.items()}

    def view(agent, learner):
        theirs, scalar = learner.hierarchical_actor, lambda x: [x]
        return iql.view(agent, learner) | pairs(
            {
                "balance": (lambda p: log_std(read(p)), agent.balance, agent.balance_opt),
                "temperature": (scalar, agent.log_alpha, agent.alpha_opt),
            },
            {
                "balance": (read, theirs.params, theirs.opt_state),
                "temperature": (read, learner.hierarchical_temp.params, learner.hierarchical_temp.opt_state),
            },
        )

    yield from side_by_side(agent, our_step, learner, their_step, view)


DEVIATIONS = {
    WEIGHTS: "each row has the weight of its own beta; the reference's product of advantages [B] and betas [B, 1] "
    "weighs every row by every beta of the batch"
}
CASES = {
    name: Case("LeapLabTHU/FamO2O", FILE, lambda c, u, on=name == "online": compare(c, u, on), DEVIATIONS)
    for name in ("offline", "online")
}
