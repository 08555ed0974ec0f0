"""The collection's own environments; importing the package registers their ids with gymnasium."""

from environments import bandit, changed_physics, combination_lock, delayed_reward, icu_sepsis, point_env  # noqa: F401
