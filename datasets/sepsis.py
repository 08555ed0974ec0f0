"""Data of ICUSepsis-v0: `icu-sepsis-<kind>`, patients treated by clinicians, at random, or by a mixture of policies."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from environments.icu_sepsis import ACTIONS, DEATH, STATES, SepsisFunctional, action_values, policy_of_clinicians
from episodes import Recipe, cut
from minari.data_collector import EpisodeBuffer

from shared.errors import InputError
from shared.task import registered_env

KINDS = {
    "clinicians": ("the clinicians' estimated policy", {"clinicians": 1.0}),
    "random": ("uniform actions", {"random": 1.0}),
    "mixed": (
        "uniform actions (60 % of the steps), the clinicians' policy (30 %), the best one (10 %)",
        {"random": 0.6, "clinicians": 0.3, "best": 0.1},
    ),
}
BATCH = 512
"""Patients of one compiled call."""


def policy_of(who: str) -> np.ndarray:
    """[S, A]"""
    if who == "best":
        return np.eye(ACTIONS)[action_values(1.0).argmax(1)]
    return policy_of_clinicians() if who == "clinicians" else np.full((STATES, ACTIONS), 1.0 / ACTIONS)


def recipe(name: str, env_id: str) -> Recipe:
    """`icu-sepsis-<kind>`.

    Raises:
      InputError: no such kind.
    """
    kind = name.rsplit("-", 1)[1]
    if kind not in KINDS:
        raise InputError(f"{name}: there is no kind '{kind}' of data of ICU-Sepsis; choose from {', '.join(KINDS)}.")
    spec = registered_env(env_id)
    return Recipe(
        env=spec,
        eval_env=spec,
        steps=20_000,
        policy=KINDS[kind][0],
        collect=partial(collect, KINDS[kind][1], spec.max_episode_steps),
        reference=env_id,
        expert="the best policy, by value iteration",
        returns=None,
    )


def collect(shares: dict[str, float], limit: int, steps: int, seed: int) -> list[EpisodeBuffer]:
    """Episodes of each policy in its turn; the last one of each is cut at its share of the steps."""
    episodes = []
    for number, (who, share) in enumerate(shares.items()):
        left, key = round(share * steps), jax.random.fold_in(jax.random.key(seed), number)
        log_policy = np.log(np.maximum(policy_of(who), 1e-30)).astype(np.float32)
        first = 0
        while left > 0:
            keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(first, first + BATCH))
            states, actions, rewards = map(np.asarray, _play(keys, log_policy, limit))
            for e in range(BATCH):
                if left <= 0:
                    break
                episodes.append(cut(_episode(states[e], actions[e], rewards[e]), left))
                left -= len(episodes[-1])
            first += BATCH
    return episodes


@partial(jax.jit, static_argnames="limit")
def _play(keys: jax.Array, log_policy: jax.Array, limit: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """States [N, limit + 1], actions and rewards [N, limit] of one patient for each key; what ended stays."""
    env = SepsisFunctional("state")

    def patient(key):
        def step(state, key):
            action_key, next_key, reward_key = jax.random.split(key, 3)
            action = jax.random.categorical(action_key, log_policy[state])
            new = jnp.where(state >= DEATH, state, env.transition(state, action, next_key))
            return new, (new, action, env.reward(state, action, new, reward_key))

        first_key, key = jax.random.split(key)
        first = env.initial(first_key)
        states, actions, rewards = jax.lax.scan(step, first, jax.random.split(key, limit))[1]
        return jnp.append(first, states), actions, rewards

    return jax.vmap(patient)(keys)


def _episode(states: np.ndarray, actions: np.ndarray, rewards: np.ndarray) -> EpisodeBuffer:
    """One patient until the end or the limit."""
    ended = states[1:] >= DEATH
    n = int(ended.argmax()) + 1 if ended.any() else len(actions)
    last = np.arange(n) == n - 1
    return EpisodeBuffer(
        observations=states[: n + 1].astype(np.int64),
        actions=actions[:n].astype(np.int64),
        rewards=rewards[:n].astype(np.float32),
        terminations=last & ended[n - 1],
        truncations=last & ~ended[n - 1],
    )
