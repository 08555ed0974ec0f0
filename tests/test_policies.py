"""Policies that carry something on: begun anew with every episode, told each reward, the same wherever they act."""

import dataclasses
import sys

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from shared import evaluation
from shared.evaluation import Evaluator, Policies, film
from shared.lanes import make_mesh, over_lanes
from shared.policies import PolicyIn, StatefulPolicy, at_step, policy_of, seen_by, stepped
from shared.task import Spec, Task, env_task, registered_env

FIRST = 10_000  # the seed of episode 0


class Tale(gym.Env):
    """Pays 1, 2, 3, ... and ends after a number of steps that depends on its seed; can be filmed."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,))
    action_space = gym.spaces.Box(-100.0, 100.0, (3,))
    actions: dict[int, list]

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        self.episode, self.t = seed - FIRST, 0
        type(self).actions[self.episode] = []
        return np.float32([self.episode]), {}

    def step(self, action):
        type(self).actions[self.episode].append(action.tolist())
        self.t += 1
        return np.float32([self.episode]), float(self.t), self.t == 2 + self.episode % 3, False, {}

    def render(self):
        return np.full((16, 16, 3), 40 * self.t, np.uint8)


gym.register("PoliciesTest/Tale-v0", Tale)
TASK = Task("tale", "", Spec((1,), 3, False, (-100.0,) * 3, (100.0,) * 3), registered_env("PoliciesTest/Tale-v0"))


def initial_carry(agent, args):
    return {"steps": agent.astype(jnp.int32), "seen": jnp.zeros(2)}


def act(agent, carry, obs, reward, key, args):
    """Tells how many steps it remembers, from the agent's number on, and the sums of what it saw and was paid."""
    steps, seen = carry["steps"] + 1, carry["seen"] + jnp.stack([obs[:, 0], reward], -1)
    return jnp.concatenate([steps[:, None], seen], -1) / 100.0, {"steps": steps, "seen": seen}


COUNTING = StatefulPolicy(initial_carry, act)


def expected(episode: int, agent: int) -> list[list[float]]:
    n = 2 + episode % 3
    paid = np.cumsum([0, *range(1, n)])
    return [[agent + t + 1, episode * (t + 1), paid[t]] for t in range(n)]


@pytest.mark.parametrize("most", [256, 2])
@pytest.mark.parametrize("layout", ["map", "vmap"])
def test_what_is_carried_belongs_to_one_environment_and_one_episode(most, layout, monkeypatch):
    """Seven episodes of different lengths, also where an environment plays several of them."""
    monkeypatch.setattr(evaluation, "MAX_ENVS", most)
    mesh = make_mesh(1)
    for agent in (0, 40):  # one lane, so that the episodes can be told apart
        Tale.actions = {}
        evaluator = Evaluator(
            TASK, at_step(COUNTING), lambda f, axes: over_lanes(f, mesh, axes, layout=layout), 1, 1, episodes=7
        )
        keys = jax.random.split(jax.random.key(0), 1)
        returns = evaluator(jnp.float32([agent]), keys, jnp.zeros(1)).returns
        assert returns.tolist() == [[sum(range(1, 3 + e % 3)) for e in range(7)]]
        for e in range(7):
            np.testing.assert_allclose(Tale.actions[e], expected(e, agent), rtol=1e-5, atol=1e-4)


def test_one_policy_in_one_environment(tmp_path):
    """By hand, and on film; a reward that is not told, or an episode that is not begun, does not pass unseen."""
    Tale.actions = {}
    policies = Policies(TASK, [{"seed": 0}, {"seed": 1}], jnp.float32([0.0, 40.0]), jnp.zeros(2), COUNTING)
    policy, env = policies.act_in(1), TASK.make_env()
    for episode in (3, 1):
        policy.reset()
        obs, reward, over = env.reset(seed=FIRST + episode)[0], None, False
        while not over:
            obs, reward, over, *_ = env.step(policy(obs, reward))
        np.testing.assert_allclose(Tale.actions[episode], expected(episode, 40), rtol=1e-5, atol=1e-4)
    with pytest.raises(ValueError, match="reset"):
        policy(obs)
    Tale.actions = {}
    assert film(policies, 0, tmp_path / "tale.gif") == 3.0
    np.testing.assert_allclose(Tale.actions[0], expected(0, 0), rtol=1e-5, atol=1e-4)


def random_walker(task: Task) -> StatefulPolicy:
    """What it does depends on its lane, its keys, and on all that it has seen and was paid in the episode."""

    def act(agent, carry, obs, reward, key, args):
        carry = 0.9 * carry + obs[:, :2] * agent + reward[:, None]
        return jnp.tanh(carry + jax.random.normal(key, (len(obs), task.spec.action_dim))), carry

    return StatefulPolicy(lambda agent, args: jnp.ones(2) * agent, act)


def test_the_compiled_evaluation_carries_what_gymnasiums_does(monkeypatch):
    monkeypatch.setattr(evaluation, "MAX_ENVS", 4)
    task = env_task("PointUMaze-v0")
    options = {"reward": "dense", "start": "sampled", "goal_radius": 1.5}
    task = dataclasses.replace(task, env_spec=registered_env("PointUMaze-v0", options, 12))
    inputs = jnp.float32([0.3, -0.2]), jax.random.split(jax.random.key(1), 2), jnp.zeros(2)
    mesh, policy = make_mesh(1), at_step(random_walker(task))

    def play(layout):
        evaluator = Evaluator(task, policy, lambda f, axes: over_lanes(f, mesh, axes, layout=layout), 2, 2, 5)
        found = evaluator(*inputs)
        return len(evaluator.envs), found

    compiled = [play(layout) for layout in ("map", "vmap")]
    monkeypatch.setattr(evaluation, "jax_env", lambda task, env: None)
    envs, wanted = play("map")
    assert envs == 4 and len(np.unique(wanted.lengths)) > 1
    for envs, found in compiled:
        assert envs == 1
        np.testing.assert_array_equal(found.lengths, wanted.lengths)
        np.testing.assert_allclose(found.returns, wanted.returns, rtol=1e-4)


def test_goals_are_taken_apart_for_both_kinds_of_policies():
    task = dataclasses.replace(TASK, spec=TASK.spec._replace(obs_shape=(2,), goal_shape=(1,)))
    seen, key = jnp.float32([[1, 2, 3]]), jax.random.key(0)
    action = seen_by(lambda agent, obs, goal, key, args: (obs, goal, args), task)(None, seen, key, 5)
    assert [np.asarray(x).tolist() for x in action] == [[[1, 2]], [[3]], 5]

    def act(agent, carry, obs, goal, reward, key, args):
        return (obs, goal, reward, args), carry + 1

    policy = seen_by(StatefulPolicy(None, act), task)
    action, carry = policy.act(None, 7, seen, 4.0, key, 5)
    assert [np.asarray(x).tolist() for x in action] == [[[1, 2]], [[3]], 4.0, 5] and carry == 8


def test_a_files_policy_carries_something_if_the_file_says_so():
    assert policy_of(sys.modules[__name__]) == COUNTING
    plain = type("Plain", (), {"act": staticmethod(act)})
    assert policy_of(plain) is act
    assert stepped(act).begin(None, None, 3) == () and not PolicyIn(act, None, None, TASK).remembers
