"""OGBench's own data, made by its published recipe from what the package `ogbench` holds, without network or experts.

`ogbench-<dataset>[-singletask[-task<1..5>]][-val]`, where <dataset> is OGBench's name without its version. Park, Frans,
Eysenbach, Levine: OGBench (arXiv 2410.20092); the behaviour is that of seohongpark/ogbench 1d41409, data_gen_scripts/.

- pointmaze: towards the next cell on a shortest path, with noise 0.5 on the unit action. `navigate`: any free cell to
  one random goal after the other, never in a corridor; `stitch`: to a goal 4 cells away, and stay.
- cube, scene, puzzle: OGBench's oracles to one random target after the other. `play`: a plan with correlated noise;
  `noisy`: closed-loop, with noise of its own size in every episode and uniform actions at a rate of 0.1 (puzzle 0.2).
- powderworld: fills, lines and squares of one element, every other brush at random; images, discrete actions.

A pair of files, <dataset>-v0.npz and -val.npz (a tenth as many episodes), is played once, in blocks of episodes by as
many processes as there are cores; a job that was killed goes on with the blocks that are there. The pair is in
OGBench's form: `ogbench.make_env_and_datasets(name, dataset_path=...)` reads it. The Minari datasets are made from it:
without rewards (`-val`: of the second file), or with those of a task, for the row's own state: 0 where it is solved,
which terminates, else minus the number of unsolved parts. An episode goes on after a row that terminates.

Kept from the published scripts: after a new target the next action is chosen by the `info` of the old one, in which the
target is still the old one. Plans do not look at it; in `noisy` data it decides one action after each target. Not kept:
those scripts seed nothing. Here every episode has seeds of its own, so that its rows depend neither on the number of
processes nor on the episodes before it.
"""

import hashlib
import importlib.metadata
import json
import multiprocessing
import os
import re
import signal
import time
import warnings
import zipfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from importlib import import_module
from pathlib import Path

import gymnasium as gym
import numpy as np
from episodes import Recipe, cores
from minari.data_collector import EpisodeBuffer
from tqdm import tqdm

from shared.errors import InputError
from shared.names import ogbench_env
from shared.task import registered_env

Rows = dict[str, np.ndarray]
"""Columns [rows, ...] of an episode as OGBench stores them."""

NAME = re.compile(
    r"ogbench-((pointmaze|cube|scene|puzzle|powderworld)(?:-(\w+))?-(navigate|stitch|play|noisy))"
    r"(-singletask(?:-task\d)?)?(-val)?"
)
EPISODES = {
    "pointmaze-giant-navigate": 500,
    "cube-triple": 3000,
    "cube-quadruple": 5000,
    "puzzle-4x5": 3000,
    "puzzle-4x6": 5000,
    "powderworld-medium": 3000,
    "powderworld-hard": 5000,
    "stitch": 5000,
}
"""Published number of training episodes, by words of the name; all others: 1000."""
ROWS = {"pointmaze-giant-navigate": 2001, "stitch": 201}
"""Of an episode, the last one included, which is no transition; all others: 1001."""
MAZE_NOISE = 0.5
STITCH_CELLS = 4
NOISE, SMOOTHING, MIN_NORM = 0.1, 0.5, 0.4
"""Of the oracles: noise, its smoothing along a plan, the least length of a closed-loop step."""
NOISE_SHAPE = np.array([1.0, 1.0, 1.0, 3.0, 10.0])
"""Of the noise of closed-loop actions: position, yaw, gripper."""
RANDOM_ACTIONS = {"puzzle": 0.2}
"""Rate of uniform actions in `noisy` data; all others: 0.1."""
STACKING = {"single": (0.0, 0.0), "double": (0.0, 0.25), "triple": (0.05, 0.35), "quadruple": (0.1, 0.5)}
"""Range of an episode's probability to stack cubes, by their number; all others: 0.5."""
BEHAVIOURS = ("Fill", "Line", "Square"), np.array([1.0, 3.0, 3.0]) / 7.0
"""Of powderworld, with their probabilities."""
RANDOM_BRUSH = 0.5
VAL_SHARE = 10
BLOCK = 10
"""Episodes of a file of finished work."""
VERSION = 1
"""Of the recipes; one more whenever what is played changes."""
PACKAGES = ("ogbench", "mujoco", "dm-control", "gymnasium", "numpy", "scipy")
"""Whose versions the rows depend on."""
TYPES = {"terminals": bool, "button_states": np.int64}
"""Of OGBench's arrays; all others are float32 (powderworld: uint8 observations, int32 actions)."""


# ------------------------------------------------------------------------------------------ recipe


def recipe(name: str, env_id: str) -> Recipe:
    """Every name of the form above.

    Raises:
      InputError: the package ogbench is not installed.
    """
    data, _, _, kind, task, val = NAME.fullmatch(name).groups()
    require_ogbench(name)
    env = registered_env(env_id)
    who = {
        "navigate": f"a planner with action noise {MAZE_NOISE}, to one random goal after the other",
        "stitch": f"a planner with action noise {MAZE_NOISE}, to a goal {STITCH_CELLS} cells away",
        "play": "plans with correlated noise, to one random target after the other",
        "noisy": "a closed-loop controller with noise and random actions, to one random target after the other",
    }
    if "powderworld" in data:
        who["play"] = "fills, lines and squares, every other brush at random"
    split, stored = ("val" if val else "train"), about(data)
    episodes = stored["episodes"][split] if stored and name != f"ogbench-{data}" else published(data)[split]
    return Recipe(
        env=env if task else collection_env(data),
        eval_env=env,
        steps=episodes * (rows_of_episode(data) - 1),
        policy=who[kind],
        collect=partial(collect, name, env if task else None),
        reference=env_id,
        expert="every episode succeeds",
        returns=None,
        packages=("ogbench==1.2.2", "dm-control==1.0.44", "scipy"),
        rewards=bool(task),
    )


def require_ogbench(name: str) -> None:
    """InputError where the package is missing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a machine without a display
            import_module("ogbench")
    except ImportError as error:
        raise InputError(
            f"{name} needs the package ogbench ({error}); pip install ogbench==1.2.2 dm_control==1.0.44"
        ) from None


def published(data: str) -> dict[str, int]:
    """{train, val: number of episodes} of OGBench's own dataset."""
    episodes = next((n for words, n in EPISODES.items() if words in data), 1000)
    return {"train": episodes, "val": episodes // VAL_SHARE}


def rows_of_episode(data: str) -> int:
    return next((n for words, n in ROWS.items() if words in data), 1001)


def collection_env(data: str) -> gym.envs.registration.EnvSpec:
    """Where the data is played: without a goal that ends the episode, of random scenes."""
    kwargs = {} if "pointmaze" in data else {"mode": "data_collection"}
    kwargs |= {} if "powderworld" in data else {"terminate_at_goal": False}
    return registered_env(ogbench_env(data), kwargs, rows_of_episode(data))


# --------------------------------------------------------------------------------- one pair of files


def folder() -> Path:
    """Where the pairs lie: $OGBENCH_DATASETS_PATH or ~/.ogbench/made (OGBench's own are in ~/.ogbench/data)."""
    return Path(os.environ.get("OGBENCH_DATASETS_PATH", Path.home() / ".ogbench" / "made"))


def file_of(data: str, split: str) -> Path:
    return folder() / f"{data}-v0{'-val' if split == 'val' else ''}.npz"


def about(data: str) -> dict | None:
    """Seed, episodes and versions of a pair that is complete; None where there is none."""
    path = folder() / f"{data}-v0.json"
    return json.loads(path.read_text()) if path.exists() else None


def settings(data: str, episodes: int, seed: int) -> dict:
    """What a pair's rows depend on."""
    return {
        "data": data,
        "recipe": VERSION,
        "seed": seed,
        "episodes": {"train": episodes, "val": max(1, episodes // VAL_SHARE)},
        "versions": {p: importlib.metadata.version(p) for p in PACKAGES},
    }


def collect(name: str, task: gym.envs.registration.EnvSpec | None, steps: int, seed: int) -> Iterator[EpisodeBuffer]:
    """Whole episodes of at least `steps` transitions together, out of a pair of files that is made if need be.

    Raises:
      InputError: a single task or a validation set of another size or seed than the pair that is there.
    """
    data, split = NAME.fullmatch(name)[1], "val" if name.endswith("-val") else "train"
    wanted, stored = -(-steps // (rows_of_episode(data) - 1)), about(data)
    if name == f"ogbench-{data}":
        if stored != settings(data, wanted, seed):
            make_pair(data, wanted, seed)
    elif stored is None:
        make_pair(data, wanted * (VAL_SHARE if split == "val" else 1), seed)
    elif (stored["episodes"][split], stored["seed"]) != (wanted, seed):
        raise InputError(
            f"{file_of(data, split)} holds {stored['episodes'][split]:,} episodes of seed {stored['seed']}, not "
            f"{wanted:,} of seed {seed}; make.py ogbench-{data} --force makes it anew, at any size."
        )
    return episodes_of(file_of(data, split), rows_of_episode(data), task)


def make_pair(data: str, episodes: int, seed: int) -> None:
    """Plays and writes the files of `data`; its .json comes last, and says that they are whole."""
    plan = settings(data, episodes, seed)
    digest = hashlib.sha256(json.dumps({k: plan[k] for k in ("recipe", "seed", "versions")}).encode()).hexdigest()[:8]
    work = folder() / ".parts" / f"{data}-{digest}"
    work.mkdir(parents=True, exist_ok=True)
    blocks = [
        (split, first, min(BLOCK, count - first))
        for split, count in plan["episodes"].items()
        for first in range(0, count, BLOCK)
    ]
    play_all(data, seed, blocks, work)
    (folder() / f"{data}-v0.json").unlink(missing_ok=True)
    for split in plan["episodes"]:
        join([part(work, block) for block in blocks if block[0] == split], file_of(data, split))
    temporary = folder() / f"{data}-v0.json.tmp"
    temporary.write_text(json.dumps(plan, indent=1) + "\n")
    os.replace(temporary, folder() / f"{data}-v0.json")
    for path in work.iterdir():
        path.unlink()
    work.rmdir()


def part(work: Path, block: tuple[str, int, int]) -> Path:
    """The file of a block (split, first episode, number of episodes)."""
    return work / "{}-{:06d}-{}.npz".format(*block)


def play_all(data: str, seed: int, blocks: list[tuple[str, int, int]], work: Path) -> None:
    """Plays the blocks that are not in `work` yet, in several processes.

    Raises:
      InputError: a process failed; what was played stays.
    """
    missing = [block for block in blocks if not part(work, block).exists()]
    count = min(cores(), len(missing))
    with tqdm(total=sum(b[2] for b in blocks), unit="episode", desc=data, disable=None) as bar:

        def show() -> None:
            bar.n = sum(b[2] for b in blocks if part(work, b).exists())
            bar.refresh()

        show()
        if count < 2:
            for block in missing:
                play_block(data, seed, block, work)
                show()
            return
        spawn = multiprocessing.get_context("spawn")  # JAX does not bear a fork
        shares = [missing[i::count] for i in range(count)]
        workers = [
            spawn.Process(target=play_blocks, args=(data, seed, share, work, os.getpid()), daemon=True)
            for share in shares
        ]
        try:
            for worker in workers:
                worker.start()
            while any(worker.is_alive() for worker in workers) and not any(w.exitcode for w in workers):
                time.sleep(0.2)
                show()
        finally:
            for worker in workers:
                if worker.is_alive():
                    worker.terminate()
            for worker in workers:
                worker.join()
        if failed := [w.exitcode for w in workers if w.exitcode]:
            raise InputError(f"A process that played {data} failed (exit code {failed[0]}); what was played is kept.")


def play_blocks(data: str, seed: int, blocks: list[tuple[str, int, int]], work: Path, parent: int) -> None:
    """The work of one process; it ends with the process that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which ends this one
    for block in blocks:
        if os.getppid() != parent:
            return
        play_block(data, seed, block, work)


def play_block(data: str, seed: int, block: tuple[str, int, int], work: Path) -> None:
    """Plays episodes and writes their file, whole or not at all."""
    split, first, count = block
    played = [play_episode(data, seed, split, first + i) for i in range(count)]
    columns = {k: np.concatenate([rows[k] for rows in played]) for k in played[0]}
    temporary = part(work, block).with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.savez_compressed(file, **columns)
    os.replace(temporary, part(work, block))


def join(parts: list[Path], target: Path) -> None:
    """One .npz of the rows of many, with one part in memory at a time; the same bytes for the same rows."""
    with np.load(parts[0], allow_pickle=False) as first:
        columns = {k: first[k][:0] for k in first.files}
    total = sum(len(np.load(path, allow_pickle=False)["terminals"]) for path in parts)
    temporary = target.with_suffix(".tmp")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as file:
        for name, empty in columns.items():
            entry = zipfile.ZipInfo(f"{name}.npy")  # of 1980: no time enters the file
            entry.compress_type = zipfile.ZIP_DEFLATED
            with file.open(entry, "w", force_zip64=True) as stream:
                header = np.lib.format.header_data_from_array_1_0(empty)
                header |= {"shape": (total, *empty.shape[1:]), "fortran_order": False}
                np.lib.format.write_array_header_1_0(stream, header)
                for path in parts:
                    with np.load(path, allow_pickle=False) as rows:
                        stream.write(np.ascontiguousarray(rows[name]).data.cast("B"))
    os.replace(temporary, target)


def read_rows(path: Path, length: int) -> Iterator[Rows]:
    """One episode of `length` rows after the other, with one in memory at a time."""
    with zipfile.ZipFile(path) as file, ExitStack() as stack:
        columns, total = {}, 0
        for name in file.namelist():
            stream = stack.enter_context(file.open(name))
            np.lib.format.read_magic(stream)
            (total, *shape), _, dtype = np.lib.format.read_array_header_1_0(stream)
            columns[name.removesuffix(".npy")] = stream, (length, *shape), dtype
        for _ in range(total // length):
            yield {
                name: np.frombuffer(stream.read(dtype.itemsize * int(np.prod(shape))), dtype).reshape(shape)
                for name, (stream, shape, dtype) in columns.items()
            }


def episodes_of(path: Path, length: int, task: gym.envs.registration.EnvSpec | None) -> Iterator[EpisodeBuffer]:
    """Minari's episodes of an OGBench file: of `length` rows, the last of which is an observation only.

    Rewards and terminations are those of the single-task environment `task`, else there are none. A row of a solved
    state terminates, and the episode goes on.
    """
    solved = solved_parts(task) if task else None
    for rows in read_rows(path, length):
        reward, terminal = np.zeros(length - 1, np.float32), np.zeros(length - 1, bool)
        if solved:
            parts = solved({k: x[:-1] for k, x in rows.items()})
            reward, terminal = (parts.sum(1) - parts.shape[1]).astype(np.float32), parts.all(1)
        actions = rows["actions"][:-1]
        yield EpisodeBuffer(
            observations=rows["observations"],
            actions=actions.astype(np.int64) if actions.dtype.kind == "i" else actions,
            rewards=reward,
            terminations=terminal,
            truncations=(np.arange(length - 1) == length - 2) & ~terminal,
        )


def solved_parts(task: gym.envs.registration.EnvSpec) -> Callable[[Rows], np.ndarray]:
    """Of a single-task environment: rows (qpos, button_states) -> [rows, parts] which parts of the task are solved.

    A maze has one part; others one for each cube, button, drawer and window.
    """
    env = gym.make(task, disable_env_checker=True)
    env.reset()  # sets the goals
    world, goal = env.unwrapped, env.unwrapped.cur_task_info
    if hasattr(world, "maze_map"):
        centre, radius = world.cur_goal_xy, world._goal_tol
        return lambda rows: np.linalg.norm(rows["qpos"][:, :2] - centre, axis=1, keepdims=True) <= radius
    near, goal = 0.04, goal.get("goal", goal)  # metres, also of drawers and windows
    slides = {f"{k}_slide": goal[f"{k}_pos"] for k in ("drawer", "window") if f"{k}_pos" in goal}
    buttons = next((goal[k] for k in ("button_states", "goal_button_states") if k in goal), None)
    cubes = next((goal[k] for k in ("block_xyzs", "goal_xyzs") if k in goal), ())
    start = {name: int(world.model.joint(name).qposadr[0]) for name in slides}
    start |= {i: int(world.model.joint(f"object_joint_{i}").qposadr[0]) for i in range(len(cubes))}

    def solved(rows: Rows) -> np.ndarray:
        qpos = rows["qpos"]
        parts = [np.linalg.norm(qpos[:, start[i] : start[i] + 3] - xyz, axis=1) <= near for i, xyz in enumerate(cubes)]
        parts += [] if buttons is None else list((rows["button_states"] == buttons).T)
        parts += [np.abs(qpos[:, start[name]] - at) <= near for name, at in slides.items()]
        return np.stack(parts, axis=1)

    return solved


# ------------------------------------------------------------------------------------ one episode


def play_episode(data: str, seed: int, split: str, episode: int) -> Rows:
    """The rows of one episode: the same ones whatever was played before."""
    env = collection(data)
    draw = np.random.SeedSequence([seed, ("train", "val").index(split), episode])
    rng, (theirs, first) = np.random.default_rng(draw), draw.spawn(1)[0].generate_state(2)
    kind = {"pointmaze": maze_episode, "powderworld": powder_episode}.get(data.split("-")[0], arm_episode)
    with numpy_seeded(int(theirs)):
        rows, reset_seed = None, int(first)
        while rows is None or not healthy(data, rows):
            rows, reset_seed = kind(data, env, rng, reset_seed), None
    return rows


@contextmanager
def numpy_seeded(seed: int) -> Iterator[None]:
    """NumPy's global generator, from which OGBench's planners draw, seeded inside the block and as it was after it."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


@cache
def collection(data: str) -> gym.Env:
    """This process's environment, made once."""
    require_ogbench(data)
    return gym.make(collection_env(data), disable_env_checker=True)


def roll(env: gym.Env, obs: np.ndarray, act: Callable, after: Callable[[dict], None]) -> Rows:
    """The rows of an episode from `obs` on: `act(obs)` is the action, and `after(info)` hears of every step."""
    rows, done = {}, False
    while not done:
        action = act(obs)
        next_obs, _, terminated, truncated, info = env.step(action)
        done = terminated or truncated
        after(info)
        row = {"observations": obs, "actions": action, "terminals": done}
        row |= {k: info[f"prev_{k}"] for k in ("qpos", "qvel", "button_states") if f"prev_{k}" in info}
        for name, x in row.items():
            rows.setdefault(name, []).append(x)
        obs = next_obs
    pixels = rows["observations"][0].dtype == np.uint8
    types = TYPES | ({"observations": np.uint8, "actions": np.int32} if pixels else {})
    return {name: np.array(x, types.get(name, np.float32)) for name, x in rows.items()}


def healthy(data: str, rows: Rows) -> bool:
    """Whether the cube of a scene stayed in view: neither too far right, nor too far left except in the drawer."""
    if not data.startswith("scene"):
        return True
    y, z = rows["qpos"][:, 15], rows["qpos"][:, 16]
    return not ((y >= 0.29) | ((y <= -0.3) & ((z < 0.06) | (z > 0.08)))).any()


def maze_cells(maze_map: np.ndarray) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Free cells, and those of them that are no straight corridor."""
    free = [(int(i), int(j)) for i, j in np.argwhere(maze_map == 0)]

    def corridor(i: int, j: int) -> bool:
        vertical, level = (maze_map[i - 1, j], maze_map[i + 1, j]), (maze_map[i, j - 1], maze_map[i, j + 1])
        return {vertical, level} == {(0, 0), (1, 1)}

    return free, [cell for cell in free if not corridor(*cell)]


def cells_away(maze_map: np.ndarray, start: tuple[int, int], steps: int) -> list[tuple[int, int]]:
    """Free cells whose shortest path from `start` has `steps` steps."""
    distance, queue = {start: 0}, deque([start])
    while queue:
        i, j = queue.popleft()
        for cell in ((i - 1, j), (i, j - 1), (i, j + 1), (i + 1, j)):
            if maze_map[cell] == 0 and cell not in distance:
                distance[cell] = distance[i, j] + 1
                queue.append(cell)
    return [cell for cell, d in distance.items() if d == steps]


def maze_episode(data: str, env: gym.Env, rng: np.random.Generator, seed: int | None) -> Rows:
    """Towards the next cell of a shortest path, with noise."""
    maze, stitch = env.unwrapped, data.endswith("stitch")
    free, goals = maze_cells(maze.maze_map)
    pick = lambda cells: cells[rng.integers(len(cells))]  # noqa: E731
    start = pick(free)
    goal = pick((cells_away(maze.maze_map, start, STITCH_CELLS) or [start]) if stitch else goals)
    obs, _ = env.reset(seed=seed, options={"task_info": {"init_ij": start, "goal_ij": goal}})
    next_cell = {}  # by (cell, goal's cell): the planner searches the maze anew at every step

    def act(obs: np.ndarray) -> np.ndarray:
        xy, target = maze.get_xy(), maze.cur_goal_xy
        cells = maze.xy_to_ij(xy), maze.xy_to_ij(target)
        if cells not in next_cell:
            next_cell[cells] = maze.get_oracle_subgoal(xy, target)[0]
        way = next_cell[cells] - xy
        way = way / (np.linalg.norm(way) + 1e-6)
        return np.clip(way + rng.normal(0.0, MAZE_NOISE, 2), -1.0, 1.0)

    def after(info: dict) -> None:
        if info["success"] and not stitch:
            maze.set_goal(pick(goals))

    return roll(env, obs, act, after)


@cache
def oracles(data: str) -> dict:
    """{task: OGBench's controller of the arm} in this process's environment."""
    world, kind = data.split("-")[0], "Plan" if data.endswith("play") else "Markov"
    options = {"noise": NOISE, "noise_smoothing": SMOOTHING} if kind == "Plan" else {"min_norm": MIN_NORM}
    of_world = {"cube": ("cube",), "scene": ("cube", "button", "drawer", "window"), "puzzle": ("button",)}
    made = {}
    for part in of_world[world]:
        module = import_module(f"ogbench.manipspace.oracles.{kind.lower()}.{part}_{kind.lower()}")
        own = {"gripper_always_closed": True} if world == "puzzle" else {}
        own |= {"max_step": 100} if (world, part, kind) == ("scene", "cube", "Markov") else {}
        made[part] = getattr(module, f"{part.title()}{kind}Oracle")(env=collection(data), **options, **own)
    return made


def arm_episode(data: str, env: gym.Env, rng: np.random.Generator, seed: int | None) -> Rows:
    """OGBench's controllers, to one random target after the other."""
    world, size = data.split("-")[0], data.split("-")[1]
    noisy, agents = data.endswith("noisy"), oracles(data)
    random_rate = RANDOM_ACTIONS.get(world, 0.1) if noisy else 0.0
    obs, info = env.reset(seed=seed)
    stacking = rng.uniform(*STACKING.get(size, (0.5, 0.5)))
    noise = rng.uniform(0.0, NOISE) * NOISE_SHAPE
    agent = agents[info["privileged/target_task"]]
    agent.reset(obs, info)

    def act(obs: np.ndarray) -> np.ndarray:
        if rng.uniform() < random_rate:
            return rng.uniform(-1.0, 1.0, 5)
        action = np.array(agent.select_action(obs, info))
        return np.clip(action + rng.normal(0.0, noise) if noisy else action, -1.0, 1.0)

    def after(of_step: dict) -> None:
        nonlocal agent, info
        info = of_step  # also after a new target, as published
        if agent.done:
            new_obs, new_info = env.unwrapped.set_new_target(p_stack=stacking)
            agent = agents[new_info["privileged/target_task"]]
            agent.reset(new_obs, new_info)

    return roll(env, obs, act, after)


@cache
def behaviours(data: str) -> list:
    """OGBench's powderworld behaviours in this process's environment."""
    from ogbench.powderworld import behaviors

    return [getattr(behaviors, f"{name}Behavior")(env=collection(data)) for name in BEHAVIOURS[0]]


def powder_episode(data: str, env: gym.Env, rng: np.random.Generator, seed: int | None) -> Rows:
    """One behaviour after the other; a brush is three actions: element, column, row."""
    agents, world = behaviours(data), env.unwrapped
    obs, info = env.reset(seed=seed)
    agent, step, brush = None, 0, None

    def begin() -> None:
        nonlocal agent
        agent = agents[rng.choice(len(agents), p=BEHAVIOURS[1])]
        agent.reset(obs, info)

    def act(obs: np.ndarray) -> int:
        nonlocal brush
        if step % 3 == 0:
            random = rng.uniform() < RANDOM_BRUSH
            brush = world.sample_semantic_action() if random else agent.select_action(obs, info)
        return world.semantic_action_to_action(*brush)

    def after(of_step: dict) -> None:
        nonlocal step
        step += 1
        if agent.done:
            begin()

    begin()
    return roll(env, obs, act, after)
