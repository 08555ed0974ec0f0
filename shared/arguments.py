"""The command line: arguments of every script, hyperparameters that may be swept, per-dataset presets."""

import dataclasses
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro

from shared.errors import InputError, first_line, nearest
from shared.names import preset_of


def _floats(values: list[str]) -> float | tuple[float, ...]:
    if not values:
        raise ValueError("needs at least one number")
    numbers = tuple(float(v) for v in values)
    return numbers if len(numbers) > 1 else numbers[0]


# A float hyperparameter. Several values on the command line become a grid of lanes; inside `update`
# it is a traced scalar, so that changing it never compiles anything anew.
Float = Annotated[
    float,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="FLOAT [FLOAT ...]",
        instance_from_str=_floats,
        is_instance=lambda x: isinstance(x, int | float | tuple),
        str_from_instance=lambda x: [str(v) for v in (x if isinstance(x, tuple) else (x,))],
    ),
]

_IN_UNIT_INTERVAL = object()
Fraction = Annotated[Float, _IN_UNIT_INTERVAL]
"""A `Float` that must lie in [0, 1]."""
StaticFraction = Annotated[float, _IN_UNIT_INTERVAL]
"""A float that must lie in [0, 1] and may not be swept: it decides about shapes, or is used before training."""

_POSITIVE, _INSIDE, _BELOW_1 = object(), object(), object()
Positive = Annotated[Float, _POSITIVE]
"""A `Float` above 0: what is divided by, what weights or values are clipped at, what a logarithm is learned of."""
Expectile = Annotated[Float, _INSIDE]
"""A `Float` that must lie between 0 and 1, which are no expectiles: at 0 or 1 half of the errors count nothing."""
NEVER_BELOW_0 = ("_lr", "learning_rate", "_decay", "_noise", "noise_clip", "_grad_norm", "_std")
"""How the names of those end that are nothing below 0: a loss would grow, and a bound or a deviation is no sign."""
Dropout = Annotated[float, _BELOW_1]
"""The share of units that are left out, in [0, 1): at 1 nothing is left. It may not be swept."""

_ABOVE_0, _FROM_0, _SHARES = object(), object(), object()
Size = Annotated[int, _ABOVE_0]
"""A whole number of at least 1: none of it would be a mean or a maximum of nothing, a loop that makes no step, or
a part that learns nothing before all others rest on it."""
Count = Annotated[int, _FROM_0]
"""A whole number of at least 0."""
Shares = Annotated[tuple[float, float, float], _SHARES]
"""Three shares: none below 0, and not all 0."""


@dataclasses.dataclass(frozen=True)
class DatasetArgs:
    """Arguments of every script that has a dataset."""

    dataset: str = "hopper-medium"
    """Minari id, path to a D4RL hdf5 / OGBench npz / plain npz, or the name of a recipe in datasets/."""
    preset: str = "auto"
    """Per-dataset settings of the paper: picked by the dataset's id (auto), none, or a name."""
    env: str = ""
    """Gymnasium id to evaluate (and to interact) in, or module:id of a module that registers it; none: no evaluation;
    empty: the one stored with the dataset."""
    clip_actions: bool = False
    """Clip the data's actions to the action space instead of refusing them."""
    fields: tuple[str, ...] = ()
    """Which array of a file is what, e.g. terminal=done timeout=cut reward=r (obs, next_obs, action, reward, terminal,
    not_terminal, timeout, end, start, episode, ignore); the others are known by their usual names. Of several
    datasets it counts for those that have the array."""
    episode_length: Count = 0
    """Rows of an episode that did not terminate, where a file says nothing of time limits; 0: it does."""
    discrete: bool = False
    """Take actions that are stored as whole numbers of floating point (0.0, 1.0, ...) as discrete choices."""


@dataclasses.dataclass(frozen=True)
class RunArgs:
    """Arguments that every script has; steps are updates, or environment steps where a script interacts."""

    seeds: Size = 1
    """Number of seeds; each is a lane, all train in this one job."""
    seed: Count = 0
    """First seed."""
    log_every: Size = 1_000
    """Steps between two rows of metrics.csv (means of the steps between)."""
    eval_every: Size = 50_000
    """Steps between two evaluations; the last checkpoint is always evaluated."""
    eval_episodes: Size = 10
    """Episodes of every lane (and task) at each evaluation, seeded alike for all lanes."""
    max_episode_steps: Count = 0
    """Steps after which an episode of an evaluation is cut; 0: the environment's limit, or 10,000 where it has none."""
    checkpoint_every: Size = 100_000
    """Steps between two checkpoints; one is always written at the end and on Ctrl-C."""
    out: str = ""
    """Run directory; empty: results/runs/<algorithm>/<dataset>/<time> in the repository."""
    resume: bool = False
    """Continue the run in --out from its checkpoint."""
    wandb: Literal["off", "offline", "online"] = "off"
    """Log to Weights & Biases too, one run per lane; its failure never stops training."""
    layout: Literal["auto", "map", "vmap"] = "auto"
    """How the lanes of one device are computed: one after the other (map), as one batch (vmap), or what is faster on
    its kind (auto: map on CPU, vmap on GPU and TPU). The numbers agree to float tolerance, not to the last digit."""
    lanes_per_call: Count = 0
    """How many of the lanes that are vmapped on one device are computed at a time; 0: all. Fewer need less memory,
    so that more lanes than a device can hold at once train in one job."""
    compile_cache: bool = True
    """Keep compiled programs (beside the cached datasets), so that the next run of the same sizes starts at once."""
    distributed: str = ""
    """Several processes share the lanes: auto (SLURM, TPU pods, Open MPI), or HOST:PORT,PROCESSES,PROCESS."""


@dataclasses.dataclass(frozen=True)
class OfflineArgs(RunArgs, DatasetArgs):
    """Arguments of every offline script."""

    updates: Size = 1_000_000
    """Gradient updates of each lane (a step means one gradient update everywhere)."""


@dataclasses.dataclass(frozen=True)
class DemoArgs(OfflineArgs):
    """Arguments of every offline script that learns from demonstrations (D_E) beside its dataset."""

    more_data: tuple[str, ...] = ()
    """Further datasets of the same environment; their episodes follow those of --dataset."""
    demos: tuple[str, ...] = ()
    """Datasets of the same environment whose episodes are demonstrations; empty: those of --dataset."""
    demo_episodes: Count = 1
    """Demonstrations: that many episodes of highest return; 0: all that --demos have."""


@dataclasses.dataclass(frozen=True)
class LabelArgs(OfflineArgs):
    """Arguments of every offline script of whose data only a part (D_L) has all of its labels."""

    more_data: tuple[str, ...] = ()
    """Further datasets of the same environment; their episodes follow those of --dataset."""
    labelled_fraction: StaticFraction = 0.1
    """Share of the data that keeps its labels, in [0, 1]; of the rest (D_U) they are hidden."""
    labelled_unit: Literal["episodes", "transitions"] = "episodes"
    """What is drawn to keep its labels: whole episodes, or single transitions of any episode."""
    labelled_below: StaticFraction = 1.0
    """Episodes that are labelled are of the lowest returns, of this share of all, in [0, 1]."""
    split_seed: Count = 0
    """Of the draw of what keeps its labels, which all lanes share."""
    hide: tuple[Literal["rewards", "actions"], ...] = ("rewards",)
    """What is hidden of the data without labels."""


@dataclasses.dataclass(frozen=True)
class GoalArgs(OfflineArgs):
    """Arguments of every offline script whose policy is given a goal."""

    eval_every: Size = 100_000
    """Steps between two evaluations; the last checkpoint is always evaluated."""
    eval_episodes: Size = 50
    """Episodes of every lane (and task) at each evaluation, seeded alike for all lanes."""
    tasks: tuple[int, ...] = ()
    """Numbers of the environment's tasks that are evaluated, from 1; empty: all, or its own starts and goals."""


EnvSteps = Annotated[Size, tyro.conf.arg(aliases=["--online-steps"])]


@dataclasses.dataclass(frozen=True)
class OnlineArgs(RunArgs):
    """Arguments of every script that interacts; steps are environment steps."""

    env_steps: EnvSteps = 1_000_000
    """Environment steps of each lane (a step means one environment step in --log-every, --eval-every, ...)."""
    buffer_size: Size = 1_000_000
    """Transitions kept in each lane's replay buffer."""


@dataclasses.dataclass(frozen=True)
class HybridArgs(OnlineArgs, DatasetArgs):
    """Arguments of every script that interacts and has a dataset from the beginning."""


@dataclasses.dataclass(frozen=True)
class FinetuneArgs(HybridArgs):
    """Arguments of every script that trains offline first, then interacts."""

    offline_updates: Size = 1_000_000
    """Gradient updates of each lane before its first environment step."""
    offline_eval_every: Size = 100_000
    """Of these, updates between two evaluations; their end is always evaluated."""
    from_run: Annotated[str, tyro.conf.arg(name="from")] = ""
    """Directory of an offline run, or of a fine-tuning one (its agents at the end of the offline phase), whose agents
    are fine-tuned, lane by lane of the same seed; without any offline updates here."""


def hyperparameters(cls: type) -> type:
    """Makes `cls` a frozen dataclass and a pytree whose leaves are its `Float` fields.

    All other fields are static (part of the tree's structure), so one object serves as command line,
    as a lane's traced hyperparameters, and as the record in run.json.
    """
    cls = dataclasses.dataclass(frozen=True)(cls)
    traced = float_fields(cls)
    static = [f.name for f in dataclasses.fields(cls) if f.name not in traced]
    return jax.tree_util.register_dataclass(cls, data_fields=traced, meta_fields=static)


def float_fields(cls: type) -> list[str]:
    """Names of the fields that may be swept."""
    return [f.name for f in dataclasses.fields(cls) if f.type in (Float, Fraction, Expectile, Positive)]


class ByName(dict):
    """Settings of a preset that --preset alone picks, whatever words the dataset's id has."""


def by_name(presets: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """`presets`, none of which a dataset's id picks."""
    return {key: ByName(settings) for key, settings in presets.items()}


def preset_for(dataset: str, presets: dict[str, dict[str, Any]], name: str = "auto") -> str | None:
    """Key of `presets` that `dataset` picks: the longest one that a word of its id begins with, or `name` itself.

    Those of `by_name` are picked by `name` alone.
    """
    if name == "none":
        return None
    if name != "auto":
        if name not in presets:
            raise InputError(f"No preset '{name}'; {nearest(name, presets)} (or auto, none).")
        return name
    return preset_of(dataset, [key for key, settings in presets.items() if not isinstance(settings, ByName)])


def parse(
    cls: type,
    presets: dict[str, dict[str, Any]],
    doc: str,
    argv: list[str] | None = None,
    objection: Callable[[DatasetArgs, str, dict[str, Any]], str | None] | None = None,
    tell: Callable[[str], Any] = print,
):
    """Command line -> `cls`. What is given there wins over the preset, the preset over the defaults.

    `objection(args, key, settings)`: why the data is none that a preset picked by name is for; such a one is left out.
    The preset that is used is told, and takes the place of "auto".
    """
    options = {"description": inspect.cleandoc(doc), "args": argv}
    args = tyro.cli(cls, **options)
    if isinstance(args, DatasetArgs):
        key = preset_for(args.dataset, presets, args.preset)
        why = objection(args, key, presets[key]) if objection and key and args.preset == "auto" else None
        if why:
            tell(f"preset {key} is left out: {why}")
            key = None
        if key is not None:
            tell(f"preset {key}: {', '.join(f'{k} {v}' for k, v in presets[key].items())}")
            args = tyro.cli(cls, default=dataclasses.replace(cls(), **presets[key]), **options)
        args = dataclasses.replace(args, preset=key or "none")
    require_values(args)
    return args


def require_values(args: Any, names: Iterable[str] = ()) -> None:
    """InputError where an argument (of `names`, if any are given) is not what its kind says: a size of 0, a NaN."""
    swept = float_fields(type(args))
    for field in dataclasses.fields(args):
        if names and field.name not in names:
            continue
        value = getattr(args, field.name)
        whole = [x for x in (value if isinstance(value, tuple) else (value,)) if isinstance(x, int)]
        if max(whole, default=0) >= 2**31:
            raise InputError(f"--{field.name.replace('_', '-')} must be below {2**31:,}, unlike {max(whole)}.")
        if field.name in swept or isinstance(value, float):
            with np.errstate(over="ignore"):
                traced = np.float32(value)  # as it is in the compiled update: 1e39 is infinite, 1e-50 is 0
            if not np.all(np.isfinite(traced)):
                raise InputError(f"--{field.name.replace('_', '-')} must be finite, not {value}.")
        if field.name in swept and isinstance(value, tuple) and len(set(traced.tolist())) < len(value):
            given = " ".join(f"{x:g}" for x in value)
            raise InputError(f"--{field.name.replace('_', '-')} {given}: a value is given twice, as one lane would be.")
        if field.type in (Fraction, StaticFraction) and not np.all((np.array(value) >= 0) & (np.array(value) <= 1)):
            raise InputError(f"--{field.name.replace('_', '-')} must lie in [0, 1], not {value}.")
        if field.type == Positive and np.any(traced <= 0):
            raise InputError(f"--{field.name.replace('_', '-')} must be above 0, not {value}.")
        if field.type == Expectile and not np.all((traced > 0) & (traced < 1)):
            raise InputError(f"--{field.name.replace('_', '-')} must lie in (0, 1), not {value}.")
        if field.type == Dropout and not 0 <= value < 1:
            raise InputError(f"--{field.name.replace('_', '-')} must lie in [0, 1), not {value}.")
        if field.name.endswith(NEVER_BELOW_0) and np.any(np.array(value) < 0):
            raise InputError(f"--{field.name.replace('_', '-')} must be at least 0, not {value}.")
        kinds = getattr(field.type, "__metadata__", ())
        for least, kind in ((1, _ABOVE_0), (0, _FROM_0)):
            if kind in kinds and value < least:
                raise InputError(f"--{field.name.replace('_', '-')} must be at least {least}, not {value}.")
        if field.name.endswith("hidden_dims") and min(value, default=1) < 1:
            sizes = " ".join(map(str, value))
            raise InputError(f"--{field.name.replace('_', '-')} must be sizes of at least 1, unlike {sizes}.")
        if field.type == Shares and (min(value) < 0 or not 0 < sum(value) < np.inf):
            flag, given = field.name.replace("_", "-"), " ".join(map(str, value))
            raise InputError(f"--{flag} must be shares: none below 0, and not all 0, unlike {given}.")


def function_named(flag: str, name: str) -> Callable:
    """The function that `flag` names as module:function, of the current folder or installed.

    Raises:
      InputError: there is none.
    """
    module, _, function = name.rpartition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever somebody's module raises
        raise InputError(f"{flag} {name}: there is no such function ({first_line(error)}).") from None
