"""Files -> checked arrays: Minari, D4RL hdf5, OGBench npz, plain npz; found, made or downloaded by name."""

import difflib
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np

from shared.errors import ROOT, InputError, first_line, nearest, slugify
from shared.task import Spec, flat_obs_shape, flatten_obs, recipes, registered_env, space_spec
from shared.untrusted import check_hdf5, read_hdf5, read_npz


def read_dataset(name: str) -> tuple[dict[str, np.ndarray], dict]:
    """(obs, action, reward, terminal, next_obs, last) of a dataset as it is stored, and what is known of it.

    Raises:
      InputError: unknown id, missing or unreadable file, no network, shapes that disagree.
    """
    path = Path(name).expanduser()
    if path.is_dir() or not path.exists():
        source = _minari_directory(name, path)
        return _cached(source / "main_data.hdf5", lambda: _read_minari(source))
    if path.suffix in (".hdf5", ".h5", ".npz"):
        return _cached(path, lambda: _read_file(path))
    raise InputError(f"{name}: not a dataset; expected a .hdf5 or .npz file or a Minari directory.")


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
        raise InputError(f"{data} is not a readable Minari dataset ({first_line(error)}).") from None
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
        raise InputError(f"{path} cannot be read ({first_line(error)}).") from None
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


def guessed_env(name: str) -> gym.envs.registration.EnvSpec | None:
    """Of a file that names none: by the words of its name."""
    words = slugify(name).split("-")
    env_id = next((_D4RL_ENVS[w] for w in words if w in _D4RL_ENVS), None)
    return registered_env(env_id) if env_id else None


def checked(
    name: str, arrays: dict, meta: dict, env_spec, clip_actions: bool, env_units: bool = False
) -> tuple[Spec, dict[str, np.ndarray]]:
    """What `read_dataset` returned, in the types of `Dataset`, with actions rescaled to [-1, 1] unless `env_units`.

    Raises:
      InputError: NaN, shapes that disagree with each other or with the environment's, actions outside the action
        space (unless `clip_actions`).
    """
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
        scaled = 2.0 * (action - low) / (high - low) - 1.0
        if not clip_actions and np.abs(scaled).max() > 1.0 + 1e-4:
            raise InputError(
                f"{name} has actions outside {space} (up to {np.abs(scaled).max():.2f} times its half-width); "
                "pass --clip-actions to clip them."
            )
        action = np.clip(action, low, high) if env_units else np.clip(scaled, -1.0, 1.0)
    if env_spec and (shape := flat_obs_shape(_made(env_spec).observation_space)) != obs.shape[1:]:
        raise InputError(f"{name} has observations of shape {obs.shape[1:]}, {env_spec.id} gives {shape}.")
    flags = {flag: arrays[flag].astype(bool) for flag in ("terminal", "last")}
    return spec, {"obs": obs, "action": action, "reward": reward, "next_obs": next_obs, **flags}


def _made(env_spec) -> gym.Env:
    try:
        return gym.make(env_spec)
    except Exception as error:  # whatever an environment raises at arguments that it does not know
        raise InputError(f"{env_spec.id} cannot be made with {env_spec.kwargs} ({first_line(error)}).") from None
