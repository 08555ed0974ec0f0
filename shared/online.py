"""Interaction: one environment per lane, the replay buffer on the device, and the compiled step between them.

Every environment step of all lanes is one compiled call: insert the transitions, sample, update, choose the next
actions. Environments written in JAX (gymnasium's FuncEnv) take a path in which whole chunks of steps compile,
the environment included. Time limits are not terminal: the true last observation of a truncated episode is stored
as its `next_obs`, and the first observation of the next episode never is.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from shared.checks import other_rewards
from shared.errors import InputError, environment_fails
from shared.jax_envs import jax_env, move
from shared.policies import Policy, StatefulPolicy
from shared.replay import init_replay
from shared.run import Run
from shared.task import MAX_EPISODE_STEPS, Task, require_env
from shared.transitions import FIELDS, Transitions

# ----------------------------------------------------------------------------------- environments


MAX_CHUNK = 50
"""Environment steps, where each takes its time, between two looks at the signals."""


class LaneEnvs:
    """One environment per lane. A finished one is reset at once; its true last observation is kept.

    Episode e of a lane is reset with a seed made of (lane's seed, e), so that `state` (the actions since then) is
    enough to bring any environment whose randomness comes from its seed back to where it was.
    """

    def __init__(self, task: Task, seeds: list[int]):
        """`seeds` [L] of the lanes."""
        self.task, self.seeds = require_env(task), seeds
        self.envs = [task.make_env() for _ in seeds]
        lanes, spec = len(seeds), task.spec
        limit = (
            task.env_spec and task.env_spec.max_episode_steps
        ) or MAX_EPISODE_STEPS  # of an episode that can be restored
        self.episode = np.zeros(lanes, np.int64)
        self.length = np.zeros(lanes, np.int64)
        shape, kind = ((), np.int32) if spec.discrete else ((spec.action_dim,), np.float32)
        self.actions = np.zeros((lanes, limit, *shape), kind)
        """[L, T, A] of the episodes that go on"""
        self.obs = np.stack([self._reset(i) for i in range(lanes)])
        """[L, O]"""
        self.ended = np.zeros(lanes, bool)
        """[L] whose last step ended an episode"""

    def _reset(self, i: int) -> np.ndarray:
        seed = np.random.SeedSequence([self.seeds[i], int(self.episode[i])]).generate_state(1)[0]
        self.length[i] = 0
        with self._failing():
            return self.task.observe(self.envs[i].reset(seed=int(seed))[0])

    def _failing(self):
        return environment_fails(
            self.task.env_spec.id, "in the interaction; --resume goes on from the last checkpoint, if there is one"
        )

    def step(self, actions: np.ndarray) -> np.ndarray:
        """Steps every lane with `actions` [L, A], clipped to [-1, 1]; the transitions as rows [L, D] (data.FIELDS)."""
        lanes = len(self.envs)
        actions = np.asarray(actions)
        actions = actions if self.task.spec.discrete else np.clip(actions, -1.0, 1.0)
        env_actions = self.task.to_env(actions)
        obs, next_obs = self.obs, np.empty_like(self.obs)
        reward, terminal = np.zeros((lanes, 1), np.float32), np.zeros((lanes, 1), np.float32)
        self.obs, self.ended = np.empty_like(obs), np.zeros(lanes, bool)
        for i, env in enumerate(self.envs):
            with self._failing():
                new, r, terminated, truncated, _ = env.step(env_actions[i])
                next_obs[i] = self.obs[i] = self.task.observe(new)
                reward[i], terminal[i] = self.task.training_reward(r), terminated
            if self.length[i] < self.actions.shape[1]:
                self.actions[i, self.length[i]] = actions[i]
            self.length[i] += 1
            if terminated or truncated:
                self.ended[i] = True
                self.episode[i] += 1
                self.obs[i] = self._reset(i)
        return np.concatenate([obs, actions.reshape(lanes, -1), reward, terminal, next_obs], axis=1)

    def state(self) -> dict[str, np.ndarray]:
        """For a checkpoint."""
        return {n: getattr(self, n).copy() for n in ("episode", "length", "actions", "obs")}

    def restore(self, state: dict[str, np.ndarray]) -> np.ndarray:
        """Plays the episodes of `state` again up to where they were; returns which lanes [L] are there.

        An environment that does not come back there (its randomness is not its seed's) starts its next episode.
        """
        self.episode, lengths = np.array(state["episode"]), np.array(state["length"])
        restored = np.ones(len(lengths), bool)
        for i, env in enumerate(self.envs):
            obs, same = self._reset(i), lengths[i] <= self.actions.shape[1]
            for action in self.task.to_env(np.array(state["actions"][i, : lengths[i]])) if same else ():
                with self._failing():
                    new, _, terminated, truncated, _ = env.step(action)
                obs, same = self.task.observe(new), not (terminated or truncated)
                if not same:
                    break
            if same and np.array_equal(obs, state["obs"][i]):
                self.length[i], self.actions[i] = lengths[i], state["actions"][i]
            else:
                tqdm.write(f"Lane {i}: {self.task.env_spec.id} cannot be restored; a new episode begins.", sys.stderr)
                self.episode[i] += 1
                obs, restored[i] = self._reset(i), False
            self.obs[i] = obs
        return restored


# ------------------------------------------------------------------------------------ interaction


class Interaction:
    """The online part of a run: environments, replay buffers, and the compiled step of all lanes.

    The functions are one lane's, and the algorithm's:
      explore(agent, obs [1, O], key, args) -> action [1, A]: what is done in the environment; or a StatefulPolicy,
        whose carry goes from step to step and begins anew with every episode (and after a random warm-up);
      sample(key, data, replay, args) -> batch: of any shape; `data` is the dataset's Transitions or None;
      update(agent, batch, key, args, t) -> (agent, metrics): what is learned from it after environment step t,
        which is the same in all lanes and may steer a lax.cond.
    """

    def __init__(
        self,
        run: Run,
        data: Transitions | None,
        explore: Policy,
        sample: Callable,
        update: Callable,
        *,
        task: Task | None = None,
        warmup: int = 0,
        random_warmup: bool = False,
        updates_per_step: int = 1,
        capacity: int = 1_000_000,
        return_to_go: Callable | None = None,
    ):
        """`task`: to interact with, if it is not the one that is evaluated.

        `warmup`: environment steps before the first update, with uniform actions (in these alone) if `random_warmup`.
        `updates_per_step`: gradient updates that `update` makes (for the log).
        `return_to_go`: (rewards [T], steps, terminated, args) -> [T] of an episode of so many steps (rewards are 0
        behind them), a further column of the replay buffer, whose transitions may be sampled only when their episode
        has ended.
        """
        self.run, self.data, self.task = run, data, require_env(task or run.task)
        self.warmup, self.updates_per_step, self.return_to_go = warmup, updates_per_step, return_to_go
        spec, lanes = self.task.spec, len(run.padded_settings)
        fields = FIELDS + (("return_to_go",) if return_to_go else ())
        limit = self.task.env_spec.max_episode_steps
        if return_to_go and not limit:
            raise InputError(f"{self.task.env_spec.id} has no time limit: returns-to-go need episodes that end.")
        if return_to_go and capacity < limit:
            raise InputError(f"--buffer-size {capacity} is less than one episode of {self.task.env_spec.id} ({limit}).")
        self.replay = init_replay(lanes, min(capacity, run.total), spec, run.sharding, fields)
        run.note(other_rewards(self.task))
        if warmup >= run.total:
            run.note(f"--learning-starts {warmup:,}: nothing is learned in {run.total:,} environment steps.")
        first_keys, reset_keys = (run.step_keys(run.total + n) for n in (0, 1))
        self.env = jax_env(self.task)
        if self.env:
            self.env_state, self.obs = run.over_lanes(self._new_episode, in_axes=(0,))(reset_keys)
        else:
            run.shorten_chunks(MAX_CHUNK)
            self.envs = LaneEnvs(self.task, [setting["seed"] for setting in run.padded_settings])
        self.action = None
        """[L, A] next one"""
        self.memory: Any = None
        """[L, ...] what the policy carries, if it is one that remembers"""

        policy, reward_at = remembering(explore), self._reward_column()

        def act(agent, memory, now, key, args):
            """The action for `now`: obs [O], the row that led there, and whether it ended an episode; and the carry."""
            obs, row, ended = now
            memory = jax.tree.map(partial(jnp.where, ended), policy.initial_carry(agent, args), memory)
            reward = jnp.where(ended, 0.0, self.task.own_reward(row[reward_at]))
            memory = jax.tree.map(lambda x: x[None], memory)
            action, memory = policy.act(agent, memory, obs[None], reward[None], key, args)
            return action[0], jax.tree.map(lambda x: x[0], memory)

        def act_at_random(agent, memory, now, key, args):
            if spec.discrete:
                return jax.random.randint(key, (), 0, spec.action_dim), memory
            return jax.random.uniform(key, (spec.action_dim,), minval=-1.0, maxval=1.0), memory

        def first_act(agent, obs, key, args):
            memory, now = policy.initial_carry(agent, args), (obs, jnp.zeros(self.replay.rows.shape[-1]), True)
            return (act_at_random if warmup and random_warmup else act)(agent, memory, now, key, args)

        self._first_act, self._first_keys = run.over_lanes(first_act, in_axes=(0, 0, 0, 0)), first_keys
        self._begin = run.over_lanes(lambda agent, args: policy.initial_carry(agent, args), in_axes=(0, 0))

        def learn_and_act(agent, memory, batch, now, keys, args, t):
            agent, metrics = update(agent, batch, keys[0], args, t)
            return agent, metrics, *act(agent, memory, now, keys[1], args)

        def insert(replay, row):
            return replay.insert(row, ready=return_to_go is None)

        def complete(replay, row, ended, args):
            """`replay`, and where an episode `ended` with `row`, with its returns-to-go."""
            returns = partial(return_to_go, terminated=row[reward_at + 1] > 0.0, args=args)
            return replay.complete(ended, reward_at, limit, returns)

        insert = run.over_lanes(insert, in_axes=(0, 0), vmap=True)
        complete = run.over_lanes(complete, in_axes=(0, 0, 0, 0), vmap=True)
        draw = run.over_lanes(sample, in_axes=(0, None, 0, 0), vmap=True)
        learn_and_act = run.over_lanes(learn_and_act, in_axes=(0, 0, 0, 0, 0, 0, None))

        def warm_act(agent, memory, now, key, args, t):
            """The next action after step t of the warm-up; that of the first step after it is the policy's."""
            if not random_warmup:
                return act(agent, memory, now, key, args)
            return jax.lax.cond(t == warmup - 1, act, act_at_random, agent, memory, now, key, args)

        warm_act = run.over_lanes(warm_act, in_axes=(0, 0, 0, 0, 0, None))

        def step(agent, replay, memory, now, keys, args, data, t, learning):
            """All lanes: insert the row [L, D] of `now`, update if `learning`, act on its obs; `keys` [L, 3]."""
            replay = insert(replay, now[1])
            batch = draw(keys[:, 0], data, replay, args) if learning else None
            replay = complete(replay, *now[1:], args) if return_to_go else replay
            if not learning:
                return agent, replay, {}, *warm_act(agent, memory, now, keys[:, 2], args, t)
            agent, *out = learn_and_act(agent, memory, batch, now, keys[:, 1:], args, t)
            return agent, replay, *out

        @partial(jax.jit, donate_argnums=(0, 1, 2), static_argnames="learning")
        def step_at(agent, replay, total, memory, now, key_data, args, data, i, t, learning):
            keys = jax.vmap(partial(jax.random.split, num=3))(jax.random.wrap_key_data(key_data[:, i]))
            agent, replay, metrics, *acted = step(agent, replay, memory, now, keys, args, data, t, learning)
            return agent, replay, jax.tree.map(jnp.add, total, metrics) if learning else total, *acted

        def move_lane(env_state, obs, action, key):
            env_state, obs, row, ended = move(self.env, self.task, env_state, obs, action, key)
            return env_state, obs, jnp.pad(row, (0, 1)) if return_to_go else row, ended

        move_lanes = run.over_lanes(move_lane, in_axes=(0, 0, 0, 0), vmap=True)

        @partial(jax.jit, donate_argnums=0, static_argnames=("n", "learning"))
        def scan(carry, key_data, args, data, start, t, n, learning):
            """`n` steps of all lanes with the environment inside."""

            def one(carry, i):
                agent, replay, total, env_state, obs, action, memory = carry
                keys = jax.vmap(partial(jax.random.split, num=4))(jax.random.wrap_key_data(key_data[:, start + i]))
                env_state, *now = move_lanes(env_state, obs, action, keys[:, 3])
                out = step(agent, replay, memory, tuple(now), keys[:, :3], args, data, t + i, learning)
                agent, replay, metrics, *acted = out
                total = jax.tree.map(jnp.add, total, metrics) if learning else total
                return (agent, replay, total, env_state, now[0], *acted), None

            return jax.lax.scan(one, carry, jnp.arange(n))[0]

        def metric_names(agent):
            keys = jax.random.split(jax.random.key(0), (lanes, 3))
            now = jnp.zeros((lanes, *spec.obs_shape)), self.replay.rows[:, 0], jnp.zeros(lanes, bool)
            inputs = (agent, self.replay, self.memory, now, keys, run.lane_args, data, 0)
            return tuple(jax.eval_shape(partial(step, learning=True), *inputs)[2])

        self._step, self._scan, self._metric_names = step_at, scan, metric_names
        self._names: tuple[str, ...] | None = None
        self._complete = jax.jit(complete, donate_argnums=0)

    def _new_episode(self, key: jax.Array) -> tuple[Any, jax.Array]:
        """State and observation of one lane's environment written in JAX."""
        return self.env.reset(jax.random.split(key))

    @property
    def updates(self) -> int:
        """Gradient updates made online up to the end of the chunk that `steps` is at."""
        return max(0, self.run.done + self.run.chunk - self.warmup) * self.updates_per_step

    def steps(self, agent: Any, keys: jax.Array) -> tuple[Any, dict[str, jax.Array]]:
        """One chunk of environment steps: the agents, and the means of the metrics over its updates."""
        run, key_data, n = self.run, jax.random.key_data(keys), keys.shape[1]
        obs = self.obs if self.env else self.envs.obs
        if self.action is None:
            self.action, self.memory = self._first_act(agent, obs, self._first_keys, run.lane_args)
        total = self._zero_metrics(agent)
        collected = int(np.clip(self.warmup - run.done, 0, n))
        for start, stop, learning in ((0, collected, False), (collected, n, True)):
            if start == stop:
                continue
            if self.env:
                carry = (agent, self.replay, total, self.env_state, self.obs, self.action, self.memory)
                out = self._scan(
                    carry, key_data, run.lane_args, self.data, start, run.done + start, stop - start, learning
                )
                agent, self.replay, total, self.env_state, self.obs, self.action, self.memory = out
                continue
            for i in range(start, stop):
                row = self.envs.step(np.asarray(self.action))
                if self.return_to_go:
                    row = np.pad(row, ((0, 0), (0, 1)))
                agent, self.replay, total, self.action, self.memory = self._step(
                    agent, self.replay, total, self.memory, (self.envs.obs, row, self.envs.ended), key_data,
                    run.lane_args, self.data, i, run.done + i, learning=learning,
                )  # fmt: skip
        learned = n - collected
        return agent, {name: value / learned for name, value in total.items()} if learned else {}

    def _zero_metrics(self, agent: Any) -> dict[str, jax.Array]:
        self._names = self._names or self._metric_names(agent)
        zero = np.zeros(len(self.run.padded_settings), np.float32)
        return {name: jax.device_put(zero, self.run.sharding) for name in self._names}

    def state(self) -> dict[str, Any]:
        """For a checkpoint: replay buffers, environments, the action that comes next, and what the policy carries."""
        env = {"state": self.env_state, "obs": self.obs} if self.env else self.envs.state()
        spec = self.task.spec
        first = np.zeros((len(self.run.padded_settings), *(() if spec.discrete else (spec.action_dim,))))
        action = first if self.action is None else np.asarray(self.action)
        return {"replay": self.replay, "env": env, "action": action, "memory": self.memory}

    def restore(self, agent: Any) -> Any:
        """`agent`, and the state here, from the run's checkpoint when --resume was given."""
        self.memory = self._begin(agent, self.run.lane_args)
        if not self.run.args.resume:
            return self.run.restore(agent)
        agent, state = self.run.restore(agent, self.state())
        self.replay, env = state["replay"], state["env"]
        if self.run.done > 0:
            self.action, self.memory = state["action"], state["memory"]
        if self.env:
            self.env_state, self.obs = env["state"], env["obs"]
            return agent
        restored = self.envs.restore(env)
        if self.run.done > 0 and not restored.all():  # a new episode has neither the old one's action nor its memory
            fresh = self._first_act(agent, self.envs.obs, self._first_keys, self.run.lane_args)
            anew = lambda new, old: np.where(restored.reshape(-1, *(1,) * (np.ndim(old) - 1)), old, new)  # noqa: E731
            self.action, self.memory = jax.tree.map(anew, fresh, (self.action, self.memory))
        if self.return_to_go:  # the episodes of those that are not restored were cut by the restart
            cut = np.zeros((len(restored), self.replay.rows.shape[-1]), np.float32)
            self.replay = self._complete(self.replay, cut, ~restored, self.run.lane_args)
        return agent

    def _reward_column(self) -> int:
        spec = self.task.spec
        return spec.obs_shape[0] + (1 if spec.discrete else spec.action_dim)


def remembering(policy: Policy) -> StatefulPolicy:
    """`policy` with a carry, which is empty where it has none."""
    if isinstance(policy, StatefulPolicy):
        return policy
    return StatefulPolicy(
        lambda agent, args: (),
        lambda agent, carry, obs, reward, key, args: (policy(agent, obs, key, args), carry),
    )
