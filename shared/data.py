"""Datasets: flat arrays of transitions, their masks and statistics, and their packed rows for the device.

Episodes are concatenated along N. `terminal` says that bootstrapping stops (the task ended);
`last` marks an episode's last row for whatever reason (task end, time limit, or a cut log). A terminal row need not be
an episode's last: in OGBench's data of one task the trajectory goes on at the goal. Returns and n-step targets end
there, windows and next actions go on.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np

from shared.arguments import DatasetArgs
from shared.checks import checked, facts, guessed_env, preset_misfit, stored_env
from shared.errors import InputError, nearest
from shared.fields import described, jumps
from shared.formats import content_hash, dataset_id, read_dataset
from shared.task import Spec, Task, named_env, reference_score
from shared.transitions import FIELDS, Batch, Transitions, TransitionsWithReturns, alias_table


def return_to_go(
    reward: np.ndarray,
    terminal: np.ndarray,
    last: np.ndarray,
    discount: float = 1.0,
    failure: float | None = None,
    endless: bool = False,
) -> np.ndarray:
    """[N] discounted sum of the rewards [N] from a row to the next that is `terminal` or its episode's `last` [N].

    `failure`: the reward of a step without success; an episode of nothing else goes on failing for ever, and is
    worth failure / (1 - discount) in each of its rows. `endless`: the last reward of an episode that did not
    terminate goes on for ever.
    """
    last = last | terminal
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


ARRAYS = ("obs", "action", "reward", "next_obs", "terminal", "last")


def moments(x: np.ndarray, least: float = 1e-6, constant: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation [D] of the columns of x [N, D], as they are scaled by.

    A deviation of less than `least` is given as `constant`: what never changes is not magnified. Summed in float64, in
    which a constant has none; in float32 it has, and a mean that is no row's.
    """
    mean, std = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    return mean.astype(np.float32), np.where(std < least, constant, std).astype(np.float32)


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
    """Like obs; the true next observation, also at an episode's last row (where none was stored: the row's obs)."""
    terminal: np.ndarray
    """[N] bool: the task ended here, bootstrapping stops (the log may go on)."""
    last: np.ndarray
    """[N] bool: the episode's last row: terminal, time limit or cut."""
    successor: np.ndarray = None
    """[N] bool: next_obs is known (default: everywhere). Elsewhere the row counts in returns and ranges of rewards."""

    def __post_init__(self):
        if self.successor is None:
            object.__setattr__(self, "successor", np.ones(len(self.obs), bool))

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
        """[E] (discounted) return of every episode up to its first termination, as far as it was recorded."""
        return self.return_to_go(discount)[self.starts()]

    def return_to_go(self, discount: float = 1.0, failure: float | None = None, endless: bool = False) -> np.ndarray:
        """[N] discounted sum of the rewards from a row to where the task or its episode ends; see `return_to_go`."""
        return return_to_go(self.reward, self.terminal, self.last, discount, failure, endless)

    def next_action(self) -> tuple[np.ndarray, np.ndarray]:
        """The action at the next row, and [N] bool where it exists (not at an episode's last row).

        Where it does not exist the row's own action stands in.
        """
        at = np.arange(len(self.obs)) + ~self.last
        return self.action[at], ~self.last

    def usable(self, *fields: str) -> np.ndarray:
        """[N] bool: rows of `fields` (default: FIELDS) that losses may use, those that `transitions` packs.

        With next_obs, rows that would be bootstrapped from a next_obs that is not known are left out; terminal ones
        stay. With next_action, the last rows of episodes that did not terminate are left out.
        """
        fields, keep = fields or FIELDS, np.ones(len(self.obs), bool)
        if "next_obs" in fields:
            keep &= self.successor | self.terminal
        if "next_action" in fields:
            keep &= ~self.last | self.terminal
        return keep

    def n_step(self, n: int, discount: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """n-step returns: (reward [N], row whose next_obs is bootstrapped from [N], its weight [N]).

        target = reward + weight * V(next_obs[row]); fewer steps at an episode's end, and weight 0
        where the episode terminated within them. Of rows that are not `usable` it is none.
        """
        row, usable, ended = np.arange(len(self.obs)), self.usable(), self.last | self.terminal
        total, weight = self.reward.astype(np.float64), np.full(len(row), discount)
        for _ in range(n - 1):
            goes_on = ~ended[row] & np.r_[usable[1:], True][row]  # not into a row that cannot be bootstrapped from
            row = row + goes_on
            total += np.where(goes_on, weight * self.reward[row], 0.0)
            weight = np.where(goes_on, weight * discount, weight)
        weight = np.where(self.terminal[row], 0.0, weight)
        return total.astype(np.float32), row, weight.astype(np.float32)

    def by_step(self, horizon: int) -> Batch:
        """Rows (obs, action, reward, next_obs) by the step h = 0 .. H - 1 that ends their observation: [H, n, ...].

        For data of a finite horizon; observations are without the step. n: as many as the rarest step has.

        Raises:
          InputError: there is a step without rows.
        """
        step = self.obs[:, -1]
        of_step = [np.flatnonzero(step == h) for h in range(horizon)]
        rarest = min(range(horizon), key=lambda h: len(of_step[h]))
        if len(of_step[rarest]) == 0:
            raise InputError(f"'{self.task.id}' has no rows of step {rarest}.")
        rows = np.stack([found[: len(of_step[rarest])] for found in of_step])
        return Batch(
            obs=self.obs[rows, :-1],
            action=self.action[rows],
            reward=self.reward[rows],
            next_obs=self.next_obs[rows, :-1],
        )

    def require(self, discrete: bool | None = None, reward: bool = True, images: bool = False) -> "Dataset":
        """This dataset, or InputError where its actions are of the other kind, or it has no rewards.

        `images`: observations may be images.
        """
        if reward and not self.task.data.get("rewards", True):
            raise InputError(f"This learns from rewards; '{self.task.id}' has none (an array of another name?).")
        self.task.require(discrete, images)
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
                f"All episodes of '{self.task.id}' have one return, {self.episode_returns()[0]:g}: rewards cannot be "
                "scaled by the range of returns; pass --no-normalize-return."
            )
        return between

    # -- options that change the problem; recorded in the result

    def replace(self, option: dict, task: dict | None = None, **arrays: np.ndarray) -> "Dataset":
        options = {**self.task.options, **option}
        return dataclasses.replace(self, task=dataclasses.replace(self.task, options=options, **(task or {})), **arrays)

    def normalize_obs(self, eps: float = 1e-3) -> "Dataset":
        """Observations (o - mean) / (std + eps); the task normalises what the policy sees alike.

        Images stay the bytes that they are: networks scale them.
        """
        if self.spec.images:
            return self
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
        if self.spec.discrete or self.spec.images:
            raise InputError(f"'{self.task.id}' has discrete actions or images; only numbers are corrupted.")
        arrays = {n: getattr(self, n) for n in ARRAYS}
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

    def some_episodes(self, count: int) -> "Dataset":
        """`count` of the episodes, drawn, but the same ones for all lanes and runs; all with 0."""
        there = len(self.ends())
        if count > there:
            raise InputError(f"--episodes {count}: '{self.task.id}' has {there}.")
        if count in (0, there):
            return self
        drawn = np.random.default_rng(0).permutation(there)[:count]
        return self.select(np.isin(self.episode(), drawn)).replace({"episodes": count})

    def select(self, rows: np.ndarray) -> "Dataset":
        """The rows where `rows` [N] is True (or of these indices); whole episodes, or `last` is stale."""
        names = (*ARRAYS, "successor")
        return dataclasses.replace(self, **{n: getattr(self, n)[rows] for n in names})

    # -- to the device

    def transitions(self, *fields: str, weights: np.ndarray | None = None, random_shift: int = 0) -> Transitions:
        """The columns `fields` (default: FIELDS) of the rows that are `usable`, packed and on the default device.

        `weights` [N]: `sample` draws rows in proportion to them (default: uniformly). `random_shift`: pixels that it
        moves images by at most. Images stay bytes, each stored once.
        The field `successor` is for losses that use next_obs where an episode terminated (models, discriminators): it
        is 0 where next_obs is not known. Elsewhere what follows a terminal row is multiplied by zero in every target.
        """
        fields = fields or FIELDS
        if random_shift and not self.spec.images:
            raise InputError(f"--random-shift moves images; the observations of '{self.task.id}' are vectors.")
        arrays = {name: getattr(self, name) for name in (*FIELDS, "successor")}
        keep = self.usable(*fields)
        if not keep.any():
            what = "next action" if "next_action" in fields else "next observation"
            raise InputError(f"'{self.task.id}' has no row that is followed by another: there is no {what}.")
        keep = slice(None) if keep.all() else keep
        if "next_action" in fields:
            arrays["next_action"], _ = self.next_action()
        if "return_to_go" in fields:
            arrays["return_to_go"] = self.return_to_go()
        frames = frame = None
        if self.spec.images:  # a next_obs that is not the next row's obs is stored behind its row's
            apart = np.r_[self.last[:-1] | jumps(self.obs, self.next_obs), True]
            at = np.flatnonzero(apart)
            frames = jnp.asarray(np.insert(self.obs, at + 1, self.next_obs[at], axis=0))
            frame = jnp.asarray((np.arange(len(self.obs)) + np.cumsum(np.r_[0, apart[:-1]]))[keep])
        packed = [arrays[f] for f in fields if frames is None or "obs" not in f]
        packed = [x[keep].reshape(len(x[keep]), -1).astype(np.float32) for x in packed]
        table = None if weights is None else alias_table(weights[keep])
        rows = jnp.asarray(np.concatenate(packed, axis=1))
        return Transitions(rows, frames, frame, self.spec, fields, table, random_shift)

    def with_returns(
        self, discounts: np.ndarray, failure: float | None = None, endless: bool = False
    ) -> TransitionsWithReturns:
        """All rows with their returns-to-go, for every one of `discounts` [L] that differs; see `return_to_go`.

        Raises:
          InputError: rewards that go on for ever, without a discount.
        """
        discounts = np.unique(discounts)
        if discounts[-1] >= 1.0 and (endless or failure is not None):
            raise InputError("--discount 1: what --endless or --failure-reward takes to go on for ever has no sum.")
        returns = [self.return_to_go(float(discount), failure, endless) for discount in discounts]
        return TransitionsWithReturns(self.transitions(), discounts, np.stack(returns)[:, self.usable()])


# ---------------------------------------------------------------------------------------- loading


def load_dataset(
    name: str | DatasetArgs,
    env: str = "",
    clip_actions: bool = False,
    env_units: bool = False,
    fields: Iterable[str] = (),
    episode_length: int = 0,
    discrete: bool = False,
) -> Dataset:
    """Loads a Minari id or directory, a D4RL hdf5, an OGBench npz, a plain npz or hdf5, or a recipe's dataset.

    `name`: the dataset, or the arguments of a script, which say all the rest. A recipe of datasets/ that was not made
    yet is made first, in its newest version unless `name` says which; another Minari id is downloaded when there is a
    network. `env` replaces the evaluation environment stored with (or guessed for) the data, as module:id it is
    registered first; "none": there is none. `env_units`: actions stay in the environment's units, instead of [-1, 1].
    The others are explained in `DatasetArgs`. Flat arrays are cached under ~/.cache/offline-rl (or
    $OFFLINE_RL_CACHE) by content. What was understood is printed, and is `task.data`.

    Raises:
      InputError: unknown id, missing or unreadable file, no network, NaN, shapes, flags or spaces that disagree,
        actions outside the action space (unless `clip_actions`).
    """
    if isinstance(name, DatasetArgs):
        a = name
        return load_dataset(a.dataset, a.env, a.clip_actions, env_units, a.fields, a.episode_length, a.discrete)
    name = dataset_id(name)
    arrays, meta = read_dataset(name, fields, episode_length)
    understood, module, own_env = meta["data"], "", False
    if env == "none":
        env_spec = None
    elif env:
        env_spec, module = named_env(env)
    elif meta.get("env"):
        env_spec, own_env = stored_env(meta), True
    else:
        env_spec = guessed_env(name, arrays, understood["notes"])
    env_id = env_spec.id if env_spec else None
    reference = meta.get("reference") if own_env or env_id in (None, meta.get("env")) else None
    reference = reference or reference_score(name, env_id, facts(arrays, meta))
    spec, arrays = checked(name, arrays, meta, env_spec, clip_actions, discrete, env_units)
    limit = env_spec.max_episode_steps if env_spec else None
    if limit and understood["longest"] > limit:
        most = f"the data has episodes of up to {understood['longest']:,} rows"
        understood["notes"].append(f"{most}, {env_id} ends them after {limit:,} steps")
    print(f"{name}: {described(understood)}", flush=True)
    if reference:
        print(f"scores: {reference['min']:g} is 0, {reference['max']:g} is 100 ({reference['source']})", flush=True)
    options = {"clip_actions": True} if clip_actions else {}
    known = {"reference": reference, "options": options, "env_module": module, "data": understood}
    known["left_out"] = tuple(meta.get("left_out", ()))
    understood["reward_range"] = [float(arrays["reward"].min()), float(arrays["reward"].max())]
    data = Dataset(Task(name, meta["hash"], spec, env_spec, **known), **arrays)
    if not (meta.get("same_env", True) and understood["rewards"]):  # returns of another problem than the scores'
        return data
    if data.last.all() and not data.terminal.all():  # single rows that were cut out of episodes: no returns
        return data
    returns = data.episode_returns()
    understood["episode_returns"] = [float(returns.min()), float(returns.max())]
    if data.task.counts_successes:
        returns = np.maximum.reduceat(data.reward, data.starts()) >= (1.0 if data.reward.min() >= 0.0 else 0.0)
    baselines = {"dataset mean": float(returns.mean()), "dataset best episode": float(returns.max())}
    return dataclasses.replace(data, task=dataclasses.replace(data.task, baselines=baselines))


def preset_objection(args: DatasetArgs, key: str, settings: dict[str, Any]) -> str | None:
    """Why the dataset is none that a preset picked by its name is for; None where it is, or is not here yet."""
    try:
        arrays, meta = read_dataset(args.dataset, args.fields, args.episode_length, download=False)
    except InputError:
        return None
    return preset_misfit(key, settings, facts(arrays, meta))
