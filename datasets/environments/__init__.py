"""The collection's own environments; importing the package registers their ids with gymnasium."""

from environments import (  # noqa: F401
    bandit,
    breakout,
    changed_physics,
    combination_lock,
    delayed_reward,
    go_to_door,
    hidden_team,
    icu_sepsis,
    plane_bandit,
    point_env,
    preferred,
    proc_maze,
    rainy_road,
    trial_point,
    turned_point,
    unknown_arm,
)
