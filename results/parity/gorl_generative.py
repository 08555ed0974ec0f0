"""GoRL beside the authors' code: an iteration of the encoder's PPO in the first and in a later stage, and the flow.

Needs Python 3.12, whose syntax the reference has, and the package jax_dataclasses.
"""

import importlib.util
import sys
import types
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax

from results import references as ref
from results.jax_references import packages, pairs, read
from results.ogbench_references import nth, of_network
from shared.errors import InputError

FOLDER = "src/flow_policy"
DEVIATIONS = {
    "anew": "advantages are computed once an iteration; in the reference anew for every minibatch",
    "pieces": "advantages are summed over all steps of an episode; in the reference within pieces of few steps",
    "limits": "the last step before a time limit has an advantage and a target; in the reference neither",
    "lambda": "an advantage is the lambda return minus the value; in the reference r + gamma V_lambda(s') - V(s)",
    "mixing": "minibatches are of single steps; in the reference of whole pieces",
    "after": "the statistics of observations move after the update; in the reference before it",
    "variance": "the running variance is that of all observations; in the reference the last iteration's sum of "
    "squares over the number of all",
    "norm": "gradients are scaled to the clipped norm exactly; the reference adds 1e-8 to their norm",
}
ENVS, STEPS, PIECE, MINIBATCHES = 4, 8, 4, 2
PIECES = ENVS * STEPS // PIECE
ABSENT = (*ref.ABSENT, "mujoco_playground", "mujoco.mjx")


def modules(checkout):
    """Our module and what imports one of the reference's."""
    if sys.version_info < (3, 12):
        raise InputError("This comparison needs Python 3.12: the reference has its syntax.")
    if importlib.util.find_spec("jax_dataclasses") is None:
        raise InputError("This comparison needs the package jax_dataclasses: pip install jax_dataclasses.")
    sys.meta_path.insert(0, ref._Finder(ABSENT))
    load = packages(checkout, "src")
    package = types.ModuleType("flow_policy")  # its own imports all that it has
    package.__path__ = [str(checkout / FOLDER)]
    sys.modules["flow_policy"] = package
    return ref.ours("gorl_generative"), lambda name: load(f"flow_policy.{name}")


def as_theirs(tree):
    """Our layers as theirs: ((kernel, bias), ...)."""
    arrays = [jnp.asarray(x) for x in read(tree)]
    return tuple(zip(arrays[::2], arrays[1::2], strict=True))


class Environment:
    """What the encoder's learner asks of one."""

    observation_size = ref.OBS


# ------------------------------------------------------------------------------------------------ the encoder


def compare_encoder(checkout, undo, first):
    module, load = modules(checkout)
    peer, rng = load("encoder_ppo"), np.random.default_rng(0)
    args = module.Args(
        n_envs=ENVS, steps_per_iteration=ENVS * STEPS, batch_size=ENVS * STEPS // MINIBATCHES, ppo_epochs=2
    )
    agent = ref.agent_of(module, args, rng)
    agent = agent.replace(
        obs_mean=jnp.asarray(rng.standard_normal(ref.OBS)), obs_var=jnp.asarray(1.0 + rng.random(ref.OBS)),
        obs_count=jnp.asarray(float(ENVS * STEPS)),
    )  # fmt: skip
    ref.replace(module, "descend", partial(with_their_advantages, module, module.descend, undo, args))
    ref.replace(jax.random, "permutation", partial(permutation, whole="mixing" in undo))
    if "norm" in undo:
        ref.replace(module, "ppo_optimizer", with_their_norm)
    if "variance" in undo:
        ref.replace(module, "observe", forgetful)
    stage = {"z_regularization": args.first_latent_penalty}
    if not first:
        stage = {
            "z_regularization": args.latent_penalty, "clipping_epsilon": args.later_ratio_clip,
            "max_grad_norm": args.later_grad_norm,
        }  # fmt: skip
    config = peer.EncoderConfig(
        action_repeat=1, batch_size=PIECES // MINIBATCHES, discounting=args.discount, entropy_cost=args.entropy_cost,
        episode_length=1000, learning_rate=args.learning_rate, normalize_observations=True, num_envs=ENVS, num_evals=1,
        num_minibatches=MINIBATCHES, num_timesteps=1, num_updates_per_batch=args.ppo_epochs,
        reward_scaling=args.reward_scale, unroll_length=PIECE, z_dim=ref.ACTION, **stage,
    )  # fmt: skip
    state = peer.EncoderState.init(jax.random.key(0), Environment(), config)
    dataclasses = sys.modules["jax_dataclasses"]
    params = peer.ActorCriticParams(as_theirs(agent.encoder), as_theirs(agent.value))
    stats = type(state.obs_stats)(
        count=agent.obs_count, mean=agent.obs_mean, var_sum=agent.obs_var * agent.obs_count, std=jnp.sqrt(agent.obs_var)
    )
    state = dataclasses.replace(state, params=params, obs_stats=stats, opt_state=state.opt.init(params))

    @jax.jit
    def our_update(agent, steps, truncated, old):
        if "after" in undo:
            agent = module.observe(agent, steps.batch.obs.reshape(-1, ref.OBS))
        numbered = jnp.stack([old, jnp.arange(ENVS * STEPS, dtype=float).reshape(STEPS, ENVS)], -1)
        ITERATION.update(agent=agent, steps=steps, truncated=truncated)
        new, info = module.update(agent, steps._replace(log_prob=numbered), jax.random.key(0), first, args)
        if "after" in undo:
            new = new.replace(obs_mean=agent.obs_mean, obs_var=agent.obs_var, obs_count=agent.obs_count)
        return new, info

    @jax.jit
    def acted(agent, batch, noise):
        """Latents of the policy as the update sees it, and their log densities."""
        if "after" in undo:
            agent = module.observe(agent, batch.obs.reshape(-1, ref.OBS))
        mean, log_std = module.latent(agent.nets.encoder, agent.encoder, module.normalize(agent, batch.obs))
        z = mean + jnp.exp(log_std) * noise
        return z, module.gaussian_log_prob(mean, log_std, z)

    def update():
        nonlocal agent, state
        steps, truncated = iteration_of(module, rng)
        z, log_prob = acted(agent, steps.batch, steps.batch.action)
        batch = steps.batch._replace(action=z)
        steps = steps._replace(batch=batch)
        old = log_prob + 0.3 * rng.standard_normal((STEPS, ENVS))  # another policy's: some are clipped
        given = peer.PpoZTransition(
            obs=batch.obs, next_obs=batch.next_obs, action=batch.action,
            action_info=peer.EncoderActionInfo(log_prob=old, mean=batch.action, std=batch.action),
            reward=batch.reward / args.reward_scale, truncation=truncated, discount=1.0 - batch.terminal,
        )  # fmt: skip
        agent, info = our_update(agent, steps, truncated, old)
        state, found = state.training_step(given)
        found = {name: x.mean() for name, x in found.items()}
        found["v_loss"] /= args.value_coefficient
        names = {"ppo_loss": "total_loss", "value_loss": "v_loss", "v": "value_mean", "entropy": "entropy"}
        names |= {"clipped": "clipped_ratio_mean", "std": "z_std"}
        return {a: (ref.scalar(info[a]), ref.scalar(found[b])) for a, b in names.items()}

    def view():
        stats, leaves = state.obs_stats, jax.tree.leaves
        of = lambda name: of_network(state.opt_state, lambda tree: getattr(tree, name))  # noqa: E731
        mine = {
            "encoder": (read, agent.encoder, of_network(agent.ppo_opt, nth(0))),
            "value": (read, agent.value, of_network(agent.ppo_opt, nth(1))),
            "observations": (list, (agent.obs_mean, agent.obs_var, agent.obs_count), None),
        }
        return pairs(
            mine,
            {
                "encoder": (leaves, state.params.policy, of("policy")),
                "value": (leaves, state.params.value, of("value")),
                "observations": (list, (stats.mean, stats.std**2, stats.count), None),
            },
        )

    losses = {}
    while True:
        yield ref.Step(losses, view())
        losses = update()


ITERATION = {}
"""What our update is traced with, for `with_their_advantages`."""


def iteration_of(module, rng):
    """Steps [T, N] of ours, and where a time limit ended an episode."""
    shape = STEPS, ENVS
    obs, truncated = 1.5 * rng.standard_normal((STEPS + 1, ENVS, ref.OBS)), (rng.random(shape) < 0.15).astype(float)
    terminal = (rng.random(shape) < 0.15).astype(float)
    ended = np.maximum(terminal, truncated)
    next_obs = np.where(ended[..., None] > 0, rng.standard_normal((*shape, ref.OBS)), obs[1:])
    action, reward = rng.standard_normal((*shape, ref.ACTION)), 1.0 + rng.standard_normal(shape)
    rows = {"obs": obs[:-1], "action": action, "reward": reward, "terminal": terminal, "next_obs": next_obs}
    batch, ended = module.Batch(**jax.tree.map(jnp.asarray, rows)), jnp.asarray(ended)
    return module.Steps(batch, batch.action, ended, ended), jnp.asarray(truncated)


def permutation(key, n, whole):
    """Of their pieces, and of our steps: mixed, or in the pieces' order."""
    if n == PIECES or not whole:
        return jnp.asarray(np.random.default_rng(n).permutation(n))
    env, part = np.divmod(np.random.default_rng(PIECES).permutation(PIECES), STEPS // PIECE)
    time = part[:, None] * PIECE + np.arange(PIECE)
    return jnp.asarray((time * ENVS + env[:, None]).reshape(-1))


def with_their_advantages(module, descend, undo, args, loss, params, opt_state, optimizer, *rows):
    """Our gradient step on the same rows, whose advantages and targets are replaced by what is undone of them."""
    batch, numbered, adv, target = rows
    number = numbered[:, 1].astype(int)
    if undo & {"anew", "pieces", "limits", "lambda"}:
        agent, steps, truncated = (ITERATION[name] for name in ("agent", "steps", "truncated"))
        value_of = lambda value, obs: agent.nets.value.apply(value, module.normalize(agent, obs))[..., 0]  # noqa: E731
        value = params[1] if "anew" in undo else agent.value
        v, next_v = (value_of(value, x) for x in (steps.batch.obs, steps.batch.next_obs))
        at_limit = truncated if "limits" in undo else jnp.zeros_like(truncated)
        going_on = args.discount * (1.0 - steps.batch.terminal) * next_v
        reward = jnp.where(at_limit > 0, v - going_on, steps.batch.reward)  # no temporal difference there
        length = PIECE if "pieces" in undo else STEPS
        cut = lambda x: x.reshape(-1, length, ENVS)  # noqa: E731
        given = module.Batch(reward=cut(reward), terminal=cut(steps.batch.terminal))
        estimate = jax.vmap(jax.vmap(partial(module.advantages, args=args), 1, 1))
        sums = estimate(cut(v), cut(next_v), given, cut(steps.ended))
        adv = sums
        if "lambda" in undo:
            later = jnp.concatenate([sums[:, 1:], jnp.zeros_like(sums[:, :1])], 1)
            adv = sums + args.discount * (1.0 - args.gae_lambda) * (1.0 - cut(steps.ended)) * later
        adv = jnp.where(at_limit > 0, 0.0, adv.reshape(STEPS, ENVS))
        now = value_of(params[1], steps.batch.obs)  # no error there
        target = jnp.where(at_limit > 0, now, sums.reshape(STEPS, ENVS) + v)
        adv, target = adv.reshape(-1)[number], target.reshape(-1)[number]
    return descend(loss, params, opt_state, optimizer, batch, numbered[:, 0], adv, target)


def with_their_norm(first, args):
    largest = jnp.where(first, args.first_grad_norm, args.later_grad_norm)

    def clip(grads, state, params=None):
        scale = jnp.minimum(1.0, largest / (optax.global_norm(grads) + 1e-8))
        return jax.tree.map(lambda x: scale * x, grads), state

    clipping = optax.GradientTransformation(lambda params: optax.EmptyState(), clip)
    return optax.chain(clipping, optax.adam(args.learning_rate))


def forgetful(agent, obs):
    """The variance counts the squares of `obs` alone."""
    count = agent.obs_count + len(obs)
    mean = agent.obs_mean + (obs - agent.obs_mean).sum(0) / count
    squares = ((obs - agent.obs_mean) * (obs - mean)).sum(0)
    return agent.replace(obs_mean=mean, obs_var=squares / count, obs_count=count)


# --------------------------------------------------------------------------------------------------- the flow


def compare_flow(checkout, undo):
    module, load = modules(checkout)
    peer, rng = load("decoder_fm"), np.random.default_rng(0)
    args = module.Args(decoder_batch_size=ref.ROWS)
    agent = ref.agent_of(module, args, rng)
    weights, memory = (
        agent.decoder,
        module.Memory(
            jnp.asarray(0.5 + 2.0 * rng.standard_normal((40, ref.OBS))),
            jnp.asarray(rng.standard_normal((40, ref.ACTION))),
        ),
    )
    agent = agent.replace(nets=agent.nets._replace(decoder=From(agent.nets.decoder, weights)))
    config = peer.DecoderFMConfig(learning_rate=args.flow_lr, n_samples_per_action=args.decoder_draws)
    state = peer.DecoderFMState.init(jax.random.key(0), ref.OBS, ref.ACTION, config)
    dataclasses = sys.modules["jax_dataclasses"]
    params = as_theirs(weights)
    zeros = jax.tree.map(lambda x: x.astype(float), state.obs_stats)
    state = dataclasses.replace(
        state, params=params, opt_state=state.opt.init(params), obs_stats=zeros.update(memory.obs)
    )
    key = jax.random.key(1)

    @jax.jit
    def their_step(state, obs, output, noise, t):
        draws = {"normal": lambda *_: noise.swapaxes(0, 1), "uniform": lambda *_: t.swapaxes(0, 1)}
        with mock.patch.multiple(jax.random, **draws):
            return state.train_step(obs, output)

    def draws(i):
        """Rows, noises and times of our i-th update, by its keys."""
        fit = jax.random.split(jax.random.split(key)[1])[1]
        row_key, loss_key = jax.random.split(jax.random.split(fit, i)[i - 1])
        noise_key, time_key = jax.random.split(loss_key)
        shape = (args.decoder_draws, ref.ROWS, ref.ACTION)
        row = jax.random.randint(row_key, (ref.ROWS,), 0, len(memory.obs))
        return row, jax.random.normal(noise_key, shape), jax.random.uniform(time_key, (*shape[:-1], 1))

    fit = jax.jit(module.new_stage, static_argnums=(3, 4))
    decode = jax.jit(module.decode, static_argnums=3)
    yield ref.Step({}, {"flow": (read(weights), jax.tree.leaves(state.params))})
    count = 0
    while count := count + 1:
        new = fit(agent, memory, key, module.dataclasses.replace(args, decoder_updates=count), ref.SPEC)
        row, noise, t = draws(count)
        state, found = their_step(state, memory.obs[row], memory.output[row], noise, t)
        obs, z = (jnp.asarray(rng.standard_normal((ref.ROWS, n))) for n in (ref.OBS, ref.ACTION))
        losses = {
            "decoder_loss": (ref.scalar(new.decoder_loss), ref.scalar(found["loss"])),
            "normalisation": ([new.decoder_mean, new.decoder_std], [state.obs_stats.mean, state.obs_stats.std]),
            "action": ([decode(new, obs, z, args)], [state.sample_action_from_z(obs, z, key)]),
        }
        yield ref.Step(losses, {"flow": (read(new.decoder), jax.tree.leaves(state.params))})


class From:
    """Our network, whose first weights are given."""

    def __init__(self, net, weights):
        self.apply, self.init = net.apply, lambda *_: weights


NOTE = (
    f"An update is an iteration: {STEPS} steps of {ENVS} environments, two passes in {MINIBATCHES} minibatches; pieces "
    f"have {PIECE} steps. The steps are given, with their log probabilities; the statistics have seen as many before."
)
FLOW = "Ours is fitted anew, by one more update each time, to 40 actions; theirs is given each update's rows and draws."
REFERENCE, ENCODER = "bennidict23/GoRL", f"{FOLDER}/encoder_ppo.py"
CASES = {
    "first stage": ref.Case(REFERENCE, ENCODER, partial(compare_encoder, first=True), DEVIATIONS, note=NOTE),
    "later stage": ref.Case(REFERENCE, ENCODER, partial(compare_encoder, first=False), DEVIATIONS, note=NOTE),
    "flow": ref.Case(REFERENCE, f"{FOLDER}/decoder_fm.py", compare_flow, note=FLOW),
}
