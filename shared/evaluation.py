"""Evaluation: all lanes and episodes in vectorised environments under one compiled policy.

python -m shared.evaluation RUN_DIR --episodes 100                     roll a run's policies out again
python -m shared.evaluation RUN_DIR --lane 0 --video hopper.mp4        and film one (mp4 or gif)
python -m shared.evaluation RUN_DIR --set act_with=target                with other values of its arguments
"""

import argparse
import csv
import dataclasses
import importlib.util
import io
import json
import os
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np

from shared.arguments import DatasetArgs, RunArgs, require_values
from shared.checkpoint import load_tree, read_header, renamed, replacing, with_sizes
from shared.errors import ROOT, InputError, environment_fails, first_line, nearest
from shared.jax_envs import JaxEnv, jax_env, play_compiled
from shared.lanes import with_settings
from shared.policies import Policy, PolicyIn, at_step, policy_of, seen_by, stepped
from shared.programs import free_host_bytes, resident_bytes
from shared.task import Task
from shared.untrusted import npz_shapes

MAX_ENVS = 256
NO_PART = {f.name for cls in (RunArgs, DatasetArgs) for f in dataclasses.fields(cls)} - {"max_episode_steps"}
"""Arguments of a run that its policies know nothing of."""
FEW_ENVS = 16
"""So many are made without asking what one takes."""


class Returns(NamedTuple):
    """Per lane and episode."""

    returns: np.ndarray
    """[L, episodes], undiscounted."""
    lengths: np.ndarray
    """[L, episodes], environment steps."""
    success_steps: np.ndarray | None = None
    """[L, episodes], environment steps up to the first success, 0 where there was none; None: they are not counted."""

    def scores(self, task: Task) -> np.ndarray:
        """[L, episodes] by returns, or by successes, once an episode."""
        return task.score(self.returns, None if self.success_steps is None else self.success_steps > 0)

    def columns(self, task: Task) -> dict[str, np.ndarray]:
        """What a table of episodes tells, each [L, episodes]."""
        found = {"return": self.returns, "length": self.lengths, "score": self.scores(task)}
        if task.tasks:
            played = np.array(task.tasks)[np.arange(self.returns.shape[1]) % len(task.tasks)]
            found = {"task": np.broadcast_to(played, self.returns.shape), **found}
        return found if self.success_steps is None else {**found, "success_step": self.success_steps}


def succeeded(info: dict, reward: float) -> bool:
    """Whether the task is solved after a step, as the environment says; one that does not say rewards it with 1."""
    return bool(next((info[key] for key in ("success", "is_success") if key in info), reward >= 1.0))


class Stopped(Exception):
    """An evaluation was told to stop before its end."""


class Evaluator:
    """Rolls out every lane's policy for the same seeded episodes.

    Each environment has its own quota of episodes, so that short ones are not favoured; episode e is
    reset with seed `seed + e` in every lane and at every evaluation. Where the environment is written in JAX all
    episodes of all lanes are one compiled call, which plays what gymnasium would.
    """

    def __init__(
        self,
        task: Task,
        policy: Policy,
        over_lanes: Callable,
        padded: int,
        lanes: int,
        episodes: int,
        seed: int = 10_000,
        stopped: Callable[[], bool] = lambda: False,
    ):
        """`policy`: of one lane, as `at_step` returns it: `act(agent, obs [E, O], step, key, args) -> actions [E, A]`.

        `over_lanes(f, in_axes)` maps it over the lanes.

        `padded`: lanes that an agent has; `lanes`: those that are evaluated. `stopped`: asked at every step of
        gymnasium's environments, whether to raise Stopped.
        """
        self.stopped = stopped
        self.task, self.policy, self.over_lanes = task, stepped(policy), over_lanes
        self.padded, self.lanes, self.episodes, self.seed = padded, lanes, episodes, seed
        self.per_lane = min(episodes, max(1, MAX_ENVS // lanes))
        self.workers = len(os.sched_getaffinity(0))
        self.envs: list[gym.Env] = []
        self.play: Callable | None = None

    def __call__(self, agent: Any, keys: Any, args: Any) -> Returns:
        """Plays `episodes` episodes with every lane's `agent` (leading axis L)."""
        if self.play is None:
            self.envs = [self.task.make_env()]
            env = jax_env(self.task, self.envs[0])
            silent = env and (
                self.task.counts_successes and not env.succeeded or self.task.tasks and not env.task_params
            )
            self.play = self._compiled(env) if env and not silent else self._stepped()
        return self.play(agent, keys, args)

    def _compiled(self, env: JaxEnv) -> Callable:
        """`(agent, keys, args) -> Returns` in an environment written in JAX, as one call."""
        rounds = -(-self.episodes // self.per_lane)
        seeds = self.seed + np.arange(rounds * self.per_lane, dtype=np.uint32).reshape(rounds, self.per_lane)
        keys = jax.vmap(jax.vmap(jax.random.PRNGKey))(seeds)  # as gymnasium's FunctionalJaxEnv makes them
        number = (seeds - self.seed) % max(1, len(self.task.tasks))
        firsts = keys, jax.tree.map(lambda x: jnp.asarray(x)[number], env.task_params)
        counts, n = self.task.counts_successes, self.per_lane
        last_round = (self.episodes - 1 - np.arange(self.per_lane)) // self.per_lane

        def one_lane(agent, firsts, key, args):
            def act(carry, obs, reward, first, step):
                return self.policy.act(carry, agent, obs, reward, first, step, key, args)

            return play_compiled(env, act, self.policy.begin(agent, args, n), firsts, last_round, counts)

        all_lanes = self.over_lanes(one_lane, (0, None, 0, 0))

        def play(agent, keys, args):
            found = [np.asarray(x).reshape(self.padded, -1) for x in all_lanes(agent, firsts, keys, args)]
            returns, lengths, steps = (x[: self.lanes, : self.episodes] for x in found)
            return Returns(returns.astype(np.float64), lengths, steps if counts else None)

        return play

    def _stepped(self) -> Callable:
        """`(agent, keys, args) -> Returns` in gymnasium's environments, stepped by a thread pool."""
        n = self.lanes * self.per_lane
        if (fitting := max(1, self._room(n) // self.lanes)) < self.per_lane:
            self.per_lane, n = fitting, self.lanes * fitting
            print(f"Evaluation is in {n} environments at a time: half of the free memory holds no more.", flush=True)
        self.envs += [self.task.make_env() for _ in range(n - len(self.envs))]
        act = self.over_lanes(self.policy.act, (0, 0, 0, 0, 0, None, 0, 0))
        begin = self.over_lanes(lambda agent, args: self.policy.begin(agent, args, self.per_lane), (0, 0))

        def play(agent, keys, args):
            returns = np.zeros((self.lanes, self.episodes))
            lengths = np.zeros((self.lanes, self.episodes), int)
            success_steps = np.zeros_like(lengths) if self.task.counts_successes else None
            obs = np.zeros((self.padded, self.per_lane, *self.task.input_shape), np.float32)
            if self.task.spec.images:
                obs = obs.astype(np.uint8)
            rewards = np.zeros((self.padded, self.per_lane), np.float32)
            first, carry = np.ones((self.padded, self.per_lane), bool), begin(agent, args)
            episode = np.arange(n) % self.per_lane  # the episode that environment k plays
            for k in range(n):
                obs[divmod(k, self.per_lane)] = self._reset(k, episode[k])
            active = list(range(n))

            def step(ks: list[int], actions: np.ndarray) -> None:
                for k in ks:
                    lane, slot = divmod(k, self.per_lane)
                    new, reward, terminated, truncated, info = self.envs[k].step(actions[lane, slot])
                    at = lane, episode[k]
                    returns[at] += reward
                    rewards[lane, slot] = reward
                    first[lane, slot] = terminated or truncated
                    lengths[at] += 1
                    if success_steps is not None and not success_steps[at] and succeeded(info, reward):
                        success_steps[at] = lengths[at]
                    if terminated or truncated:
                        episode[k] += self.per_lane
                        if episode[k] < self.episodes:
                            obs[lane, slot] = self._reset(k, episode[k])
                    else:
                        obs[lane, slot] = self.task.observe(new)

            with ThreadPoolExecutor(self.workers) as pool:
                t = 0
                while active:
                    if self.stopped():
                        raise Stopped
                    actions, carry = act(carry, agent, obs, rewards, first, t, keys, args)
                    actions = self.task.to_env(np.asarray(actions))
                    shares = [active[w :: self.workers] for w in range(self.workers)]
                    list(pool.map(step, shares, [actions] * self.workers))
                    active = [k for k in active if episode[k] < self.episodes]
                    t += 1
            return Returns(returns, lengths, success_steps)

        return play

    def _room(self, n: int) -> int:
        """How many of `n` environments half of the free memory holds, by what three of them take when they begin."""
        free = free_host_bytes()
        if n <= FEW_ENVS or free is None:
            return n
        taken = []
        for k in range(4):  # what all share comes with the first
            before = resident_bytes()
            self.envs += [self.task.make_env()] if k else []
            self._reset(k, 0)
            taken.append(resident_bytes() - before)
        return min(n, free // (2 * max(1, min(taken[1:]))))

    def _reset(self, k: int, episode: int) -> np.ndarray:
        options = self.task.reset_options(episode)
        return self.task.observe(self.envs[k].reset(seed=int(self.seed + episode), options=options)[0])


class FineTuning(NamedTuple):
    """What interaction does to a trained policy; each [L], in the unit of the scores (or returns, without regret)."""

    offline: np.ndarray
    """Score at the end of offline training; NaN where there was none."""
    dip: np.ndarray
    """How far the score falls below it in the first fifth of the environment steps; NaN likewise."""
    final: np.ndarray
    """Score at the last evaluation."""
    regret: np.ndarray
    """Mean over the evaluations after the first step of (100 - score) / 100 (arXiv 2303.05479, section 7)."""


def fine_tuning(env_steps: np.ndarray, scores: np.ndarray, normalized: bool = True) -> FineTuning:
    """`scores` [K, L] of the evaluations after `env_steps` [K], ascending; 0 is the end of offline training.

    Returns that are not `normalized` to 0 and 100 have no regret (NaN).
    """
    regret = np.where(normalized, 1.0 - scores / 100.0, np.nan)
    if env_steps[-1] == 0:
        raise ValueError("fine-tuning needs an evaluation after the first environment step")
    if env_steps[0] != 0:
        none = np.full(scores.shape[1], np.nan)
        return FineTuning(none, none, scores[-1], regret.mean(0))
    early = (env_steps > 0) & (env_steps <= max(env_steps[-1] / 5, env_steps[1]))
    dip = np.maximum(scores[0] - scores[early].min(0), 0.0)
    return FineTuning(scores[0], dip, scores[-1], regret[1:].mean(0))


def interval(x: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of `x` [L]; the mean itself where there is one lane, or all are equal."""
    if len(x) == 1 or not np.ptp(x) > 0:
        return float(x.mean()), float(x.mean())
    drawn = x[np.random.default_rng(0).integers(0, len(x), (9999, len(x)))].mean(1)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(low), float(high)


# ----------------------------------------------------------------------------- policies of a run


class Policies(NamedTuple):
    """What `load_run` reads: the trained agents of all lanes, and what is needed to run them."""

    task: Task
    settings: list[dict]
    agent: Any
    """Leading axis L."""
    args: Any
    """Leading axis L on its float fields."""
    act: Policy
    """As `seen_by` returns it."""

    def act_in(self, lane: int) -> PolicyIn:
        """`observation of the environment -> action of the environment`, for one lane; a new key for every call."""
        if not 0 <= lane < len(self.settings):  # those behind them pad the devices
            raise InputError(f"There is no lane {lane}; the run has lanes 0 to {len(self.settings) - 1}.")
        agent, args = jax.tree.map(lambda x: x[lane], (self.agent, self.args))
        return PolicyIn(self.act, agent, args, self.task)


def load_run(run_dir: str | Path, changes: dict[str, str] | None = None) -> Policies:
    """The policies of the last checkpoint in `run_dir`; `changes`: other values of its arguments, as text.

    Raises:
      InputError: no run or no checkpoint there, or of another version of the algorithm, or changes of
        arguments that it has not, that are swept, or that are no such value; or the file's own `CHECKS`, functions
        of an argument's new value and the task by its name, refuse one.
    """
    run_dir = Path(run_dir)
    path = run_dir / "checkpoint" / "state.npz"
    if not (run_dir / "run.json").exists() or not path.exists():
        raise InputError(f"There is no run with a checkpoint in {run_dir}.")
    try:
        file = (ROOT / json.loads((run_dir / "run.json").read_text())["file"]).resolve()
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"There is no readable run.json in {run_dir}.") from None
    if ROOT / "algorithms" not in file.parents or not file.exists():
        raise InputError(f"The run in {run_dir} is of {file}, which is not an algorithm of this collection.")
    module_spec = importlib.util.spec_from_file_location(file.stem, file)
    module = sys.modules.setdefault(file.stem, importlib.util.module_from_spec(module_spec))
    if not hasattr(module, "Args"):
        module_spec.loader.exec_module(module)
    header = read_header(path)
    try:
        fields = {f.name for f in dataclasses.fields(module.Args)}
        stored = {k: tuple(v) if isinstance(v, list) else v for k, v in renamed(header["args"], fields).items()}
        task = Task.from_description(header["task"])
        settings = [renamed(setting, fields) for setting in header["settings"]]
        padded = next(shape[0] for name, shape in npz_shapes(path).items() if name != "__header__")
        if unknown := stored.keys() - fields:
            raise InputError(f"The run in {run_dir} has --{min(unknown)}, which {file.name} does not know any more.")
        for name, text in (changes or {}).items():
            if name not in stored or name in settings[0]:
                hint = nearest(name, stored) if name not in stored else "its lanes have values of their own"
                raise InputError(f"The run in {run_dir} has no one --{name} to change; {hint}.")
            if name in NO_PART:
                raise InputError(f"--set {name}={text}: it plays no part in an evaluation of trained policies.")
            stored[name] = _parse(module.Args, name, text)
            require_values(module.Args(**stored), [name])
            if check := getattr(module, "CHECKS", {}).get(name):
                check(stored[name], task)
        args = with_settings(module.Args(**stored), settings + [settings[-1]] * (padded - len(settings)))
        keys = jax.random.split(jax.random.key(0), padded)
        init = with_sizes(module.init, header.get("sizes", {}))
        agent = jax.eval_shape(jax.vmap(lambda key, args: init(key, args, task.spec)), keys, args)
    except InputError:
        raise
    except Exception as error:  # a header that somebody has changed: any kind of mistake
        raise InputError(f"{path} is not a readable checkpoint ({error or type(error).__name__}).") from None
    (agent,) = load_tree(path, (agent,), partial=True)
    return Policies(task, settings, agent, args, seen_by(policy_of(module), task))


def _parse(cls: type, name: str, text: str) -> Any:
    """`text` as a value of a field of an Args class, as its command line reads it."""
    kind = get_type_hints(cls)[name]
    if get_origin(kind) is tuple:
        raise InputError(f"--set {name}={text}: a list of values cannot be changed.")
    values = get_args(kind) if get_origin(kind) is Literal else ()
    try:
        if values and text not in values:
            raise ValueError
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        return text if values or kind is str else int(text) if kind is int else float(text)
    except (ValueError, KeyError, TypeError):
        wanted = f"choose from {', '.join(values)}" if values else f"it is a {getattr(kind, '__name__', 'number')}"
        raise InputError(f"--set {name}={text}: no such value; {wanted}.") from None


def _vmapped(f: Callable, in_axes: tuple) -> Callable:
    return jax.jit(jax.vmap(f, in_axes))


def film(policies: Policies, lane: int, path: Path, seed: int = 10_000) -> float:
    """Writes one episode of a lane as mp4 or gif (by the suffix); returns its return."""
    import imageio

    os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    env = policies.task.make_env(render_mode="rgb_array")
    policy, total, reward, frames = policies.act_in(lane), 0.0, None, []
    obs, done = env.reset(seed=seed)[0], False
    while not done:
        frames.append(env.render())
        obs, reward, terminated, truncated, _ = env.step(policy(obs, reward))
        total, done = total + reward, terminated or truncated
    fps = env.metadata.get("render_fps", 30)
    path.parent.mkdir(parents=True, exist_ok=True)
    imageio.mimsave(path, frames, **({"duration": 1000 / fps} if path.suffix == ".gif" else {"fps": fps}))
    return float(total)


def main(argv: list[str] | None = None) -> None:
    """Command line: rolls the policies of a run out again; writes RUN_DIR/evaluation<-changes>.csv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path, help="directory of a run with a checkpoint")
    parser.add_argument("--episodes", type=int, default=100, help="episodes of every lane")
    parser.add_argument("--video", type=Path, help="film one episode of a lane, too: a .mp4 or .gif file")
    parser.add_argument("--lane", type=int, default=0, help="lane to film")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="arguments to change")
    options = parser.parse_args(argv)
    if wrong := [change for change in options.set if not re.fullmatch(r"\w+=[\w.+-]+", change)]:
        raise InputError(f"--set wants NAME=VALUE, not '{wrong[0]}'.")
    if options.episodes < 1:
        raise InputError(f"--episodes must be at least 1, not {options.episodes}.")
    changes = dict(change.split("=") for change in options.set)
    if len(changes) < len(options.set):
        raise InputError(f"--set {' '.join(options.set)}: an argument has one value.")
    policies = load_run(options.run_dir, changes)
    policies = policies._replace(task=policies.task.capped(policies.args.max_episode_steps))  # as the run's own
    if policies.task.env_spec is None:
        raise InputError(f"The run in {options.run_dir} has no environment to be evaluated in.")
    if not 0 <= options.lane < len(policies.settings):
        raise InputError(f"--lane {options.lane}: the run has lanes 0 to {len(policies.settings) - 1}.")
    if options.video:
        if options.video.suffix not in (".mp4", ".gif"):
            raise InputError(f"--video writes .mp4 or .gif, not '{options.video.suffix}'.")
        if "rgb_array" not in policies.task.make_env().metadata.get("render_modes", []):
            raise InputError(f"{policies.task.env_spec.id} cannot be filmed: it draws no pictures.")

    padded = len(jax.tree.leaves(policies.agent)[0])
    evaluate = Evaluator(
        policies.task, at_step(policies.act), _vmapped, padded, len(policies.settings), options.episodes
    )
    keys = jax.random.split(jax.random.key(0), padded)
    with environment_fails(policies.task.env_spec.id, "in the evaluation"):
        episodes = evaluate(policies.agent, keys, policies.args)
    returns, scores = episodes.returns, episodes.scores(policies.task)
    name = "-".join(["evaluation", *options.set]) + ".csv"
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = episodes.columns(policies.task)
    writer.writerow(["lane", *policies.settings[0], "episode", *columns])
    for i, e in np.ndindex(returns.shape):
        writer.writerow([i, *policies.settings[i].values(), e, *(x[i, e] for x in columns.values())])
    try:
        with replacing(options.run_dir / name) as file:
            file.write(text.getvalue().encode())
    except OSError as error:
        raise InputError(f"Cannot write {options.run_dir / name}: {error.strerror}.") from None
    for i, setting in enumerate(policies.settings):
        named = ", ".join(f"{k}={v}" for k, v in setting.items())
        mean, std, score = returns[i].mean(), returns[i].std(), scores[i].mean()
        print(f"lane {i} ({named}): return {mean:.1f} +- {std:.1f}, score {score:.1f}")
    if options.video:
        try:
            total = film(policies, options.lane, options.video)
        except Exception as error:  # of the environment, of what draws it, of the encoder, of the disk
            raise InputError(f"{options.video} cannot be made ({first_line(error)}).") from error
        print(f"return {total:.1f} -> {options.video}")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(f"shared.evaluation: {error}", file=sys.stderr)
        sys.exit(2)
