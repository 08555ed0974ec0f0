"""The losses of rebrac against the same equations in plain numpy."""

import jax
import numpy as np
import pytest
from conftest import load
from reference import B, agent_of, close, compiled, heads, mlp, smoothed_next_action
from released import table, wrong_settings


def test_rebrac_critic_penalises_the_next_action(batch):
    rebrac = compiled("rebrac")
    args = rebrac.Args(hidden_dims=(8, 8), batch_size=B, critic_bc=0.3)
    agent, key = agent_of(rebrac, args), jax.random.key(3)
    next_action = smoothed_next_action(agent, batch, key, args)
    target_q = heads(agent.target_critic, batch.next_obs, next_action, layer_norm=True).min(0)
    target_q = target_q - 0.3 * ((next_action - batch.next_action) ** 2).sum(-1)
    y = batch.reward + 0.99 * (1 - batch.terminal) * target_q
    q = heads(agent.critic, batch.obs, batch.action, layer_norm=True)
    close(rebrac.critic_loss(agent.critic, agent, batch, key, args)[0], ((q - y) ** 2).mean(1).sum())


def test_rebrac_actor_sums_over_dimensions_and_takes_the_least_critic(batch):
    rebrac = compiled("rebrac")
    args = rebrac.Args(hidden_dims=(8, 8), batch_size=B, actor_bc=0.4)
    agent = agent_of(rebrac, args)
    pi = np.tanh(mlp(agent.actor, batch.obs))
    q = heads(agent.critic, batch.obs, pi, layer_norm=True).min(0)
    expected = (0.4 * ((pi - batch.action) ** 2).sum(-1) - q / np.abs(q).mean()).mean()
    close(rebrac.actor_loss(agent.actor, agent, batch, args)[0], expected)


RELEASED = """
    antmaze-large-diverse-v2 0.002 0.002 0.0003 5e-05 256 0.999 100
    antmaze-large-play-v2 0.002 0.001 0.0003 5e-05 256 0.999 100
    antmaze-medium-diverse-v2 0.001 0.0 0.0003 5e-05 256 0.999 100
    antmaze-medium-play-v2 0.001 0.0005 0.0003 5e-05 256 0.999 100
    antmaze-umaze-diverse-v2 0.003 0.001 0.0003 5e-05 256 0.999 100
    antmaze-umaze-v2 0.003 0.002 0.0003 5e-05 256 0.999 100
    door-cloned-v1 0.01 0.1 0.0003 0.0003 256 0.99 10
    door-expert-v1 0.05 0.01 0.0003 0.0003 256 0.99 10
    door-human-v1 0.1 0.1 0.0003 0.0003 256 0.99 10
    halfcheetah-expert-v2 0.01 0.01 0.001 0.001 1024 0.99 10
    halfcheetah-full-replay-v2 0.001 0.1 0.001 0.001 1024 0.99 10
    halfcheetah-medium-expert-v2 0.01 0.1 0.001 0.001 1024 0.99 10
    halfcheetah-medium-replay-v2 0.01 0.001 0.001 0.001 1024 0.99 10
    halfcheetah-medium-v2 0.001 0.01 0.001 0.001 1024 0.99 10
    halfcheetah-random-v2 0.001 0.1 0.001 0.001 1024 0.99 10
    hammer-cloned-v1 0.1 0.5 0.0003 0.0003 256 0.99 10
    hammer-expert-v1 0.01 0.01 0.0003 0.0003 256 0.99 10
    hammer-human-v1 0.01 0.5 0.0003 0.0003 256 0.99 10
    hopper-expert-v2 0.1 0.1 0.001 0.001 1024 0.99 10
    hopper-full-replay-v2 0.01 0.01 0.001 0.001 1024 0.99 10
    hopper-medium-expert-v2 0.1 0.01 0.001 0.001 1024 0.99 10
    hopper-medium-replay-v2 0.05 0.5 0.001 0.001 1024 0.99 10
    hopper-medium-v2 0.01 0.01 0.001 0.001 1024 0.99 10
    hopper-random-v2 0.001 0.01 0.001 0.001 1024 0.99 10
    maze2d-large-v1 0.003 0.001 0.0003 0.0003 256 0.99 100
    maze2d-medium-v1 0.003 0.001 0.0003 0.0003 256 0.99 100
    maze2d-umaze-v1 0.003 0.001 0.0003 0.0003 256 0.99 100
    pen-cloned-v1 0.05 0.5 0.0003 0.0003 256 0.99 10
    pen-expert-v1 0.01 0.01 0.0003 0.0003 256 0.99 10
    pen-human-v1 0.1 0.5 0.0003 0.0003 256 0.99 10
    relocate-cloned-v1 0.1 0.01 0.0003 0.0003 256 0.99 10
    relocate-expert-v1 0.05 0.01 0.0003 0.0003 256 0.99 10
    relocate-human-v1 0.1 0.01 0.0003 0.0003 256 0.99 10
    walker2d-expert-v2 0.01 0.5 0.001 0.001 1024 0.99 10
    walker2d-full-replay-v2 0.01 0.01 0.001 0.001 1024 0.99 10
    walker2d-medium-expert-v2 0.01 0.01 0.001 0.001 1024 0.99 10
    walker2d-medium-replay-v2 0.05 0.01 0.001 0.001 1024 0.99 10
    walker2d-medium-v2 0.05 0.1 0.001 0.001 1024 0.99 10
    walker2d-random-v2 0.01 0.0 0.001 0.001 1024 0.99 10
"""


@pytest.mark.parametrize("name", ["rebrac", "rebrac_finetune"])
def test_rebrac_settings_are_those_released(name):
    """configs/offline/rebrac of corl-team/CORL at eeeeef2, whose reward normalisation is a factor of 100."""
    expected = table(
        RELEASED, actor_bc=float, critic_bc=float, actor_lr=float, critic_lr=float, batch_size=int, discount=float,
        eval_episodes=int,
    )  # fmt: skip
    common = {
        "tau": 0.005, "policy_noise": 0.2, "noise_clip": 0.5, "policy_delay": 2, "normalize_q": True,
        "actor_layer_norm": False, "critic_layer_norm": True, "hidden_dims": (256,) * 3, "critic_hidden_dims": (),
        "normalize_obs": False,
    }  # fmt: skip
    for dataset, row in expected.items():
        row |= {**common, "reward_scale": 100.0 if dataset.startswith("antmaze") else 1.0}
    assert len(expected) == 39
    maze = {k: v for k, v in expected["maze2d-umaze-v1"].items() if k != "eval_episodes"}
    assert not wrong_settings(load(name), {**expected, "pointmaze-umaze": maze, "D4RL/pointmaze/large-v2": maze})


@pytest.mark.parametrize("name", ["rebrac", "rebrac_finetune"])
def test_rebrac_depths_and_layer_norms_are_apart(name, batch):
    rebrac = compiled(name)
    args = rebrac.Args(
        hidden_dims=(8, 8), critic_hidden_dims=(6, 6, 6), batch_size=B, actor_layer_norm=True, critic_layer_norm=False
    )
    agent = agent_of(rebrac, args)
    pi = np.tanh(mlp(agent.actor, batch.obs, layer_norm=True))
    close(rebrac.act(agent, batch.obs, None, args), pi)
    q = heads(agent.critic, batch.obs, batch.action)
    close(rebrac.q_values(agent.nets.critic, agent.critic, batch.obs, batch.action), q)
    assert [len(net["params"]) for net in (agent.actor, agent.critic)] == [3 + 2, 4]
