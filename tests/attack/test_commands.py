"""Hostile command lines: every command with wrong arguments, files that are none, and assignments of all kinds."""

import math
from pathlib import Path

import pytest
import tiny
import yaml
from hypothesis import given
from hypothesis import strategies as st

from attack.tally import Area

AREA = Area("command line")
pytestmark = pytest.mark.slow
ODD_PATHS = [
    "nowhere",
    "",
    ".",
    "/dev/null",
    "/dev/full",
    "a\0b",
    "\udcff",
    "x" * 300,
    "ü/🙂",
    "loop",
]
ODD_PATHS += ["empty", "folder", "binary", "[bold]", "-x", "~", "*", "not.yaml", "tiny.yaml"]
ODD_VALUES = [
    "",
    "0",
    "-1",
    "nan",
    "inf",
    "1e400",
    "9" * 5000,
    "x",
    "\udcff",
    "a\nb",
    "[red]",
    "1.5",
]
MAPPING = "categories: {a: {good: {rgb: x}}}"
READ_ONLY = ("plan", "evaluate", "params", "model")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder outside the repository, with files that are none and one params file."""
    root = tmp_path_factory.mktemp("commands")
    (root / "empty").touch()
    (root / "folder").mkdir()
    (root / "binary").write_bytes(bytes(range(256)))
    (root / "loop").symlink_to("loop")
    (root / "[bold]").write_text("training: {epoch: 1}")
    (root / "not.yaml").write_text("[" * 999)
    (root / "tiny.yaml").write_text(yaml.safe_dump(tiny.params()))
    return root


def refused() -> list[list[str]]:
    """Command lines that cannot work, by hand."""
    found = [["run"], ["predit"], ["data"], ["data", "chek"], ["--versio"], ["run", "--sed"]]
    found += [["book"], ["book", "--execute"], ["book", "tiny.yaml"]]  # outside the repository
    for path in ODD_PATHS:
        if path in ("tiny.yaml", ".", "~", "-x"):
            continue
        for command in (*READ_ONLY, "run", "measure", "efficiency", "publish"):
            found.append([command, "--", path])
        found += [
            ["params", "--check", path],
            ["notebook", path, "tiny.yaml"],
            ["fit", path, "--out", "m.iumad"],
            ["fit", "folder", "--out", "m.iumad", "--params", path],
            ["learn", path, "folder", "--out", "m.iumad"],
            ["info", "--", path],
            ["predict", path, "folder"],
            ["pack", path, "--out", "m.iumad"],
            ["data", "check", "--", path],
            ["data", "show", "--", path],
            ["data", "new", "folder", "--mapping", path],
        ]
    for value in ODD_VALUES:
        found += [
            ["run", "tiny.yaml", "--device", value or "x"],
            ["run", "tiny.yaml", "-j", value if value != "9" * 5000 else "x"],
            ["run", "tiny.yaml", "--method", value],
            ["plan", "tiny.yaml", "--seed", value if value != "0" else "7"],
            ["plan", "tiny.yaml", "--setting", value],
            ["model", "tiny.yaml", "--categories", value if value != "0" else "x"],
            ["measure", "tiny.yaml", "--kind", value],
            ["publish", "tiny.yaml", "--profile", f"../{value}"],
            ["data", "export", "out", "--n-train", value],
            ["data", "export", "out", "--difficulty", value if value != "0" else "2"],
            ["data", "export", "out", "--seed", value if value != "0" else "-2"],
            ["fit", "folder", "--out", "m.iumad", "--false-alarms", value],
            ["fit", "folder", "--out", "m.iumad", "--method", value or "x"],
        ]
    return found


@pytest.mark.parametrize("arguments", refused(), ids=lambda a: ascii(" ".join(a))[:60])
def test_what_cannot_work_is_refused(folder, arguments):
    before = {path for path in folder.rglob("*") if path.is_file()}
    if AREA.command(folder, *arguments).code == 0:
        AREA.wrong(f"iumad {arguments!r} was not refused")
    assert {path for path in folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "content",
    [
        f"{MAPPING}\n{MAPPING}",
        "depth_scale: 2026-13-45\n" + MAPPING,
        "depth_scale: !!python/name:os.system x\n" + MAPPING,
        "depth_scale: " + "9" * 5000 + "\n" + MAPPING,
        "categories: " + "{a: " * 999,
        "categories: {a: {good: {rgb: [x]}}}",
        "categories: {1: {good: {rgb: x}}}",
        "categories: {../x: {good: {rgb: x}}}",
        "categories: {a: {good: {rgb: nowhere}}}",
        "categories: {}",
        "depth_scale: .nan\n" + MAPPING,
        "test_share: yes\n" + MAPPING,
    ],
)
def test_mappings_that_cannot_be_meant(folder, content):
    (folder / "mapping.yaml").write_text(content)
    outcome = AREA.command(folder, "data", "new", "folder", "--mapping", "mapping.yaml")
    assert outcome.code == 2
    assert not list((folder / "folder").iterdir())


KEYS = ["seeds", "settings", "modalities", "methods", "profile", "data", "data.root", "data.name"]
KEYS += ["data.categories", "data.image_size", "data.depth_scaling", "features.backbone", "model"]
KEYS += ["features.levels", "features.grid", "model.dim", "model.kind", "training.lr", "a.b", ""]
KEYS += [
    "training.epochs",
    "increment.strategy",
    "evaluation.pool",
    "methods.iuf.model.dim",
    "vary",
]
TEXTS = ["", "1", "[0]", "[1, 1]", "{}", "[", "{a: 1, a: 2}", "2026-13-45", "!!python/name:os.x y"]
TEXTS += ["9" * 5000, "[" * 999, "\udcff", "a\0b", ".nan", ".inf", "null", "yes", "../x", "[2-1]"]
TEXTS += ["{name: mvtec3d, root: folder}", "minicandies", "[pretzel]", "[rgb]", "&a [*a]", "'x\ny'"]


@given(
    st.sampled_from(READ_ONLY),
    st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(TEXTS)), min_size=1, max_size=2),
)
def test_assignments_of_all_kinds(folder, command, changes):
    given = [part for key, text in changes for part in ("--set", f"{key}={text}")]
    if command == "params":
        command, given = "plan", [*given, "--results", "folder"]
    AREA.command(folder, command, "tiny.yaml", *given)


@pytest.mark.parametrize("size", ["inf", "1e30", "0", str(math.pi)])
def test_the_cache_is_pruned_to_any_size(folder, size, monkeypatch):
    monkeypatch.setenv("IUMAD_CACHE", str(folder / "gone"))
    assert AREA.command(folder, "cache", "prune", "--max-gb", size).code == 0
    assert AREA.command(folder, "cache", "info").code == 0


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_names_are_printed_on_any_terminal(folder, encoding):
    content = tiny.params(profile="größe-🙂", methods={"größe-🙂[a]": {"preset": "bank"}})
    (folder / "names.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), "utf-8")
    outcome = AREA.command(folder, "plan", "names.yaml", encoding=encoding)
    assert outcome.code == 0 and "[a]" in outcome.out
    outcome = AREA.command(folder, "plan", "größe-🙂", encoding=encoding)
    assert outcome.code == 2
