"""EDP beside the authors' code, with each of its three policy improvements."""

import math
import types
from unittest import mock

import jax
import jax.numpy as jnp
import optax

from results.jax_references import HIDDEN, N, member, packages, pairs, read, side_by_side, start, theirs_of, write
from results.references import ACTION, OBS, ROWS, Case, ours

FILE = "diffusion/dql.py"
EMBEDDING, CLIP, SOLVER = "time embedding", "clipping", "solver"
DEVIATIONS = {
    EMBEDDING: "the frequencies of the diffusion step's embedding end at 1e-4, as in Diffusion-QL; the reference's, "
    "one step before",
    CLIP: "the gradients of the two critics are clipped together; the reference's, each critic's alone",
}
SAMPLING = DEVIATIONS | {
    SOLVER: "actions in the critics' target are by DPM-Solver++(2M); the reference's, by the singlestep DPM-Solver"
}
TIME = 16


def actor_of(params):
    """As the reference has them: cosines before sines, the observation before action and embedding."""
    arrays = read(params)
    sines, cosines = jnp.split(arrays[0], 2)
    action, time, obs = jnp.split(arrays[4], (ACTION, ACTION + TIME))
    first = jnp.concatenate([obs, action, time])
    return [jnp.concatenate([cosines, sines]), *arrays[1:4], first, *arrays[5:]]


def old_method():
    """Arrays had a method `tile` that the reference's solver calls."""
    for kind in (type(jnp.zeros(1)), jax.core.Tracer):
        kind.tile = lambda self, times: jnp.tile(self, times)


def change_ours(module, undo):
    if EMBEDDING in undo:

        def sinusoidal(t, size):
            frequency = jnp.exp(-jnp.log(10_000.0) * jnp.arange(size // 2) / (size // 2))
            angle = jnp.asarray(t, jnp.float64)[..., None] * frequency
            return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)

        module.sinusoidal = sinusoidal
    if CLIP in undo:
        optimizer = module.optimizer

        def clipped_apart(learning_rate, args):
            clip, adam = optax.clip_by_global_norm(args.max_grad_norm), optax.adam(learning_rate)

            def one(grads):
                return clip.update(grads, optax.EmptyState())[0]

            def update(grads, state, params=None):
                critics = grads["params"]["Dense_0"]["kernel"].ndim == 3
                updates, adam_state = adam.update((jax.vmap(one) if critics else one)(grads), state[1])
                return updates, (state[0], adam_state)

            return optax.GradientTransformation(optimizer(learning_rate, args).init, update)

        module.optimizer = clipped_apart


def our_sampler(module, net, args):
    """A sampling method for the reference's policy: ours, with its network."""

    def sample(self, rng, observations, deterministic=False, repeat=None):
        variables = {"params": self.variables["params"]["base_net"]}

        def apply(_, obs, action, t):
            return net.apply(variables, obs, action, jnp.broadcast_to(t, obs.shape[:-1]))

        actor = types.SimpleNamespace(apply=apply, action_dim=ACTION)
        agent = types.SimpleNamespace(nets=types.SimpleNamespace(actor=actor))
        return module.sample_actions(agent, None, observations, rng, args)

    return sample


def compare(checkout, undo, improvement):
    module, load = ours("edp"), packages(checkout)
    old_method()
    change_ours(module, undo)
    peer, nets, diffusion = load("diffusion.dql"), load("diffusion.nets"), load("diffusion.diffusion")
    load("utilities.jax_utils").init_rng(0)
    steps = 100 if improvement == "iql" else 1000  # the reference's solver goes down to a thousandth
    args = module.Args(
        hidden_dims=HIDDEN, batch_size=ROWS, improvement=improvement, value_samples=N, diffusion_steps=steps,
        time_dim=TIME, solver_steps=5, max_grad_norm=0.5, target_start=0, target_every=1,
    )  # fmt: skip
    with mock.patch.object(jnp, "float32", jnp.float64):
        agent = start(module, args)
        noise = diffusion.GaussianDiffusion(
            num_timesteps=steps, schedule_name="linear", model_mean_type=diffusion.ModelMeanType.EPSILON,
            model_var_type=diffusion.ModelVarType.FIXED_SMALL, loss_type=diffusion.LossType.MSE,
        )  # fmt: skip
        config = peer.DiffusionQL.get_default_config()
        config.update(
            loss_type=improvement.upper(), alpha=args.eta, sample_actions=N, max_grad_norm=args.max_grad_norm,
            num_timesteps=steps, expectile=args.expectile, awr_temperature=args.iql_beta, crr_beta=args.crr_temperature,
        )  # fmt: skip
        policy = nets.DiffusionPolicy(noise, OBS, ACTION, HIDDEN, TIME, sample_method="dpm", dpm_steps=5)
        critic, value = nets.Critic(OBS, ACTION, HIDDEN), nets.Value(OBS, HIDDEN)
        peers = peer.DiffusionQL(config, policy, critic, value, nets.GaussianPolicy(ACTION))
    sampler = nets.DiffusionPolicy.dpm_sample
    if SOLVER in undo:
        sampler = our_sampler(module, nets.PolicyNet(ACTION, HIDDEN, TIME), args)
    like = {name: state.params for name, state in peers.train_states.items()}
    new = {"policy": write(like["policy"], actor_of(agent.actor))}
    new |= {f"qf{i + 1}": write(like[f"qf{i + 1}"], member(read(agent.critic), i)) for i in (0, 1)}
    if agent.value is not None:
        new["vf"] = write(like["vf"], read(agent.value))
    states = dict(peers.train_states)
    for name, params in new.items():
        states[name] = states[name].replace(params=params, opt_state=states[name].tx.init(params))
    targets = {"policy": write(like["policy"], actor_of(agent.target_actor)), "vf": like["vf"]}
    targets |= {f"qf{i + 1}": write(like[f"qf{i + 1}"], member(read(agent.target_critic), i)) for i in (0, 1)}
    constant = 0.5 * ACTION * math.log(2.0 * math.pi)

    @jax.jit
    def our_update(agent, batch):
        agent, info = module.update(agent, batch, jax.random.key(0), args)
        actor = info["actor_loss"] + constant * info.get("weight", 0.0)
        losses = {"critic": info["critic_loss"], "actor": actor, "cloning": info["bc_loss"]}
        return agent, losses | ({"value": info["value_loss"]} if agent.value is not None else {})

    def our_step(agent, batch):
        with mock.patch.object(jnp, "float32", jnp.float64):
            return our_update(agent, batch)

    def their_step(now, rows):
        patched = mock.patch.object(nets.DiffusionPolicy, "dpm_sample", sampler)
        with patched, mock.patch.object(jnp, "float32", jnp.float64):
            key = jax.random.PRNGKey(0)
            states, targets, info = peers._train_step(*now, key, theirs_of(rows), policy_tgt_update=True)
        losses = {"critic": info["qf1_loss"] + info["qf2_loss"], "actor": info["policy_loss"]}
        losses |= {"cloning": info["diff_loss"]} | ({"value": info["vf_loss"]} if "vf_loss" in info else {})
        return (states, targets), losses

    def view(agent, now):
        states, targets = now
        mine = {
            "actor": (actor_of, agent.actor, agent.actor_opt),
            "target actor": (actor_of, agent.target_actor, None),
        }
        theirs = {
            "actor": (read, states["policy"].params, states["policy"].opt_state),
            "target actor": (read, targets["policy"], None),
        }
        if agent.value is not None:
            mine["value"] = (read, agent.value, agent.value_opt)
            theirs["value"] = (read, states["vf"].params, states["vf"].opt_state)
        for i in (0, 1):
            one, name = (lambda p, i=i: member(read(p), i)), f"qf{i + 1}"
            mine |= {f"critic {i + 1}": (one, agent.critic, agent.critic_opt)}
            mine |= {f"target critic {i + 1}": (one, agent.target_critic, None)}
            theirs |= {f"critic {i + 1}": (read, states[name].params, states[name].opt_state)}
            theirs |= {f"target critic {i + 1}": (read, targets[name], None)}
        return pairs(mine, theirs)

    yield from side_by_side(agent, our_step, (states, targets), their_step, view)


NOTE = "The target policy follows at every update on both sides. "
CONSTANT = "The constant of the Gaussian's log-density, which our loss leaves out, is added."
CASES = {
    "TD3": Case("sail-sg/edp", FILE, lambda c, u: compare(c, u, "td3"), SAMPLING, note=NOTE.strip()),
    "CRR": Case("sail-sg/edp", FILE, lambda c, u: compare(c, u, "crr"), SAMPLING, note=NOTE + CONSTANT),
    "IQL": Case("sail-sg/edp", FILE, lambda c, u: compare(c, u, "iql"), DEVIATIONS, note=NOTE + CONSTANT),
}
