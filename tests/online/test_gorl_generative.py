"""The losses of gorl_generative against the same equations in plain numpy; what each stage begins with."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from reference import SPEC, B, agent_of, close, mlp
from scipy.stats import norm

from shared.errors import InputError
from shared.jax_envs import JaxEnv
from shared.transitions import Batch

SMALL = {
    "env": "PendulumShortJax-v0", "stages": 2, "n_envs": 2, "steps_per_iteration": 4, "collect_iterations": 1,
    "ppo_epochs": 1, "batch_size": 4, "decoder_updates": 2, "decoder_batch_size": 4, "decoder_draws": 2,
    "flow_steps": 2, "value_hidden_dims": (8,), "decoder_hidden_dims": (8,),
}  # fmt: skip

gorl = load("gorl_generative")
ARGS = gorl.Args(
    hidden_dims=(8, 8), value_hidden_dims=(8,), decoder_hidden_dims=(8, 8), stages=2, n_envs=2, steps_per_iteration=8,
    env_steps=48, collect_iterations=1, ppo_epochs=1, batch_size=4, decoder_updates=3, decoder_batch_size=4,
    decoder_draws=3, flow_steps=4, gae_lambda=0.8, discount=0.9, reward_scale=2.0, entropy_cost=0.2,
    latent_penalty=0.3, first_latent_penalty=0.7, later_ratio_clip=0.2, first_ratio_clip=0.05,
)  # fmt: skip


def silu(x):
    return x / (1 + np.exp(-x))


@pytest.fixture(scope="module")
def agent():
    """It has seen observations, and its flow was fitted on others."""
    agent = agent_of(gorl, ARGS)
    agent = gorl.observe(agent, np.random.default_rng(3).normal(1.0, 2.0, (6, 3)).astype(np.float32))
    return agent.replace(decoder_mean=jnp.float32([0.1, 0.2, 0.3]), decoder_std=jnp.float32([2, 1, 0.5]))


def latent(params, obs):
    mean, scale = np.split(mlp(params, obs, activation=silu), 2, -1)
    return mean, np.clip(np.log1p(np.exp(scale)) + 1e-3, 1e-3, 10)


def velocity(params, obs, x, t):
    angles = t * np.float64([1, 2, 4, 8])
    return mlp(params, obs, x, np.cos(angles), np.sin(angles), activation=silu)


def test_gorl_flow_goes_from_the_latent_to_the_action(agent):
    r = np.random.default_rng(1)
    obs, z = (r.normal(size=(B, n)).astype(np.float32) for n in (3, 2))
    seen, x = (obs - np.float32([0.1, 0.2, 0.3])) / (np.float32([2, 1, 0.5]) + 1e-8), z
    for t in (1.0, 0.75, 0.5, 0.25):
        x = x - velocity(agent.decoder, seen, x, np.full((B, 1), t)) / 4
    decode = jax.jit(gorl.decode)
    close(decode(agent, obs, z, ARGS), x)
    close(
        gorl.act(agent, obs, None, ARGS),
        np.tanh(decode(agent, obs, latent(agent.encoder, scaled(agent, obs))[0], ARGS)),
    )
    first = gorl.init(jax.random.key(0), ARGS, SPEC)
    np.testing.assert_array_equal(decode(first, obs, z, ARGS), z)  # the identity


def scaled(agent, obs):
    return (obs - np.asarray(agent.obs_mean)) / np.sqrt(np.asarray(agent.obs_var))


def test_gorl_decoder_matches_the_flow_from_fresh_noise(agent):
    r, key = np.random.default_rng(2), jax.random.key(5)
    obs, output = (r.normal(size=(B, n)).astype(np.float32) for n in (3, 2))
    noise_key, time_key = jax.random.split(key)
    noise, t = np.asarray(jax.random.normal(noise_key, (3, B, 2))), np.asarray(jax.random.uniform(time_key, (3, B, 1)))
    found = velocity(agent.decoder, np.broadcast_to(obs, (3, B, 3)), t * noise + (1 - t) * output, t)
    expected = ((found - (noise - output)) ** 2).mean()
    close(gorl.decoder_loss(agent.decoder, agent.nets.decoder, obs, output, key, ARGS)[0], expected)


@pytest.mark.parametrize("first", (True, False))
def test_gorl_encoder_has_ppos_loss_in_the_latent_space(agent, first):
    r = np.random.default_rng(4)
    batch = Batch(obs=r.normal(size=(B, 3)).astype(np.float32), action=r.normal(size=(B, 2)).astype(np.float32))
    adv = r.normal(size=B).astype(np.float32)
    mean, std = latent(agent.encoder, batch.obs)
    log_prob = norm.logpdf(batch.action, mean, std).sum(-1)
    old = (log_prob + r.normal(scale=0.2, size=B)).astype(np.float32)
    loss, info = gorl.encoder_loss(agent.encoder, agent.nets.encoder, batch, old, adv, first, ARGS)
    clip, penalty = (0.05, 0.7) if first else (0.2, 0.3)
    ratio, a = np.exp(log_prob - old), (adv - adv.mean()) / (adv.std() + 1e-8)
    surrogate = -np.minimum(ratio * a, np.clip(ratio, 1 - clip, 1 + clip) * a).mean()
    entropy = norm.entropy(scale=std).sum(-1).mean()
    close(loss, surrogate - 0.2 * entropy + penalty * ((mean**2).mean() + (std**2).mean()))
    close(info["clipped"], (np.abs(ratio - 1) > clip).mean())
    assert info["clipped"] > 0 and float(info["std"]) == pytest.approx(std.mean(), rel=1e-4)


def test_gorl_value_function_regresses_on_advantage_plus_value(agent):
    obs, target = np.ones((B, 3), np.float32), np.arange(B, dtype=np.float32)
    v = mlp(agent.value, obs, activation=silu)[:, 0]
    close(gorl.value_loss(agent.value, agent.nets.value, Batch(obs=obs), target)[0], ((v - target) ** 2).mean())


def test_gorl_advantages_end_with_the_episode_and_bootstrap_at_time_limits():
    v, next_v = np.float32([1, 2, 3, 4]), np.float32([2, 9, 4, 5])
    batch = Batch(reward=np.float32([1, 1, 1, 1]), terminal=np.float32([0, 0, 1, 0]))
    found = gorl.advantages(v, next_v, batch, np.float32([0, 1, 1, 0]), ARGS)
    delta = [1 + 0.9 * 2 - 1, 1 + 0.9 * 9 - 2, 1 - 3, 1 + 0.9 * 5 - 4]
    close(found, [delta[0] + 0.72 * delta[1], *delta[1:]])


def test_gorl_stages_are_whole_and_end_with_collecting():
    args = gorl.whole_stages(dataclasses.replace(ARGS, steps_per_iteration=7, env_steps=41, log_every=9))
    assert (args.steps_per_iteration, args.env_steps, args.log_every) == (8, 48, 16)
    assert gorl.improves(np.arange(6), args).tolist() == [True, True, False, True, True, True]
    assert gorl.improves(np.arange(6), dataclasses.replace(args, stages=1)).all()


def counting(limit: int) -> JaxEnv:
    """Observations count the steps since reset; rewards are the first action; a time limit ends the episode."""
    obs = lambda t: jnp.stack([t, 1.0 - t, t**2]).astype(jnp.float32)  # noqa: E731
    step = lambda t, action, keys: (t + 1, obs(t + 1), action[0], False, t + 1 >= limit)  # noqa: E731
    return JaxEnv(lambda keys, params=None: (jnp.int32(0), obs(jnp.int32(0))), step, None)


def same(before, after) -> bool:
    pairs = zip(*map(jax.tree.leaves, (before, after)), strict=True)
    return all((np.asarray(x) == np.asarray(y)).all() for x, y in pairs)


def test_gorl_a_new_stage_has_a_new_encoder_on_a_flow_fitted_to_what_was_collected():
    """Iterations: learn, learn, collect and turn | learn, learn, learn."""
    env, agent = counting(3), gorl.init(jax.random.key(0), ARGS, SPEC)
    loop = gorl.begin(jax.random.key(1), ARGS, env, SPEC)
    one = jax.jit(partial(gorl.train, env=env, spec=SPEC, args=ARGS))
    agents, metrics = [agent], []
    for i in range(4):
        key = jax.random.split(jax.random.key(10 + i), 8)
        (agent, loop), info = one((agent, loop), key, start=8 * i)
        agents.append(agent)
        metrics.append(info)
        if i == 1:
            assert not np.asarray(loop.memory.output).any()
    learned, turned, later = agents[2], agents[3], agents[4]
    assert not same(agents[0].encoder, agents[1].encoder) and same(agents[0].decoder, learned.decoder)
    assert float(learned.obs_count) == pytest.approx(16, abs=1e-3)
    assert float(metrics[0]["moved"]) == 0 and float(metrics[3]["moved"]) > 0
    assert float(metrics[2]["entropy"]) == 0 and float(metrics[3]["entropy"]) != 0

    obs = np.asarray(loop.memory.obs)
    assert np.asarray(loop.memory.output).any() and obs[:, 0].max() == 2
    close(turned.decoder_mean, obs.mean(0))
    close(turned.decoder_std, obs.std(0))
    assert not same(learned.encoder, turned.encoder) and not same(learned.value, turned.value)
    assert (
        float(turned.obs_count) == pytest.approx(1e-4)
        and np.asarray(turned.decoder["params"]["Dense_0"]["kernel"]).any()
    )
    assert float(turned.decoder_loss) > 0 and not any(np.asarray(x).any() for x in jax.tree.leaves(turned.ppo_opt))
    assert same(turned.decoder, later.decoder) and not same(turned.encoder, later.encoder)


def test_gorl_remembers_what_the_flow_made_and_not_its_latents():
    r = np.random.default_rng(0)
    obs, z, output = (np.float32(r.normal(size=(4, 2, n))) for n in (3, 2, 2))
    steps = gorl.Steps(Batch(obs=obs, action=z, reward=np.zeros((4, 2))), output, None, None)
    memory = gorl.remember(gorl.Memory(jnp.zeros((16, 3)), jnp.zeros((16, 2))), steps, 1, ARGS)
    for now, made in zip(memory, (obs, output), strict=True):
        assert not np.asarray(now[:8]).any()
        np.testing.assert_array_equal(now[8:], made.reshape(8, -1))


def test_gorl_collects_latents_outputs_and_densities(agent):
    env = counting(3)
    loop = gorl.begin(jax.random.key(1), ARGS, env, SPEC)
    _, steps = jax.jit(partial(gorl.collect, env=env, args=ARGS))(agent, loop, jax.random.key(2))
    mean, std = latent(agent.encoder, scaled(agent, np.asarray(steps.batch.obs)))
    close(steps.log_prob, norm.logpdf(steps.batch.action, mean, std).sum(-1))
    close(steps.output, gorl.decode(agent, steps.batch.obs, steps.batch.action, ARGS))
    close(steps.batch.reward, 2.0 * np.tanh(steps.output[..., 0]))
    assert steps.ended[:, 0].tolist() == [0, 0, 1, 0] and not steps.batch.terminal.any()
    assert steps.batch.next_obs[2, 0, 0] == 3 and steps.batch.obs[3, 0, 0] == 0


def test_gorl_refuses_stages_in_which_nothing_is_learned(tmp_path):
    with pytest.raises(InputError, match="a stage has 3 iterations, of which --collect-iterations 3 leave none"):
        gorl.main(dataclasses.replace(ARGS, collect_iterations=3, out=str(tmp_path)))
    with pytest.raises(InputError, match="--batch-size 9 is more than an iteration's 8"):
        gorl.main(dataclasses.replace(ARGS, batch_size=9, out=str(tmp_path)))


@pytest.mark.parametrize("first", [True, False])
def test_gorl_norms_of_0_do_not_clip(first):
    """As in the released code; and others do, in their own stage alone."""
    norms = (0.0, 0.5) if first else (0.5, 0.0)
    grads = {"w": jnp.float32([3.0, 4.0])}
    args = dataclasses.replace(ARGS, first_grad_norm=norms[0], later_grad_norm=norms[1])
    free, held = (gorl.ppo_optimizer(stage, args) for stage in (first, not first))
    seen = [optimizer.update(grads, optimizer.init(grads))[1] for optimizer in (free, held)]
    for state, norm_of in zip(seen, (5.0, 0.5), strict=True):
        close(np.linalg.norm(state[1][0].mu["w"]) / 0.1, norm_of)
