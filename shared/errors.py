"""Bad input ends in one sentence: the exception for it, and the nearest names to a mistyped one."""

import contextlib
import difflib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The repository."""


def cache_folder() -> Path:
    """Where arrays that were read and programs that were compiled are kept: ~/.cache/offline-rl, $OFFLINE_RL_CACHE."""
    return Path(os.environ.get("OFFLINE_RL_CACHE", Path.home() / ".cache" / "offline-rl"))


class InputError(Exception):
    """Bad input; its one sentence says what is wrong and what to do. Scripts exit with status 2."""


class EvaluationFailed(InputError):
    """An environment did not bear an evaluation; what was trained is saved."""


class Interrupted(Exception):
    """A signal ended the run after its checkpoint was written."""

    def __init__(self, signal: int, out: Path):
        super().__init__(signal)
        self.signal, self.out = signal, out


@contextlib.contextmanager
def environment_fails(env_id: str, when: str) -> Iterator[None]:
    """Whatever an environment raises here is one sentence: that it failed `when`, and why."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # environments raise their own kinds
        raise InputError(f"{env_id} failed {when} ({first_line(error)}).") from error


def nearest(name: str, names: Iterable[str]) -> str:
    """'did you mean ...' for a mistyped name."""
    names = list(dict.fromkeys(names))
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"choose from {', '.join(names)}" if len(names) <= 30 else f"none of {len(names):,} known names is like it"


def first_line(error: Exception) -> str:
    """What an exception of another library says, in one line; its kind where it says nothing."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def slugify(dataset_id: str) -> str:
    """'D4RL/pointmaze/umaze-v2' or 'path/hopper_medium-v2.hdf5' -> 'd4rl-pointmaze-umaze-v2', ..."""
    name = Path(dataset_id).stem if dataset_id.endswith((".npz", ".hdf5", ".h5")) else dataset_id
    return name.lower().replace("/", "-").replace("_", "-").strip("-.")


def files_for(discrete: bool, folder: Path = ROOT / "algorithms") -> list[str]:
    """The files that learn from a dataset of such actions alone, without goals: by what they require of it.

    Those of algorithms/offline are first, the shortest of each family before the others: the usual baselines.
    """
    refused = re.compile(rf"\.require\((discrete=)?{not discrete}\b")
    found = []
    for path in folder.glob("*/*.py"):
        source = path.read_text()
        if "(OfflineArgs)" in source and not refused.search(source):
            found.append((path.parent.name != "offline", path.parent.name, len(source), path.name))
    return [name for *_, name in sorted(found)]
