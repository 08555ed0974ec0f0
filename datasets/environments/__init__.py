"""The collection's own environments; importing the package registers their gymnasium ids."""

from environments import point_env  # noqa: F401
