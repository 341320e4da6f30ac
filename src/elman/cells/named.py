"""What a step is given, by name."""

from types import SimpleNamespace
from typing import Any


class Named(SimpleNamespace):
    """Values by name; one that is not there is an error that says which are."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        declared = ", ".join(sorted(vars(self))) or "none"
        raise AttributeError(
            f"step reads {name!r}, which the cell does not declare; what it is given there: {declared}"
        )
