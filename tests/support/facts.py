"""What is known of some modules, each fact by the name of the function that checks it."""

from __future__ import annotations

from collections.abc import Callable

Check = Callable[[], None]


class Facts(dict[str, Check]):
    """Checks by name; a planted bug must break one of them."""

    def __call__(self, check: Check) -> Check:
        """As a decorator: a fact, under its function's name."""
        self[check.__name__] = check
        return check
