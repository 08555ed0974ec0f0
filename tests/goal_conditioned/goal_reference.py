"""What the tests of goal-conditioned losses share: sizes, a batch with goals, log-densities in plain numpy."""

import numpy as np
from reference import B
from scipy.stats import norm

from shared.goals import GoalBatch
from shared.task import Spec

GOAL_SPEC = Spec((3,), 2, False, (-1.0, -1.0), (1.0, 1.0), goal_shape=(2,))
STATE_SPEC = GOAL_SPEC._replace(goal_shape=(3,))
DISCRETE_SPEC = Spec((3,), 4, True, goal_shape=(2,))
TINY = {"hidden_dims": (8, 8), "batch_size": B}


def goal_batch(goal_dim: int = 2, discrete: bool = False) -> GoalBatch:
    """Five transitions of 3 observations and 2 actions (or 4 discrete ones); two achieve their goal."""
    r = np.random.default_rng(0)
    terminal = np.float32([0, 1, 0, 0, 1])
    return GoalBatch(
        obs=r.normal(size=(B, 3)).astype(np.float32),
        action=r.integers(0, 4, B) if discrete else r.uniform(-0.9, 0.9, (B, 2)).astype(np.float32),
        next_obs=r.normal(size=(B, 3)).astype(np.float32),
        goal=r.normal(size=(B, goal_dim)).astype(np.float32),
        terminal=terminal,
        reward=terminal - 1.0,
        actor_goal=r.normal(size=(B, goal_dim)).astype(np.float32),
    )


def unit_log_prob(action, mean):
    """log N(action; mean, 1) summed over dimensions [B]."""
    return norm.logpdf(action, mean).sum(-1)


def softmax_log_prob(action, logits):
    """[B]"""
    return logits[np.arange(len(action)), action] - np.log(np.exp(logits).sum(-1))


def steps_to_goals(data, obs, goal) -> np.ndarray:
    """Rows between states and the goals ahead of them, of the first five rows of write_goals' episodes of 30."""
    row_of = {tuple(x): i for i, x in enumerate(np.asarray(data.take(np.arange(300)).obs))}
    row, goal_row = (np.array([row_of[tuple(x)] for x in np.asarray(of)]) for of in (obs, goal))
    return (goal_row - row)[row % 30 < 5]
