"""Datasets as they are stored -> flat arrays: found, made or downloaded by name, read once, then cached."""

import contextlib
import difflib
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np

from shared.errors import ROOT, InputError, cache_folder, nearest, slugify
from shared.files import names_in, read_file
from shared.minari_files import read_minari
from shared.task import recipe_id, recipe_name, recipes


def read_dataset(
    name: str, fields: Iterable[str] = (), episode_length: int = 0, download: bool = True
) -> tuple[dict[str, np.ndarray], dict]:
    """(obs, action, reward, terminal, next_obs, last, and successor where some rows have none) of a dataset as it is
    stored, and what is known of it.

    `fields`, `episode_length`: of `DatasetArgs`, for files. `download`: what is not here is made or downloaded.

    Raises:
      InputError: unknown id, missing or unreadable file, no network, shapes or flags that disagree.
    """
    path, fields = Path(name).expanduser(), tuple(fields)
    if path.is_dir() or not path.exists():
        source = _minari_directory(name, path, download)
        if fields or episode_length:
            raise InputError(f"{name} is a Minari dataset, whose fields are known; --fields is for files.")
        stored = sorted(p for p in source.rglob("*") if p.is_file())
        return _cached(stored, "", lambda: read_minari(source))
    if path.suffix in (".hdf5", ".h5", ".npz"):
        return _cached([path], f"{fields}{episode_length}", lambda: read_file(path, fields, episode_length))
    raise InputError(f"{name}: not a dataset; expected a .hdf5 or .npz file or a Minari directory.")


def given_of(names: Iterable[str], fields: Iterable[str], episode_length: int = 0) -> dict[str, tuple[tuple, int]]:
    """{dataset: those of `fields` whose arrays it has, and `episode_length` where it is a file}.

    A dataset that stands alone has all of them, for its reader to judge.

    Raises:
      InputError: a file that cannot be read; an array that none of several datasets has.
    """
    names, fields = list(dict.fromkeys(names)), tuple(fields)
    if len(names) == 1 or not (fields or episode_length):
        return dict.fromkeys(names, (fields, episode_length))
    held = {name: names_in(Path(name).expanduser()) for name in names if is_file(name)}
    known = list(dict.fromkeys(x for of in held.values() for x in of))
    for word in fields:
        if held and word.partition("=")[2] not in known:
            array = word.partition("=")[2]
            raise InputError(f"--fields {word}: no dataset has an array '{array}'; {nearest(array, known)}")
    if not held:  # the reader of the first one refuses them
        return dict.fromkeys(names, (fields, episode_length))
    return {
        name: (tuple(w for w in fields if w.partition("=")[2] in held[name]), episode_length)
        if name in held
        else ((), 0)
        for name in names
    }


def is_file(name: str) -> bool:
    """Whether a dataset is a single file, of which --fields and --episode-length may tell."""
    path = Path(name).expanduser()
    return path.suffix in (".hdf5", ".h5", ".npz") and path.is_file()


def dataset_id(name: str) -> str:
    """The name under which runs record a dataset: a recipe's own, its version included; others as they are."""
    return name if Path(name).expanduser().exists() else recipe_name(name) or name


def _holds_data(data: Path) -> bool:
    """Whether a folder is one of Minari's, in either of its storages."""
    return (data / "main_data.hdf5").exists() or ((data / "metadata.json").exists() and (data / "0").is_dir())


def _minari_directory(name: str, path: Path, download: bool = True) -> Path:
    """The data/ folder of a Minari dataset, made or downloaded if need be."""
    if path.is_dir():
        for data in (path, path / "data"):
            if _holds_data(data):
                return data
        raise InputError(f"{name} is a directory without data/main_data.hdf5: not a Minari dataset.")
    if path.suffix in (".hdf5", ".h5", ".npz") or name.startswith(("/", "~", ".")):
        raise InputError(f"There is no file {path}.")
    import minari
    from minari.storage import get_dataset_path

    known, recipe = recipes(), recipe_name(name)
    data = Path(get_dataset_path(recipe_id(recipe) if recipe else name)) / "data"
    if _holds_data(data):
        return data
    if not download:
        raise InputError(f"'{name}' is not on this machine.")
    if recipe:
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


def _cached(stored: list[Path], how: str, read) -> tuple[dict[str, np.ndarray], dict]:
    """`read()`, or what it returned earlier for files of the same content, read by the same code and `how`."""
    digest = hashlib.sha256(_reader() + how.encode())
    for path in stored:
        with path.open("rb") as f:
            while block := f.read(1 << 24):
                digest.update(block)
    home = cache_folder()
    known = home / f"{digest.hexdigest()[:32]}.npz"
    if known.exists():
        try:
            with np.load(known, allow_pickle=False) as file:
                arrays = {k: file[k] for k in file.files if k != "__meta__"}
                return arrays, json.loads(str(file["__meta__"]))
        except Exception:  # a damaged cache is no reason to stop: it is written anew
            pass
    arrays, meta = read()
    meta["hash"] = content_hash(arrays)
    temporary = known.with_name(f"{known.name}.{os.getpid()}.tmp")
    try:
        home.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as f:
            np.savez(f, __meta__=np.array(json.dumps(meta)), **arrays)
        os.replace(temporary, known)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return arrays, meta


@cache
def _reader() -> bytes:
    """Of the code that reads: what an older one understood otherwise is read again."""
    rooms = ("files", "fields", "minari_files", "spaces", "untrusted")
    return b"".join((Path(__file__).parent / f"{room}.py").read_bytes() for room in rooms)


def content_hash(arrays: dict[str, np.ndarray]) -> str:
    """First 16 hex digits of the SHA-256 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()[:16]
