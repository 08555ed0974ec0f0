"""The losses of bc against the same equations in plain numpy."""

import jax.numpy as jnp
import numpy as np
from conftest import load
from reference import B, agent_of, close, log_std_of, mlp
from released import ADROIT, ANTMAZE, MAZE2D, MUJOCO, every, wrong_settings
from scipy.special import logsumexp
from scipy.stats import norm

from shared.data import load_dataset
from shared.task import Spec


def test_bc_deterministic_is_a_mean_over_batch_and_dimensions(batch):
    bc = load("bc")
    args = bc.Args(hidden_dims=(8, 8), batch_size=B)
    agent = agent_of(bc, args)
    expected = ((np.tanh(mlp(agent.actor, batch.obs)) - batch.action) ** 2).mean()
    close(bc.actor_loss(agent.actor, agent, batch, args)[0], expected)


def test_bc_gaussian_sums_the_log_density_over_dimensions(batch):
    bc = load("bc")
    args = bc.Args(hidden_dims=(8, 8), batch_size=B, head="gaussian")
    agent = agent_of(bc, args)
    mean = np.tanh(mlp(agent.actor, batch.obs))
    expected = -norm.logpdf(batch.action, mean, np.exp(log_std_of(agent.actor))).sum(-1).mean()
    close(bc.actor_loss(agent.actor, agent, batch, args)[0], expected)


def test_bc_categorical_is_the_cross_entropy(batch):
    bc = load("bc")
    args = bc.Args(hidden_dims=(8, 8), batch_size=B)
    agent = agent_of(bc, args, Spec((3,), 4, True))
    action = np.array([0, 3, 1, 1, 2])
    logits = mlp(agent.actor, batch.obs)
    expected = -(logits[np.arange(B), action] - logsumexp(logits, -1)).mean()
    close(bc.actor_loss(agent.actor, agent, batch._replace(action=jnp.array(action)), args)[0], expected)


def test_bc_settings_are_those_released():
    """configs/offline/bc and bc_10 of corl-team/CORL at eeeeef2."""
    common = {"sort_discount": 1.0, "batch_size": 256, "actor_lr": 3e-4, "normalize_obs": True, "updates": 1_000_000}
    expected = {
        **every(MUJOCO + ADROIT, **common, eval_episodes=10),
        **every(MAZE2D + ANTMAZE, **common, eval_episodes=100),
    }
    assert not wrong_settings(load("bc"), expected)


def test_bc_best_episodes_are_those_of_the_highest_undiscounted_return(tmp_path):
    """A reward that comes late counts in full: at discount 0.5 the other episode would be the best one."""
    n = np.arange(20)
    reward = np.float32(n % 10 == 9) * np.where(n < 10, 0, 3) + np.float32(n % 10 == 0) * np.where(n < 10, 2, 0)
    path = tmp_path / "two.npz"
    np.savez(
        path, observations=np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32),
        actions=np.zeros((20, 1), np.float32), rewards=reward.astype(np.float32), timeouts=n % 10 == 9,
        terminals=np.zeros(20, bool),
    )  # fmt: skip
    data, args = load_dataset(str(path)), load("bc").Args()
    assert data.top_episodes(0.5, args.sort_discount).reward.sum() == 3
    assert data.top_episodes(0.5, 0.5).reward.sum() == 2
