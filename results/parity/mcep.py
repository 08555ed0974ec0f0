"""MCEP beside the authors' code, on TD3+BC and on AWAC."""

import jax

from results.jax_references import (
    HIDDEN,
    Space,
    packages,
    pairs,
    read,
    side_by_side,
    start,
    theirs_of,
    two_heads,
    write,
)  # fmt: skip
from results.references import ACTION, OBS, ROWS, Case, ours

SUM = "sum"


def critic_of(params):
    """As the reference has it: the action before the observation."""
    first, *others = read(params)
    obs, action = first[:, :OBS], first[:, OBS:]
    return [jax.numpy.concatenate([action, obs], axis=1), *others]


DEVIATIONS = {SUM: "the critic's loss is the sum over the two critics, the reference's the mean: half of it"}


def both(base, checkout, undo, agent_name):
    module = ours("mcep")
    if SUM in undo:
        critic_loss = module.critic_loss

        def mean(*a):
            loss, info = critic_loss(*a)
            return loss / 2, info

        module.critic_loss = mean
    args = module.Args(base=base, hidden_dims=HIDDEN, batch_size=ROWS)
    peer = getattr(packages(checkout)(f"MCEP.agents.{agent_name}"), "__dict__", {})
    return module, args, start(module, args), peer


def give(learner, params):
    for name, tree in params.items():
        state = getattr(learner, name)
        setattr(learner, name, state.replace(params=tree, opt_state=state.tx.init(tree)))


def td3_bc(checkout, undo):
    module, args, agent, peer = both("td3_bc", checkout, undo, "td3_bc_ep.td3_bc_ep_learner")
    learner = peer["TD3BCEPLearner"](
        0, Space(OBS), Space(ACTION), hidden_dims=HIDDEN, bp_alpha=args.alpha, tp_alpha=args.evaluation_alpha,
        tp_bc_loss_weight=1.0,
    )  # fmt: skip
    actor, critic = learner._actor.params, learner._critic.params
    give(
        learner,
        {
            "_bp_actor": write(actor, read(agent.actor)),
            "_actor": write(actor, read(agent.evaluation)),
            "_critic": write(critic, critic_of(agent.critic)),
        },
    )
    learner._bp_target_actor_params = write(actor, read(agent.target_actor))
    learner._target_critic_params = write(critic, critic_of(agent.target_critic))

    @jax.jit
    def our_step(agent, batches):
        keys = jax.random.split(jax.random.key(0), 2)
        agent, info = module.update(agent, batches, (keys, keys), args)
        terms = {"actor": -info["q_pi"], "cloning": info["bc_loss"], "pi_e": -info["evaluation_q_pi"]}
        return agent, {"critic": info["critic_loss"], **terms, "cloning of pi_e": info["evaluation_bc_loss"]}

    def their_step(learner, rows):
        """The terms of the actors' losses, as the reference reports them: Q before it is normalised."""
        first = learner.update(theirs_of(rows[0]), False)
        info = learner.update(theirs_of(rows[1]), True)
        terms = {"actor": info["bp_actor_loss"], "cloning": info["bp_bc_loss"], "pi_e": info["actor_loss"]}
        loss = (first["critic_loss"] + info["critic_loss"]) / 2
        return learner, {"critic": loss, **terms, "cloning of pi_e": info["bc_loss"]}

    def view(agent, learner):
        return pairs(
            {
                "actor": (read, agent.actor, agent.actor_opt),
                "evaluation policy": (read, agent.evaluation, agent.evaluation_opt),
                "critic": (critic_of, agent.critic, agent.critic_opt),
                "target actor": (read, agent.target_actor, None),
                "target critic": (critic_of, agent.target_critic, None),
            },
            {
                "actor": (read, learner._bp_actor.params, learner._bp_actor.opt_state),
                "evaluation policy": (read, learner._actor.params, learner._actor.opt_state),
                "critic": (read, learner._critic.params, learner._critic.opt_state),
                "target actor": (read, learner._bp_target_actor_params, None),
                "target critic": (read, learner._target_critic_params, None),
            },
        )

    yield from side_by_side(agent, our_step, learner, their_step, view, rows=2)


def awac(checkout, undo):
    module, args, agent, peer = both("awac", checkout, undo, "awac_ep.awac_learner")
    learner = peer["AWACEPLearner"](
        0, Space(OBS), Space(ACTION), hidden_dims=HIDDEN, actor_lr=args.awac_actor_lr,
        evaluation_lambda=args.evaluation_temperature, tilde_lambda=args.temperature, exp_adv_max=args.max_weight,
        q_max=args.max_q,
    )  # fmt: skip
    actor, critic = learner._actor.params, learner._critic.params
    heads = lambda params: two_heads(read(params), len(HIDDEN))  # noqa: E731
    give(
        learner,
        {
            "_actor_tilde": write(actor, heads(agent.actor)),
            "_actor": write(actor, heads(agent.evaluation)),
            "_critic": write(critic, critic_of(agent.critic)),
        },
    )
    learner._target_critic_params = write(critic, critic_of(agent.target_critic))

    @jax.jit
    def our_step(agent, batch):
        one = jax.tree.map(lambda x: x[None], batch)
        keys = jax.random.split(jax.random.key(0), 1)
        agent, info = module.update(agent, one, (keys, keys), args)
        return agent, {"critic": info["critic_loss"], "actor": info["actor_loss"], "pi_e": info["evaluation_loss"]}

    def their_step(learner, rows):
        info = learner.update(theirs_of(rows))
        actor, evaluation = info["actor_tilde_loss"], info["actor_loss"]
        return learner, {"critic": info["critic_loss"], "actor": actor, "pi_e": evaluation}

    def view(agent, learner):
        return pairs(
            {
                "actor": (heads, agent.actor, agent.actor_opt),
                "evaluation policy": (heads, agent.evaluation, agent.evaluation_opt),
                "critic": (critic_of, agent.critic, agent.critic_opt),
                "target critic": (critic_of, agent.target_critic, None),
            },
            {
                "actor": (read, learner._actor_tilde.params, learner._actor_tilde.opt_state),
                "evaluation policy": (read, learner._actor.params, learner._actor.opt_state),
                "critic": (read, learner._critic.params, learner._critic.opt_state),
                "target critic": (read, learner._target_critic_params, None),
            },
        )

    yield from side_by_side(agent, our_step, learner, their_step, view)


FOLDER = "MCEP/agents/"
CASES = {
    "TD3+BC": Case("egg-west/MCEP", f"{FOLDER}td3_bc_ep/td3_bc_ep_learner.py", td3_bc, DEVIATIONS),
    "AWAC": Case("egg-west/MCEP", f"{FOLDER}awac_ep/awac_learner.py", awac, DEVIATIONS),
}
