"""Any dataset -> flat arrays: loading, masks, statistics, hash, and the packed rows on the device.

Episodes are concatenated along N. `terminal` says that bootstrapping stops (the task ended);
`last` marks an episode's last row for whatever reason (task end, time limit, or a cut log).
"""

import dataclasses
import difflib
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np

from shared.untrusted import check_hdf5, read_hdf5, read_npz

ROOT = Path(__file__).resolve().parent.parent


class InputError(Exception):
    """Bad input; its one sentence says what is wrong and what to do. Scripts exit with status 2."""


def nearest(name: str, names: Iterable[str]) -> str:
    """'did you mean ...' for a mistyped name."""
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.4)
    return f"did you mean {' or '.join(close)}?" if close else f"choose from {', '.join(names)}"


# ------------------------------------------------------------------------------------------- task


class Spec(NamedTuple):
    """What networks need to know; hashable, so that it can be static under jit."""

    obs_shape: tuple[int, ...]
    action_dim: int
    """Continuous: dimensions. Discrete: number of actions."""
    discrete: bool
    action_low: tuple[float, ...] = ()
    action_high: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Task:
    """What a policy is evaluated in, and how its returns become scores.

    Actions are in [-1, 1] inside every algorithm and rescaled to the environment's range here;
    observations are normalised here with the statistics the data was normalised with.
    """

    id: str
    hash: str
    spec: Spec
    env_spec: gym.envs.registration.EnvSpec | None = None
    obs_mean: np.ndarray | None = None
    obs_std: np.ndarray | None = None
    reference: dict | None = None
    """Returns worth 0 and 100: {min, max, episodes, source}."""
    baselines: dict[str, float] = dataclasses.field(default_factory=dict)
    """Returns to show beside a result: the dataset's mean and best episode."""
    options: dict = dataclasses.field(default_factory=dict)
    """Options of `load_dataset` that change the problem."""

    def make_env(self, **kwargs) -> gym.Env:
        """The evaluation environment (with its time limit)."""
        return gym.make(self.env_spec, **kwargs)

    def observe(self, obs) -> np.ndarray:
        """An environment's observation -> the network's input."""
        obs = flatten_obs(obs)
        return obs if self.obs_mean is None else (obs - self.obs_mean) / self.obs_std

    def to_env(self, actions: np.ndarray) -> np.ndarray:
        """Actions [..., A] in [-1, 1] (or discrete indices [...]) -> the environment's."""
        if self.spec.discrete:
            return actions.astype(np.int64)
        low, high = np.float32(self.spec.action_low), np.float32(self.spec.action_high)
        return low + (np.clip(actions, -1.0, 1.0) + 1.0) * 0.5 * (high - low)

    def training_reward(self, reward):
        """An environment's reward -> what is learned from: as `Dataset.scale_rewards` did with the data's."""
        return reward * self.options.get("reward_scale", 1.0) + self.options.get("reward_shift", 0.0)

    def score(self, returns: np.ndarray) -> np.ndarray:
        """100 (R - min) / (max - min), NaN without a reference pair."""
        if self.reference is None:
            return np.full(np.shape(returns), np.nan)
        low, high = self.reference["min"], self.reference["max"]
        return 100.0 * (np.asarray(returns) - low) / (high - low)

    def describe(self) -> dict:
        """As JSON: for run.json and checkpoints."""
        env = self.env_spec
        return {
            "id": self.id,
            "hash": self.hash,
            "env": env and {"id": env.id, "kwargs": env.kwargs, "max_episode_steps": env.max_episode_steps},
            "spec": self.spec._asdict(),
            "obs_mean": None if self.obs_mean is None else self.obs_mean.tolist(),
            "obs_std": None if self.obs_std is None else self.obs_std.tolist(),
            "reference": self.reference,
            "baselines": self.baselines,
            "options": self.options,
        }

    @classmethod
    def from_description(cls, d: dict) -> "Task":
        """What `describe` described."""
        arrays = {k: None if d[k] is None else np.float32(d[k]) for k in ("obs_mean", "obs_std")}
        env = d["env"] and registered_env(d["env"]["id"], d["env"]["kwargs"], d["env"]["max_episode_steps"])
        spec = Spec(**{k: tuple(v) if isinstance(v, list) else v for k, v in d["spec"].items()})
        return cls(d["id"], d["hash"], spec, env, **arrays, **{k: d[k] for k in ("reference", "baselines", "options")})


OBS_ORDER = ("observation", "desired_goal", "achieved_goal")


def flatten_obs(obs) -> np.ndarray:
    """Dictionaries are concatenated: observation, desired_goal, achieved_goal, then by name.

    Images (uint8, three axes) stay as they are; everything else becomes float32 [..., O].
    """
    if isinstance(obs, dict):
        names = [k for k in OBS_ORDER if k in obs] + sorted(obs.keys() - set(OBS_ORDER))
        return np.concatenate([flatten_obs(obs[k]) for k in names], axis=-1)
    if isinstance(obs, tuple):
        return np.concatenate([flatten_obs(o) for o in obs], axis=-1)
    obs = np.asarray(obs)
    if obs.dtype == np.uint8 and obs.ndim >= 3:
        return obs
    return obs.astype(np.float32) if obs.ndim else obs.astype(np.float32)[None]


def flat_obs_shape(space: gym.Space) -> tuple[int, ...]:
    """Shape of `flatten_obs` of one observation of `space`."""
    return flatten_obs(space.sample()).shape


def registered_env(env_id: str, kwargs: dict | None = None, max_episode_steps: int | None = None):
    """The EnvSpec of a registered id; nothing else is ever made, whatever a file says."""
    if not isinstance(env_id, str):
        raise InputError(f"{str(env_id)[:80]!r} is no environment's id.")
    if env_id not in gym.registry:  # mazes, hands and kitchen register themselves when imported
        import gymnasium_robotics

        gym.register_envs(gymnasium_robotics)
    if env_id not in gym.registry:
        raise InputError(f"Environment '{env_id}' is not registered; {nearest(env_id, gym.registry)}")
    spec = dataclasses.replace(gym.spec(env_id))
    spec.kwargs = {**spec.kwargs, **(kwargs or {})}
    spec.max_episode_steps = max_episode_steps or spec.max_episode_steps
    return spec


def space_spec(obs_shape: tuple[int, ...], action_space: gym.Space) -> Spec:
    """Spec from an observation shape (flattened) and an action space."""
    if isinstance(action_space, gym.spaces.Discrete):
        return Spec(obs_shape, int(action_space.n), True)
    if not isinstance(action_space, gym.spaces.Box):
        raise InputError(f"The action space {action_space} is neither a box nor one discrete choice.")
    low, high = action_space.low.ravel(), action_space.high.ravel()
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
        raise InputError(f"The action space {action_space} is unbounded or empty; actions must lie in a box.")
    return Spec(obs_shape, low.size, False, tuple(low.tolist()), tuple(high.tolist()))


def env_task(env_id: str) -> Task:
    """The task of an environment without data (online algorithms)."""
    env_spec = registered_env(env_id)
    env = gym.make(env_spec)
    spec = space_spec(flat_obs_shape(env.observation_space), env.action_space)
    env.close()
    return Task(env_id, "", spec, env_spec, reference=reference_score(env_id, env_id))


def reference_score(dataset_id: str, env_id: str | None) -> dict | None:
    """{min, max, episodes, source} of datasets/reference_scores.json: by dataset, by environment, by D4RL's name.

    Names are found as whole words of the id. Data that is made here has no pair of D4RL's.
    """
    path = ROOT / "datasets" / "reference_scores.json"
    table = json.loads(path.read_text()) if path.exists() else {}
    slug = f"-{slugify(dataset_id)}-"
    by_name = [k for k in table if "/" not in k and f"-{slugify(k)}-" in slug]
    d4rl = [k for k in table if k.startswith("d4rl/") and f"-{k[5:]}-" in slug and dataset_id not in recipes()]
    for key in (max(by_name, key=len, default=None), env_id, max(d4rl, key=len, default=None)):
        if key in table:
            return table[key]
    return None


def slugify(dataset_id: str) -> str:
    """'D4RL/pointmaze/umaze-v2' or 'path/hopper_medium-v2.hdf5' -> 'd4rl-pointmaze-umaze-v2', ..."""
    name = Path(dataset_id).stem if dataset_id.endswith((".npz", ".hdf5", ".h5")) else dataset_id
    return name.lower().replace("/", "-").replace("_", "-").strip("-.")


# ---------------------------------------------------------------------------------------- dataset

FIELDS = ("obs", "action", "reward", "terminal", "next_obs")


class Batch(NamedTuple):
    """Transitions; the leading axes are those of the rows they were taken from."""

    obs: jax.Array | None = None
    action: jax.Array | None = None
    reward: jax.Array | None = None
    terminal: jax.Array | None = None
    """1 where bootstrapping stops."""
    next_obs: jax.Array | None = None
    next_action: jax.Array | None = None
    """The dataset's action in next_obs."""
    return_to_go: jax.Array | None = None


def unpack(rows: jax.Array, spec: Spec, fields: tuple[str, ...] = FIELDS) -> Batch:
    """Rows [..., D] -> Batch; discrete actions become int32."""
    vectors = {"obs": spec.obs_shape[0], "next_obs": spec.obs_shape[0]}
    if not spec.discrete:
        vectors |= {"action": spec.action_dim, "next_action": spec.action_dim}
    ends = np.cumsum([vectors.get(f, 1) for f in fields])
    columns = dict(zip(fields, jnp.split(rows, ends[:-1], axis=-1), strict=True))
    for name in columns.keys() - vectors.keys():
        columns[name] = columns[name][..., 0]
        if "action" in name:
            columns[name] = columns[name].astype(jnp.int32)
    return Batch(**columns)


class AliasTable(NamedTuple):
    """Draws row i in proportion to its weight with two look-ups (Walker's alias method).

    A drawn row is kept with probability `keep` and gives way to `other` else.
    """

    keep: jax.Array
    """[N] uint32, in units of 2^-32: float32 would round the weights of rare rows."""
    other: jax.Array
    """[N] int32"""


def alias_table(weights: np.ndarray) -> AliasTable:
    """The table of `weights` [N], which need not sum to one; in float64 on the host.

    Raises:
      InputError: weights that are negative, not finite, or all zero.
    """
    weights = np.asarray(weights, np.float64)
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.max(initial=0) > 0):
        raise InputError("Sampling weights must be finite, not negative, and not all zero.")
    share = weights / weights.mean()  # a row's probability in units of 1 / N: what is over 1 fills up the others
    light = share < 1.0
    light[share.argmax()] = False
    low, high = np.flatnonzero(light), np.flatnonzero(~light)
    lacking, surplus = np.cumsum(1.0 - share[low]), np.cumsum(share[high] - 1.0)
    # The light rows in turn are filled up from the first heavy row that has surplus left. The row that a heavy one
    # gave too much to in the end is filled up from the next heavy row in its stead.
    keep, other = share.copy(), np.arange(len(share))
    filled = np.searchsorted(surplus, np.r_[0.0, lacking][:-1])
    other[low] = high[np.minimum(filled, len(high) - 1)]
    spent = np.r_[lacking, np.inf][np.searchsorted(lacking, surplus, side="right")]
    keep[high] = np.where(np.isfinite(spent), 1.0 + surplus - spent, 1.0)
    other[high] = np.r_[high[1:], high[-1]]
    keep = np.round(np.clip(keep, 0.0, 1.0) * 2.0**32)
    other = np.where(keep < 2.0**32, other, np.arange(len(other)))  # 1 has no uint32: the row gives way to itself
    keep = np.minimum(keep, 2.0**32 - 1)
    return AliasTable(jnp.asarray(keep.astype(np.uint32)), jnp.asarray(other.astype(np.int32)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Transitions:
    """A dataset on the device: one packed array, so that a batch is one gather."""

    rows: jax.Array
    """[N, D] float32"""
    frames: jax.Array | None
    """[N + episodes, H, W, C] uint8: image observations, each stored once; else None."""
    frame: jax.Array | None
    """[N] index of a row's obs in `frames`; its next_obs is the one after."""
    spec: Spec = dataclasses.field(metadata={"static": True})
    fields: tuple[str, ...] = dataclasses.field(metadata={"static": True})
    table: AliasTable | None = None
    """How rows are drawn; None: uniformly."""

    def take(self, index: jax.Array) -> Batch:
        """Rows `index` [...] as a Batch."""
        if self.frames is None:
            return unpack(self.rows[index], self.spec, self.fields)
        names = tuple(f for f in self.fields if "obs" not in f)
        batch = unpack(self.rows[index], self.spec._replace(obs_shape=(0,)), names)
        at = self.frame[index]
        return batch._replace(obs=self.frames[at], next_obs=self.frames[at + 1])

    def sample(self, key: jax.Array, shape: int | tuple[int, ...]) -> Batch:
        """`shape` rows with replacement: uniformly, or by the weights given to `Dataset.transitions`."""
        shape = (shape,) if isinstance(shape, int) else shape
        if self.table is None:
            return self.take(jax.random.randint(key, shape, 0, len(self.rows)))
        row_key, keep_key = jax.random.split(key)
        row = jax.random.randint(row_key, shape, 0, len(self.rows))
        kept = jax.random.bits(keep_key, shape) < self.table.keep[row]
        return self.take(jnp.where(kept, row, self.table.other[row]))


def return_to_go(
    reward: np.ndarray,
    terminal: np.ndarray,
    last: np.ndarray,
    discount: float = 1.0,
    failure: float | None = None,
    endless: bool = False,
) -> np.ndarray:
    """[N] discounted sum of the rewards [N] from a row to its episode's last row (where `last` [N]).

    `failure`: the reward of a step without success; an episode of nothing else goes on failing for ever, and is
    worth failure / (1 - discount) in each of its rows. `endless`: the last reward of an episode that did not
    terminate goes on for ever.
    """
    starts, ends = np.flatnonzero(np.r_[True, last[:-1]]), np.flatnonzero(last)
    total = reward.astype(np.float64)
    if endless:
        total[ends] += np.where(terminal[ends], 0.0, discount / (1.0 - discount) * total[ends])
    for back in range(1, int((ends - starts).max(initial=0)) + 1):
        at = ends - back
        at = at[at >= starts]
        total[at] += discount * total[at + 1]
    if failure is not None:
        failed = np.logical_and.reduceat(np.isclose(reward, failure), starts)
        total[np.repeat(failed, ends - starts + 1)] = failure / (1.0 - discount)
    return total.astype(np.float32)


# Element of `Dataset.corrupt` -> the array that it changes.
CORRUPTIONS = {
    "obs": "obs",
    "action": "action",
    "reward": "reward",
    "dynamics": "next_obs",
    "adversarial_reward": "reward",
}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Flat numpy arrays of N transitions, episode after episode."""

    task: Task
    obs: np.ndarray
    """[N, O] float32 (or [N, H, W, C] uint8)"""
    action: np.ndarray
    """[N, A] float32 in [-1, 1], or [N] int32"""
    reward: np.ndarray
    """[N] float32"""
    next_obs: np.ndarray
    """Like obs; the true next observation, also at an episode's last row."""
    terminal: np.ndarray
    """[N] bool: the task ended here, bootstrapping stops."""
    last: np.ndarray
    """[N] bool: the episode's last row: terminal, time limit or cut."""

    @property
    def spec(self) -> Spec:
        return self.task.spec

    # -- derived on demand; none of these crosses an episode's end

    def starts(self) -> np.ndarray:
        """[E] first row of every episode."""
        return np.flatnonzero(np.r_[True, self.last[:-1]])

    def ends(self) -> np.ndarray:
        """[E] last row of every episode."""
        return np.flatnonzero(self.last)

    def episode(self) -> np.ndarray:
        """[N] index of the episode a row belongs to."""
        return np.cumsum(np.r_[0, self.last[:-1]])

    def episode_returns(self, discount: float = 1.0) -> np.ndarray:
        """[E] (discounted) return of every episode, as far as it was recorded."""
        return self.return_to_go(discount)[self.starts()]

    def return_to_go(self, discount: float = 1.0, failure: float | None = None, endless: bool = False) -> np.ndarray:
        """[N] discounted sum of the rewards from a row to its episode's last row; see `return_to_go` for the rest."""
        return return_to_go(self.reward, self.terminal, self.last, discount, failure, endless)

    def next_action(self) -> tuple[np.ndarray, np.ndarray]:
        """The action at the next row, and [N] bool where it exists (not at an episode's last row).

        Where it does not exist the row's own action stands in.
        """
        at = np.arange(len(self.obs)) + ~self.last
        return self.action[at], ~self.last

    def n_step(self, n: int, discount: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """n-step returns: (reward [N], row whose next_obs is bootstrapped from [N], its weight [N]).

        target = reward + weight * V(next_obs[row]); fewer steps at an episode's end, and weight 0
        where the episode terminated within them.
        """
        row = np.arange(len(self.obs))
        total, weight = self.reward.astype(np.float64), np.full(len(row), discount)
        for _ in range(n - 1):
            goes_on = ~self.last[row]
            row = row + goes_on
            total += np.where(goes_on, weight * self.reward[row], 0.0)
            weight = np.where(goes_on, weight * discount, weight)
        weight = np.where(self.terminal[row], 0.0, weight)
        return total.astype(np.float32), row, weight.astype(np.float32)

    def windows(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """One window of `length` rows starting at every row: (rows [N, T], mask [N, T]).

        Beyond its episode's end a window repeats the last row with mask False.
        """
        end = self.ends()[self.episode()]
        rows = np.arange(len(self.obs))[:, None] + np.arange(length)
        return np.minimum(rows, end[:, None]), rows <= end[:, None]

    def require(self, discrete: bool | None = None) -> "Dataset":
        """This dataset, or InputError where its actions are of the other kind or it has images."""
        if discrete is not None and discrete != self.spec.discrete:
            kinds = {True: "discrete", False: "continuous"}
            raise InputError(
                f"This needs {kinds[discrete]} actions; those of '{self.task.id}' are {kinds[not discrete]}."
            )
        if len(self.spec.obs_shape) != 1:
            raise InputError(f"'{self.task.id}' has image observations; this needs vectors.")
        return self

    def reward_range(self) -> tuple[float, float]:
        """Least and largest reward; InputError where all are equal."""
        low, high = float(self.reward.min()), float(self.reward.max())
        if not high > low:
            raise InputError(f"All rewards of '{self.task.id}' are equal: they cannot be scaled by their range.")
        return low, high

    def return_range(self) -> float:
        """Largest minus least return of an episode; InputError where all are equal."""
        between = float(np.ptp(self.episode_returns()))
        if not between > 0.0:
            raise InputError(
                f"All episodes of '{self.task.id}' have one return: rewards cannot be scaled by the range."
            )
        return between

    # -- options that change the problem; recorded in the result

    def replace(self, option: dict, task: dict | None = None, **arrays: np.ndarray) -> "Dataset":
        options = {**self.task.options, **option}
        return dataclasses.replace(self, task=dataclasses.replace(self.task, options=options, **(task or {})), **arrays)

    def normalize_obs(self, eps: float = 1e-3) -> "Dataset":
        """Observations (o - mean) / (std + eps); the task normalises what the policy sees alike."""
        mean, std = self.obs.mean(0, dtype=np.float64), self.obs.std(0, dtype=np.float64) + eps
        mean, std = mean.astype(np.float32), std.astype(np.float32)
        return self.replace(
            {"normalize_obs": eps},
            {"obs_mean": mean, "obs_std": std},
            obs=(self.obs - mean) / std,
            next_obs=(self.next_obs - mean) / std,
        )

    def scale_rewards(self, scale: float = 1.0, shift: float = 0.0) -> "Dataset":
        """reward * scale + shift in training; returns in evaluation are the environment's own."""
        if scale == 1.0 and shift == 0.0:
            return self
        reward = (self.reward * scale + shift).astype(np.float32)
        return self.replace({"reward_scale": scale, "reward_shift": shift}, reward=reward)

    def corrupt(self, elements: Iterable[str], rate: float = 0.3, scale: float = 1.0, seed: int = 0) -> "Dataset":
        """`elements` (of CORRUPTIONS) spoilt in a share `rate` of the rows, each in rows of its own.

        The random corruptions of Yang et al. (arXiv 2310.12955), and their adversarial one of the reward:
        obs, action, dynamics: x + U(-scale, scale) std, per dimension; actions may leave [-1, 1];
        reward: U(-30 scale, 30 scale) in its place; adversarial_reward: -scale * reward.
        An element's rows and noise depend on `seed` alone, not on what else is corrupted. A row's obs is
        not the next_obs of the row before any more. To be done before statistics are taken; the task's
        baselines stay those of the clean data.
        """
        elements = set(elements)
        if unknown := elements - CORRUPTIONS.keys():
            raise InputError(f"No corruption '{min(unknown)}'; {nearest(min(unknown), CORRUPTIONS)}")
        if not (0 <= rate <= 1 and scale >= 0):
            raise InputError(f"Corruption has a rate in [0, 1] and a scale of at least 0, not {rate} and {scale}.")
        if not elements:
            return self
        if self.spec.discrete or len(self.spec.obs_shape) != 1:
            raise InputError(f"'{self.task.id}' has discrete actions or images; only numbers are corrupted.")
        arrays = {n: getattr(self, n) for n in ("obs", "action", "reward", "next_obs", "terminal", "last")}
        for stream, (element, field) in enumerate(CORRUPTIONS.items()):
            if element not in elements:
                continue
            r, x = np.random.default_rng([seed, stream]), arrays[field].copy()
            rows = r.random(len(x)) < rate
            if element == "adversarial_reward":
                x[rows] *= -scale
            elif element == "reward":
                x[rows] = r.uniform(-30.0 * scale, 30.0 * scale, rows.sum())
            else:
                x[rows] += r.uniform(-scale, scale, x[rows].shape) * x.std(0, dtype=np.float64)
            arrays[field] = x
        named = [element for element in CORRUPTIONS if element in elements]
        option = {"corruption": named, "corruption_rate": rate, "corruption_scale": scale, "corruption_seed": seed}
        task = {"id": "+".join([self.task.id, *named]), "hash": content_hash(arrays)}
        return self.replace(option, task, **arrays)

    def top_episodes(self, fraction: float, discount: float = 1.0) -> "Dataset":
        """The `fraction` of the episodes with the highest (discounted) return, at least one."""
        if not 0 < fraction <= 1:
            raise InputError(f"The fraction of episodes must lie in (0, 1], not {fraction}.")
        returns = self.episode_returns(discount)
        best = np.argsort(-returns, kind="stable")[: max(1, int(fraction * len(returns)))]
        return self.select(np.isin(self.episode(), best)).replace({"top_fraction": fraction})

    def select(self, rows: np.ndarray) -> "Dataset":
        """The rows where `rows` [N] is True (or of these indices); whole episodes, or `last` is stale."""
        names = ("obs", "action", "reward", "next_obs", "terminal", "last")
        return dataclasses.replace(self, **{n: getattr(self, n)[rows] for n in names})

    # -- to the device

    def transitions(self, *fields: str, weights: np.ndarray | None = None) -> Transitions:
        """The columns `fields` (default: FIELDS), packed and on the default device.

        `weights` [N]: `sample` draws rows in proportion to them (default: uniformly).
        With `next_action`, rows without one are left out: the last rows of episodes that did not
        terminate (at a terminal one it is multiplied by zero in every target).
        """
        fields = fields or FIELDS
        arrays = {name: getattr(self, name) for name in FIELDS}
        keep = slice(None)
        if "next_action" in fields:
            arrays["next_action"], exists = self.next_action()
            keep = exists | self.terminal
            if not keep.any():
                raise InputError(f"'{self.task.id}' has no two rows of the same episode: there is no next action.")
        if "return_to_go" in fields:
            arrays["return_to_go"] = self.return_to_go()
        frames = frame = None
        if len(self.spec.obs_shape) == 3:
            frames = jnp.asarray(np.insert(self.obs, self.ends() + 1, self.next_obs[self.ends()], axis=0))
            frame = jnp.asarray((np.arange(len(self.obs)) + self.episode())[keep])
        packed = [arrays[f] for f in fields if frames is None or "obs" not in f]
        packed = [x[keep].reshape(len(x[keep]), -1).astype(np.float32) for x in packed]
        table = None if weights is None else alias_table(weights[keep])
        return Transitions(jnp.asarray(np.concatenate(packed, axis=1)), frames, frame, self.spec, fields, table)


# ---------------------------------------------------------------------------------------- loading


def load_dataset(name: str, env: str = "", clip_actions: bool = False) -> Dataset:
    """Loads a Minari id or directory, a D4RL hdf5, an OGBench npz, a plain npz, or a recipe's dataset.

    A recipe of datasets/ that was not made yet is made first; another Minari id is downloaded when
    there is a network. `env` replaces the evaluation environment stored with (or guessed for) the
    data. Flat arrays are cached under ~/.cache/offline-rl (or $OFFLINE_RL_CACHE) by content.

    Raises:
      InputError: unknown id, missing or unreadable file, no network, NaN, shapes that disagree,
        actions outside the action space (unless `clip_actions`).
    """
    path = Path(name).expanduser()
    if path.is_dir() or not path.exists():
        source = _minari_directory(name, path)
        arrays, meta = _cached(source / "main_data.hdf5", lambda: _read_minari(source))
    elif path.suffix in (".hdf5", ".h5", ".npz"):
        arrays, meta = _cached(path, lambda: _read_file(path))
    else:
        raise InputError(f"{name}: not a dataset; expected a .hdf5 or .npz file or a Minari directory.")
    if env:
        env_spec = registered_env(env)
    elif meta.get("env"):
        env_spec = registered_env(meta["env"], meta.get("env_kwargs"), meta.get("max_episode_steps"))
    else:
        env_spec = _guessed_env(name)
    return _checked(name, arrays, meta, env_spec, clip_actions)


def recipes() -> dict[str, str]:
    """{name: environment id} of datasets/recipes.txt."""
    path = ROOT / "datasets" / "recipes.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return dict(line.split("\t")[:2] for line in lines if line and not line.startswith("#"))


def _minari_directory(name: str, path: Path) -> Path:
    """The data/ folder of a Minari dataset, made or downloaded if need be."""
    if path.is_dir():
        for data in (path, path / "data"):
            if (data / "main_data.hdf5").exists():
                return data
        raise InputError(f"{name} is a directory without data/main_data.hdf5: not a Minari dataset.")
    if path.suffix in (".hdf5", ".h5", ".npz"):
        raise InputError(f"There is no file {path}.")
    import minari
    from minari.storage import get_dataset_path

    known = recipes()
    recipe = name.removeprefix("local/").removesuffix("-v0")
    minari_id = f"local/{recipe}-v0" if recipe in known else name
    data = Path(get_dataset_path(minari_id)) / "data"
    if (data / "main_data.hdf5").exists():
        return data
    if recipe in known:
        print(f"Making {recipe} with its recipe (once) ...", flush=True)
        made = subprocess.run([sys.executable, ROOT / "datasets" / "make.py", recipe], check=False)
        if made.returncode or not (data / "main_data.hdf5").exists():
            raise InputError(f"The recipe {recipe} failed; run python datasets/make.py {recipe} to see why.")
        return data
    local = list(minari.list_local_datasets())
    if "-v" not in name:
        raise InputError(f"No dataset '{name}'; {nearest(name, [*known, *local])}")
    try:
        minari.download_dataset(name)
    except Exception as error:  # huggingface, google storage and requests raise their own kinds
        substitute = difflib.get_close_matches(slugify(name), known, n=1, cutoff=0.3)
        hint = f" a recipe that makes a local substitute is '{substitute[0]}'." if substitute else ""
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise InputError(
            f"'{name}' is not on this machine and cannot be downloaded ({reason}); "
            f"{nearest(name, [*known, *local])}{hint}"
        ) from None
    return data


def _cached(path: Path, read) -> tuple[dict[str, np.ndarray], dict]:
    """`read()`, or what it returned earlier for a file of the same content."""
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while block := f.read(1 << 24):
            digest.update(block)
    for metadata in sorted(path.parent.glob("metadata.json")):
        digest.update(metadata.read_bytes())
    home = Path(os.environ.get("OFFLINE_RL_CACHE", Path.home() / ".cache" / "offline-rl"))
    cache = home / f"{digest.hexdigest()[:32]}.npz"
    if cache.exists():
        try:
            with np.load(cache, allow_pickle=False) as file:
                arrays = {k: file[k] for k in file.files if k != "__meta__"}
                return arrays, json.loads(str(file["__meta__"]))
        except Exception:  # a damaged cache is no reason to stop: it is written anew
            pass
    arrays, meta = read()
    meta["hash"] = content_hash(arrays)
    temporary = cache.with_name(f"{cache.name}.{os.getpid()}.tmp")
    try:
        home.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as f:
            np.savez(f, __meta__=np.array(json.dumps(meta)), **arrays)
        os.replace(temporary, cache)
    except OSError:
        temporary.unlink(missing_ok=True)
    return arrays, meta


def content_hash(arrays: dict[str, np.ndarray]) -> str:
    """First 16 hex digits of the SHA-256 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()[:16]


def _read_minari(data: Path) -> tuple[dict[str, np.ndarray], dict]:
    import minari

    try:
        check_hdf5(data / "main_data.hdf5")
        dataset = minari.MinariDataset(data)
        episodes = list(dataset.iterate_episodes())
        observations = [flatten_obs(e.observations) for e in episodes]
        ends = np.cumsum([len(e.rewards) for e in episodes]) - 1
        last = np.zeros(ends[-1] + 1, bool)
        last[ends] = True
        arrays = {
            "obs": np.concatenate([o[:-1] for o in observations]),
            "next_obs": np.concatenate([o[1:] for o in observations]),
            "action": np.concatenate([e.actions for e in episodes]),
            "reward": np.concatenate([e.rewards for e in episodes]),
            "terminal": np.concatenate([e.terminations for e in episodes]),
            "last": last,
        }
        stored = json.loads((data / "metadata.json").read_text()) if (data / "metadata.json").exists() else {}
        spec = json.loads(stored.get("eval_env_spec") or stored.get("env_spec") or "{}")
        space = dataset.action_space
    except Exception as error:  # minari, h5py, json and gymnasium each raise their own kinds
        raise InputError(f"{data} is not a readable Minari dataset ({_first_line(error)}).") from None
    _check_shapes(str(data), arrays)
    if not isinstance(spec, dict) or not isinstance(spec.get("kwargs", {}), dict):
        raise InputError(f"{data} has no readable environment in its metadata.")
    meta = {
        "env": spec.get("id"),
        "env_kwargs": spec.get("kwargs", {}),
        "max_episode_steps": spec.get("max_episode_steps"),
    }
    meta["same_env"] = stored.get("eval_env_spec") in (None, stored.get("env_spec"))
    if "ref_min_score" in stored and "ref_max_score" in stored:
        pair = stored["ref_min_score"], stored["ref_max_score"]
        if not all(isinstance(x, int | float) and np.isfinite(x) for x in pair) or pair[0] == pair[1]:
            raise InputError(f"{data} has reference scores {pair[0]} and {pair[1]}; two different numbers are needed.")
        meta["reference"] = {
            "min": stored["ref_min_score"],
            "max": stored["ref_max_score"],
            "episodes": stored.get("num_episodes_average_score"),
            "source": "the Minari dataset's metadata",
        }
    spec = space_spec((), space)
    if spec.discrete:
        meta["actions"] = spec.action_dim
    else:
        meta["low"], meta["high"] = list(spec.action_low), list(spec.action_high)
    return arrays, meta


_KEYS = {
    "obs": ("observations", "obs"),
    "next_obs": ("next_observations", "next_obs"),
    "action": ("actions", "acts", "action"),
    "reward": ("rewards", "rews", "reward"),
    "terminal": ("terminals", "terminated", "terminations", "terminal"),
    "timeout": ("timeouts", "truncated", "truncations"),
    "ends": ("episode_ends",),
    "masks": ("masks",),
}


def _read_file(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """A D4RL hdf5, an OGBench npz or a plain npz."""
    try:
        names = [n for group in _KEYS.values() for n in group]
        stored = read_npz(path) if path.suffix == ".npz" else read_hdf5(path, names)
    except Exception as error:  # zipfile, zlib, h5py and numpy each raise their own kinds
        raise InputError(f"{path} cannot be read ({_first_line(error)}).") from None
    found = {k: stored[n] for k, names in _KEYS.items() for n in names if n in stored}
    if missing := [k for k in ("obs", "action") if k not in found]:
        raise InputError(f"{path} has no {_KEYS[missing[0]][0]}; it holds {', '.join(stored) or 'nothing'}.")
    _check_shapes(str(path), found)
    n = len(found["obs"])
    flags = {k: found[k].reshape(n).astype(bool) for k in ("terminal", "timeout", "ends", "masks") if k in found}
    no = np.zeros(n, bool)
    terminal, last = flags.get("terminal", no), flags.get("timeout", no) | flags.get("ends", no)
    if "masks" in flags:  # OGBench singletask: masks say where the task ended, terminals are episode ends
        last, terminal = last | terminal, ~flags["masks"]
    elif "reward" not in found and "terminal" in found:  # OGBench goal-conditioned: only episode ends
        last, terminal = last | terminal, no
    last = last | terminal
    last[-1] = True
    if "next_obs" in found:
        same = (found["next_obs"][:-1] == found["obs"][1:]).reshape(n - 1, -1).all(1)
        last[:-1] |= ~same
        next_obs, keep = found["next_obs"], np.ones(n, bool)
    else:  # the observation after an episode's last action was not stored: that row is dropped
        next_obs = found["obs"][np.minimum(np.arange(n) + 1, n - 1)]
        keep = ~last | terminal
        last = np.where(keep, last | np.r_[~keep[1:], False], last)
    arrays = {
        "obs": found["obs"],
        "next_obs": next_obs,
        "action": found["action"],
        "reward": found.get("reward", np.zeros(n, np.float32)).reshape(n),
        "terminal": terminal,
        "last": last,
    }
    return {k: v[keep] for k, v in arrays.items()}, {}


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _check_shapes(name: str, arrays: dict[str, np.ndarray]) -> None:
    """Numbers in rows, as many of everything as of obs, one reward and one of each flag in a row."""
    for field, array in arrays.items():
        if array.dtype.kind not in "biuf":
            raise InputError(f"{name}: {field} is of type {array.dtype}, not of numbers.")
        if array.ndim == 0 or array.size == 0:
            raise InputError(f"{name}: {field} of shape {array.shape} has no rows.")
        if len(array) != len(arrays["obs"]):
            raise InputError(f"{name}: {field} has {len(array)} rows, obs has {len(arrays['obs'])}.")
        if field not in ("obs", "next_obs", "action") and array.size != len(array):
            raise InputError(f"{name}: {field} of shape {array.shape} has more than one value in a row.")
    if "next_obs" in arrays and arrays["next_obs"].shape != arrays["obs"].shape:
        shapes = arrays["next_obs"].shape, arrays["obs"].shape
        raise InputError(f"{name}: next_obs of shape {shapes[0]} do not fit obs of shape {shapes[1]}.")


# Evaluation environments for D4RL's file names (the current version of each).
_D4RL_ENVS = {
    "halfcheetah": "HalfCheetah-v5",
    "hopper": "Hopper-v5",
    "walker2d": "Walker2d-v5",
    "ant": "Ant-v5",
    "pendulum": "Pendulum-v1",
    "cartpole": "CartPole-v1",
    "pen": "AdroitHandPen-v1",
    "door": "AdroitHandDoor-v1",
    "hammer": "AdroitHandHammer-v1",
    "relocate": "AdroitHandRelocate-v1",
}


def _guessed_env(name: str) -> gym.envs.registration.EnvSpec | None:
    words = slugify(name).split("-")
    env_id = next((_D4RL_ENVS[w] for w in words if w in _D4RL_ENVS), None)
    return registered_env(env_id) if env_id else None


def _checked(name: str, arrays: dict, meta: dict, env_spec, clip_actions: bool) -> Dataset:
    """Types, NaN, shapes and the action space; actions rescaled to [-1, 1]."""
    obs, next_obs, action = arrays["obs"], arrays["next_obs"], arrays["action"]
    n = len(obs)
    if n < 2:
        raise InputError(f"{name} holds {n} transitions; nothing can be learned from it.")
    image = obs.dtype == np.uint8 and obs.ndim == 4
    if not image:
        obs, next_obs = (np.ascontiguousarray(x.reshape(n, -1), np.float32) for x in (obs, next_obs))
    reward = arrays["reward"].astype(np.float32)
    named = {"observations": obs, "next observations": next_obs, "rewards": reward, "actions": action}
    for label, array in named.items():
        if not (array.dtype == np.uint8 or np.isfinite(array).all()):
            row = int(np.flatnonzero(~np.isfinite(array).reshape(n, -1).all(1))[0])
            raise InputError(f"{name} has NaN or infinite {label}, first in row {row}; clean the file first.")
    space = _made(env_spec).unwrapped.action_space if env_spec and not meta.keys() & {"low", "actions"} else None
    if "low" in meta:
        space = gym.spaces.Box(np.float32(meta["low"]), np.float32(meta["high"]))
    elif "actions" in meta:
        space = gym.spaces.Discrete(meta["actions"])
    elif space is None:
        integer = np.issubdtype(action.dtype, np.integer)
        width = 1 if action.ndim == 1 else action.shape[1]
        space = gym.spaces.Discrete(max(int(action.max()), 0) + 1) if integer else gym.spaces.Box(-1, 1, (width,))
    spec = space_spec(obs.shape[1:], space)
    if spec.discrete:
        if action.size != n:
            raise InputError(f"{name} has {action.size // n} actions in a row, {space} has one.")
        action = action.reshape(n)
        if (action < 0).any() or (action >= spec.action_dim).any() or (action != action.astype(np.int32)).any():
            raise InputError(f"{name} has actions outside {space}; is this the right environment?")
        action = action.astype(np.int32)
    else:
        action = action.reshape(n, -1).astype(np.float32)
        if action.shape[1] != spec.action_dim:
            raise InputError(f"{name} has actions of {action.shape[1]} dimensions, {space} has {spec.action_dim}.")
        low, high = np.float32(spec.action_low), np.float32(spec.action_high)
        action = 2.0 * (action - low) / (high - low) - 1.0
        if not clip_actions and np.abs(action).max() > 1.0 + 1e-4:
            raise InputError(
                f"{name} has actions outside {space} (up to {np.abs(action).max():.2f} times its half-width); "
                "pass --clip-actions to clip them."
            )
        action = np.clip(action, -1.0, 1.0)
    env_id = env_spec.id if env_spec else None
    task = Task(name, meta["hash"], spec, env_spec, reference=reference_score(name, env_id) or meta.get("reference"))
    data = Dataset(task, obs, action, reward, next_obs, arrays["terminal"].astype(bool), arrays["last"].astype(bool))
    if env_spec and (shape := _env_obs_shape(env_spec)) != obs.shape[1:]:
        raise InputError(f"{name} has observations of shape {obs.shape[1:]}, {env_id} gives {shape}.")
    baselines = {}
    if meta.get("same_env", True):  # else the data's returns are of another problem than the scores
        returns = data.episode_returns()
        baselines = {"dataset mean": float(returns.mean()), "dataset best episode": float(returns.max())}
    options = {"clip_actions": True} if clip_actions else {}
    return dataclasses.replace(data, task=dataclasses.replace(task, baselines=baselines, options=options))


def _made(env_spec) -> gym.Env:
    try:
        return gym.make(env_spec)
    except Exception as error:  # whatever an environment raises at arguments that it does not know
        raise InputError(f"{env_spec.id} cannot be made with {env_spec.kwargs} ({_first_line(error)}).") from None


def _env_obs_shape(env_spec) -> tuple[int, ...]:
    return flat_obs_shape(_made(env_spec).observation_space)
