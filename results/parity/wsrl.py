"""WSRL beside the authors' code: conservative pre-training, and SAC afterwards."""

import functools
from unittest import mock

import flax
import jax
import jax.numpy as jnp
import optax

from results.jax_references import (
    HIDDEN,
    N,
    packages,
    pairs,
    plain,
    read,
    side_by_side,
    start,
    theirs_of,
    two_heads,
    write,
)  # fmt: skip
from results.references import ROWS, SPEC, Case, ours

HEADS, TEMPERATURE, ENTROPY, IDLE = "output layers", "temperature", "entropy", "idle steps"
OFFLINE = {
    HEADS: "every critic has an output layer of its own; the reference's share one",
    TEMPERATURE: "temperature and multiplier are exponentials, and the temperature's loss is linear in its logarithm; "
    "in the reference they are softplus and the loss is linear in them",
    ENTROPY: "the temperature is tuned on the entropy at s, of one action; the reference's at s', of as many as its "
    "target takes",
}
ONLINE = {
    **OFFLINE,
    IDLE: "what is not updated stays; in the reference Adam's momentum moves policy and temperature in the critics' "
    "steps, and the critics in the policy's",
}
OUT = len(HIDDEN)
UTD = 2


def map_head(function, params):
    """`params` of critics with `function` on the output layer."""
    return {"params": {**params["params"], "Dense_0": jax.tree.map(function, params["params"]["Dense_0"])}}


def shared_head(params):
    return map_head(lambda x: jnp.broadcast_to(x[:1], x.shape), params)


def critics_of(params):
    """Ours, of which the output layer's first is taken."""
    hidden, head = params["params"]["Layers_0"], params["params"]["Dense_0"]
    one = jax.tree.map(lambda x: x[0], head)
    return read({"Layers_0": hidden, "Dense_0": one})


def actor_of(params):
    return two_heads(read(params), OUT)


def change_ours(module, undo):
    if HEADS in undo:
        critic_step = module.critic_step
        total = lambda x: jnp.broadcast_to(x.sum(0, keepdims=True), x.shape)  # noqa: E731
        module.critic_step = lambda agent, grads, args: critic_step(agent, map_head(total, grads), args)
    if TEMPERATURE in undo:
        module.alpha_loss = lambda log_alpha, entropy, dim: jnp.exp(log_alpha) * (entropy + dim)
    if IDLE in undo:

        def idle(agent, name, learning_rate):
            opt_name = "alpha_opt" if name == "log_alpha" else f"{name}_opt"
            params, opt = getattr(agent, name), getattr(agent, opt_name)
            updates, opt = optax.adam(learning_rate).update(jax.tree.map(jnp.zeros_like, params), opt)
            return {name: optax.apply_updates(params, updates), opt_name: opt}

        critics, actor = module.critic_step, module.actor_step

        def critic_step_and_idle(agent, grads, args):
            others = idle(agent, "actor", args.actor_lr) | idle(agent, "log_alpha", args.actor_lr)
            return critics(agent, grads, args) | others

        def actor_step_and_idle(agent, batch, key, args):
            new, info = actor(agent, batch, key, args)
            return new | idle(agent, "critic", args.critic_lr), info

        module.critic_step, module.actor_step = critic_step_and_idle, actor_step_and_idle


def change_theirs(load, agent_class, undo):
    lagrange = load("wsrl.networks.lagrange")
    for name, kind in (("GeqLagrangeMultiplier", "geq"), ("LeqLagrangeMultiplier", "leq")):
        multiplier = getattr(lagrange, name)
        if TEMPERATURE in undo:
            multiplier = functools.partial(lagrange.LagrangeMultiplier, constraint_type=kind, parameterization="exp")
        setattr(load("wsrl.agents.sac"), name, multiplier)
        setattr(load("wsrl.agents.cql"), name, multiplier)
    original = load("wsrl.agents.sac").SACAgent.temperature_loss_fn
    if ENTROPY not in undo:
        return mock.patch.object(agent_class, "temperature_loss_fn", original)

    def at_s(self, batch, params, rng):
        one = {"max_target_backup": False, "cql_max_target_backup": False}
        here = {**batch, "next_observations": batch["observations"]}
        return original(self.replace(config=self.config.copy(one)), here, params, rng)

    return mock.patch.object(agent_class, "temperature_loss_fn", at_s)


def both(checkout, undo, online, **setting):
    module, load = ours("wsrl"), packages(checkout)
    change_ours(module, undo)
    args = module.Args(
        actor_hidden_dims=HIDDEN, hidden_dims=HIDDEN, batch_size=ROWS, n_actions=N, n_critics=5, utd=UTD, **setting
    )
    agent = start(module, args)
    agent = agent.replace(critic=shared_head(agent.critic), target_critic=shared_head(agent.target_critic))
    name = ("sac", "SACAgent") if online else ("calql", "CalQLAgent")
    agent_class = getattr(load(f"wsrl.agents.{name[0]}"), name[1])
    changed = change_theirs(load, agent_class, undo)
    config = load("experiments.configs.wsrl_config" if online else "experiments.configs.cql_config").get_config()
    config.update(critic_ensemble_size=args.n_critics, critic_subsample_size=args.subset_size)
    for network in (config.critic_network_kwargs, config.policy_network_kwargs):
        network.update(hidden_dims=HIDDEN, use_layer_norm=True)
    kwargs = config.to_dict()
    if online:
        kwargs |= {"max_target_backup": args.online_max_q_backup, "n_actions": N}
    else:
        kwargs |= {"cql_n_actions": N, "cql_alpha": args.cql_alpha, "cql_max_target_backup": args.max_q_backup}
        kwargs |= {"cql_autotune_alpha": args.lagrange, "cql_target_action_gap": args.target_gap}
    zeros = jnp.zeros
    made = agent_class.create(
        jax.random.PRNGKey(0), zeros((1, *SPEC.obs_shape)), zeros((1, SPEC.action_dim)), encoder_def=None, **kwargs
    )
    made = made.replace(config=flax.core.FrozenDict(made.config))
    params = plain(made.state.params)
    target = plain(made.state.target_params)
    params["modules_actor"] = write(params["modules_actor"], actor_of(agent.actor))
    params["modules_temperature"] = write(params["modules_temperature"], [agent.log_alpha])
    if args.lagrange:
        name = "modules_cql_alpha_lagrange"
        params[name] = write(params[name], [agent.log_alpha_prime])
    target = {**target, **params}
    params["modules_critic"] = write(params["modules_critic"], critics_of(agent.critic))
    target["modules_critic"] = write(target["modules_critic"], critics_of(agent.target_critic))
    opt_states = {name: tx.init(params) for name, tx in made.state.txs.items()}
    state = made.state.replace(params=params, target_params=target, opt_states=opt_states)
    return module, args, agent, made.replace(state=state), changed


def view_of(args, online):
    def view(agent, made):
        state, scalar = made.state, lambda x: [x]
        part = lambda name: lambda params: read(params[f"modules_{name}"])  # noqa: E731
        mine = {
            "actor": (actor_of, agent.actor, agent.actor_opt),
            "critic": (critics_of, agent.critic, agent.critic_opt),
            "temperature": (scalar, agent.log_alpha, agent.alpha_opt),
        }
        theirs = {name: (part(name), state.params, state.opt_states[name]) for name in mine}
        mine["target critic"] = (critics_of, agent.target_critic, None)
        theirs["target critic"] = (part("critic"), state.target_params, None)
        if args.lagrange and not online:
            name = "cql_alpha_lagrange"
            mine["multiplier"] = (scalar, agent.log_alpha_prime, agent.alpha_prime_opt)
            theirs["multiplier"] = (part(name), state.params, state.opt_states[name])
        return pairs(mine, theirs)

    return view


def offline(checkout, undo, **setting):
    module, args, agent, made, changed = both(checkout, undo, False, **setting)

    @jax.jit
    def our_step(agent, batch):
        agent, info = module.update(agent, batch, jax.random.key(0), args)
        return agent, {"critic": info["critic_loss"], "actor": info["actor_loss"], "gap": info["gap"]}

    def their_step(made, rows):
        with changed:
            made, info = made.update(theirs_of(rows))
        losses = {"critic": info["critic"]["critic_loss"], "actor": info["actor"]["actor_loss"]}
        return made, {**losses, "gap": info["critic"]["cql_diff"]}

    yield from side_by_side(agent, our_step, made, their_step, view_of(args, False))


def online(checkout, undo, **setting):
    module, args, agent, made, changed = both(checkout, undo, True, **setting)

    @jax.jit
    def our_step(agent, batches):
        agent, info = module.update_online(agent, batches, jax.random.key(0), args)
        return agent, {"critic": info["bellman_loss"], "actor": info["actor_loss"]}

    def their_step(made, rows):
        batch = jax.tree.map(lambda *x: jnp.concatenate(x), *map(theirs_of, rows))
        with changed:
            made, info = made.update_high_utd(batch, utd_ratio=UTD)
        return made, {"critic": info["critic"]["critic_loss"], "actor": info["actor"]["actor_loss"]}

    yield from side_by_side(agent, our_step, made, their_step, view_of(args, True), rows=UTD)


REFERENCE, NOTE = "zhouzypaul/wsrl", "Both sides draw the same two critics, without repetition."
CASES = {
    "offline": Case(REFERENCE, "wsrl/agents/calql.py", offline, OFFLINE, note=NOTE),
    "offline, AntMaze's": Case(
        REFERENCE,
        "wsrl/agents/calql.py",
        lambda c, u: offline(c, u, lagrange=True, target_gap=0.8, cql_alpha=1.0),
        OFFLINE,
        note=f"{NOTE} cql_alpha, which multiplies the multiplier here, is 1.",
    ),
    "online": Case(
        REFERENCE,
        "wsrl/agents/sac.py",
        online,
        ONLINE,
        note=f"{NOTE} One update is {UTD} critic steps and one of the actor, on all rows.",
    ),
}
