"""Minari's datasets -> flat arrays, with what their metadata says of the environment and its scores."""

import json
from pathlib import Path

import numpy as np

from shared.errors import InputError, first_line
from shared.fields import summary
from shared.spaces import constant_texts, flatten_obs, goal_parts, key_sizes, less, without
from shared.task import space_spec
from shared.untrusted import check_hdf5


def read_minari(data: Path) -> tuple[dict[str, np.ndarray], dict]:
    """Flat arrays of a Minari dataset's data/ folder (in either storage), and what is known of it.

    Raises:
      InputError: an unreadable dataset, spaces that have no form as vectors, a package that is missing.
    """
    import minari

    try:
        if (data / "main_data.hdf5").exists():
            check_hdf5(data / "main_data.hdf5")
        dataset = minari.MinariDataset(data)
        action_space = dataset.action_space
        spec = space_spec((), action_space)
        stored_episodes = list(dataset.iterate_episodes())
        episodes = [e for e in stored_episodes if len(e.rewards)]
        if not episodes:
            raise InputError("none of its episodes has a step")
        texts = constant_texts(dataset.observation_space, [e.observations for e in episodes])
        space = without(dataset.observation_space, texts)
        rows = [len(e.rewards) for e in episodes]
        observations = [flatten_obs(less(e.observations, texts), space) for e in episodes]
        stored = json.loads((data / "metadata.json").read_text()) if (data / "metadata.json").exists() else {}
        env = json.loads(stored.get("eval_env_spec") or stored.get("env_spec") or "{}")
        ends = np.cumsum(rows) - 1
        for e, o in zip(episodes, observations, strict=True):
            if len({len(e.actions), len(e.rewards), len(e.terminations), len(e.truncations)}) > 1:
                raise InputError(f"episode {e.id} has arrays of different lengths")
            if len(o) not in (len(e.rewards), len(e.rewards) + 1):
                raise InputError(f"episode {e.id} has {len(o)} observations of {len(e.rewards)} steps")
        known = np.repeat(True, ends[-1] + 1)
        known[ends] = [len(o) > n for o, n in zip(observations, rows, strict=True)]  # some lack the last one
        observations = [o if len(o) > n else np.r_[o, o[-1:]] for o, n in zip(observations, rows, strict=True)]
        last = np.zeros(ends[-1] + 1, bool)
        last[ends] = True
        arrays = {
            "obs": np.concatenate([o[:n] for o, n in zip(observations, rows, strict=True)]),
            "next_obs": np.concatenate([o[1 : n + 1] for o, n in zip(observations, rows, strict=True)]),
            "action": np.concatenate([e.actions for e in episodes]),
            "reward": np.concatenate([e.rewards for e in episodes]),
            "terminal": np.concatenate([e.terminations for e in episodes]),
            "last": last,
        }
        arrays |= {} if known.all() else {"successor": known}
        truncated = np.concatenate([e.truncations for e in episodes])
        infos = [f"infos/{name}" for name in episodes[0].infos or ()]
    except InputError as error:
        raise InputError(f"{data}: {error}") from None
    except ImportError as error:  # pyarrow, of the arrow storage
        raise InputError(f"{data} cannot be read here: {first_line(error)}") from None
    except Exception as error:  # minari, h5py, json and gymnasium each raise their own kinds
        raise InputError(f"{data} is not a readable Minari dataset ({first_line(error)}).") from None
    if not isinstance(env, dict) or not isinstance(env.get("kwargs", {}), dict):
        raise InputError(f"{data} has no readable environment in its metadata.")
    notes = (
        [f"{empty:,} episodes without a step are left out"] if (empty := len(stored_episodes) - len(episodes)) else []
    )
    notes += [f"the text '{name}' is '{text}' in every row: it is left out" for name, text in texts.items()]
    meta = {
        "env": env.get("id"),
        "env_kwargs": env.get("kwargs", {}),
        "max_episode_steps": env.get("max_episode_steps"),
        "wrappers": env.get("additional_wrappers") or [],
        "same_env": stored.get("eval_env_spec") in (None, stored.get("env_spec")),
        "left_out": list(texts),
        "data": summary(arrays, truncated, {}, infos, notes, rewarded=stored.get("rewards", True)),
    }
    if parts := goal_parts(dataset.observation_space):
        meta["data"]["goal"] = parts
    if keys := key_sizes(space):
        meta["data"]["keys"] = keys
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
    if spec.discrete:
        meta["actions"], meta["action_start"] = spec.action_dim, spec.action_start
    else:
        meta["low"], meta["high"] = action_space.low.tolist(), action_space.high.tolist()
    return arrays, meta
