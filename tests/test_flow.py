"""The law of the house: data moves one way, and imports follow it."""

import ast
from pathlib import Path

import pytest

import robustdistiller

PACKAGE = Path(robustdistiller.__file__).parent
ORDER = ["audio", "synthetic", "acoustics", "models", "objectives", "training"]
ALLOWED = {room: {*ORDER[: position + 1], "assets"} for position, room in enumerate(ORDER)}
ALLOWED["evaluation"] = {"assets", "audio", "synthetic", "acoustics", "models", "objectives", "evaluation", "runtime"}
ALLOWED["report"] = {"assets", "audio", "acoustics", "evaluation", "report"}
ALLOWED["deployment"] = {
    "assets",
    "audio",
    "synthetic",
    "acoustics",
    "models",
    "objectives",
    "evaluation",
    "deployment",
    "runtime",
}
ALLOWED["demo"] = {"audio", "synthetic", "acoustics", "deployment", "evaluation", "demo"}
ALLOWED["runtime"] = {"runtime"}
LIGHT = ["", "cli", "config", "errors", "files", "audio.io", "audio.manifest", "audio.prepare", "audio.batching"]


def imported_rooms(file: Path) -> set[str]:
    """The rooms that a file imports from, absolute or relative, at any depth of its code."""
    inside = ["robustdistiller", *file.relative_to(PACKAGE).with_suffix("").parts]
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom):
            base = inside[: len(inside) - node.level] if node.level else []
            names = [".".join([*base, *([node.module] if node.module else []), alias.name]) for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "robustdistiller" and len(parts) > 1 and (PACKAGE / parts[1]).is_dir():
                found.add(parts[1])
    return found


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_imports_follow_the_flow(room):
    for file in (PACKAGE / room).rglob("*.py"):
        wrong = imported_rooms(file) - ALLOWED[room]
        assert not wrong, f"{file.relative_to(PACKAGE)} imports from {', '.join(sorted(wrong))}"


def test_help_and_manifests_do_not_wait_for_torch():
    import subprocess
    import sys

    names = [f"robustdistiller.{name}".rstrip(".") for name in LIGHT]
    code = f"import sys, importlib; [importlib.import_module(n) for n in {names}]; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_file_says_what_it_is():
    for file in PACKAGE.rglob("*.py"):
        assert ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))), file


def test_the_public_names_exist():
    for name in robustdistiller.__all__:
        assert getattr(robustdistiller, name) is not None
