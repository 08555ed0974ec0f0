"""Hopper, HalfCheetah and Walker2d (v5) by D4RL's recipe, from the policies in datasets/policies/.

  python datasets/locomotion.py select RUN_DIR NAME      pick the policies out of a SAC run

Scheme: Fu et al., D4RL (arXiv 2004.07219). `medium` and `expert` are frozen STOCHASTIC policies;
`medium-replay` plays the snapshots of the training run one after the other, each for the steps that
lay between it and the one before. `random-expert-5`: 95 % of the steps are uniform actions, 5 % the
expert's, after Hong et al. (arXiv 2306.13085). (The file cannot be called mujoco.py: it would hide MuJoCo.)

Policies act in float64, and their actions are rounded to a grid of 2^-14: what a BLAS or a processor does
differently is a thousand million times smaller and is rounded away. (A name that ends in -v0 is an earlier
version, whose policies act in float32 without the grid: its content holds for one processor only.)
"""

import argparse
import json
import os
import re
import sys
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, count, islice
from pathlib import Path

# One BLAS thread per worker: the policies' products are too small to share out. Before NumPy loads.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import gymnasium as gym
import minari
import numpy as np
from episodes import Recipe, cores, cut, episode
from minari.data_collector import EpisodeBuffer
from minari.storage import get_dataset_path

from shared.errors import InputError
from shared.task import recipe_id, recipe_name, registered_env

POLICIES = Path(__file__).resolve().parent / "policies"
MILLION = 1_000_000
STEPS = {"random": MILLION, "medium": MILLION, "expert": MILLION, "medium-expert": 2 * MILLION, "medium-small": 200_000}
NAME = re.compile(r"([^-]+)-(.+?)(?:-v(\d+))?")
"""Robot, level and, where there are several, the version."""
MIXTURE = re.compile(r"random-(medium|expert)-(\d+)")
"""Level of a mixture: the good policy and its share of the steps in percent."""
BLOCK = 16
"""Episodes stepped together. What an episode holds depends neither on its block nor on the threads."""
GRID = 2.0**-14
"""Distance of two neighbouring actions in [-1, 1]; a power of two, so that float32 holds them all."""

Policy = dict[str, np.ndarray]
"""x = relu(W0 x + b0), ..., mean = last W x + b; log std = logstd_W h + logstd_b of the last hidden
layer h, clipped to [-20, 2]; action = tanh(mean + std * noise), scaled to the action range."""
NOT_WEIGHTS = ("activation", "squash", "action_high")


def recipe(name: str, env_id: str) -> Recipe:
    """`{hopper,halfcheetah,walker2d}-{random,medium,medium-replay,medium-expert,expert,random-expert-<percent>}`."""
    robot, level, version = NAME.fullmatch(name).groups()
    spec = registered_env(env_id)
    who = {
        "random": "uniform actions",
        "medium": "a stochastic SAC policy at a third of the expert's return",
        "medium-small": "a stochastic SAC policy at a third of the expert's return",
        "expert": "a trained stochastic SAC policy",
        "medium-replay": "uniform actions, then the stochastic SAC policies of a training run",
        "medium-expert": "the stochastic medium policy, then the expert",
    }
    if mixture := MIXTURE.fullmatch(level):
        who[level] = f"uniform actions, then for {mixture[2]} % of the steps the stochastic {mixture[1]} policy"
    steps = MILLION if mixture else STEPS.get(level)
    if level == "medium-replay" and (POLICIES / f"{robot}-replay.npz").exists():
        replay = load_policy(POLICIES / f"{robot}-replay.npz")
        steps = int(replay["random_steps"] + replay["steps"].sum())
    return Recipe(
        env=spec,
        eval_env=spec,
        steps=steps or 0,
        policy=who[level],
        collect=partial(collect, env_id, name),
        reference=env_id,
        expert="the trained SAC policy, stochastic",
        returns=partial(reference_returns, env_id, robot),
    )


# ----------------------------------------------------------------------------------------- policy


def load_policy(path: Path, dtype: type = np.float64) -> Policy:
    """A relu tanh-Gaussian policy, or a stack of them with a leading axis; float16 becomes `dtype`.

    Raises:
      InputError: missing file, or another kind of policy.
    """
    if not path.exists():
        raise InputError(f"There is no policy {path}; python datasets/locomotion.py select makes it from a SAC run.")
    with np.load(path, allow_pickle=False) as file:
        if str(file["activation"]) != "relu" or int(file["squash"]) != 1 or "obs_mean" in file:
            raise InputError(f"{path} is not a relu tanh-Gaussian policy on raw observations.")
        policy = {k: file[k] for k in file.files if k not in NOT_WEIGHTS}
    return {k: v.astype(dtype) if v.dtype.kind == "f" else v for k, v in policy.items()}


def save_policy(path: Path, policy: Policy) -> None:
    """As float16, compressed: half the size, and far below the policy's own noise."""
    arrays = {k: v.astype(np.float16) if v.dtype.kind == "f" else v for k, v in policy.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        np.savez_compressed(file, activation=np.array("relu"), squash=np.array(1), **arrays)
    os.replace(temporary, path)


def sample(policy: Policy, obs: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Observations [B, O], standard normal noise [B, A] -> actions [B, A] in [-1, 1], in the policy's type.

    In float64, an action is the middle of a cell of the grid, so that none is -1 or 1: atanh stays finite.
    """
    layers, dtype = sum(k.startswith("W") for k in policy), policy["W0"].dtype
    x, noise = obs.astype(dtype), noise.astype(dtype)
    for i in range(layers - 1):
        x = np.maximum(x @ policy[f"W{i}"].T + policy[f"b{i}"], 0.0)
    mean = x @ policy[f"W{layers - 1}"].T + policy[f"b{layers - 1}"]
    log_std = np.clip(x @ policy["logstd_W"].T + policy["logstd_b"], -20.0, 2.0)
    action = np.tanh(mean + np.exp(log_std) * noise)
    if dtype == np.float32:  # version 0
        return action
    return (np.minimum(np.floor(action / GRID), 1.0 / GRID - 1.0) + 0.5) * GRID


# ------------------------------------------------------------------------------------------- play

_local = threading.local()


def raw_envs(env_id: str) -> list[gym.Env]:
    """This thread's BLOCK environments without wrappers, made once."""
    made = _local.__dict__.setdefault("envs", {})
    if env_id not in made:
        made[env_id] = [gym.make(env_id).unwrapped for _ in range(BLOCK)]
    return made[env_id]


def play_block(
    env_id: str, policy: Policy | None, seeds: range, stop: threading.Event | None = None
) -> list[EpisodeBuffer]:
    """One episode per seed (at most BLOCK), stepped together; uniform actions without a policy.

    After `stop` is set, what it returns is of no use.
    """
    envs = raw_envs(env_id)[: len(seeds)]
    limit, (size,) = gym.spec(env_id).max_episode_steps, envs[0].action_space.shape
    low, high = envs[0].action_space.low, envs[0].action_space.high
    rngs = [np.random.default_rng(seed) for seed in seeds]
    observations = np.zeros((len(envs), limit + 1, *envs[0].observation_space.shape), np.float32)
    actions = np.zeros((len(envs), limit, size), np.float32)
    rewards = np.zeros((len(envs), limit), np.float32)
    lengths, terminated = np.zeros(len(envs), int), np.zeros(len(envs), bool)
    for i, env in enumerate(envs):
        observations[i, 0] = env.reset(seed=seeds[i])[0]
    active = list(range(len(envs)))
    for t in range(limit):
        if policy is None:
            unit = np.float32([rngs[i].uniform(-1.0, 1.0, size) for i in active])
        else:
            noise = np.array([rngs[i].standard_normal(size) for i in active])
            unit = sample(policy, observations[active, t], noise)
        actions[active, t] = low + (unit + 1.0) * 0.5 * (high - low)
        for i in active:
            observations[i, t + 1], rewards[i, t], terminated[i], _, _ = envs[i].step(actions[i, t])
            lengths[i] = t + 1
        active = [i for i in active if not terminated[i]]
        if not active or (stop and stop.is_set()):
            break
    return [
        episode(observations[i, : n + 1], actions[i, :n], rewards[i, :n], terminated[i], seeds[i])
        for i, n in enumerate(lengths)
    ]


def play(env_id: str, policy: Policy | None, first_seed: int) -> Iterator[EpisodeBuffer]:
    """Endless complete episodes, seeded and ordered first_seed, first_seed + 1, ...; all cores."""
    stop = threading.Event()
    blocks = (range(s, s + BLOCK) for s in count(first_seed, BLOCK))
    with ThreadPoolExecutor(cores()) as pool:
        jobs = (pool.submit(play_block, env_id, policy, seeds, stop) for seeds in blocks)
        pending = deque(islice(jobs, cores()))
        try:
            while True:
                episodes = pending.popleft().result()
                pending.append(next(jobs))
                yield from episodes
        finally:  # the caller has enough
            stop.set()
            pool.shutdown(cancel_futures=True)


def play_steps(env_id: str, policy: Policy | None, steps: int, seed: int) -> list[EpisodeBuffer]:
    """Complete episodes until there are `steps` steps or more."""
    episodes, total, source = [], 0, play(env_id, policy, seed)
    while total < steps:
        episodes.append(next(source))
        total += len(episodes[-1])
    source.close()
    return episodes


def play_returns(env_id: str, policy: Policy | None, episodes: int) -> np.ndarray:
    """Returns [episodes] of the episodes seeded 0, 1, ..."""
    source = play(env_id, policy, 0)
    returns = np.array([next(source).rewards.sum() for _ in range(episodes)], np.float64)
    source.close()
    return returns


# ---------------------------------------------------------------------------------------- recipes


def collect(env_id: str, name: str, steps: int, seed: int) -> list[EpisodeBuffer]:
    """The episodes of a recipe; only the last one is cut (of a mixture, the last one of each part)."""
    robot, level, version = NAME.fullmatch(name).groups()
    if level == "medium-expert":
        parts = (("medium", steps - steps // 2), ("expert", steps // 2))
    elif mixture := MIXTURE.fullmatch(level):
        good = steps * int(mixture[2]) // 100
        parts = (("random", steps - good), (mixture[1], good))
    else:
        load = partial(load_policy, dtype=np.float32 if version == "0" else np.float64)
        if level == "medium-replay":
            return collect_replay(env_id, load(POLICIES / f"{robot}-replay.npz"), steps, seed)
        policy = None if level == "random" else load(POLICIES / f"{robot}-{level.removesuffix('-small')}.npz")
        return cut_last(play_steps(env_id, policy, steps, seed), steps)
    of_version = name.removeprefix(f"{robot}-{level}")
    return [e for part, n in parts if n for e in made_or_played(env_id, f"{robot}-{part}{of_version}", n, seed)]


def collect_replay(env_id: str, replay: Policy, steps: int, seed: int) -> list[EpisodeBuffer]:
    """Uniform actions, then each snapshot in turn, in proportion to the steps it had in the run.

    An episode is finished by the policy that began it; the surplus comes off the next one's share.
    """
    shares = np.concatenate([replay["random_steps"][None], replay["steps"]]).astype(np.float64)
    until = np.round(np.cumsum(shares) / shares.sum() * steps).astype(int)
    weights = {k: v for k, v in replay.items() if k not in ("steps", "random_steps")}
    snapshots = ({k: v[s] for k, v in weights.items()} for s in range(len(replay["steps"])))
    episodes, total = [], 0
    for policy, end in zip(chain([None], snapshots), until, strict=True):
        played = play_steps(env_id, policy, end - total, seed + len(episodes))
        episodes += played
        total += sum(map(len, played))
    return cut_last(episodes, steps)


def cut_last(episodes: list[EpisodeBuffer], steps: int) -> list[EpisodeBuffer]:
    """The last episode cut so that there are `steps` rows in all."""
    surplus = sum(map(len, episodes)) - steps
    return [*episodes[:-1], cut(episodes[-1], len(episodes[-1]) - surplus)]


def made_or_played(env_id: str, name: str, steps: int, seed: int) -> list[EpisodeBuffer]:
    """The first episodes of a dataset that was made with this seed and is long enough, else played.

    One policy's episodes are those of a shorter dataset and more, so that either way they are the same.
    """
    robot, level, _ = NAME.fullmatch(name).groups()
    made = recipe_id(recipe_name(name) or f"{robot}-{level}")  # uniform actions have no versions
    if Path(get_dataset_path(made)).exists():
        dataset = minari.load_dataset(made)
        stored = dataset.storage.metadata
        if stored["total_steps"] >= steps and stored["seed"] == seed:
            episodes, total, source = [], 0, dataset.iterate_episodes()
            while total < steps:
                e = next(source)
                episodes.append(episode(e.observations, e.actions, e.rewards, bool(e.terminations[-1])))
                total += len(e.rewards)
            return cut_last(episodes, steps)
    return collect(env_id, name, steps, seed)


def reference_returns(env_id: str, robot: str, who: str, episodes: int) -> np.ndarray:
    """Returns [episodes] of uniform actions or of the expert policy (stochastic)."""
    return play_returns(env_id, None if who == "random" else load_policy(POLICIES / f"{robot}-expert.npz"), episodes)


# ----------------------------------------------------------------------------------------- select


def select(run: Path, name: str, out: Path, lane: int = 0, snapshots: int = 20) -> dict:
    """Picks expert, medium and the replay's snapshots out of a SAC run, and writes their files.

    Every snapshot is played for 10 stochastic episodes. Expert: the best mean. Medium: the first
    snapshot at or above random + (expert - random) / 3 (D4RL: stopped at a third of the expert's
    return). Both are measured again with 100 episodes; a medium that is more than a tenth of the
    range off the level gives way to the nearest among the five snapshots whose 10 episodes came
    nearest. The replay keeps at most `snapshots` policies of the run up to medium.

    Raises:
      InputError: no snapshots of this lane.
    """
    files = sorted((run / "policies").glob(f"lane{lane}-step*.npz"))
    if not files:
        raise InputError(f"There are no snapshots {run}/policies/lane{lane}-step*.npz.")
    settings = json.loads((run / "run.json").read_text())["args"]
    env_id = settings["env"]
    steps = [int(f.stem.split("step")[1]) for f in files]
    policies = [load_policy(f) for f in files]
    with ThreadPoolExecutor(cores()) as pool:
        short = list(pool.map(lambda p: returns_of_block(env_id, p, 10), policies))
    low = float(play_returns(env_id, None, 100).mean())
    expert = int(np.argmax(short))
    high = float(play_returns(env_id, policies[expert], 100).mean())
    level = low + (high - low) / 3.0
    long: dict[int, float] = {expert: high}

    def measured(i: int) -> float:
        if i not in long:
            long[i] = float(play_returns(env_id, policies[i], 100).mean())
        return long[i]

    medium = next((i for i, r in enumerate(short) if r >= level), expert)
    if abs(measured(medium) - level) > 0.1 * (high - low):
        near = np.argsort(np.abs(np.array(short) - level))[:5].tolist()
        medium = min([medium, *near], key=lambda i: abs(measured(i) - level))

    kept = sorted({medium - round(i * medium / max(snapshots - 1, 1)) for i in range(snapshots)})
    warm_up = min(int(settings["learning_starts"]), steps[0])
    replay = {k: np.stack([policies[i][k] for i in kept]) for k in policies[0]}
    replay["steps"] = np.diff([warm_up, *(steps[i] for i in kept)])
    replay["random_steps"] = np.array(warm_up)
    save_policy(out / f"{name}-expert.npz", policies[expert])
    save_policy(out / f"{name}-medium.npz", policies[medium])
    save_policy(out / f"{name}-replay.npz", replay)
    picked = {
        "env": env_id,
        "random_return": low,
        "expert": {"step": steps[expert], "mean_return_100": high},
        "medium": {"step": steps[medium], "mean_return_100": measured(medium), "level": level},
        "replay_steps": [steps[i] for i in kept],
        "snapshots": [
            {"step": s, "mean_return_10": float(r), "mean_return_100": long.get(i)}
            for i, (s, r) in enumerate(zip(steps, short, strict=True))
        ],
    }
    (out / f"{name}-selection.json").write_text(json.dumps(picked, indent=1) + "\n")
    return picked


def returns_of_block(env_id: str, policy: Policy, episodes: int) -> float:
    """Mean return of at most BLOCK episodes."""
    return float(np.mean([e.rewards.sum() for e in play_block(env_id, policy, range(episodes))]))


def main() -> None:
    """Command line: select RUN_DIR NAME."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["select"])
    parser.add_argument("run", type=Path, help="SAC run directory with policies/lane*-step*.npz")
    parser.add_argument("name", help="hopper, halfcheetah or walker2d")
    parser.add_argument("--out", type=Path, default=POLICIES, help="where the policies go")
    parser.add_argument("--lane", type=int, default=0, help="lane of the run")
    parser.add_argument("--snapshots", type=int, default=20, help="policies kept for the replay")
    args = parser.parse_args()
    picked = select(args.run, args.name, args.out, args.lane, args.snapshots)
    print(json.dumps({k: v for k, v in picked.items() if k != "snapshots"}, indent=1))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
