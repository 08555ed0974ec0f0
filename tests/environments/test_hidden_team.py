"""HiddenTeam and its data: a game whose other side must be remembered."""

import gymnasium as gym
import jax
import jax.numpy as jnp
import make  # of datasets/
import numpy as np
import teams  # of datasets/
from environments.hidden_team import HiddenTeamFunctional, State, beats

from shared.data import load_dataset


def test_paper_beats_rock_scissors_paper_and_rock_scissors():
    table = [[bool(beats(one, other)) for other in range(3)] for one in range(3)]
    assert table == [[False, False, True], [True, False, False], [False, True, False]]


def test_a_game_by_hand():
    f = HiddenTeamFunctional()
    state = State(jnp.array([0, 2, 2]), jnp.int32(2), jnp.int32(4), jnp.int32(4), jnp.int32(3))
    assert f.observation(state, None).tolist() == np.float32([0, 0, 1, 0.8, 0.8, 0.15]).tolist()
    key = next(k for k in map(jax.random.key, range(9)) if jax.random.uniform(jax.random.split(k)[0]) > 0.1)
    for action, given, taken, reward in ((1, 5, 4, 1.1), (2, 4, 5, -1.1), (0, 4, 4, 0.0)):  # the team's 0 is next
        new = f.transition(state, action, key)
        assert (int(new.shown), int(new.given), int(new.taken), int(new.turn)) == (0, given, taken, 4)
        np.testing.assert_allclose(f.reward(state, action, new, None), reward, rtol=1e-6)
        assert bool(f.terminal(new, None)) == (action != 0)
    late = state._replace(given=jnp.int32(1), turn=jnp.int32(19))
    new = f.transition(late, 0, key)
    np.testing.assert_allclose(f.reward(late, 0, new, None), -0.9, rtol=1e-6)
    assert bool(f.terminal(new, None))


def test_the_last_element_tells_nothing_and_that_of_three_turns_ago_does():
    env = gym.make("HiddenTeam-v0")
    pairs = []
    for seed in range(40):
        obs, _ = env.reset(seed=seed)
        assert obs.tolist() == [0] * 6
        shown, over = [], False
        while not over:
            obs, _, over, cut, _ = env.step(np.random.default_rng(seed).integers(3))
            shown.append(int(obs[:3].argmax()))
            assert not cut or len(shown) == 20
        pairs += [(shown[t], shown[t - 1], shown[t - 3]) for t in range(3, len(shown))]
    now, last, ago = np.array(pairs).T
    assert (now == ago).mean() > 0.75 and (now == last).mean() < 0.5


def test_only_adepts_win():
    rewards = {
        kind: np.mean([next(games).rewards.sum() for _ in range(200)])
        for kind, games in ((k, teams.games(1, tuple(np.eye(3)[k]), teams.DISTRACTED)) for k in range(3))
    }
    assert rewards[0] > 0.5 and rewards[2] < -0.5 and abs(rewards[1]) < 0.5
    make.make("hidden-team-mixed", steps=300)
    data = load_dataset("hidden-team-mixed")
    assert len(data.obs) == 300 and data.terminal[data.ends()[:-1]].all()
    assert set(data.action.tolist()) == {0, 1, 2} and np.abs(data.episode_returns()).max() <= 1.5
