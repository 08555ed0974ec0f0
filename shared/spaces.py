"""Observations of gymnasium's spaces as vectors or images: the same of a dataset as of its environment."""

from collections.abc import Iterable

import numpy as np
from gymnasium import spaces

from shared.errors import InputError

OBS_ORDER = ("observation", "desired_goal", "achieved_goal")
"""Of goal environments' dictionaries; gymnasium would sort them by name, which puts the goal before the state."""


def flatten_obs(obs, space: spaces.Space | None = None, xp=np):
    """[..., O] float32 of observations of `space` with any leading axes, or images [..., H, W, C] uint8 as they are.

    As `gymnasium.spaces.utils.flatten`: Discrete and MultiDiscrete are one-hot (from `start` on), MultiBinary, boxes
    of any shape and texts are laid flat, Dict and Tuple are concatenated; a Dict in the order observation,
    desired_goal, achieved_goal, then by name. Of one image the axes are height, width, channels, whichever way it is
    stored; stacked frames are channels. Without a `space` an observation is a box, or dictionaries of such.
    `xp`: numpy or jax.numpy.

    Raises:
      InputError: a space that has no such vector, or an observation that is not of it.
    """
    if isinstance(space, spaces.Box) and is_image(space):
        return _image(xp.asarray(obs), len(space.shape))
    return _vector(obs, space, xp)


def flat_obs_shape(space: spaces.Space) -> tuple[int, ...]:
    """Shape of `flatten_obs` of one observation of `space`."""
    return flatten_obs(space.sample(), space).shape


def goal_parts(space: spaces.Space | None) -> list[int] | None:
    """Sizes [O, G] of state and goal in `flatten_obs` of a goal environment's dictionary; None of another space.

    Of images both are numbers of channels.
    """
    if not (isinstance(space, spaces.Dict) and set(OBS_ORDER[:2]) <= set(space.spaces)):
        return None
    state, goal = (flat_obs_shape(space[key]) for key in OBS_ORDER[:2])
    return [int(state[-1]), int(goal[-1])]


def key_sizes(space: spaces.Space) -> dict[str, int] | None:
    """{key: how many numbers of `flatten_obs` are its} of a Dict; None of another space."""
    if not isinstance(space, spaces.Dict):
        return None
    return {key: int(np.prod(flat_obs_shape(of))) for key, of in space.items()}


def flatten_goal_obs(obs, space: spaces.Dict, xp=np):
    """[..., O + G] of dictionaries of a goal environment: the state, then the desired goal; images by their channels.

    Raises:
      InputError: state and goal are not both vectors, or images of one size.
    """
    state, goal = (flatten_obs(obs[key], space[key], xp) for key in OBS_ORDER[:2])
    if state.shape[:-1] != goal.shape[:-1]:
        raise InputError(f"States of shape {state.shape} and goals of shape {goal.shape} cannot be seen together.")
    return xp.concatenate([state, goal], axis=-1)


def without(space: spaces.Space, names: Iterable[str]) -> spaces.Space:
    """A Dict without the fields `names`; any other space as it is."""
    if not (names and isinstance(space, spaces.Dict)):
        return space
    return spaces.Dict({name: of for name, of in space.items() if name not in names})


def less(obs, names: Iterable[str]):
    """An observation of such a space."""
    return {name: x for name, x in obs.items() if name not in names} if names else obs


def constant_texts(space: spaces.Space, observations: list) -> dict[str, str]:
    """{field: text} of the texts of a Dict that are the same in all of `observations`: they teach nothing."""
    if not isinstance(space, spaces.Dict):
        return {}
    found = {
        k: {str(x) for obs in observations for x in obs[k]} for k, of in space.items() if isinstance(of, spaces.Text)
    }
    return {name: next(iter(texts)) for name, texts in found.items() if len(texts) == 1}


def is_image(space: spaces.Box) -> bool:
    """Whether it is kept as an image: bytes in three axes, or four of which one counts stacked frames."""
    return space.dtype == np.uint8 and len(space.shape) in (3, 4)


def are_images(x: np.ndarray) -> bool:
    """Whether rows [N, ...] are images, by the same rule."""
    return x.dtype == np.uint8 and x.ndim in (4, 5)


def rows_of_images(x: np.ndarray) -> np.ndarray:
    """[N, H, W, C] of rows that are images."""
    return np.ascontiguousarray(_image(x, x.ndim - 1))


def _image(x, axes: int):
    """[..., H, W, C] of [..., H, W, C] or [..., C, H, W], with frames before them or not; channels are the shortest."""
    if axes == 4:
        x = np.moveaxis(x, -3, -1) if x.shape[-3] < x.shape[-1] else x
        x = np.moveaxis(x, -4, -2)
        return x.reshape(*x.shape[:-2], -1)
    height, _, width = x.shape[-3:]
    return np.moveaxis(x, -3, -1) if height < width else x


def _vector(obs, space: spaces.Space | None, xp):
    """[..., O] float32"""
    if isinstance(obs, dict):
        names = [k for k in OBS_ORDER if k in obs] + sorted(obs.keys() - set(OBS_ORDER))
        return xp.concatenate([_vector(obs[k], None if space is None else space[k], xp) for k in names], axis=-1)
    if isinstance(obs, tuple):
        parts = space.spaces if space is not None else [None] * len(obs)
        return xp.concatenate([_vector(o, s, xp) for o, s in zip(obs, parts, strict=True)], axis=-1)
    if isinstance(space, spaces.Text):
        return _text(obs, space)
    obs = xp.asarray(obs)
    if isinstance(space, spaces.Discrete):
        return _one_hot(obs - space.start, int(space.n), space, xp)
    if isinstance(space, spaces.MultiDiscrete) and len(space.shape) == 1:
        parts = [_one_hot(obs[..., i] - space.start[i], int(n), space, xp) for i, n in enumerate(space.nvec)]
        return xp.concatenate(parts, axis=-1)
    if isinstance(space, spaces.Box | spaces.MultiBinary):
        lead = obs.shape[: obs.ndim - len(space.shape)]
        return obs.reshape(*lead, -1).astype(np.float32)
    if space is not None:
        raise InputError(f"Observations of {space} have no form as a vector; only those of fixed size have.")
    return obs.astype(np.float32) if obs.ndim else obs.astype(np.float32)[None]


def _one_hot(x, n: int, space: spaces.Space, xp):
    """[..., n] of whole numbers [...] in 0 .. n - 1."""
    if xp is np and not ((x >= 0) & (x < n)).all():
        raise InputError(f"An observation is outside {space}.")
    return (x[..., None] == xp.arange(n)).astype(np.float32)


def _text(texts, space: spaces.Text) -> np.ndarray:
    """[..., max_length]: the index of every letter, in their order, and the number of letters for none.

    An environment may have them in any order (a set's is another in every process), and a dataset in another.
    """
    texts = np.asarray(texts, dtype=str)
    known = {letter: i for i, letter in enumerate(sorted(space.character_set))}
    codes = np.full((texts.size, space.max_length), len(known), np.float32)
    for row, text in zip(codes, texts.ravel(), strict=True):
        if len(text) > space.max_length or not known.keys() >= set(text):
            raise InputError(f"'{text[:60]}' is not of the observation space {space}: {_why(text, space, known)}.")
        row[: len(text)] = [known[letter] for letter in text]
    return codes.reshape(*texts.shape, space.max_length)


def _why(text: str, space: spaces.Text, known: dict[str, int]) -> str:
    foreign = sorted(set(text) - known.keys())
    return f"it has no letter '{foreign[0]}'" if foreign else f"it has at most {space.max_length} letters"
