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


def imports(file: Path, nested: bool = True) -> set[str]:
    """The modules of the package that a file imports, absolute or relative; not `nested`: when it is imported itself."""
    inside = ["robustdistiller", *file.relative_to(PACKAGE).with_suffix("").parts]
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree) if nested else _at_once(tree):
        names = []
        if isinstance(node, ast.ImportFrom):
            base = inside[: len(inside) - node.level] if node.level else []
            names = [".".join([*base, *([node.module] if node.module else []), alias.name]) for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.removeprefix("robustdistiller.") for name in names if name.startswith("robustdistiller.")}
    return found


def _at_once(node: ast.AST):
    """The nodes that run when a module is imported, without those for type checkers."""
    for child in ast.iter_child_nodes(node):
        typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if not typing and not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield child
            yield from _at_once(child)


def imported_rooms(file: Path) -> set[str]:
    """The rooms that a file imports from, at any depth of its code."""
    return {name.split(".")[0] for name in imports(file) if (PACKAGE / name.split(".")[0]).is_dir()}


def test_no_module_imports_itself_by_way_of_others():
    files = {".".join(f.relative_to(PACKAGE).with_suffix("").parts): f for f in PACKAGE.rglob("*.py")}
    graph = {}
    for name, file in files.items():
        wanted = imports(file, nested=False)
        graph[name] = {m for w in wanted for m in (w, w.rpartition(".")[0]) if m in files and m != name}
    while ends := {name for name, wanted in graph.items() if not wanted & graph.keys()}:
        graph = {name: wanted for name, wanted in graph.items() if name not in ends}
    assert not graph, f"a circle of imports among {', '.join(sorted(graph))}"


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
