"""The errors a user can cause: each carries one sentence that says what to do next."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import re
from collections.abc import Iterable, Iterator
from typing import Any


class UserError(Exception):
    """A mistake in the input, the recipe or the surroundings; the command line prints it and exits with 2.

    Example:
        >>> from robustdistiller import UserError, load_recipe
        >>> try:
        ...     load_recipe("robust-hubert-bas")
        ... except UserError as error:
        ...     print("Did you mean" in str(error))
        True
    """

    def __init__(self, message: str):
        super().__init__(printable(message))


class AudioError(UserError):
    """A recording that cannot be used; `reason` is a short machine-readable word such as ``corrupt`` or ``empty``."""

    def __init__(self, message: str, reason: str = "corrupt"):
        super().__init__(message)
        self.reason = reason


def printable(text: str) -> str:
    """`text` on one line that any terminal can show: a file name may hold line breaks, escapes or what is no text."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def markdown(text: str) -> str:
    """`text` as plain words of a Markdown document: no markup, HTML, table cell or second line comes of it."""
    return re.sub(r"([\\`\[\]<>|])", r"\\\1", printable(text)).replace("\\<", "&lt;").replace("\\>", "&gt;")


def code(text: str) -> str:
    """`text` for a place between backticks of a Markdown document."""
    return printable(text).replace("`", "'")


def closest(name: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the nearest known name, or an empty string: made to be appended to a sentence."""
    match = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.6)
    return f" Did you mean '{match[0]}'?" if match else ""


def optional(module: str, extra: str, purpose: str) -> Any:
    """A package of ``robustdistiller[extra]``, imported; raises `UserError` where it, or what it needs, is not installed.

    Without an extra the package itself is to be installed, as where the runtime is all there is.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        wanted = f"'robustdistiller[{extra}]'" if extra else module
        package = f"needs the package '{error.name or module}'"
        raise UserError(f"{purpose} {package}: run  pip install {wanted}.") from error


def first_line(error: BaseException, most: int = 140) -> str:
    """The beginning of what an error says, or the name of its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:most]


@contextlib.contextmanager
def explained(what: str, advice: str) -> Iterator[None]:
    """Any error inside as the `UserError` "what (first line of the error): advice"; a `UserError` passes as it is.

    For what libraries raise a dozen types of their own for, such as files that are cut short.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{what} ({first_line(error)}): {advice}") from error
