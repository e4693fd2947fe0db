"""Laws of the documentation: tutorials run, figures are those of the committed data, sources stay readable."""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.util
import re
from pathlib import Path

import pytest

import robustdistiller

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
CHANGED_ONLY_WITH_DATA = "run python docs/results/tables.py"


@pytest.mark.parametrize("page", sorted((DOCS / "tutorials").glob("*.md")), ids=lambda page: page.stem)
def test_tutorials_run_block_by_block(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)):
        exec(compile(block, f"{page.name}, block {number + 1}", "exec"), names)


@pytest.mark.notebook
@pytest.mark.timeout(900)
def test_the_notebook_runs_to_its_end(tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(ROOT / "examples" / "tour.ipynb", as_version=4)
    monkeypatch.setenv("MPLBACKEND", "agg")
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert len(outputs) >= 8


def test_figures_are_those_of_the_committed_data():
    spec = importlib.util.spec_from_file_location("tables", DOCS / "results" / "tables.py")
    assert spec is not None and spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    for page in tables.PAGES:
        text = page.read_text(encoding="utf-8")
        assert "<!-- table:" in text
        assert tables.drawn(text) == text, CHANGED_ONLY_WITH_DATA


def test_no_line_of_prose_is_longer_than_120_characters():
    long = [
        f"{page.relative_to(ROOT)}:{number}"
        for page in PAGES
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > 120 and not line.startswith(("|", "!["))  # rows of tables and pictures have no place to break
    ]
    assert not long


def test_what_the_pages_name_exists():
    wanted = {recipe.stem for recipe in (ROOT / "recipes").glob("*.yaml")}
    assert wanted <= set(re.findall(r"`([a-z0-9-]+)`", (DOCS / "recipes.md").read_text(encoding="utf-8")))
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"`([\w/]+\.py)`", text):
            places = (ROOT / name, Path(robustdistiller.__file__).parent / name, ROOT / "tests" / name)
            assert any(place.is_file() for place in places), f"{page.name}: {name}"
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and str(node.module).startswith("robustdistiller"):
                    module = importlib.import_module(str(node.module).replace("_runtime", ".runtime"))
                    assert all(hasattr(module, name.name) for name in node.names), f"{page.name}: {node.module}"


def test_every_key_of_a_file_has_a_meaning_in_the_reference():
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    rows = [row for page in (generate.recipe_fields(), generate.file_keys()) for row in page.splitlines()]
    assert [row for row in rows if row.startswith("| `") and row.endswith("|  |")] == []


def test_the_readme_fits_on_two_screens():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


def test_every_page_of_the_site_has_a_place_in_its_menu():
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md") if not page.name.startswith("_")]
    assert [page for page in pages if f": {page}" not in menu] == []


def test_the_examples_of_the_public_names_give_what_they_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
    for name in set(robustdistiller.__all__) - {"__version__"}:
        for example in finder.find(getattr(robustdistiller, name), name, globs={}):
            runner.run(example)
    assert runner.tries >= 15 and runner.failures == 0
