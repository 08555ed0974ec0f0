"""ICUSepsis-v0: the treatment of sepsis in intensive care as an exact Markov decision process of 716 states.

Choudhary, Gupta and Thomas, "ICU-Sepsis: A Benchmark MDP Built from Real Medical Data", RLC 2024, arXiv 2406.05646:
transitions estimated from the records of intensive care units, clustered into states; 25 actions are doses of fluids
and vasopressors. No patient is in it: the file holds probabilities (icu-sepsis/icu-sepsis, MIT licence). The reward is
1 for survival, which ends the episode as death does. Everything is known, so that values are exact.
"""

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.envs.functional_jax_env import FunctionalJaxEnv
from gymnasium.experimental.functional import FuncEnv

FILE = Path(__file__).resolve().parents[1] / "mdp" / "icu_sepsis_dynamics.npz"
STATES, ACTIONS = 716, 25
DEATH, SURVIVAL = 713, 714
"""States in which an episode ends (the 715 of the file, that both lead to, is not entered)."""


class Dynamics(NamedTuple):
    """The rows of the transition matrix, each distribution once: states share many of theirs."""

    row: np.ndarray
    """[S, A] int32: which distribution a state and an action have"""
    following: np.ndarray
    """[R, K] int32: the states that it leads to"""
    cumulative: np.ndarray
    """[R, K] float32: the probability of these and the ones before them"""
    start: np.ndarray
    """[S] float32: the same of first states"""
    features: np.ndarray
    """[S, 47] float32: centres of the clusters of patients' measurements, standardised over the states"""


@lru_cache
def tables() -> tuple[np.ndarray, np.ndarray]:
    """Transitions [S, A, S] and first states [S], in float64."""
    with np.load(FILE, allow_pickle=False) as file:
        return file["tx_mat"], file["d_0"]


def policy_of_clinicians() -> np.ndarray:
    """[S, A]: estimated from the records; uniform where they have no action of a state."""
    with np.load(FILE, allow_pickle=False) as file:
        policy = file["expert_policy"]
    total = policy.sum(1, keepdims=True)
    return np.where(total > 0, policy / np.where(total > 0, total, 1.0), 1.0 / ACTIONS)


@lru_cache
def dynamics() -> Dynamics:
    transitions, start = tables()
    seen: dict[bytes, int] = {}
    flat = transitions.reshape(-1, STATES)
    row = np.array([seen.setdefault(one.tobytes(), len(seen)) for one in flat], np.int32)
    distinct = flat[np.unique(row, return_index=True)[1]]
    width = int((distinct > 0).sum(1).max())
    following = np.argsort(distinct <= 0, axis=1, kind="stable")[:, :width].astype(np.int32)
    cumulative = np.take_along_axis(distinct, following, axis=1).cumsum(1)
    with np.load(FILE, allow_pickle=False) as file:
        features = file["state_cluster_centers"]
    features = (features - features.mean(0)) / np.where(features.std(0) > 0, features.std(0), 1.0)
    return Dynamics(
        row.reshape(STATES, ACTIONS),
        following,
        np.where(cumulative > 1 - 1e-9, 2.0, cumulative).astype(np.float32),  # no draw lies above the last one
        np.where(start.cumsum() > 1 - 1e-9, 2.0, start.cumsum()).astype(np.float32),
        features.astype(np.float32),
    )


def action_values(discount: float, policy: np.ndarray | None = None) -> np.ndarray:
    """Q [S, A] in float64: of a policy [S, A], or without one of the best; 0 where episodes have ended.

    By linear equations, and by policy iteration. Episodes end surely, so that a discount of 1 is possible.
    """
    transitions, _ = tables()
    if policy is not None:
        moves = np.einsum("sa,sat->st", policy[:DEATH], transitions[:DEATH])
        v = np.zeros(STATES)
        v[:DEATH] = np.linalg.solve(np.eye(DEATH) - discount * moves[:, :DEATH], moves[:, SURVIVAL])
        q = transitions[:, :, SURVIVAL] + discount * transitions @ v
        return np.where(np.arange(STATES)[:, None] < DEATH, q, 0.0)
    policy = np.full((STATES, ACTIONS), 1.0 / ACTIONS)
    while True:
        q = action_values(discount, policy)
        if (q.max(1) <= (policy * q).sum(1) + 1e-12).all():
            return q
        policy = np.eye(ACTIONS)[q.argmax(1)]


def expected_return(policy: np.ndarray, discount: float = 1.0) -> float:
    """Of a policy [S, A] from the first states on, exactly: the probability of survival without a discount."""
    return float(tables()[1] @ (policy * action_values(discount, policy)).sum(1))


class SepsisFunctional(FuncEnv):
    """The functions of one patient; the state is its number."""

    action_space = gym.spaces.Discrete(ACTIONS)

    def __init__(self, observation: str):
        super().__init__()
        if observation not in ("state", "features"):
            raise ValueError(f"no observation '{observation}'; choose from state, features")
        self.features = observation == "features"
        features = gym.spaces.Box(-np.inf, np.inf, dynamics().features.shape[1:], np.float32)
        self.observation_space = features if self.features else gym.spaces.Discrete(STATES)

    def initial(self, rng, params=None) -> jax.Array:
        return (jnp.asarray(dynamics().start) <= jax.random.uniform(rng)).sum()

    def transition(self, state, action, rng, params=None) -> jax.Array:
        known = dynamics()
        row = jnp.asarray(known.row)[state, action]
        return jnp.asarray(known.following)[row, (jnp.asarray(known.cumulative)[row] <= jax.random.uniform(rng)).sum()]

    def observation(self, state, rng, params=None):
        return jnp.asarray(dynamics().features)[state] if self.features else state

    def reward(self, state, action, next_state, rng, params=None):
        return jnp.float32((next_state == SURVIVAL) & (state < DEATH))

    def terminal(self, state, rng, params=None):
        return state >= DEATH

    def state_info(self, state, params=None) -> dict:
        return {"success": state == SURVIVAL}

    def transition_info(self, state, action, next_state, params=None) -> dict:
        """`success`: the patient survives."""
        return self.state_info(next_state)


class ICUSepsis(FunctionalJaxEnv):
    """One patient. Observations are the state's number, or its features."""

    metadata = {"render_modes": []}

    def __init__(self, render_mode: str | None = None, observation: str = "state"):
        """`observation`: "state" (a Discrete of 716, which is seen one-hot) or "features" (47 numbers)."""
        super().__init__(SepsisFunctional(observation), self.metadata, None)
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        obs, info = super().reset(seed=seed, options=options)
        return self._plain(obs), jax.tree.map(np.asarray, info)

    def step(self, action):
        obs, reward, terminal, truncated, info = super().step(np.int32(action))
        return self._plain(obs), float(reward), bool(terminal), bool(truncated), jax.tree.map(np.asarray, info)

    def _plain(self, obs):
        return np.asarray(obs) if self.func_env.features else np.int64(obs)

    def close(self):
        """Nothing is open."""


gym.register("ICUSepsis-v0", "environments.icu_sepsis:ICUSepsis", max_episode_steps=500, disable_env_checker=True)
