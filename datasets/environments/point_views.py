"""What is seen of a point world: vectors, goal dictionaries, and pictures drawn on the device."""

import jax
import jax.numpy as jnp
import numpy as np

from environments.point import State, World, at, reset


def observe(world: World, state: State):
    """What the agents see: a vector [O], a dictionary of vectors, or a picture [pixels, pixels, 3].

    A vector holds for each agent: position, velocity (with inertia), goal (if shown), walls in view; then the
    distractors. In a dictionary the goals stand apart, as positions [2 n].
    """
    if world.observation == "pixels":
        return draw(world, state, world.pixels)
    as_goal = world.observation == "goal"
    parts = [state.position]
    parts += [state.velocity] if world.inertia else []
    parts += [state.goal] if world.show_goal and world.aims and not as_goal else []
    parts += [_view(world, state)] if world.view else []
    vector = jnp.concatenate([jnp.concatenate(parts, -1).ravel(), state.distractors])
    if not as_goal:
        return vector
    return {"observation": vector, "achieved_goal": state.position.ravel(), "desired_goal": state.goal.ravel()}


def state_of(world: World, obs: jax.Array) -> State:
    """The state behind a vector [O]; a goal that is not shown is the world's fixed one."""
    agents = obs[: len(obs) - world.distractors].reshape(world.agents, -1)
    position, at = agents[:, :2], 2
    velocity = jnp.zeros_like(position)
    if world.inertia:
        velocity, at = agents[:, 2:4], 4
    if world.show_goal and world.aims:
        goal = agents[:, at : at + 2]
    else:
        goal = reset(world, jax.random.key(0)).goal
    return State(position, velocity, goal, obs[len(obs) - world.distractors :], jnp.int32(0))


def _view(world: World, state: State) -> jax.Array:
    """[n, (2 view + 1)^2] 1 where a wall is, row by row; what is beyond the rim is wall."""
    side = np.arange(-world.view, world.view + 1)
    offsets = np.float32([(dx, dy) for dy in side for dx in side])
    spots = state.position[:, None] + offsets
    last = jnp.float32(world.grid.size) - 0.5
    return at(world.grid.wall, jnp.clip(spots, 0.5, last), state.level).astype(jnp.float32)


WALL, FLOOR, GOAL = (60, 60, 70), (235, 235, 235), (60, 170, 75)
GROUNDS = {"slippery": (175, 215, 240), "hazard": (240, 150, 130), "entrance": (190, 150, 220)}
AGENTS = ((30, 80, 200), (220, 120, 20), (150, 40, 140), (20, 140, 140))


def draw(world: World, state: State, side: int) -> jax.Array:
    """[side, side, 3] uint8: ground, goals (if shown), agents with a tail along their velocity.

    Discs have soft rims, so that a picture tells positions finer than its pixels. The distractors are grey pixels of
    the first row.
    """
    scale = max(world.grid.size)
    centres = (np.arange(side) + 0.5) * (scale / side)
    spots = np.stack(np.meshgrid(centres, centres), -1).astype(np.float32)
    image = _ground(world, spots)[state.level]

    def disc(image, centre, radius, colour):
        far = jnp.linalg.norm(spots - centre, axis=-1)
        cover = jnp.clip((radius - far) * (side / scale) + 0.5, 0.0, 1.0)[..., None]
        return image + cover * (jnp.float32(colour) - image)

    if world.show_goal and world.aims:
        for goal in state.goal:
            image = disc(image, goal, world.goal_radius, GOAL)
    for i in range(world.agents):
        colour = np.float32(AGENTS[i % len(AGENTS)])
        if world.inertia:
            image = disc(image, state.position[i] - 2.0 * state.velocity[i], 0.2, 0.5 * colour + 100)
        image = disc(image, state.position[i], 0.35, colour)
    if world.distractors:
        grey = 255 * jax.nn.sigmoid(4 * state.distractors[:side])
        image = image.at[0, : len(grey)].set(grey[:, None])
    return jnp.round(image).astype(jnp.uint8)


def _ground(world: World, spots: np.ndarray) -> jax.Array:
    """[K, side, side, 3] the colours of the cells at `spots`."""
    cells = world.grid
    colours = np.where(cells.wall[..., None], np.float32(WALL), np.float32(FLOOR))
    for name, colour in GROUNDS.items():
        colours[getattr(cells, name) > 0] = colour
    colours -= 6.0 * cells.treasure[..., None] * np.float32([0, 1, 3])
    colours[np.abs(cells.current).any(-1)] = (150, 190, 235)
    width, height = cells.size
    rows, cols = np.floor(spots[..., 1]).astype(int), np.floor(spots[..., 0]).astype(int)
    inside = ((rows < height) & (cols < width))[..., None]
    colours = colours[:, np.minimum(rows, height - 1), np.minimum(cols, width - 1)]
    return jnp.asarray(np.where(inside, colours, np.float32(WALL)))
