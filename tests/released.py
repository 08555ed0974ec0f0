"""Settings that a dataset's name picks here, beside those of released configurations.

The tables in the tests of the algorithms are typed from the repositories that they name; no code of those is here.
"""

import dataclasses

from shared.arguments import preset_for

LEVELS = ("random", "medium", "expert", "medium-replay", "medium-expert", "full-replay")
MUJOCO = [f"{robot}-{level}-v2" for robot in ("halfcheetah", "hopper", "walker2d") for level in LEVELS]
ANTMAZE = [
    f"antmaze-{maze}-v2"
    for maze in ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")
]
MAZE2D = [f"maze2d-{size}{kind}-v1" for size in ("umaze", "medium", "large") for kind in ("", "-dense")]
ADROIT = [
    f"{hand}-{kind}-v1" for hand in ("pen", "door", "hammer", "relocate") for kind in ("human", "cloned", "expert")
]
KITCHEN = [f"kitchen-{kind}-v0" for kind in ("complete", "partial", "mixed")]


def settings(module, dataset: str):
    """The arguments of an algorithm with nothing but a dataset's name given."""
    key = preset_for(dataset, module.PRESETS)
    return dataclasses.replace(module.Args(), **(module.PRESETS[key] if key else {}))


def every(datasets, **values) -> dict[str, dict]:
    """The same `values` for all `datasets`."""
    return dict.fromkeys(datasets, values)


def wrong_settings(module, released: dict[str, dict]) -> list[str]:
    """A sentence for every argument that differs from `released` {dataset: {argument: value}}."""
    lines = []
    for dataset, expected in released.items():
        args = settings(module, dataset)
        different = {name: value for name, value in expected.items() if getattr(args, name) != value}
        lines += [f"{dataset}: {name} is {getattr(args, name)}, not {value}" for name, value in different.items()]
    return lines


def table(text: str, **columns: type) -> dict[str, dict]:
    """{dataset: {argument: value}} of lines 'dataset value value ...'."""
    rows = [line.split() for line in text.strip().splitlines()]
    return {
        dataset: {name: kind(x) for (name, kind), x in zip(columns.items(), values, strict=True)}
        for dataset, *values in rows
    }
