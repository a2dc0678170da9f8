"""What a user did wrong, said in one form everywhere: `where = value: rule; remedy`."""

import difflib
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """Something the user can mend. Stages print the message without a traceback and exit with 1."""


class ConfigError(UserError):
    """All problems of one configuration file, reported together.

    Args:
        source: The file's name as the user wrote it.
        problems: Lines of the form `where = value: rule; remedy`.
    """

    def __init__(self, source: str, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        count = f"{len(self.problems)} problem" + ("s" if len(self.problems) != 1 else "")
        super().__init__("\n  ".join([f"{source}: {count}", *self.problems]))


def problem(where: str, value: Any, rule: str, remedy: str = "") -> str:
    """One line of the house's error form."""
    return f"{where} = {value!r}: {rule}" + (f"; {remedy}" if remedy else "")


def unknown_name(where: str, value: Any, known: Iterable[str]) -> str:
    """The error line for a name that is not in a registry, with the nearest known one."""
    names = sorted(known)
    near = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    return problem(
        where,
        value,
        "unknown",
        (f"did you mean {near[0]!r}? " if near else "") + "known: " + ", ".join(names),
    )
