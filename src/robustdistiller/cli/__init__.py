"""The command line: thin verbs over the library, with help that teaches and one sentence for every mistake.

One file a group of verbs; `options` holds what verbs share, `output` what is printed, `bars` the progress bars, `signals` what
concerns the process as a whole. Nothing heavy is imported before a verb runs.
"""

from __future__ import annotations

import inspect
import logging
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Collection
from typing import Annotated

import typer

from .. import __version__
from ..errors import UserError
from ..process import prepare_process
from . import signals
from .audio import contaminate, enhance, features, listen
from .bars import is_main_process
from .corpora import prepare, shard
from .demo import demo
from .deployment import export, import_, latency, push_to_hub
from .evaluation import evaluate
from .options import option
from .output import Notes, complain
from .teachers import teachers
from .training import distill, pretrain, quickstart, recipes

VERBS = {
    verb.__name__.strip("_").replace("_", "-"): verb
    for verb in (
        distill, quickstart, pretrain, contaminate, enhance, features, listen, prepare, shard, evaluate, export, latency,
        import_, push_to_hub, demo, recipes, teachers,
    )
}  # fmt: skip


def application(wanted: Collection[str] = VERBS.keys()) -> typer.Typer:
    """The command line with all verbs; of those that are not `wanted` only what the list of verbs says.

    The signatures of all verbs take longer to read than one of them takes to start.
    """
    app = typer.Typer(
        name="robustdistiller",
        add_completion=False,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Distil large speech encoders into small students that stay accurate in **noise and reverberation**.",
        epilog="Start with `robustdistiller quickstart`, or `robustdistiller COMMAND --help`. Exit codes: 0 done; 1 a fault "
        "of the program; 2 a mistake in the input or the surroundings, told in a sentence; 130 interrupted, 143 "
        "terminated: what was saved stays.",
    )
    app.callback(invoke_without_command=True)(_options)
    for name, verb in VERBS.items():
        app.command(name, help=inspect.getdoc(verb))(verb if name in wanted else _not_wanted)
    return app


def _not_wanted() -> None:
    raise NotImplementedError


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


def _options(
    context: typer.Context,
    version: Annotated[bool, option("Print the version.", "--version", callback=_version, is_eager=True)] = False,
    verbose: Annotated[bool, option("Also print what the library logs as information.", "--verbose", "-v")] = False,
    debug: Annotated[bool, option("Print the traceback of any fault; anywhere on the line.", "--debug")] = False,
) -> None:
    logging.basicConfig(level=logging.ERROR, format="%(message)s", handlers=[Notes()])
    logging.getLogger("robustdistiller").setLevel(logging.INFO if verbose else logging.WARNING)
    if context.invoked_subcommand is None:
        print(context.get_help())


def main() -> None:
    """Entry point of the console script: runs the verb and leaves with its exit code."""
    signals.harden_streams()
    signals.guard_workers()
    prepare_process()
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # no request but for the models that were named
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    sys.exit(run(arguments, debug="--debug" in sys.argv[1:]))


def run(arguments: list[str], debug: bool = False) -> int:
    """Run one command line; every mistake of the user ends in one sentence. Returns the exit code.

    Args:
        arguments: The verb and what follows it.
        debug: Print tracebacks as well.
    """
    try:
        return int(application(arguments)(arguments, prog_name="robustdistiller", standalone_mode=False) or 0)
    except (KeyboardInterrupt, SystemExit):
        return _ended()
    except (UserError, OSError, MemoryError, RecursionError, OverflowError, UnicodeError) as error:
        if signals.ended_by:  # the workers that were ended are missed somewhere
            return _ended()
        if debug:
            traceback.print_exc()
        name = type(error).__name__
        # The main process may be the one that was lost: the next one says so too.
        if is_main_process() or (name == "ProcessLost" and os.environ.get("RANK") == "1"):
            complain(_sentence(error, arguments))
        return 130 if name == "Interrupted" else 2
    except Exception as error:
        if hasattr(error, "format_message"):  # typer's own errors: a wrong option or value
            place = getattr(getattr(error, "ctx", None), "command_path", "robustdistiller")
            sentence = error.format_message().rstrip(".")
            complain(f"{sentence}{'' if sentence.endswith('?') else '.'} See {place} --help.")
            return int(getattr(error, "exit_code", 2))
        if signals.ended_by or type(error).__name__ == "Abort":  # what typer makes of Ctrl-C
            return _ended()
        if "allocate memory" in str(error) or "out of memory" in str(error):  # torch's has no type of its own
            if debug:
                traceback.print_exc()
            complain(_sentence(MemoryError(), arguments))
            return 2
        traceback.print_exc()
        complain("This is a fault of the program: please report it with the lines above.")
        return 1


def _ended() -> int:
    complain("terminated" if signals.ended_by == signal.SIGTERM else "interrupted")
    return 128 + (signals.ended_by or signal.SIGINT)


def _sentence(error: BaseException, arguments: list[str]) -> str:
    """What to say of an error that ends a command, naming the input."""
    if isinstance(error, UserError):
        return str(error)
    inputs = shlex.join(arguments)
    inputs = inputs if len(inputs) < 300 else f"{inputs[:300]}…"
    if isinstance(error, OSError):
        if error.errno == 28:  # ENOSPC
            return "The disk is full: free some space and run the same command again."
        if error.filename is not None:
            name = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else str(error.filename)
            return f"{name}: {error.strerror}: correct the path and run the same command again."
        return f"The system refused something ({error.strerror or error}) in: {inputs}. --debug shows where."
    if isinstance(error, MemoryError):
        return f"There is not enough memory for: {inputs}. Give shorter or fewer inputs, or smaller sizes."
    if isinstance(error, RecursionError):
        return f"An input is nested too deeply in: {inputs}. Is it the right file? --debug shows where."
    if isinstance(error, UnicodeError):
        return f"An input holds text or a name that is no UTF-8 in: {inputs}. Rename or convert it; --debug tells."
    return f"A number is too large ({error}) in: {inputs}. --debug shows where."


__all__ = ["VERBS", "application", "main", "run"]

if __name__ == "__main__":
    main()
