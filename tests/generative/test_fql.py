"""The losses of fql, and of fql_finetune that has the same, against the equations in plain numpy."""

import jax
import numpy as np
import pytest
from conftest import load
from reference import B, agent_of, close, gelu, heads, mlp
from released import every, table, wrong_settings

both = pytest.mark.parametrize("name", ["fql", "fql_finetune"])


def q_values(critics, obs, action):
    return heads(critics, obs, action, activation=gelu, layer_norm=True)


@both
@pytest.mark.parametrize("aggregation", ["mean", "min"])
def test_fql_critic(name, batch, aggregation):
    fql = load(name)
    args = fql.Args(hidden_dims=(8, 8), batch_size=B, q_aggregation=aggregation)
    agent, key = agent_of(fql, args), jax.random.key(6)
    noise = np.asarray(jax.random.normal(key, (B, 2)))
    next_action = np.clip(mlp(agent.actor, batch.next_obs, noise, activation=gelu), -1, 1)
    target_q = getattr(q_values(agent.target_critic, batch.next_obs, next_action), aggregation)(0)
    y = batch.reward + 0.99 * (1 - batch.terminal) * target_q
    expected = ((q_values(agent.critic, batch.obs, batch.action) - y) ** 2).mean()
    close(fql.critic_loss(agent.critic, agent, batch, key, args)[0], expected)


@both
def test_fql_flow_matching(name, batch):
    fql = load(name)
    args = fql.Args(hidden_dims=(8, 8), batch_size=B)
    agent, key = agent_of(fql, args), jax.random.key(6)
    noise_key, time_key = jax.random.split(key)
    z, t = np.asarray(jax.random.normal(noise_key, (B, 2))), np.asarray(jax.random.uniform(time_key, (B, 1)))
    velocity = mlp(agent.flow, batch.obs, (1 - t) * z + t * batch.action, t, activation=gelu)
    close(fql.flow_loss(agent.flow, agent, batch, key, args), ((velocity - (batch.action - z)) ** 2).mean())


@both
@pytest.mark.parametrize("normalize_q", [True, False])
def test_fql_actor_is_distilled_from_the_clipped_flow(name, batch, normalize_q):
    fql = load(name)
    args = fql.Args(hidden_dims=(8, 8), batch_size=B, distillation_weight=3.0, flow_steps=4, normalize_q=normalize_q)
    agent, key = agent_of(fql, args), jax.random.key(6)
    z = np.asarray(jax.random.normal(key, (B, 2)))
    x = z.astype(np.float64)
    for i in range(4):
        x = x + mlp(agent.flow, batch.obs, x, np.full((B, 1), i / 4), activation=gelu) / 4
    action = mlp(agent.actor, batch.obs, z, activation=gelu)
    q = q_values(agent.critic, batch.obs, np.clip(action, -1, 1)).mean(0)
    lam = 1 / np.abs(q).mean() if normalize_q else 1.0
    expected = 3.0 * ((action - np.clip(x, -1, 1)) ** 2).mean() - lam * q.mean()
    close(fql.actor_loss(agent.actor, agent, batch, key, args)[0], expected)


def test_fql_settings_are_those_released():
    """README of seohongpark/fql at 719d044: state-based OGBench, D4RL's AntMaze and Adroit; 50 episodes everywhere."""
    theirs = table(
        """
        antmaze-large-navigate-singletask-v0 10 min 0.99
        antmaze-giant-navigate-singletask-task3-v0 10 min 0.995
        humanoidmaze-medium-navigate-singletask-v0 30 mean 0.995
        humanoidmaze-large-navigate-singletask-task1-v0 30 mean 0.995
        antsoccer-arena-navigate-singletask-v0 10 mean 0.995
        cube-single-play-singletask-v0 300 mean 0.99
        cube-double-play-singletask-task2-v0 300 mean 0.99
        scene-play-singletask-v0 300 mean 0.99
        puzzle-3x3-play-singletask-v0 1000 mean 0.99
        puzzle-4x4-play-singletask-task4-v0 1000 mean 0.99
        antmaze-umaze-v2 10 mean 0.99
        antmaze-umaze-diverse-v2 10 mean 0.99
        antmaze-medium-play-v2 10 mean 0.99
        antmaze-medium-diverse-v2 10 mean 0.99
        antmaze-large-play-v2 3 mean 0.99
        antmaze-large-diverse-v2 3 mean 0.99
        pen-human-v1 10000 min 0.99
        pen-cloned-v1 10000 min 0.99
        pen-expert-v1 3000 min 0.99
        door-human-v1 30000 min 0.99
        door-cloned-v1 30000 min 0.99
        door-expert-v1 30000 min 0.99
        hammer-human-v1 30000 min 0.99
        hammer-cloned-v1 10000 min 0.99
        hammer-expert-v1 30000 min 0.99
        relocate-human-v1 10000 min 0.99
        relocate-cloned-v1 30000 min 0.99
        relocate-expert-v1 30000 min 0.99
        """,
        distillation_weight=float, q_aggregation=str, discount=float,
    )  # fmt: skip
    for dataset, row in theirs.items():
        d4rl = "singletask" not in dataset
        row |= {"normalize_q": False, "eval_episodes": 50, "updates": 500_000 if d4rl else 1_000_000}
        row |= {"reward_shift": -1.0 if d4rl and dataset.startswith("antmaze") else 0.0}
    assert not wrong_settings(load("fql"), theirs)
    assert not wrong_settings(load("fql"), every(["hopper-medium-v2"], normalize_q=True))
