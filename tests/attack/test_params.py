"""Hostile params files: bytes, odd YAML, values of every kind at every key, and chains of bases."""

import datetime
import json
import typing
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from attack.tally import Area, few_examples
from iumad.config import sections
from iumad.config.files import base_chain, load_params, read_params
from iumad.config.methods import PRESETS, MethodConfig, ModelConfig
from iumad.config.schema import SECTIONS, RunConfig, StudyConfig

YAML, VALUES, BASES = (Area(f"params: {what}") for what in ("YAML", "values", "bases"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One folder for a module's files, because hypothesis runs a test many times."""
    return tmp_path_factory.mktemp("params")


def check_study(study: StudyConfig) -> None:
    """A study that was accepted has runs that can be told apart, written down, read back, and put into folders."""
    runs = study.runs()
    assert runs
    assert len({(run.run_id, run.method) for run in runs}) == len(runs)
    for run in runs[:20]:
        text = run.model_dump_json()
        assert "Infinity" not in text and "NaN" not in text
        again = RunConfig.model_validate(json.loads(text))
        assert again == run and again.run_id == run.run_id
        for name in (*run.profile.split("/"), run.method):
            assert name not in ("", ".", "..") and "/" not in name and len(name.encode()) < 250


# --- YAML ---------------------------------------------------------------------------------------

ODD = [
    "",
    "null",
    "3",
    "- a",
    "a: [1",
    "a: 2026-13-45",
    "? [a]\n: 1",
    "1: 2",
    "{a: 1, a: 2}",
    "model:\n  dim: 8\n  dim: 16\n",
    "[" * 3000,
    "{a: " * 3000,
    "seeds: [" + "9" * 5000 + "]",
    "seeds: [" + "[" * 300 + "]" * 300 + "]",
    "seeds: " + "x" * 100_000,
    "profile: " + "x" * 100_000,
    "seeds: &a [*a]",
    "model: &a {dim: *a}",
    "methods: &a {iuf: *a}",
    "a0: &a0 [x, x]\n"
    + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    + "seeds: *a11",
    "training: &t {epochs: 3}\nincrement: {<<: *t, lr: 0.1}",
    "training: {<<: [{epochs: 3}, {lr: 0.1}]}",
    "training: {<<: 3}",
    "a: !!python/name:os.system x",
    "a: !!python/object/apply:os.system [ls]",
    "a: !!timestamp x",
    "a: !!bool x",
    "a: !!int ''",
    "a: !!int x",
    "a: !!int 1:99:x",
    "a: !!float x",
    "a: !!float ''",
    "a: !!binary é",
    "a: !!set x",
    "a: !!omap x",
    "a: !!pairs [1]",
    "a: !!null {}",
    "a: !!map [1]",
    "a: !mine x",
    "seeds: !!set {0, 1}",
    "seeds: !!binary AAAA",
    "seeds: 0x10",
    "seeds: [0b11, 0o7, 1_0, 1:30]",
    "seeds: [.inf, .nan]",
    "seeds: [yes]",
    "seeds: [2026-11-28]",
    "*a",
    "a: *b",
    "%YAML 9.9\n---\na: 1",
    "a: 1\n---\nb: 2",
    "\ufeffseeds: [0]",
    "a: \x00",
    "a: \ud800".encode("utf-8", "surrogatepass"),
    b"\xff\xfes\x00",
    b"\x00" * 100,
    "a: \x85b",
    "\t- a",
    "seeds: [0]\r\nsettings: ['6-1']\r\n",
]


@pytest.mark.parametrize("content", ODD, ids=lambda content: ascii(content)[:40])
def test_odd_yaml(folder, content):
    data = content if isinstance(content, bytes) else content.encode()
    (folder / "p.yaml").write_bytes(data)
    with YAML.attempt(content, "p.yaml"):
        check_study(load_params(folder / "p.yaml"))


WORDS = [*SECTIONS, "methods", "seeds", "base", "vary", "iuf", "6-1", "a.yaml", "p.yaml", "0"]
WORDS += [*"{}[]:,'\"|>~", "<<", "- ", "\n", "\n  ", "&a ", "*a", "!!", "!!int ", "# ", "? ", "1e3"]
WORDS += ["\\", "@", "%", "\x00", "\u2028", "ü", "é", "\t"]


@few_examples
@given(
    st.binary(max_size=80)
    | st.text(max_size=80).map(lambda text: text.encode("utf-8", "replace"))
    | st.lists(st.sampled_from(WORDS), max_size=25).map(lambda words: "".join(words).encode())
)
def test_any_bytes(folder, content):
    (folder / "p.yaml").write_bytes(content)
    with YAML.attempt(content, "p.yaml"):
        check_study(load_params(folder / "p.yaml"))


@pytest.mark.parametrize("kind", ["missing", "folder", "endless", "null byte", "loop", "not UTF-8"])
def test_files_that_are_none(folder, kind):
    path = folder / kind
    if kind == "folder":
        path.mkdir()
    elif kind == "endless":
        path = Path("/dev/zero")
    elif kind == "null byte":
        path = Path("a\0b")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "not UTF-8":
        path = folder / "\udcff.yaml"
        path.write_text("seeds: [3]")
    with YAML.attempt(kind):
        check_study(load_params(path))


# --- values -------------------------------------------------------------------------------------

HOSTILE = st.sampled_from(
    [
        *(None, True, False, -1, 0, 1, 2, 3, 0.5, 1.0, 1e30, -0.0, float("nan"), float("inf")),
        *(2**31 - 1, 2**31, 2**63, 10**30, 10**400, "", " ", "x", "auto", "1", "1e3", "nan", "inf"),
        *("no", "../x", "/etc", "a/b", "a\0b", "\udcff", "ü", "u\u0308", "\u202e", "x" * 300),
        *([], {}, [0], [1, 1], [""], ["rgb"], ["rgb", "rgb"], ["6-1"], ["1-" * 40 + "1"], [None]),
        *([0.4, 0.6], [0.6, 0.4], [0, float("inf")], [[0]], {"a": 1}, {"": {}}, {"iuf": None}),
        *({"iuf": {}}, {"a" * 300: {}}, datetime.date(2026, 11, 28), b"bytes", {1, 2}, "rgb+depth"),
    ]
)


def literals(annotation) -> list:
    """Texts and numbers that a type names."""
    found = []
    for part in typing.get_args(annotation):
        found += [part] if isinstance(part, str | int) else literals(part)
    return found


def value_of(field) -> st.SearchStrategy:
    """Values for a field: its default, what its type names, near ones, and hostile ones."""
    near = [field.default, *literals(field.annotation)]
    if isinstance(field.default, int | float) and not isinstance(field.default, bool):
        near += [field.default * 2, field.default / 2, -field.default]
    usable = [value for value in near if type(value).__name__ not in ("PydanticUndefinedType",)]
    plain = [v for v in usable if not isinstance(v, BaseModel)]
    return (st.sampled_from(plain) | HOSTILE) if plain else HOSTILE


def section(*classes: type[BaseModel]) -> st.SearchStrategy:
    """A section's content with some keys of these classes, seldom a misspelt one."""
    fields = {key: field for each in classes for key, field in each.model_fields.items()}
    keys = st.sampled_from(sorted(fields))
    one = keys.flatmap(lambda key: st.tuples(st.just(key), value_of(fields[key])))
    odd = st.tuples(st.sampled_from(["epoch", "", "kind", "0", "name"]), HOSTILE)
    return st.lists(st.one_of(one, one, one, one, odd), max_size=4).map(dict)


MODELS = typing.get_args(typing.get_args(ModelConfig)[0])
DATA = (sections.MiniCandiesConfig, sections.FolderConfig, sections.EyecandiesConfig)
PARTS = {
    "data": section(*DATA),
    "features": section(sections.FeaturesConfig),
    "model": section(*MODELS),
    "training": section(sections.TrainingConfig),
    "increment": section(sections.IncrementConfig),
    "evaluation": section(sections.EvaluationConfig),
}
METHODS = st.dictionaries(
    st.sampled_from([*PRESETS, "mine", "IUF", "a/b", "..", "x" * 90, "😀" * 70]),
    st.fixed_dictionaries(
        {},
        optional={
            "preset": st.sampled_from([*PRESETS, "iuff", ""]),
            "model": PARTS["model"],
            "training": PARTS["training"],
            "increment": PARTS["increment"],
            "perturb": section(sections.PerturbConfig),
            "modalities": st.lists(st.sampled_from(["rgb", "depth", "rgb+depth", "x"]), max_size=2),
            "settings": st.lists(st.sampled_from(["6-1", "10-0", "x"]), max_size=2),
        },
    )
    | section(MethodConfig)
    | st.none(),
    max_size=3,
)
VARY = st.dictionaries(
    st.sampled_from(
        ["training.lr", "model.dim", "increment.epochs", "lr", "a.b.c", "perturb.redundant"]
    ),
    st.lists(st.sampled_from([0.5, 1, 32, 64, "x", None, [1]]), max_size=3) | HOSTILE,
    max_size=2,
)
GRID = {
    "profile": st.sampled_from(["mine", "a/b", "../x", "/x", "x" * 90, "a:b", ".", "CON"])
    | HOSTILE,
    "modalities": st.lists(st.sampled_from(["rgb", "depth", "rgb+depth", "depth+rgb"]), max_size=3)
    | HOSTILE,
    "settings": st.lists(st.sampled_from(["6-1", "10-0", "1-1", "6-2-2", "0-1", "6"]), max_size=3)
    | HOSTILE,
    "seeds": st.lists(st.integers(-1, 3) | st.sampled_from([2**31 - 1, 2**31]), max_size=3)
    | HOSTILE,
    "methods": METHODS | HOSTILE,
    "vary": VARY,
}
PARAMS = st.fixed_dictionaries(
    {}, optional=GRID | {key: part | HOSTILE for key, part in PARTS.items()}
)
ONE = st.sampled_from(sorted(PARTS)).flatmap(
    lambda key: st.fixed_dictionaries({key: PARTS[key]}, optional={"methods": METHODS})
)


@few_examples
@given(ONE | PARAMS)
def test_values_of_every_kind_at_every_key(folder, content):
    path = folder / "values.yaml"
    path.write_text(yaml.dump(content, allow_unicode=False), encoding="utf-8")
    with VALUES.attempt(content, "values.yaml"):
        check_study(load_params(path))


# --- bases --------------------------------------------------------------------------------------

NAMES = ["a.yaml", "b.yaml", "c.yaml", "d.yaml"]
BASE = st.none() | st.sampled_from([*NAMES, "gone.yaml", ".", "", "/dev/null"]) | HOSTILE
OWN = st.fixed_dictionaries(
    {},
    optional={
        "training": st.dictionaries(st.sampled_from(["epochs", "batch_size"]), st.integers(1, 9)),
        "increment": st.dictionaries(st.sampled_from(["epochs"]), st.integers(1, 9)),
        "seeds": st.lists(st.integers(0, 9), min_size=1, max_size=2, unique=True),
    },
)


@few_examples
@given(
    st.lists(OWN, min_size=4, max_size=4),
    st.lists(BASE | st.lists(st.sampled_from(NAMES), max_size=3), min_size=4, max_size=4),
)
def test_chains_of_bases(folder, contents, bases):
    for name, content, base in zip(NAMES, contents, bases, strict=True):
        given = content if base is None else {"base": base} | content
        (folder / name).write_text(yaml.dump(given), encoding="utf-8")
    with BASES.attempt(list(zip(NAMES, contents, bases, strict=True)), ".yaml"):
        chain = [path.name for path in base_chain(folder / "a.yaml")]
        assert chain[-1] == "a.yaml" and chain.count("a.yaml") == 1
        study = load_params(folder / "a.yaml")
        assert study.profile == "a"
        own = {path: contents[NAMES.index(path)] for path in chain if path in NAMES}
        layers = [own.get(path, {}) for path in chain]
        for section_name in ("training", "increment"):
            expected: dict = {}
            for layer in layers:
                expected |= layer.get(section_name, {})
            found = read_params(folder / "a.yaml").get(section_name, {})
            assert found == expected
        seeds = [layer["seeds"] for layer in layers if "seeds" in layer]
        assert list(study.seeds) == (seeds[-1] if seeds else [0])
