"""Files that are either whole or absent: atomic replacement, JSON lines, digests."""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from .errors import UserError, closest

logger = logging.getLogger(__name__)

StrPath = str | os.PathLike[str]

_LINE = 1 << 24  # characters
_SHORT = 40  # characters of a name that its temporary neighbour repeats: together they must not be too long
_YAML_BYTES, _YAML_VALUES = 1 << 20, 100_000


@contextlib.contextmanager
def replacing(path: StrPath) -> Iterator[Path]:
    """Give a temporary path beside `path`; on success it replaces `path` in one step, on failure it disappears.

    A link is followed, so that what it leads to is replaced. Raises `UserError` when the disk is full, the folder cannot be
    written or `path` is a device or a pipe, leaving an older `path` untouched.
    """
    path = destination(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # The suffix is kept because some writers choose the format by it.
        handle, name = tempfile.mkstemp(prefix=f".{path.stem[:_SHORT]}-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            _settle(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: StrPath, known: Sequence[str] | None = None) -> Iterator[Path]:
    """Give an empty folder beside `path`; on success it takes the place of `path`, on failure it disappears.

    Raises `UserError` as `check_folder` does.
    """
    path = check_folder(path, known)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name[:_SHORT]}-", dir=path.parent))
        try:
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            for file in temporary.rglob("*"):
                if file.is_file():
                    _settle(file)  # safetensors makes files that only their owner can read
            old = Path(tempfile.mkdtemp(prefix=f".{path.name[:_SHORT]}-", dir=path.parent))
            if path.exists():
                os.replace(path, old / "old")  # a folder that is not empty cannot be replaced in one step
            os.replace(temporary, path)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Errors of the operating system as `disk_error`; safetensors wraps them in a type of its own."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        code = re.search(r"os error (\d+)", str(error))
        if isinstance(error, OSError):
            raise disk_error(path, error) from error
        if code:
            raise disk_error(path, OSError(int(code[1]), os.strerror(int(code[1])))) from error
        raise


def _settle(file: Path) -> None:
    """Bring a new file to the disk, with the permissions of any other."""
    file.chmod(0o666 & ~_umask())
    with file.open("rb") as stream:
        os.fsync(stream.fileno())


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


@contextlib.contextmanager
def exclusive(folder: StrPath) -> Iterator[None]:
    """The folder that a verb works in, made if need be, for this process alone; its death, however it comes, lets go of it.

    A record lock of POSIX: worker processes, which are forks, do not inherit it. Where there is none, nothing is locked.

    Raises:
        UserError: Another process works there.
    """
    place = Path(folder)
    if place.exists() and not place.is_dir():
        raise UserError(f"{folder} is a file: choose another --out.")
    with writing(place):
        place.mkdir(parents=True, exist_ok=True)
        stream = (place / ".lock").open("a+", encoding="utf-8")
    with stream:
        try:
            import fcntl

            fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise UserError(f"Another process works in {folder}: wait for its end, or choose another --out.") from error
        except (ImportError, OSError):
            logger.warning("%s cannot be locked: let no second process work there", folder)
        yield


def destination(path: StrPath) -> Path:
    """Where a file `path` is really written: links are followed. Raises `UserError` for devices, pipes and circles of links."""
    place = Path(os.path.realpath(path))
    with writing(Path(path)):
        try:
            mode = place.stat().st_mode
        except FileNotFoundError:
            return place
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UserError(f"{path} is neither a file nor a folder: give the name of a file to write.")
    return place


def check_folder(path: StrPath, known: Sequence[str] | None = None) -> Path:
    """Where a folder `path` is really written: links are followed.

    Raises `UserError` where a file is, or a folder that holds anything but names of the patterns `known` (None: anything).
    """
    place = destination(path)
    if place.exists() and not place.is_dir():
        raise UserError(f"{path} is a file where a folder is to be written: choose another --out.")
    if known is not None and place.is_dir():
        for name in sorted(os.listdir(place)):
            if not any(fnmatch(name, pattern) for pattern in known):
                raise UserError(f"The folder {path} would be replaced, and holds {name}, which is not ours: move it.")
    return place


def disk_error(path: Path, error: OSError) -> UserError:
    """One sentence for an `OSError` met while writing `path`."""
    if error.errno == errno.ENOSPC:
        return UserError(f"The disk is full while writing {path}: free some space and run the same command again.")
    return UserError(f"Cannot write {path} ({error.strerror or error}): choose another --out or fix its permissions.")


def write_text(path: StrPath, text: str) -> None:
    """Replace `path` by `text` (UTF-8), atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: StrPath, value: Any) -> None:
    """Replace `path` by `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: StrPath, rows: Iterable[dict[str, Any]]) -> None:
    """Replace `path` by one JSON object per line, atomically; `rows` may be a generator of any length."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_json(path: StrPath, what: str = "file") -> Any:
    """Parse one JSON document; `what` names it in the error."""
    try:
        return parse_json(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read the {what} {path} ({error.strerror or error}): check the path.") from error
    except ValueError as error:
        raise UserError(f"The {what} {path} is not valid JSON ({error}): restore or regenerate it.") from error


def read_jsonl(path: StrPath, what: str = "file") -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield `(line number, object)` of a JSON-lines file; blank lines are passed over."""
    try:
        for number, line in enumerate(text_lines(path), 1):
            if not line.strip():
                continue
            try:
                row = parse_json(line)
            except ValueError as error:
                raise UserError(f"Line {number} of the {what} {path} is no valid JSON ({error}): mend it.") from error
            if not isinstance(row, dict):
                raise UserError(f"Line {number} of the {what} {path} is not a JSON object: write one {{...}} a line.")
            yield number, row
    except UnicodeDecodeError as error:
        raise UserError(f"The {what} {path} is not UTF-8 text: is it the right file?") from error
    except ValueError as error:
        raise UserError(f"The {what} {path} cannot be opened ({error}): check the path.") from error
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"Cannot read the {what} {path} ({reason}): check the path.") from error


def text_lines(path: StrPath) -> Iterator[str]:
    """The lines of a UTF-8 file, which may be gzipped (.gz) and may have a byte order mark.

    Raises:
        ValueError: A line is longer than 16 MB, which no list has, but archives and devices that never end do.
    """
    with (gzip.open if os.fspath(path).endswith(".gz") else open)(path, "rt", encoding="utf-8-sig") as stream:
        while line := stream.readline(_LINE):
            if len(line) == _LINE:
                raise ValueError("it has a line of more than 16 million characters")
            yield line


def read_mapping(path: StrPath, what: str) -> dict[str, Any]:
    """Read a YAML file that must hold a mapping; `what` names it in errors. Nothing in it is evaluated."""
    try:
        with open(path, "rb") as stream:
            content = stream.read(_YAML_BYTES + 1)
        if len(content) > _YAML_BYTES:
            raise UserError(f"The {what} {path} is longer than a megabyte: is it the right file?")
        values = parse_yaml(content.decode("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read the {what} {path} ({error}): check the path.") from error
    except ValueError as error:
        raise UserError(f"The {what} {path} is not valid YAML ({error}): fix its syntax.") from error
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise UserError(f"The {what} {path} must be a mapping of fields: start from a shipped one.")
    return values


def parse_yaml(text: str) -> Any:
    """Plain YAML → plain values. Raises `ValueError` with the fault in one line, whatever PyYAML stumbled over."""
    import yaml  # not needed for --help

    try:
        value = yaml.safe_load(text)
        _unfold(value)
        return value
    except Exception as error:  # impossible dates, endless numbers, deep nesting: each has a type of its own
        first = str(error).splitlines()[0] if str(error) and not isinstance(error, RecursionError) else ""
        raise ValueError(first or ("too deeply nested" if isinstance(error, RecursionError) else "no YAML")) from error


def _unfold(value: Any) -> None:
    """Raise `ValueError` for values that refer to each other so often that a few lines stand for billions."""
    pending, seen = [value], 0
    while pending:
        item = pending.pop()
        seen += 1
        if seen > _YAML_VALUES:
            raise ValueError(f"it unfolds to more than {_YAML_VALUES} values")
        if isinstance(item, dict):
            pending += item.values()
        elif isinstance(item, (list, tuple, set)):
            pending += item


def parse_json(text: str) -> Any:
    """`json.loads` whose every failure is a `ValueError`; text that no file could hold again is refused too."""
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("too deeply nested") from error
    if "\\ud" in text or "\\uD" in text:  # an escaped half of a character pair
        json.dumps(value, ensure_ascii=False).encode()
    return value


def neighbour(path: StrPath) -> str:
    """`` Did you mean 'x'?`` for the nearest name in the folder of a path that does not exist, or an empty string."""
    try:
        return closest(Path(path).name, os.listdir(Path(path).parent))
    except OSError:
        return ""


GENERIC = ("student", "best", "model", "encoder")
"""Names of folders that do not tell a model from another."""


def telling_name(path: StrPath, generic: Sequence[str] = GENERIC) -> str:
    """The last part of a path that is not `generic`: "edge" of "runs/edge/student"."""
    parts = [part for part in Path(path).parts if part not in ("/", ".", "..")]
    while len(parts) > 1 and parts[-1] in generic:
        parts.pop()
    return parts[-1] if parts else str(path)


def unique_name(text: str) -> str:
    """A file name for any `text`: the text itself where every system takes it, else what can stay of it and a digest.

    No two texts share a file, and none leads out of its folder.

    Example:
        >>> unique_name("robust-0"), unique_name("../a b")
        ('robust-0', '_a_b-...')
    """
    if re.fullmatch(r"[\w=][\w.=-]{0,79}", text, re.ASCII) and not text.endswith("."):
        return text
    return f"{re.sub(r'[^0-9A-Za-z_=-]+', '_', text)[:40].lstrip('-')}-{digest(text)}"


def digest(value: Any) -> str:
    """A short hexadecimal digest of a JSON-able value, the same in every process."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()
