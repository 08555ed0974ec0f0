"""HiddenTeam-v0: rock, paper, scissors against a team of three that takes turns in an order which must be found out.

The other side's team is three elements, each drawn by itself at the start and never shown. They come one after the
other, round and round; with probability 0.1 any element comes in place of the next one. Each turn both sides show an
element: 1 beats 0, 2 beats 1, 0 beats 2, and who is beaten is hit. Who is hit five times first has lost; after 20 turns
it is who was hit more often. An observation is the element that the other side has shown last (one of three; none at
the first turn), the shares of five hits that were given and taken, and the share of the turns that is over. The last
element tells nothing of the next one; the one that was shown three turns ago does. The reward is 0.1 for a hit, -0.1
for being hit, and at the end 1 for a victory, -1 for a defeat, 0 for a draw.
"""

from typing import NamedTuple

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.envs.functional_jax_env import FunctionalJaxEnv
from gymnasium.experimental.functional import FuncEnv

ELEMENTS, TEAM, HITS, TURNS = 3, 3, 5, 20
NOISE = 0.1
"""Probability of a uniform element in place of the team's next one."""


class State(NamedTuple):
    team: jax.Array
    """[3] elements in their order"""
    shown: jax.Array
    """[] the last one that was shown; 3: none yet"""
    given: jax.Array
    """[] hits so far"""
    taken: jax.Array
    turn: jax.Array
    """[] from 0"""


class HiddenTeamFunctional(FuncEnv):
    """In JAX."""

    action_space = gym.spaces.Discrete(ELEMENTS)
    observation_space = gym.spaces.Box(0.0, 1.0, (ELEMENTS + 3,), np.float32)

    def initial(self, rng, params=None) -> State:
        zero = jnp.int32(0)
        return State(jax.random.randint(rng, (TEAM,), 0, ELEMENTS), jnp.int32(ELEMENTS), zero, zero, zero)

    def transition(self, state, action, rng, params=None) -> State:
        any_key, which_key = jax.random.split(rng)
        drawn = jax.random.randint(which_key, (), 0, ELEMENTS)
        shown = jnp.where(jax.random.uniform(any_key) < NOISE, drawn, state.team[state.turn % TEAM])
        given, taken = state.given + beats(action, shown), state.taken + beats(shown, action)
        return State(state.team, shown, given, taken, state.turn + 1)

    def observation(self, state, rng, params=None):
        shares = jnp.stack([state.given / HITS, state.taken / HITS, state.turn / TURNS])
        return jnp.concatenate([jax.nn.one_hot(state.shown, ELEMENTS), shares]).astype(jnp.float32)

    def reward(self, state, action, next_state, rng, params=None):
        ahead = next_state.given - next_state.taken
        end = jnp.where(self.terminal(next_state, rng), jnp.sign(ahead), 0)
        return 0.1 * (ahead - state.given + state.taken) + end

    def terminal(self, state, rng, params=None):
        return (jnp.maximum(state.given, state.taken) >= HITS) | (state.turn >= TURNS)


def beats(one, other):
    """Whether an element beats another."""
    return (one - other) % ELEMENTS == 1


class HiddenTeam(FunctionalJaxEnv):
    """One game."""

    metadata = {"render_modes": []}

    def __init__(self, render_mode: str | None = None):
        super().__init__(HiddenTeamFunctional(), self.metadata, None)


gym.register("HiddenTeam-v0", f"{__name__}:HiddenTeam", max_episode_steps=TURNS, disable_env_checker=True)
