"""What a dataset's name says: the task it is of, by its words. Whether the data agrees is for its arrays to say."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from shared.errors import slugify

D4RL_FILES = (
    # D4RL's own file names (the last part of its download addresses) -> its ids
    (r"^ant-maze-(.*)-sparse(?:-fixed)?(?:-v\d+)?$", lambda m: _antmaze(m[1])),
    (r"^mini-kitchen-microwave-kettle-light-slider", lambda m: "kitchen-complete"),
    (r"^kitchen-microwave-kettle-light-slider", lambda m: "kitchen-partial"),
    (r"^kitchen-microwave-kettle-bottomburner-light", lambda m: "kitchen-mixed"),
    (r"^(pen|door|hammer|relocate)-v0-demos-clipped", lambda m: f"{m[1]}-human"),
    (r"^(pen|door|hammer|relocate)-v0-expert-clipped", lambda m: f"{m[1]}-expert"),
    (r"^(pen|door|hammer|relocate)-demos-v0-bc-combined", lambda m: f"{m[1]}-cloned"),
    (r"^(halfcheetah|hopper|walker2d|ant)-mixed", lambda m: f"{m[1]}-medium-replay"),
    (r"^(maze2d-\w+)-sparse", lambda m: m[1]),
    (r"^minigrid4rooms", lambda m: "minigrid-fourrooms"),
)


def _antmaze(words: str) -> str:
    maze = {"u-maze": "umaze", "big-maze": "medium", "hardest-maze": "large"}
    size = next((size for word, size in maze.items() if words.startswith(word)), "")
    starts, goals = "multistart-true" in words, "multigoal-true" in words
    kind = "diverse" if starts and goals else "" if size == "umaze" else "play" if goals else ""
    return "-".join(word for word in ("antmaze", size, kind) if word)


def standard_name(dataset: str) -> str:
    """The id in small letters, joined by '-'; D4RL's own file names as the ids that they stand for.

    Of a path the folders above an id (namespace/task/dataset) say nothing.
    """
    if dataset.startswith(("/", "~", ".")):
        dataset = "/".join([part for part in Path(dataset).parts if part != "data"][-3:])
    file = slugify(dataset.rpartition("/")[2])
    for pattern, meaning in D4RL_FILES:
        if found := re.search(pattern, file):
            return meaning(found)
    return slugify(dataset)


_OGBENCH = re.compile(
    r"(?:^|-)(?:"
    r"(?:visual-)?(?:pointmaze|antmaze|humanoidmaze)-(?:medium|large|giant|teleport)-(?:navigate|stitch|explore)"
    r"|(?:visual-)?antsoccer-(?:arena|medium)-(?:navigate|stitch)"
    r"|(?:visual-)?(?:cube-(?:single|double|triple|quadruple)|scene|puzzle-\dx\d)-(?:play|noisy)"
    r"|powderworld-(?:easy|medium|hard)-play"
    r"|[\w-]+-singletask(?:-task\d)?)(?:-|$)"
)
_OGBENCH_WORDS = (
    "navigate",
    "stitch",
    "explore",
    "humanoidmaze",
    "antsoccer",
    "cube",
    "scene",
    "puzzle",
    "powderworld",
)


def is_ogbench(dataset: str) -> bool:
    """Whether an id is one of OGBench's: its rewards are -1 and 0, and its pairs and settings are its own."""
    return bool(_OGBENCH.search(standard_name(dataset)))


def ogbench_env(dataset: str) -> str | None:
    """The environment that OGBench evaluates a dataset in: its id without the words of the data."""
    name = standard_name(dataset.rpartition("/")[2]).removesuffix("-val")
    if not is_ogbench(name):
        return None
    kinds = r"-(?:navigate|stitch|explore|play|noisy)(?=-(?:singletask|oraclerep|v\d)|$)"
    env = re.sub(kinds, "", name).replace("-oraclerep", "")
    return env if re.search(r"-v\d+$", env) else f"{env}-v0"


def ogbench_variants(recipe: str) -> list[str]:
    """Names of what a recipe of OGBench's data also makes: the rewards of one of its tasks, the validation set."""
    tasks = ["", "-singletask", *(f"-singletask-task{task}" for task in range(1, 6))]
    return [f"{recipe}{task}{val}" for task in tasks[: 1 if "powder" in recipe else None] for val in ("", "-val")][1:]


def preset_of(dataset: str, presets: Iterable[str]) -> str | None:
    """The longest key that a word of the id begins with; of OGBench's ids and keys only one with the other."""
    name = f"-{standard_name(dataset)}-"
    theirs = is_ogbench(dataset)
    keys = [key for key in presets if f"-{key}" in name and _for_ogbench(key) == theirs]
    return max(keys, key=len, default=None)


def _for_ogbench(key: str) -> bool:
    words = key.split("-")
    return any(word in words for word in _OGBENCH_WORDS) and "point" not in words  # other mazes have such names, too


class Family(NamedTuple):
    """Tasks that a word of a name may mean, and how their data can be known."""

    obs: tuple[int, ...]
    """Sizes of an observation in its versions; empty: any."""
    actions: int
    envs: tuple[tuple[str, dict], ...] = ()
    """Of gymnasium, newest first."""


FAMILIES = {
    "halfcheetah": Family((17,), 6, (("HalfCheetah-v5", {}),)),
    "hopper": Family((11,), 3, (("Hopper-v5", {}),)),
    "walker2d": Family((17,), 6, (("Walker2d-v5", {}),)),
    "antmaze": Family((29, 31, 109), 8),
    "ant": Family(
        (27, 105, 111),
        8,
        (
            ("Ant-v5", {}),
            ("Ant-v5", {"include_cfrc_ext_in_observation": False}),
            ("Ant-v4", {"use_contact_forces": True}),
        ),
    ),
    "maze2d": Family((4,), 2),
    "pointmaze": Family((2, 4, 8), 2),
    "pen": Family((45,), 24, (("AdroitHandPen-v1", {}),)),
    "door": Family((39,), 28, (("AdroitHandDoor-v1", {}),)),
    "hammer": Family((46,), 26, (("AdroitHandHammer-v1", {}),)),
    "relocate": Family((39,), 30, (("AdroitHandRelocate-v1", {}),)),
    "kitchen": Family((), 9),
    "pendulum": Family((3,), 1, (("Pendulum-v1", {}),)),
    "cartpole": Family((4,), 2, (("CartPole-v1", {}),)),
}


def family_of(name: str) -> str | None:
    """The family that a word of an id, or of a preset's or a reference pair's key, is of."""
    words = re.split(r"[-/]", standard_name(name))
    return next((family for family in FAMILIES if family in words), None)


def misfit(name: str, obs_shape: tuple[int, ...], actions: int) -> str | None:
    """Why data of these sizes is not of the family that `name` means; None where it is, or means none.

    `actions`: dimensions, or number of discrete ones.
    """
    word = family_of(name)
    pictures = is_ogbench(name) and "visual" in standard_name(name).split("-")
    if word is None or pictures:
        return None
    family = FAMILIES[word]
    if actions == family.actions and len(obs_shape) == 1 and (not family.obs or obs_shape[0] in family.obs):
        return None
    sizes = " or ".join(map(str, family.obs)) or "any number of"
    here = " x ".join(map(str, obs_shape))
    return f"{word} has {sizes} observations and {family.actions} actions, here are {here} and {actions}"
