"""The repository keeps its own promises: commands, params files, notebooks, sizes, licences of scripts."""

import hashlib
import json
import re
import tomllib
from pathlib import Path

import nbformat
import pytest
import typer.main
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from iumad.cli import app

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MODULES = sorted((ROOT / "iumad").rglob("*.py"))
PROSE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "book").glob("*.md"))]
TEXT = {".cff", ".css", ".csv", ".ipynb", ".md", ".py", ".svg", ".toml", ".yaml", ".yml"}
SCRIPTS = {"Makefile", "run"}
WRITTEN = ("iumad", "tests", "notebooks", "params", "book", "benchmarks", ".ci")

MAX_CELL_LINES = 30  # the main figure of a page, with its imports
# in two parts, or this file would be found
MACHINE_PATHS = [f"/{name}/" for name in ("home", "root", "work", "Users", "tmp")]


def by_name(path: Path) -> str:
    return path.name


def commands(page: Path) -> list[str]:
    """Lines of the shell blocks of a page."""
    blocks = re.findall(r"```(?:bash|console|sh)\n(.*?)```", page.read_text(), flags=re.DOTALL)
    return [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize("page", PROSE, ids=by_name)
def test_make_targets_of_the_prose_exist(page):
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    asked = [line.split()[1] for line in commands(page) if line.startswith("make ")]
    asked += re.findall(r"`make ([a-z]+)", page.read_text())
    assert set(asked) <= set(targets)


def test_files_that_contributors_are_sent_to_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = re.findall(r"`((?:iumad|tests|params|book|notebooks|\.ci)/[\w./]+\w)`", text)
    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PROSE, ids=by_name)
def test_iumad_commands_of_the_prose_exist(page):
    group = typer.main.get_command(app)
    for line in commands(page):
        words = re.sub(r"^\.venv/bin/", "", line.split("#")[0]).split()
        if not words or words[0] != "iumad":
            continue
        command, rest = group, words[1:]
        while hasattr(command, "commands") and rest:
            assert rest[0] in command.commands, line
            command, rest = command.commands[rest[0]], rest[1:]
        options = {option for each in command.params for option in each.opts} | {"--help"}
        assert {word for word in rest if word.startswith("--")} <= options, line


def test_the_readme_names_the_two_commands():
    assert {"make study", "make test"} <= set(commands(ROOT / "README.md"))


@pytest.mark.parametrize("target", ["study", "test", "attack", "check", "book", "bench", "clean"])
def test_makefile_targets_are_one_line(target):
    makefile = (ROOT / "Makefile").read_text()
    recipe = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", makefile, flags=re.MULTILINE)
    assert recipe is not None
    assert len(recipe[1].splitlines()) == 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=by_name)
def test_notebooks_have_one_parameters_cell_and_no_outputs(path):
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert all(
        len(cell.source.splitlines()) <= MAX_CELL_LINES for cell in code if cell not in tagged
    )


def test_one_version_everywhere():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert json.loads((ROOT / ".zenodo.json").read_text())["version"] == version
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize(
    ("lock", "extras"),
    [("requirements.lock", ("train", "book")), (".binder/requirements.txt", ("book",))],
)
def test_locks_hold_what_the_package_asks_for(lock, extras):
    text = (ROOT / lock).read_text()
    pinned = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", text, flags=re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [
        *project["dependencies"],
        *(r for e in extras for r in project["optional-dependencies"][e]),
    ]
    for requirement in map(Requirement, asked):
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, requirement
    assert text.count("--hash=sha256:") >= len(pinned)
    assert ("torch" in pinned) == ("train" in extras)


def test_no_machine_paths():
    files = [p for p in ROOT.iterdir() if p.is_file()]
    files += [p for folder in WRITTEN for p in (ROOT / folder).rglob("*") if p.is_file()]
    for path in files:
        if (path.suffix in TEXT or path.name in SCRIPTS) and "_vendor" not in path.parts:
            text = path.read_text(encoding="utf-8")
            near = [p for p in MACHINE_PATHS if p in text]  # much faster than the expression alone
            assert not [p for p in near if re.search(rf"(?<![\w.~-]){p}", text)], path


def test_vendored_scripts_are_unchanged():
    vendor = ROOT / "book" / "_vendor"
    listed = dict(line.split()[::-1] for line in (vendor / "SHA256SUMS").read_text().splitlines())
    scripts = [p for p in vendor.rglob("*") if p.suffix in {".js", ".woff2", ".css"}]
    found = {
        str(p.relative_to(vendor)): hashlib.sha256(p.read_bytes()).hexdigest() for p in scripts
    }
    assert found == listed


def test_toc_names_pages_that_exist():
    toc = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    chapters = [chapter for part in toc["parts"] for chapter in part["chapters"]]
    chapters += [section for chapter in chapters for section in chapter.get("sections", [])]
    names = [toc["root"], *(chapter["file"] for chapter in chapters)]
    executed = {f"executed/{path.stem}" for path in NOTEBOOKS}
    prose = {path.stem for path in (ROOT / "book").glob("*.md")}
    assert set(names) == executed | prose


def test_every_reference_is_cited():
    known = set(
        re.findall(r"^@\w+\{(\w+),", (ROOT / "book" / "references.bib").read_text(), re.MULTILINE)
    )
    texts = [page.read_text() for page in PROSE] + [path.read_text() for path in NOTEBOOKS]
    cited = {
        key
        for text in texts
        for found in re.findall(r"\{cite\}`([^`]+)`", text)
        for key in found.split(",")
    }
    assert {key.strip() for key in cited} == known
