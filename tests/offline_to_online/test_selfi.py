"""The losses of selfi against the same equations in plain numpy, the empty residual, and its two phases."""

import csv
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load
from jobs import train
from reference import SPEC, B, agent_of, close, heads, mlp

from shared.errors import InputError

SMALL = {"plan_length": 2, "learning_starts": 2, "policy_delay": 1}

selfi = load("selfi")
ARGS = selfi.Args(hidden_dims=(8, 8), batch_size=B, plan_length=3, discount=0.9, model_weight=0.7, tau=0.1)


KEY = jax.random.key(7)


def model(obs, action, key):
    """Ends where the first coordinate falls below -1; rewards are linear."""
    new = obs + 0.5 * jnp.pad(action, ((0, 0), (0, 1)))
    return new, new @ jnp.float32([1.0, -2.0, 0.5]) + action[:, 0], new[:, 0] < -1.0


def objective(obs, plan):
    total, weight, ended = np.zeros(len(obs)), 1.0, np.zeros(len(obs), bool)
    for action in np.swapaxes(plan, 0, 1):
        obs = obs + 0.5 * np.pad(action, ((0, 0), (0, 1)))
        total += np.where(ended, 0.0, weight * (obs @ [1.0, -2.0, 0.5] + action[:, 0]))
        ended, weight = ended | (obs[:, 0] < -1.0), 0.9 * weight
    return total


def plan_of(actor, obs):
    return np.tanh(mlp(actor, obs)).reshape(len(obs), 3, 2)


@pytest.fixture(scope="module")
def agent():
    return agent_of(selfi, ARGS)


def test_selfi_objective_is_the_discounted_reward_of_a_plan_up_to_its_end(batch):
    plan = np.random.default_rng(1).uniform(-1, 1, (B, 3, 2)).astype(np.float32)
    expected = objective(batch.obs, plan)
    close(jax.jit(lambda obs, plan: selfi.model_objective(model, obs, plan, KEY, ARGS))(batch.obs, plan), expected)
    far = batch.obs - np.float32([9, 0, 0])  # ends at once
    first = far + 0.5 * np.pad(plan[:, 0], ((0, 0), (0, 1)))
    close(selfi.model_objective(model, far, plan, KEY, ARGS), first @ [1.0, -2.0, 0.5] + plan[:, 0, 0])


def test_selfi_each_step_of_a_model_with_noise_has_its_own(batch):
    """The same draw at every step and in every update would be a wind."""

    def gusty(obs, action, key):
        gust = jax.random.normal(key, (len(obs),))
        return obs, gust, jnp.zeros(len(obs), bool)

    plan, args = jnp.zeros((B, 3, 2)), dataclasses.replace(ARGS, discount=1.0)
    one, other = (selfi.model_objective(gusty, batch.obs, plan, jax.random.key(i), args) for i in (0, 1))
    keys = jax.random.split(jax.random.key_data(jax.random.key(0)), 3)
    close(one, sum(np.asarray(jax.random.normal(key, (B,))) for key in keys))
    assert np.abs(one - other).min() > 1e-3


def test_selfi_critic_is_the_models_objective_plus_a_residual_also_in_the_target(agent, batch):
    key = jax.random.key(3)
    args = dataclasses.replace(ARGS, policy_noise=1.5, noise_clip=0.9)
    loss = jax.jit(lambda critic: selfi.critic_loss(critic, agent, model, batch, key, args))
    free = 1.5 * np.asarray(jax.random.normal(key, (B, 2)))
    noise = np.clip(free, -0.9, 0.9)
    plan, next_plan = plan_of(agent.target_actor, batch.obs), plan_of(agent.target_actor, batch.next_obs)
    assert (noise != free).any() and (np.abs(next_plan[:, 0] + noise) > 1).any()
    plan[:, 0], next_plan[:, 0] = batch.action, np.clip(next_plan[:, 0] + noise, -1, 1)
    target = 0.7 * objective(batch.next_obs, next_plan)
    target += heads(agent.target_critic, batch.next_obs, next_plan[:, 0]).min(0)
    y = batch.reward + 0.9 * (1 - batch.terminal) * target
    residual, base = heads(agent.critic, batch.obs, batch.action), 0.7 * objective(batch.obs, plan)
    value, info = loss(agent.critic)
    close(value, ((base + residual - y) ** 2).mean(1).sum())
    close(info["model_q"], base.mean())
    close(info["residual"], np.abs(residual).mean())


def test_selfi_policy_maximises_the_objective_offline_and_the_sum_online(agent, batch):
    plan = plan_of(agent.actor, batch.obs)
    offline, _ = selfi.model_loss(agent.actor, agent.nets.actor, model, batch.obs, KEY, ARGS)
    close(offline, -objective(batch.obs, plan).mean())
    online, info = selfi.actor_loss(agent.actor, agent, model, batch.obs, KEY, ARGS)
    residual = heads(agent.critic, batch.obs, plan[:, 0])[0]
    close(online, -(0.7 * objective(batch.obs, plan) + residual).mean())
    close(info["objective"], objective(batch.obs, plan).mean())
    close(selfi.act(agent, batch.obs, None, ARGS), plan[:, 0])


def test_selfi_first_online_gradient_is_the_offline_one(batch):
    """The residual begins as zero, so that nothing changes at the switch; without J there is no gradient at all."""
    agent = jax.jit(selfi.init, static_argnums=2)(jax.random.key(0), ARGS, SPEC)
    assert not heads(agent.critic, batch.obs, batch.action).any()
    args = dataclasses.replace(ARGS, model_weight=1.0)
    offline = jax.grad(lambda p: selfi.model_loss(p, agent.nets.actor, model, batch.obs, KEY, args)[0])(agent.actor)
    online = jax.jit(
        lambda p, w: jax.grad(lambda p: selfi.actor_loss(
            p, agent, model, batch.obs, KEY, dataclasses.replace(args, model_weight=w)
        )[0])(p)
    )  # fmt: skip
    jax.tree.map(close, online(agent.actor, 1.0), offline)
    assert any(np.abs(x).max() > 1e-3 for x in jax.tree.leaves(offline))
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(online(agent.actor, 0.0)))


def test_selfi_actor_moves_at_every_second_step_and_the_targets_with_it(agent, batch):
    args = dataclasses.replace(ARGS, policy_delay=2)
    step = jax.jit(lambda t: selfi.update_online(agent, batch, jax.random.key(0), args, t, model)[0])
    for t, moves in ((3, False), (4, True)):
        new = step(t)
        assert not np.array_equal(*(np.ravel(jax.tree.leaves(a.critic)[0]) for a in (agent, new)))
        for field in ("actor", "target_actor", "target_critic"):
            pairs = zip(jax.tree.leaves(getattr(agent, field)), jax.tree.leaves(getattr(new, field)), strict=True)
            assert any((np.asarray(a) != np.asarray(b)).any() for a, b in pairs) == moves, field
    for name in ("actor", "critic"):
        trees = getattr(agent, f"target_{name}"), getattr(new, name), getattr(new, f"target_{name}")
        jax.tree.map(lambda a, b, c: close(c, 0.9 * np.asarray(a) + 0.1 * np.asarray(b)), *trees)


def test_selfi_trains_in_the_model_then_interacts_where_it_is_wrong(tmp_path, monkeypatch):
    """The model is another environment than the one that is played."""
    import make  # of datasets/

    make.make("turned-point-mixed", steps=120)
    modelled, exact_model = [], selfi.exact_model
    monkeypatch.setattr(selfi, "exact_model", lambda task: modelled.append(task.env_spec.id) or exact_model(task))
    out = tmp_path / "run"
    agents = train(
        "selfi", "turned-point-mixed", out, env="WindyPoint-v0", model_env="TurnedPoint-v0", hidden_dims=(8,)
    )  # fmt: skip
    offline, online = (list(csv.DictReader((out / f"{name}.csv").open())) for name in ("offline", "metrics"))
    assert modelled == ["TurnedPoint-v0"]
    assert "model_loss" in offline[0] and "residual" in online[0]
    last = max(k for k in agents if ".critic" in k and "target" not in k and "kernel" in k)
    assert np.abs(agents[last]).max() > 0
    assert float(online[-1]["residual"]) > 0


def test_selfi_needs_a_model(pendulum, tmp_path):
    args = selfi.Args(dataset=pendulum, env="none", out=str(tmp_path))
    with pytest.raises(InputError, match="without an environment are not known as functions; give another --model-env"):
        selfi.main(args)


def test_selfi_needs_no_rewards_in_the_data(pendulum, tmp_path):
    """Those that count are the model's and the environment's: what is missing here is the model."""
    with np.load(pendulum) as file:
        np.savez(tmp_path / "pendulum-mute.npz", **{name: file[name] for name in file.files if name != "rewards"})
    with pytest.raises(InputError, match="give another --model-env"):
        selfi.main(selfi.Args(dataset=str(tmp_path / "pendulum-mute.npz"), env="none", out=str(tmp_path)))
