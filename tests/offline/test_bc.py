"""The losses of bc against the same equations in plain numpy."""

import jax.numpy as jnp
import numpy as np
from conftest import load
from reference import B, agent_of, close, log_std_of, mlp
from scipy.special import logsumexp
from scipy.stats import norm

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
