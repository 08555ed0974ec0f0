"""Trees on disk: one npz each, written whole or not at all, and never unpickled."""

import contextlib
import dataclasses
import io
import json
import os
import re
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from shared.arguments import RunArgs
from shared.errors import InputError
from shared.task import Spec, Task
from shared.untrusted import read_npz

# What arguments and parts of an agent were called in earlier runs: what they are called now, in one file or another.
FORMER = {
    "activation": ("critic_activation", "actor_activation"),
    "alpha": ("distillation_weight",),
    "batch_size": ("steps_per_iteration",),
    "beta": ("penalty_weight", "state_weight"),
    "context": ("window_steps",),
    "context_guidance": ("guidance",),
    "expectile": ("critic_expectile",),
    "fit_updates": ("critic_updates",),
    "grad_norm": ("max_grad_norm",),
    "layer_norm": ("critic_layer_norm",),
    "mask": ("guide_weight",),
    "max_target_backup": ("max_q_backup",),
    "model_dims": ("model_hidden_dims",),
    "n_actions": ("value_samples",),
    "n_min": ("subset_size",),
    "n_policies": ("n_actors",),
    "n_samples": ("gap_samples", "latent_samples"),
    "num_candidates": ("n_candidates",),
    "num_envs": ("episodes_per_step",),
    "num_finalists": ("n_finalists",),
    "offline_ratio": ("online_share",),
    "offline_share": ("offline_probability", "mixed_share"),
    "old_policy": ("old_actors",),
    "online_batch": ("steps_per_iteration",),
    "online_max_target_backup": ("online_max_q_backup",),
    "perturbation": ("state_noise",),
    "policy": ("head", "actors", "actor"),
    "policy_dims": ("actor_hidden_dims",),
    "policy_lr": ("actor_lr",),
    "policy_opt": ("actors_opt", "actor_opt"),
    "policy_q": ("actor_q",),
    "q_dims": ("critic_hidden_dims",),
    "sigma": ("huber_sigma",),
    "target": ("online_q_aggregation",),
    "target_policy": ("target_actor",),
    "temperature": ("encoder_temperature", "cql_temperature", "loss_temperature"),
    "updates_per_step": ("utd",),
    "use_target_policy": ("use_target_actor",),
    "vae_dims": ("vae_hidden_dims",),
    "value_dims": ("value_hidden_dims",),
    "warmup_steps": ("learning_starts",),
    "weight_temperature": ("reweight_temperature",),
}
# Arguments of earlier runs that are gone: the dataset says it now.
GONE = {"lock_seed", "offline_data", "offline_episodes", "offline_samples"}
_FORMER_VALUES = {"offline_ratio": lambda share: 1.0 - share}


def renamed(stored: dict[str, Any], known: Iterable[str]) -> dict[str, Any]:
    """`stored` (arguments, or settings of a lane) under today's names: those of FORMER that are `known` now."""
    return {
        _current(name, known): _FORMER_VALUES[name](value) if name in _FORMER_VALUES and name not in known else value
        for name, value in stored.items()
        if name in known or name not in GONE
    }


def _current(name: str, known: Iterable[str]) -> str:
    return name if name in known else next((new for new in FORMER.get(name, ()) if new in known), name)


def _current_path(path: str, known: Iterable[str]) -> str:
    """The path of a leaf in a tree, likewise: of an agent it is the field's name that may have changed."""
    start, dot, rest = path.partition(".")
    if path in known or not dot:
        return path
    field = re.match(r"\w*", rest).group()
    paths = (f"{start}.{new}{rest[len(field) :]}" for new in FORMER.get(field, ()))
    return next((new for new in paths if new in known), path)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[io.BufferedWriter]:
    """A file to write that takes the place of `path` once it is whole; after an error nothing has happened."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def _named_leaves(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def save_tree(path: Path, tree: Any, header: dict, lanes: int | None = None) -> None:
    """One npz: every leaf under its path in the tree, and the header as JSON. Atomic; no pickle.

    `lanes`: how many of the leading axis are kept: the others fill up the devices of this machine.
    """
    arrays = {
        name: np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)[slice(lanes) if lanes else ...]
        for name, leaf in _named_leaves(tree).items()
    }
    with replacing(path) as file:
        np.savez(file, __header__=np.array(json.dumps(header)), **arrays)


_FREE = {"out", "resume", "wandb", "preset", "distributed"}
_FREE |= {"layout", "lanes_per_call", "compile_cache"}  # a run may go on on another kind of device, which has others
_FREE |= {"dataset"}  # it may have moved: its content is compared
INTERVALS = ("log_every", "eval_every", "offline_eval_every", "checkpoint_every", "max_episode_steps")
"""Arguments that a resumed run may have others of."""


def with_todays(stored: dict, today: dict, defaults: dict) -> dict:
    """`stored` with those of `today`'s fields that there were not when it was written, at their defaults as JSON."""
    new = {name: defaults[name] for name in today.keys() - stored.keys() if name in defaults}
    return stored | json.loads(json.dumps(new))


def comparable(args: RunArgs) -> dict:
    """The arguments that belong to a run, as JSON gives them back."""
    return json.loads(json.dumps({k: v for k, v in dataclasses.asdict(args).items() if k not in _FREE}))


def holds_checkpoint(run_dir: Path) -> bool:
    """Whether a run can be resumed there: from its last checkpoint, or the one before."""
    return any((run_dir / "checkpoint" / name).exists() for name in ("state.npz", "previous.npz"))


def is_whole(path: Path) -> bool:
    """Whether every byte of a checkpoint is as it was written, by the archive's checksums."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except Exception:  # zipfile and zlib each raise their own kinds
        return False


def read_header(path: Path) -> dict:
    """The header of a checkpoint."""
    try:
        header = json.loads(str(_read_checkpoint(path, lambda name: name == "__header__")["__header__"]))
        return dict(header)
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path} is not a readable checkpoint (its header is missing or damaged).") from None


def _read_checkpoint(path: Path, wanted: Callable[[str], bool]) -> dict[str, np.ndarray]:
    try:
        return read_npz(path, wanted)
    except Exception as error:  # zipfile, zlib and numpy each raise their own kinds
        raise InputError(f"{path} is not a readable checkpoint ({error}).") from None


def load_tree(path: Path, template: Any, partial: bool = False) -> Any:
    """The tree of a checkpoint, with the structure, shapes and sharding of `template` (arrays or their shapes).

    `partial`: the checkpoint may hold more. What it holds under a former name is found, and its last lane fills up
    the leading axis where that is longer here.
    """
    names = _named_leaves(template)
    wanted = lambda n: _current_path(n, names) in names or not (partial or n == "__header__")  # noqa: E731
    stored = {_current_path(n, names): value for n, value in _read_checkpoint(path, wanted).items()}
    if missing := sorted(names.keys() ^ stored.keys()):
        raise InputError(f"{path} does not fit this algorithm's networks: {missing[0]} is on one side only.")

    def load(name: str, leaf: Any) -> Any:
        value, shape = stored[name], np.shape(leaf)
        if value.ndim and shape and len(value) != shape[0]:
            value = value[np.minimum(np.arange(shape[0]), len(value) - 1)]
        if _is_key(leaf):
            return jax.device_put(jax.random.wrap_key_data(value), leaf.sharding)
        if value.shape != np.shape(leaf):
            raise InputError(f"{path} does not fit this run: {name} has shape {value.shape}, not {np.shape(leaf)}.")
        on_device = isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)
        return jax.device_put(value, leaf.sharding) if on_device else value

    return jax.tree.unflatten(jax.tree.structure(template), [load(n, leaf) for n, leaf in names.items()])


def sizes_of(init: Callable) -> dict[str, Any]:
    """What the shapes of `partial(init, **keywords)` depend on beside its arguments: numbers, and shapes of arrays."""
    sizes = {}
    for name, value in getattr(init, "keywords", {}).items():
        if isinstance(value, np.ndarray | jax.Array):
            sizes[name] = {"shape": list(value.shape)}
        elif isinstance(value, int) or (isinstance(value, tuple) and all(isinstance(x, int) for x in value)):
            sizes[name] = value
    return sizes


def with_sizes(init: Callable, sizes: dict[str, Any]) -> Callable:
    """`init` as it was when `sizes_of` it was written; arrays are of zeros."""
    values = {name: np.zeros(x["shape"], np.float32) if isinstance(x, dict) else x for name, x in sizes.items()}
    return partial(init, **{name: tuple(x) if isinstance(x, list) else x for name, x in values.items()})


def load_lanes(path: Path, agent: Any, lanes: np.ndarray) -> Any:
    """`agent` with what a checkpoint of another run holds under the same (or former) names: its `lanes` [L] of all.

    What the checkpoint lacks stays as it is, and so do the optimisers of another form; both are told.
    """
    names = _named_leaves(agent)
    here = lambda n: _current_path(n.removeprefix("[0]"), names)  # noqa: E731
    stored = {here(n): value for n, value in _read_checkpoint(path, lambda n: here(n) in names).items()}
    fields: dict[str, list[str]] = {}
    for name in names:
        fields.setdefault(name.split("[")[0].split(".")[1], []).append(name)
    taken = dict(names)
    for field, leaves in fields.items():
        fits = [n in stored and stored[n].shape[1:] == names[n].shape[1:] for n in leaves]
        if all(fits):
            taken |= {n: jax.device_put(stored[n][lanes], names[n].sharding) for n in leaves}
        elif not any(n in stored for n in leaves) or "opt" in field:
            tqdm.write(f"--from: '{field}' is not in {path} in this form and starts anew.")
        else:
            wrong = leaves[fits.index(False)]
            shapes = f"{stored[wrong].shape[1:]}, not {names[wrong].shape[1:]}" if wrong in stored else "missing"
            raise InputError(f"--from: {path} does not fit this algorithm's networks: {wrong} is {shapes}.")
    return jax.tree.unflatten(jax.tree.structure(agent), [taken[n] for n in names])


class Checkpoints:
    """The last checkpoint of a run, and until the run has finished the one before it, for when the last is damaged."""

    def __init__(self, run_dir: Path):
        self.last = run_dir / "checkpoint" / "state.npz"
        self.previous = self.last.with_name("previous.npz")
        self.offline = self.last.with_name("offline.npz")
        """The agents at the end of the offline phase, for --from."""

    def save(self, tree: Any, header: dict, lanes: int, offline_ends: bool) -> None:
        """Writes `tree` (agents, state) under a temporary name and renames it: a kill leaves the previous one."""
        with contextlib.suppress(OSError):  # there is none yet, or the file system has no links
            self.previous.unlink(missing_ok=True)
            os.link(self.last, self.previous)
        if offline_ends:
            save_tree(self.offline, (tree[0], None), header, lanes)
        save_tree(self.last, tree, header, lanes)

    def header(self) -> dict:
        """Of the last checkpoint; of the previous one where the last is damaged."""
        return read_header(self.previous if self._damaged() else self.last)

    def repair(self) -> None:
        """Puts the previous checkpoint in the place of a last one that is damaged, which is kept as damaged.npz."""
        if self._damaged():
            tqdm.write(f"{self.last} is damaged: the checkpoint before it is used.", file=sys.stderr)
            with contextlib.suppress(FileNotFoundError):
                os.replace(self.last, self.last.with_name("damaged.npz"))
            os.replace(self.previous, self.last)

    def _damaged(self) -> bool:
        return self.previous.exists() and not is_whole(self.last) and is_whole(self.previous)


# ----------------------------------------------------------------------------- which run it is of


def refuse_another_run(run_dir: Path, header: dict, algorithm: str, task: Task, args: RunArgs, settings: list) -> None:
    """InputError where the checkpoint in `run_dir` is not of the run that is resumed, or its data has changed."""
    if header["algorithm"] != algorithm:
        raise InputError(f"{run_dir} is a run of {header['algorithm']}, not of {algorithm}.")
    if header["task"]["hash"] != task.hash:
        raise InputError(f"The dataset '{task.id}' has changed since the run in {run_dir} began.")
    defaults = {f.name: f.default for f in dataclasses.fields(args) if f.default is not dataclasses.MISSING}
    stored = with_todays(header["args"], comparable(args), defaults)
    for name, value in comparable(args).items():
        former = [old for old in header["args"] if name in FORMER.get(old, ()) and name not in header["args"]]
        if former:
            raise InputError(
                f"The run in {run_dir} is of a time when --{name.replace('_', '-')} was "
                f"--{former[0].replace('_', '-')}: its policies can be loaded, but it cannot be resumed."
            )
        flag, before = f"--{name.replace('_', '-')}", stored.get(name)
        if before == value or name in INTERVALS:
            continue
        if name != "updates":
            raise InputError(f"--resume with {flag} {value}, but the run was started with {before}; use the same.")
        if value < header["done"]:
            raise InputError(f"--resume with {flag} {value:,}, but the run has done {header['done']:,} already.")
        tqdm.write(
            f"{flag} {value:,}, not {before:,}: schedules over the run's length follow the new one from here on."
        )
    if header["settings"] != json.loads(json.dumps(settings)):
        raise InputError(f"The checkpoint in {run_dir} is of other lanes; resume with as many processes as before.")


def pretrained_lanes(run_dir: Path, task: Task, settings: list[dict]) -> tuple[Path, np.ndarray, int]:
    """Of the run that --from names: its checkpoint, its lanes [L] of the same seeds and settings, its offline updates.

    Raises:
      InputError: no checkpoint there, or one of other data, without such lanes, or of agents that have interacted or
        are not trained to the end.
    """
    offline = run_dir / "checkpoint" / "offline.npz"
    path = offline if offline.exists() else offline.with_name("state.npz")
    if not path.exists():
        raise InputError(f"--from: there is no checkpoint in {run_dir}.")
    header = read_header(path)
    args, there, here = header["args"], header["task"], json.loads(json.dumps(task.describe()))
    there = there | {"spec": with_todays(there["spec"], here["spec"], Spec._field_defaults)}
    if "env_steps" in args and header["done"] != 0:
        what = "have interacted already" if header["done"] > 0 else "are still in their offline phase"
        raise InputError(f"--from: the agents of {run_dir} {what}.")
    if header["done"] < args.get("updates", 0):
        raise InputError(
            f"--from: the run in {run_dir} ended after {header['done']:,} of {args['updates']:,} updates; "
            "resume it first."
        )
    for name in ("hash", "spec", "obs_mean", "obs_std", "options"):
        if there[name] != here[name]:
            what = "data" if name in ("hash", "spec") else "observation statistics" if "obs" in name else "options"
            raise InputError(
                f"--from: the run in {run_dir} was trained with other {what} of '{there['id']}' than "
                f"this one of '{here['id']}' ({name})."
            )
    lanes = []
    for setting in settings:
        shared = lambda other, s=setting: all(other[n] == s[n] for n in s.keys() & other.keys())  # noqa: E731
        found = [i for i, other in enumerate(header["settings"]) if shared(renamed(other, setting))]
        if len(found) != 1:
            raise InputError(
                f"--from: {run_dir} has {len(found) or 'no'} lanes with "
                f"{', '.join(f'{k}={v}' for k, v in setting.items())}; it has seeds "
                f"{', '.join(sorted({str(s['seed']) for s in header['settings']}))}."
            )
        lanes += found
    return path, np.array(lanes), args["offline_updates"] if "env_steps" in args else header["done"]
