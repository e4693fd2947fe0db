"""MkDocs hook: the pages that are made from the code, so that they cannot differ from it.

reference/cli.md: every verb with its help; reference/recipe.md: every field of a recipe with default and meaning, from the
comments of config.py; reference/files.md: the same for task and condition files, behind a written introduction.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import re
import tokenize
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

SOURCE = Path(__file__).resolve().parents[1] / "src" / "robustdistiller"


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    for path, content in (
        ("reference/cli.md", command_line()),
        ("reference/recipe.md", recipe_fields()),
        ("reference/files.md", file_keys()),
    ):
        files.append(File.generated(config, path, content=content))
    return files


def command_line() -> str:
    """Every verb: usage, what it does, and its arguments and options."""
    import typer.main

    from robustdistiller.cli import application

    group = typer.main.get_command(application())
    context = group.make_context("robustdistiller", [], resilient_parsing=True)
    parts = [
        "# Command line\n",
        "Made from the commands themselves; `robustdistiller VERB --help` prints the same.\n",
        _COMMON,
    ]
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        inner = type(context)(command, parent=context, info_name=name)
        usage = " ".join(command.collect_usage_pieces(inner))
        text = re.sub(r"(?<!\n)\n(?!\n)", " ", (command.help or "").replace("\x08", "")).strip()
        parts += [f"## {name}\n", f"```text\nrobustdistiller {name} {usage}\n```\n", f"{text}\n"]
        rows = [_option_row(parameter) for parameter in command.params if not getattr(parameter, "hidden", False)]
        parts += ["| argument | meaning | default |\n| --- | --- | --- |\n" + "\n".join(rows) + "\n"]
    parts.append(_exit_codes(group.epilog or ""))
    return "\n".join(parts)


_COMMON = """What is there already is never replaced, but for earlier outputs of the same verb, with `--overwrite`. `--device`
picks the processor or GPU; `--json` prints a result for scripts; `--debug`, anywhere on the line, prints tracebacks.
"""


def _option_row(parameter: Any) -> str:
    names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
    if parameter.param_type_name == "argument":
        names = f"`{parameter.metavar or parameter.name.upper()}`"
    default = parameter.default
    shown = "" if default in (None, False, [], ()) or callable(default) else f"`{default}`"
    return f"| {names} | {_cell(getattr(parameter, 'help', '') or '')} | {shown} |"


def _exit_codes(epilog: str) -> str:
    return f"## Exit codes\n\n{epilog}\n"


def recipe_fields() -> str:
    """A table a section of `config.Recipe`."""
    config = importlib.import_module("robustdistiller.config")
    parts = [
        "# Recipe fields\n",
        "Made from `config.py`. A recipe is YAML with these sections; every field can also be set on the command line, "
        "`--set section.field=value`. Defaults are the paper's unless the meaning says otherwise.\n",
    ]
    sections = [("", config.Recipe)]
    for prefix, section in sections:
        rows, told = [], _told(section)
        for name, field in section.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, config.Section):
                sections.append((f"{prefix}{name}.", inner))
                continue
            rows.append(_field_row(prefix + name, field, told[name]))
        title = prefix.rstrip(".") or "The recipe"
        about = re.sub(r"\s+", " ", section.__doc__ or "")
        parts += [f"## {title}\n", f"{about}\n", "| field | type | default | meaning |\n| --- | --- | --- | --- |"]
        parts += ["\n".join(rows) + "\n"]
    return "\n".join(parts)


def file_keys() -> str:
    """Tables of the keys of task and condition files, after an introduction that is written by hand."""
    parts = [(Path(__file__).parent / "reference" / "_files.md").read_text(encoding="utf-8")]
    for module, classes in (
        ("task_file", ("TaskConfig", "SplitConfig", "DetectionConfig")),
        ("conditions", ("NoiseGrid", "NoiseSource", "RoomGrid", "RoomSource", "BothGrid")),
    ):
        loaded = importlib.import_module(f"robustdistiller.evaluation.{module}")
        for name in classes:
            section = getattr(loaded, name)
            told = _told(section)
            about = re.sub(r"\s+", " ", section.__doc__ or "")
            parts += [f"\n### `{name}`\n\n{about}\n", "| key | type | default | meaning |\n| --- | --- | --- | --- |"]
            parts += [_field_row(key, field, told[key]) for key, field in section.model_fields.items()]
    return "\n".join(parts) + "\n"


def _field_row(name: str, field: Any, told: tuple[str, str]) -> str:
    annotation, meaning = told
    default = "" if field.default_factory is not None else f"`{field.default!r}`"
    shown = "required" if field.is_required() else default
    bounds = _bounds(field)
    kind = f"`{annotation}`" if len(annotation) < 80 else "list"
    return f"| `{name}` | {_cell(kind)}{', ' if bounds else ''}{bounds} | {_cell(shown)} | {_cell(meaning)} |"


def _bounds(field: Any) -> str:
    """The tightest bounds of a number, as text."""
    found: dict[str, Any] = {}
    for item in field.metadata:
        for word, tighter in (("gt", max), ("ge", max), ("lt", min), ("le", min)):
            value = getattr(item, word, None)
            if value is not None:
                found[word] = tighter(found.get(word, value), value)
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    return ", ".join(f"{signs[word]} {value:g}" for word, value in found.items() if abs(value) < 1e6)


def _told(section: type) -> dict[str, tuple[str, str]]:
    """The fields of a class: annotation, and the comment behind the field or in the lines above it."""
    path = Path(inspect.getsourcefile(section) or "")
    text = path.read_text(encoding="utf-8")
    notes: dict[int, tuple[str, bool]] = {}  # line → comment, and whether it has the line to itself
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            notes[token.start[0]] = (token.string.lstrip("# "), not token.line[: token.start[1]].strip())
    found = {}
    for node in ast.parse(text).body:
        for item in node.body if isinstance(node, ast.ClassDef) and node.name == section.__name__ else ():
            if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
                continue
            lines = [notes[n][0] for n in range(item.lineno, (item.end_lineno or item.lineno) + 1) if n in notes]
            above, line = [], item.lineno - 1
            while notes.get(line, ("", False))[1]:
                above.insert(0, notes[line][0])
                line -= 1
            found[item.target.id] = ast.unparse(item.annotation), " ".join(above + lines)
    return found


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")
