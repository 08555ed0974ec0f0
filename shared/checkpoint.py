"""Trees on disk: one npz each, written whole or not at all, and never unpickled."""

import contextlib
import dataclasses
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from shared.arguments import RunArgs
from shared.errors import InputError
from shared.task import Task
from shared.untrusted import read_npz


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


def save_tree(path: Path, tree: Any, header: dict) -> None:
    """One npz: every leaf under its path in the tree, and the header as JSON. Atomic; no pickle."""
    arrays = {
        name: np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        for name, leaf in _named_leaves(tree).items()
    }
    with replacing(path) as file:
        np.savez(file, __header__=np.array(json.dumps(header)), **arrays)


def comparable(args: RunArgs) -> dict:
    """The arguments that a resumed run must share, as JSON gives them back.

    Not the layout of lanes: a run may go on on another kind of device, which has another.
    """
    free = ("out", "resume", "wandb", "preset", "distributed", "layout")
    return json.loads(json.dumps({k: v for k, v in dataclasses.asdict(args).items() if k not in free}))


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

    `partial`: the checkpoint may hold more.
    """
    names = _named_leaves(template)
    stored = _read_checkpoint(path, lambda n: n in names or not (partial or n == "__header__"))
    if missing := sorted(names.keys() ^ stored.keys()):
        raise InputError(f"{path} does not fit this algorithm's networks: {missing[0]} is on one side only.")

    def load(name: str, leaf: Any) -> Any:
        value = stored[name]
        if _is_key(leaf):
            return jax.device_put(jax.random.wrap_key_data(value), leaf.sharding)
        if value.shape != np.shape(leaf):
            raise InputError(f"{path} does not fit this run: {name} has shape {value.shape}, not {np.shape(leaf)}.")
        on_device = isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)
        return jax.device_put(value, leaf.sharding) if on_device else value

    return jax.tree.unflatten(jax.tree.structure(template), [load(n, leaf) for n, leaf in names.items()])


def load_lanes(path: Path, agent: Any, lanes: np.ndarray) -> Any:
    """`agent` with what a checkpoint of another run holds under the same names: its `lanes` [L] of every array.

    What the checkpoint lacks stays as it is, and so do the optimisers of another form; both are told.
    """
    names = _named_leaves(agent)
    stored = _read_checkpoint(path, lambda n: f"{n.removeprefix('[0]')}" in names)
    stored = {n.removeprefix("[0]"): value for n, value in stored.items()}
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


# ----------------------------------------------------------------------------- which run it is of


def refuse_another_run(run_dir: Path, header: dict, algorithm: str, task: Task, args: RunArgs, settings: list) -> None:
    """InputError where the checkpoint in `run_dir` is not of the run that is resumed, or its data has changed."""
    if header["algorithm"] != algorithm:
        raise InputError(f"{run_dir} is a run of {header['algorithm']}, not of {algorithm}.")
    if header["task"]["hash"] != task.hash:
        raise InputError(f"The dataset '{task.id}' has changed since the run in {run_dir} began.")
    for name, value in comparable(args).items():
        if header["args"].get(name) != value:
            raise InputError(
                f"--resume with --{name.replace('_', '-')} {value}, but the run was started with "
                f"{header['args'].get(name)}; use the same."
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
        found = [i for i, other in enumerate(header["settings"]) if shared(other)]
        if len(found) != 1:
            raise InputError(
                f"--from: {run_dir} has {len(found) or 'no'} lanes with "
                f"{', '.join(f'{k}={v}' for k, v in setting.items())}; it has seeds "
                f"{', '.join(sorted({str(s['seed']) for s in header['settings']}))}."
            )
        lanes += found
    return path, np.array(lanes), args["offline_updates"] if "env_steps" in args else header["done"]
