"""The collection's own environments; importing the package registers their ids with gymnasium."""

from environments import changed_physics, combination_lock, point_env  # noqa: F401
