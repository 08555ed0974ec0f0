"""MinAtar's Breakout: as pgx plays it, a recipe of discrete actions; without pgx, one sentence."""

import sys

import gymnasium as gym
import jax
import numpy as np
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "datasets"))
import environments  # noqa: F401
import minatar
from environments.breakout import GRID, STEPS, BreakoutFunctional


def test_without_pgx_the_game_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pgx", None)
    with pytest.raises(gym.error.DependencyNotInstalled, match=r"pip install pgx==2\.6\.0"):
        gym.make("MinAtarBreakout-v0")


def test_the_paddle_moves_to_the_balls_column():
    def seen(paddle, ball):
        grid = np.zeros(GRID, np.float32)
        grid[9, paddle, 0], grid[4, ball, 1] = 1, 1
        return grid.reshape(-1)

    assert [int(minatar.follow(seen(5, ball))) for ball in (2, 5, 8)] == [1, 0, 2]


def test_games_end_where_pgx_ends_them_and_who_follows_the_ball_lasts():
    pytest.importorskip("pgx")
    obs, action, reward, terminal = map(
        np.asarray, jax.jit(minatar.play)(jax.random.split(jax.random.key(0), 16), np.repeat([0.0, 1.0], 8))
    )
    assert obs.shape == (STEPS + 1, 16, 400) and set(np.unique(obs)) == {0.0, 1.0}
    assert set(np.unique(action)) == {0, 1, 2}
    ends = np.where(terminal.any(0), terminal.argmax(0), STEPS)
    assert ends[8:].mean() > 5 * ends[:8].mean()
    for g in range(8):  # of one that plays at random: the rewards are the bricks that went
        bricks = obs[: ends[g] + 2, g].reshape(-1, *GRID)[..., 3].sum((1, 2))
        np.testing.assert_array_equal(-np.diff(bricks), reward[: ends[g] + 1, g])
    episodes = minatar.collect(300, seed=0)
    assert sum(map(len, episodes)) == 300
    assert [e.terminations[-1] for e in episodes[:-1]] == [len(e) < STEPS for e in episodes[:-1]]
    assert all(e.actions.dtype == np.int64 and len(e.observations) == len(e) + 1 for e in episodes)
    game = BreakoutFunctional()
    assert game.initial(jax.random.key(0)).legal_action_mask.shape == (game.action_space.n,)
