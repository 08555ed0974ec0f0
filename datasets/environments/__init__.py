"""The collection's own environments; importing the package registers their gymnasium ids."""
