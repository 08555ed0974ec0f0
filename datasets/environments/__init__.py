"""The collection's own environments; importing the package registers their ids with gymnasium."""

from environments import changed_physics, combination_lock, icu_sepsis, point_env  # noqa: F401
