"""Makes the collection's own datasets, measures reference scores, and writes the table of both.

  python datasets/make.py --list                         what can be made
  python datasets/make.py pendulum-mixed hopper-random   make these (Minari id: local/<name>-v<version>)
  python datasets/make.py --all --steps 20000            make everything (but OGBench's data), small
  python datasets/make.py ogbench-cube-single-play --steps 200000           OGBench's own data, a fifth of it
  python datasets/make.py ogbench-cube-single-play-singletask-task2         the same with the rewards of a task
  python datasets/make.py --reference Hopper-v5          measure the returns worth 0 and 100
  python datasets/make.py --table                        table.md and table.json of what is here
  python datasets/make.py --check                        compare what is here with table.json

Datasets go to Minari's root ($MINARI_DATASETS_PATH or ~/.minari/datasets) and appear there only
once complete. `recipes.txt` lists the names; a name's first word says which module makes it.
OGBench's data (`ogbench-...`; pip install ogbench==1.2.2 dm_control==1.0.44) is also written in OGBench's own form, to
$OGBENCH_DATASETS_PATH or ~/.ogbench/made, by as many processes as there are cores; --steps takes whole episodes, and a
job that was killed goes on where it was when the same command is given again.
"""

import argparse
import importlib.metadata
import json
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

# One BLAS thread per worker: the policies' products are too small to share out. Before NumPy loads.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import bandits
import gymnasium as gym
import locks
import locomotion
import mazes
import minari
import minatar
import missions
import numpy as np
import ogbench_data
import pointmaze
import pointworld
import roads
import scripted
import sepsis
import teams
import toys
import trials
import turned
from episodes import Recipe
from minari.data_collector import EpisodeBuffer
from minari.storage import get_dataset_path

from shared.data import load_dataset
from shared.errors import InputError, nearest
from shared.task import recipe_id, recipe_name, recipes

HERE = Path(__file__).resolve().parent
MODULES = {
    "bandit": bandits,
    "pendulum": scripted,
    "cartpole": scripted,
    "frozen": scripted,
    "pointmaze": pointmaze,
    "point": pointworld,
    "hopper": locomotion,
    "halfcheetah": locomotion,
    "hidden": teams,
    "walker2d": locomotion,
    "combination": locks,
    "continuous": locks,
    "tabular": locks,
    "icu": sepsis,
    "maze": mazes,
    "minatar": minatar,
    "minigrid": missions,
    "ogbench": ogbench_data,
    "road": roads,
    "toy": toys,
    "trial": trials,
    "turned": turned,
}
REFERENCE_EPISODES = 100
# (min, max) of D4RL's environments: Farama-Foundation/D4RL, d4rl/infos.py.
D4RL = {
    "halfcheetah": (-280.178953, 12135.0),
    "hopper": (-20.272305, 3234.3),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
    "pen": (96.262799, 3076.8331),
    "door": (-56.512833, 2880.5693),
    "hammer": (-274.856578, 12794.1348),
    "relocate": (-6.425911, 4233.8779),
    "maze2d-umaze": (23.85, 161.86),
    "maze2d-medium": (13.13, 277.39),
    "maze2d-large": (6.7, 273.99),
    "maze2d-umaze-dense": (68.537689, 193.662856),
    "maze2d-medium-dense": (44.264742, 297.455255),
    "maze2d-large-dense": (30.569041, 303.485738),
    "antmaze": (0.0, 1.0),
    "kitchen": (0.0, 4.0),
    "minigrid-fourrooms": (0.01442, 2.89685),
}


# ------------------------------------------------------------------------------------------- make


def recipe(name: str) -> Recipe:
    """The recipe of a name in recipes.txt.

    Raises:
      InputError: no such name (with the nearest ones).
    """
    name = known_name(name)
    return MODULES[name.split("-")[0]].recipe(name, recipes()[name])


def known_name(name: str) -> str:
    """The name in recipes.txt that `name` means: with its version, where there are several.

    Raises:
      InputError: no such name (with the nearest ones).
    """
    if known := recipe_name(name):
        return known
    raise InputError(f"There is no recipe '{name}'; {nearest(name, recipes())}")


def own_recipes() -> list[str]:
    """All names but those that need a further package: OGBench's data, which is large, MinAtar's and MiniGrid's."""
    return [name for name in recipes() if not name.startswith(("ogbench-", "minatar-", "minigrid-"))]


def make(name: str, steps: int | None = None, seed: int = 0, force: bool = False) -> None:
    """Collects a recipe's episodes and writes them as the Minari dataset local/<name>.

    A dataset that is already there is left alone unless `force`; then it is replaced once the new
    one is complete.
    """
    name = known_name(name)
    made_by, final = recipe(name), folder_of(name)
    if final.exists() and not force:
        stored = json.loads((final / "data" / "metadata.json").read_text())
        size = f"{stored['total_steps']:,} steps, seed {stored['seed']}"
        print(f"{name}: already at {final} ({size}); --force makes it anew")
        return
    require_packages(made_by.packages)
    start = time.perf_counter()
    episodes = made_by.collect(steps or made_by.steps, seed)
    played = time.perf_counter() - start
    with scratch_root(final.parent.parent) as root:
        total, returns = write(name, made_by, episodes, seed, start)
        final.parent.mkdir(exist_ok=True)
        if final.exists():
            os.replace(final, root / "replaced")
        os.replace(root / "local" / final.name, final)
    describe_namespace(final.parent)
    wall = time.perf_counter() - start
    speed = f"{total / played:,.0f} steps/s, " if played > 0.1 else ""  # played, and not out of a file
    print(
        f"{name}: {total:,} steps, {len(returns):,} episodes, return {np.mean(returns):.1f} "
        f"({min(returns):.1f} to {max(returns):.1f}); {speed}{wall:.1f} s in all"
    )


def require_packages(packages: tuple[str, ...]) -> None:
    """InputError: some of the `packages` of a recipe are not installed."""
    missing = [package for package in packages if version_of(package) is None]
    if missing:
        raise InputError(f"It is made with what is not installed: pip install {' '.join(missing)}")


def version_of(package: str) -> str | None:
    """Of what is installed of a `package`, as pip takes it; None: nothing."""
    try:
        return importlib.metadata.version(package.split("==")[0])
    except importlib.metadata.PackageNotFoundError:
        return None


def folder_of(name: str) -> Path:
    """Where Minari keeps what the recipe makes."""
    return Path(get_dataset_path(recipe_id(name)))


@contextmanager
def scratch_root(root: Path) -> Iterator[Path]:
    """A hidden folder in Minari's root that Minari takes for its root inside the block.

    What a failure or an interrupt leaves half-written goes with it; a dataset that is complete is
    moved out by renaming.
    """
    earlier = os.environ.get("MINARI_DATASETS_PATH")
    with tempfile.TemporaryDirectory(prefix=".making-", dir=root) as folder:
        os.environ["MINARI_DATASETS_PATH"] = folder
        try:
            yield Path(folder)
        finally:
            if earlier is None:
                del os.environ["MINARI_DATASETS_PATH"]
            else:
                os.environ["MINARI_DATASETS_PATH"] = earlier


def write(
    name: str, made_by: Recipe, episodes: Iterable[EpisodeBuffer], seed: int, start: float
) -> tuple[int, np.ndarray]:
    """Writes a complete Minari dataset, metadata included, into Minari's present root; its steps and returns.

    `episodes` are taken one by one: not all of them need be in memory.
    """
    reference = reference_scores().get(made_by.reference, {})
    returns: list[float] = []

    def counted() -> Iterator[EpisodeBuffer]:
        for e in episodes:
            returns.append(float(e.rewards.sum(dtype=np.float64)))
            yield e

    space = gym.make(made_by.env).observation_space
    dataset = minari.create_dataset_from_buffers(
        recipe_id(name),
        counted(),
        jpeg_encoding=False,  # pictures as they are
        env=made_by.env,
        eval_env=made_by.eval_env,
        observation_space=in_float32(space),
        algorithm_name=made_by.policy,
        author=set(),
        author_email=set(),
        code_permalink="datasets/make.py",
        description=f"{description(name)}. Acted: {made_by.policy}.",
        ref_min_score=reference.get("min"),
        ref_max_score=reference.get("max"),
        num_episodes_average_score=reference.get("episodes", REFERENCE_EPISODES),
    )
    packages = ("gymnasium", "gymnasium-robotics", "mujoco", "minari", "numpy", *made_by.packages)
    dataset.storage.update_metadata(
        {
            "recipe": name,
            "policy": made_by.policy,
            "seed": seed,
            "versions": {p.split("==")[0]: version_of(p) for p in packages},
            "mean_return": float(np.mean(returns)),
            "min_return": min(returns),
            "max_return": max(returns),
            "seconds": round(time.perf_counter() - start, 1),
            **({} if made_by.rewards else {"rewards": False}),
        }
    )
    return dataset.storage.total_steps, np.array(returns)


def in_float32(space: gym.Space) -> gym.Space:
    """The same space with float32 boxes: the type that the data is stored in."""
    if isinstance(space, gym.spaces.Dict):
        return gym.spaces.Dict({k: in_float32(s) for k, s in space.items()})
    if isinstance(space, gym.spaces.Box) and space.dtype == np.float64:
        return gym.spaces.Box(np.float32(space.low), np.float32(space.high))
    return space


def description(name: str) -> str:
    """The third column of recipes.txt; with the rest of the name, where it is a variant of one that is listed."""
    lines = (HERE / "recipes.txt").read_text().splitlines()
    texts = dict(line.split("\t")[::2] for line in lines if not line.startswith("#"))
    listed = max((k for k in texts if f"{name}-".startswith(f"{k}-")), key=len)
    return texts[listed] + (f"; {name[len(listed) + 1 :]}" if name != listed else "")


def describe_namespace(folder: Path) -> None:
    """The file by which Minari recognises a folder as a namespace."""
    path = folder / "namespace_metadata.json"
    if not path.exists():
        path.write_text(json.dumps({"description": "Made on this machine by datasets/make.py."}))


# -------------------------------------------------------------------------------- reference scores


def reference_scores() -> dict[str, dict]:
    """reference_scores.json: {environment or dataset: {min, max, episodes, source}}."""
    path = HERE / "reference_scores.json"
    return json.loads(path.read_text()) if path.exists() else {}


def d4rl_pairs() -> dict[str, dict]:
    """D4RL's pairs as they stand in reference_scores.json."""
    source = "D4RL infos.py (D4RL environments, not v5)"
    pairs = {f"d4rl/{k}": {"min": v[0], "max": v[1], "episodes": 100, "source": source} for k, v in D4RL.items()}
    pairs["d4rl/antmaze"]["of"] = "success"  # in [0, 1], whatever the rewards are
    return pairs


def measure_references(names: list[str]) -> None:
    """Adds the reference pairs of environments (or point mazes) to reference_scores.json.

    0 is the mean return of 100 episodes of uniform actions, 100 that of 100 episodes of the expert:
    the trained policy (stochastic), or the scripted controller without its noise.
    """
    here = {recipe(name).reference for name in own_recipes()}
    every = [recipe(name) for name in recipes() if not name.startswith("ogbench-")]
    known = {r.reference: r for r in every if r.returns}
    table = reference_scores() | d4rl_pairs()
    for name in names or here & known.keys():
        if name not in known:
            raise InputError(f"No recipe is scored by '{name}'; {nearest(name, known)}")
        low = known[name].returns("random", REFERENCE_EPISODES)
        high = known[name].returns("expert", REFERENCE_EPISODES)
        table[name] = {
            "min": round(float(low.mean()), 4),
            "max": round(float(high.mean()), 4),
            "episodes": REFERENCE_EPISODES,
            "source": f"datasets/make.py --reference: uniform actions; {known[name].expert}",
        }
        print(f"{name}: random {low.mean():.2f} (std {low.std():.2f}), expert {high.mean():.2f} (std {high.std():.2f})")
    write_json(HERE / "reference_scores.json", dict(sorted(table.items())))


# ------------------------------------------------------------------------------------------ table


def write_table() -> None:
    """table.json and table.md: what is on this machine, and the earlier rows of what is not."""
    path = HERE / "table.json"
    rows = {row["name"]: row for row in (json.loads(path.read_text()) if path.exists() else [])}
    rows.update({name: row for name in recipes() if (row := table_row(name))})
    table = [rows[name] for name in recipes() if name in rows]
    write_json(path, table)
    header = ["name", "environment", "steps", "episodes", "mean return", "min", "max"]
    header += ["0", "100", "hash", "seconds"]
    lines = [
        "# The datasets made by `datasets/make.py`",
        "",
        "Returns are per episode; `0` and `100` are the returns of the normalised scores "
        "(reference_scores.json); `hash` identifies the content (shared/data.py).",
        "",
        "| " + " | ".join(header) + " |",
        "|" + " --- |" * len(header),
    ]
    for row in table:
        pair = row["reference"] or {}
        numbers = [row["mean_return"], row["min_return"], row["max_return"]]
        numbers += [pair.get("min"), pair.get("max")]
        cells = [row["name"], row["environment"], f"{row['steps']:,}", f"{row['episodes']:,}"]
        cells += ["" if x is None else f"{x:.2f}" for x in numbers]
        lines.append("| " + " | ".join([*cells, row["hash"], str(row["seconds"])]) + " |")
    write_text(HERE / "table.md", "\n".join(lines) + "\n")
    print(f"{len(table)} datasets in {HERE / 'table.md'}")


def check_table() -> None:
    """One line for each dataset on this machine: whether hash, steps and episodes are those of table.json.

    Raises:
      InputError: something differs.
    """
    table = {row["name"]: row for row in json.loads((HERE / "table.json").read_text())}
    here = {name: row for name in recipes() if (row := table_row(name))}
    different = []
    for name, row in here.items():
        keys = [k for k in ("hash", "steps", "episodes") if name in table and row[k] != table[name][k]]
        text = "; ".join(f"{k} {row[k]}, in the table {table[name][k]}" for k in keys)
        print(f"{name}: {text or ('as in the table' if name in table else 'not in the table')}")
        different += [name] * bool(keys)
    print(f"{len(here)} of {len(recipes())} datasets are on this machine.")
    if different:
        raise InputError(f"Not as in datasets/table.json: {', '.join(different)}.")


def table_row(name: str) -> dict | None:
    """What table.json says about a dataset; None if it is not on this machine."""
    path = folder_of(name) / "data" / "metadata.json"
    if not path.exists():
        return None
    stored = json.loads(path.read_text())
    return {
        "name": name,
        "environment": recipes()[name],
        "steps": stored["total_steps"],
        "episodes": stored["total_episodes"],
        **{k: stored[k] for k in ("mean_return", "min_return", "max_return", "seed", "seconds")},
        "reference": reference_scores().get(recipe(name).reference),
        "hash": load_dataset(name).task.hash,
        "versions": stored["versions"],
    }


def write_json(path: Path, value: dict | list) -> None:
    """Written whole or not at all."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Written whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


# ----------------------------------------------------------------------------------- command line


def main(argv: list[str] | None = None) -> None:
    """Runs the command line `argv` (default: the process's own)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="datasets to make")
    parser.add_argument(
        "--all", action="store_true", help="every dataset of recipes.txt but OGBench's, MinAtar's and MiniGrid's"
    )
    parser.add_argument("--list", action="store_true", help="names, environments, descriptions")
    parser.add_argument("--table", action="store_true", help="write table.md and table.json")
    parser.add_argument(
        "--check", action="store_true", help="compare what is here with table.json; exit 2 if not equal"
    )
    parser.add_argument("--reference", nargs="*", metavar="ENV", help="measure reference scores (none given: all)")
    parser.add_argument("--steps", type=int, help="environment steps (default: the recipe's)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first episode")
    parser.add_argument("--force", action="store_true", help="replace a dataset that is there")
    args = parser.parse_args(argv)
    if args.steps is not None and args.steps < 1:
        parser.error("--steps must be at least 1")
    if not 0 <= args.seed < 2**31:
        parser.error(f"--seed must be a whole number from 0 and below {2**31:,}")
    names = [*own_recipes(), *args.names] if args.all else args.names
    for name in names:  # every name is checked before the first dataset is made
        recipe(name)
    if args.list:
        print((HERE / "recipes.txt").read_text().expandtabs(26), end="")
    failures = []
    for name in names:  # one that cannot be made does not hold up the others
        try:
            make(name, args.steps, args.seed, args.force)
        except InputError as error:
            failures.append(f"{name}: {error}")
    if args.reference is not None:
        measure_references(args.reference)
    if args.table:
        write_table()
    if args.check:
        check_table()
    if not (names or args.list or args.table or args.check or args.reference is not None):
        parser.print_usage()
    if failures:
        raise InputError("\n".join(failures))


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="minari")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that half-written folders go
    try:
        main()
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
