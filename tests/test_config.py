import copy
import typing
from pathlib import Path

import pytest
import tiny
import yaml
from pydantic import BaseModel, ValidationError

import iumad
from iumad.config import sections as config_sections
from iumad.config.files import load_params
from iumad.config.methods import BankConfig, MethodConfig, ReconstructionConfig
from iumad.config.schema import RunConfig, StudyConfig, stable_hash
from iumad.config.sections import (
    EvaluationConfig,
    EyecandiesConfig,
    FeaturesConfig,
    FolderConfig,
    IncrementConfig,
    MiniCandiesConfig,
    PerturbConfig,
    TrainingConfig,
    build,
)
from iumad.errors import ConfigError

SECTIONS = [
    value
    for value in vars(config_sections).values()
    if isinstance(value, type)
    and issubclass(value, config_sections.Section)
    and not value.__name__.startswith("_")
    and value is not config_sections.Section
]
SELF_EVIDENT = {
    *("name", "kind", "heads", "expand", "fusion", "neighbours", "batch_size", "weight_decay"),
    *("jitter_probability", "bottleneck_dropout"),
}


def write(path: Path, content: dict) -> Path:
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


# --- misspelt keys ------------------------------------------------------------------------------


def complete_params() -> dict:
    """A params file that sets every key at every level."""
    sections = {
        "data": MiniCandiesConfig(),
        "features": FeaturesConfig(),
        "model": ReconstructionConfig(),
        "training": TrainingConfig(),
        "increment": IncrementConfig(),
        "evaluation": EvaluationConfig(),
    }
    content = {key: section.model_dump(mode="json") for key, section in sections.items()}
    method = {key: dict(content[key]) for key in ("model", "training", "increment")}
    method["perturb"] = PerturbConfig().model_dump(mode="json")
    method |= {"modalities": ["rgb"], "settings": ["6-1"]}
    content["methods"] = {"mine": {"preset": "ib-iumad", **method}}
    grid = {"modalities": ["rgb"], "settings": ["6-1"], "seeds": [0], "profile": "complete"}
    return content | grid


def paths_of(content: dict, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, value in content.items():
        if above != ("methods",):  # whose keys are labels, any name is valid
            found.append((*above, key))
        if isinstance(value, dict):
            found += paths_of(value, (*above, key))
    return found


def test_the_complete_file_is_valid_and_as_deep_as_the_schema():
    (only,) = build(StudyConfig, complete_params(), "complete").runs()
    assert only.model == ReconstructionConfig()
    assert max(len(path) for path in paths_of(complete_params())) == 4  # methods.mine.model.dim


@pytest.mark.parametrize("path", paths_of(complete_params()), ids=".".join)
def test_a_misspelt_key_names_the_nearest_valid_one(path):
    content = complete_params()
    *above, key = path
    section = content
    for part in above:
        section = section[part]
    section[key + key[-1]] = section.pop(key)
    if key in ("name", "kind"):  # without its tag a union cannot say more than which tags it knows
        with pytest.raises(ConfigError, match=rf"{key}"):
            build(StudyConfig, content, "file.yaml")
        return
    with pytest.raises(ConfigError) as caught:
        build(StudyConfig, content, "file.yaml")
    assert str(caught.value).startswith("file.yaml: ")
    assert f"{key + key[-1]}', did you mean {key!r}?" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"lr": 3}, "unknown key 'lr'; known here: "),
        ({"data": {"name": "minicandies", "roott": "x"}}, "known here: "),
        ({"training": {"n_train": 3}}, "unknown key 'training.n_train'; known here: "),
        ({"data": {"name": "mvtec", "root": "x", "roottt": "x"}}, "did you mean 'root'?"),
    ],
)
def test_a_key_of_another_section_is_not_suggested(content, text):
    with pytest.raises(ConfigError) as caught:
        build(StudyConfig, content, "file.yaml")
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (
            {"training": {"epochs": 0}},
            ["training.epochs", "greater than or equal to 1", "given: 0"],
        ),
        ({"features": {"grid": "many"}}, ["features.grid", "integer", "given: 'many'"]),
        ({"model": {"fusion": "sum"}}, ["fusion", "'cross-attention'", "given: 'sum'"]),
        ({"model": {"dim": 30, "heads": 8}}, ["dim 30, heads 8"]),
        ({"model": {"neighbour_mask": 4}}, ["neighbour_mask must be odd", "got 4"]),
        ({"methods": {"iuff": {}}}, ["methods.iuff", "'iuff'", "did you mean 'iuf'?"]),
        ({"methods": {}}, ["methods: at least one"]),
        ({"seeds": []}, ["seeds: at least one"]),
        ({"seeds": [-1]}, ["seeds.0", "given: -1"]),
        ({"modalities": ["rgb", "dept"]}, ["modalities: dept", "did you mean 'depth'?"]),
        ({"data": {"name": "minicandy"}}, ["data", "'minicandies'"]),
        ({"data": {"name": "mvtec", "root": "x", "remove_plane": True}}, ["remove_plane", "depth"]),
        ({"methods": {"iuf": {"increment": {"pull": 1.0}}}}, ["methods.iuf.increment", "pull"]),
    ],
)
def test_a_wrong_value_is_explained(content, parts):
    with pytest.raises(ConfigError) as caught:
        build(StudyConfig, content, "file.yaml")
    assert "\n" not in str(caught.value)
    for part in ["file.yaml", *parts]:
        assert part in str(caught.value)


def test_all_wrong_keys_are_named_at_once():
    with pytest.raises(ConfigError, match=r"grd'.*epoch'"):
        build(StudyConfig, {"training": {"epoch": 1}, "features": {"grd": 1}}, "file.yaml")


# --- the hash -----------------------------------------------------------------------------------

DATA = {
    "minicandies": MiniCandiesConfig(seed=0),
    "folder": FolderConfig(name="mvtec3d", root=Path("a")),
    "eyecandies": EyecandiesConfig(name="eyecandies", root=Path("a")),
}
MODELS = {"reconstruction": ReconstructionConfig(), "bank": BankConfig()}


def default_run(data: str = "minicandies", model: str = "reconstruction") -> RunConfig:
    return RunConfig(
        profile="default",
        method="mine",
        modality="rgb+depth",
        setting="6-1",
        seed=0,
        data=DATA[data],
        features=FeaturesConfig(),
        model=MODELS[model],
        training=TrainingConfig(),
        increment=IncrementConfig(),
        evaluation=EvaluationConfig(),
    )


def leaves(section: BaseModel, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key in type(section).model_fields:
        value = getattr(section, key)
        found += leaves(value, (*above, key)) if isinstance(value, BaseModel) else [(*above, key)]
    return found


def cases() -> list[tuple[str, str, tuple[str, ...]]]:
    """Every field of the schema once: those of the alternatives of data and model too."""
    found = [("minicandies", "reconstruction", path) for path in leaves(default_run())]
    for data in ("folder", "eyecandies"):
        found += [(data, "reconstruction", ("data", key)) for key in type(DATA[data]).model_fields]
    found += [("minicandies", "bank", ("model", k)) for k in BankConfig.model_fields]
    tags = {("eyecandies", ("data", "name")), ("minicandies", ("data", "name"))}
    return [
        (data, model, path)
        for data, model, path in found
        if (data, path) not in tags and path != ("model", "kind")  # the only value of their kind
    ]


def literals(annotation) -> list:
    values = list(typing.get_args(annotation)) if typing.get_origin(annotation) is not None else []
    nested = [literals(part) for part in values]
    return [v for v in values if isinstance(v, str)] + [v for part in nested for v in part]


def other_values(value, annotation) -> list:
    """Values to try in place of `value`: some of them are valid."""
    tries = literals(annotation)
    match value:
        case bool():
            tries += [not value]
        case int():
            tries += [value + 1, value + 8, value * 2]
        case float():
            tries += [value / 2, value + 0.25]
        case str():
            tries += [f"{value}x", "5-1", [0.1, 0.9]]
        case list() if value:
            tries += [value[:-1]]
        case None:
            tries += [3, ["cookie"]]
    return [each for each in tries if each != value]


@pytest.mark.parametrize(("data", "model", "path"), cases(), ids=str)
def test_every_field_changes_the_hash_unless_it_is_a_label(data, model, path):
    config = default_run(data, model)
    content = config.model_dump(mode="json")
    section, kind = content, type(config)
    for part in path[:-1]:
        section, config = section[part], getattr(config, part)
        kind = type(config)
    key = path[-1]
    tried = []
    for other in other_values(section[key], kind.model_fields[key].annotation):
        changed = copy.deepcopy(content)
        inner = changed
        for part in path[:-1]:
            inner = inner[part]
        inner[key] = other
        try:
            tried.append(RunConfig.model_validate(changed))
        except ValidationError:
            continue
    labels = {("profile",), ("method",)}
    labels |= {("data", key) for key in ("root", "source", "title", "ranges")}
    assert tried or path in labels, f"no other valid value found for {path}"
    differs = {each.run_id != default_run(data, model).run_id for each in tried}
    assert differs <= {path not in labels}


def test_the_hash_is_stable_and_ignores_the_order_of_keys():
    assert stable_hash({"a": 1, "b": [1, 2]}) == stable_hash({"b": [1, 2], "a": 1})
    # printf '{"a":1}' | sha256sum
    assert stable_hash({"a": 1}) == "015abd7f5cc5"
    assert default_run().run_id == default_run().run_id


def test_a_preset_spelled_out_is_the_same_experiment():
    spelled = {
        "condition": "none",
        "fusion": "addition",
        "bottleneck": False,
    }
    named, written = tiny.study(
        methods={"plain": {}, "mine": {"preset": "ib-iumad", "model": spelled}}
    ).runs()
    assert named.run_id == written.run_id


def test_every_field_is_described():
    for section in [*SECTIONS, MethodConfig, StudyConfig]:
        assert section.__doc__
    undescribed = {
        f"{section.__name__}.{key}"
        for section in SECTIONS
        for key, field in section.model_fields.items()
        if not field.description and key not in SELF_EVIDENT
    }
    assert not undescribed


def test_every_field_is_read_somewhere():
    folder = Path(iumad.__file__).parent
    source = "".join(
        path.read_text(encoding="utf-8")
        for path in sorted(folder.rglob("*.py"))
        if path.name != "sections.py"
    )
    fields = {key for section in SECTIONS for key in section.model_fields} - {"kind"}
    assert not {key for key in fields if f".{key}" not in source}


# --- keys of steps ------------------------------------------------------------------------------

BASE = ("a", "b", "c", "d", "e", "f")


def with_changes(**changes) -> RunConfig:
    return RunConfig.model_validate(default_run().model_dump() | changes)


def test_settings_with_one_base_share_it_and_nothing_else():
    one, many = with_changes(setting="6-4"), with_changes(setting="6-1")
    assert one.step_key([BASE]) == many.step_key([BASE])
    assert one.step_key([BASE, ("g", "h", "i", "j")]) != many.step_key([BASE, ("g",)])
    assert many.step_key([BASE]) != many.step_key([BASE, ("g",)])
    assert many.step_key([BASE]) != many.step_key([BASE[:5]])


def test_perturbed_increments_start_from_the_clean_base():
    clean = default_run()
    increments = with_changes(perturb={"redundant": 0.5})
    everywhere = with_changes(perturb={"redundant": 0.5, "where": "all"})
    assert clean.step_key([BASE]) == increments.step_key([BASE]) != everywhere.step_key([BASE])
    keys = {run.step_key([BASE, ("g",)]) for run in (clean, increments, everywhere)}
    assert len(keys) == 3


def test_a_clean_model_is_tested_on_perturbed_images_without_another_training():
    learnt, changed = [BASE, ("g",)], {"redundant": 0.5, "test": True}
    assert with_changes(perturb=changed | {"where": "none"}).step_key(learnt) == (
        default_run().step_key(learnt)
    )
    assert with_changes(perturb=changed).step_key(learnt) == (
        with_changes(perturb={"redundant": 0.5}).step_key(learnt)
    )


def test_bounds_keep_their_strategy_whatever_the_study_says():
    runs = tiny.study(
        methods={"joint": {}, "finetune": {}, "ib-iumad": {}}, increment={"strategy": "ewc"}
    ).runs()
    assert [run.increment.strategy for run in runs] == ["joint", "none", "ewc"]


@pytest.mark.parametrize(
    "increment", [{"strategy": "none"}, {"epochs": 3}, {"pull": 0.5}, {"replay_images": 9}]
)
def test_increment_settings_change_later_steps_only(increment):
    plain, other = default_run(), with_changes(increment=increment)
    assert plain.step_key([BASE]) == other.step_key([BASE])
    assert plain.step_key([BASE, ("g",)]) != other.step_key([BASE, ("g",)])


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"method": "renamed", "profile": "other"}, True),
        ({"evaluation": {"pool": 8}}, True),
        ({"seed": 1}, False),
        ({"modality": "rgb"}, False),
        ({"training": {"epochs": 41}}, False),
        ({"features": {"grid": 8}}, False),
        ({"model": {"kind": "reconstruction", "dim": 32}}, False),
        ({"data": {"name": "minicandies", "difficulty": 0.1}}, False),
    ],
)
def test_what_decides_a_base_model(change, same):
    assert (with_changes(**change).step_key([BASE]) == default_run().step_key([BASE])) is same


# --- files, notebooks, parts of the grid --------------------------------------------------------


def test_a_file_holds_only_differences(tmp_path):
    path = write(tmp_path / "quick.yaml", {"training": {"epochs": 3}})
    study = load_params(path)
    assert study == StudyConfig(profile="quick", training=TrainingConfig(epochs=3))
    assert [r.method for r in study.runs()] == ["iuf", "ib-iumad"]


def test_the_data_follow_the_seed_of_the_run_unless_theirs_is_fixed():
    assert [run.data.seed for run in tiny.study(seeds=[0, 3]).runs()] == [0, 3]
    fixed = {"name": "minicandies", "seed": 7}
    assert [run.data.seed for run in tiny.study(seeds=[0, 3], data=fixed).runs()] == [7, 7]
    on_disk = {"name": "mvtec", "root": "somewhere"}
    study = build(
        StudyConfig, {"data": on_disk, "seeds": [0, 3], "modalities": ["rgb"]}, "file.yaml"
    )
    assert all(run.data == study.data for run in study.runs())


def test_the_grid_is_the_product_with_seeds_innermost():
    study = tiny.study(
        methods={"iuf": {}, "uniad": {}},
        modalities=["rgb", "depth"],
        seeds=[0, 1],
        settings=["3-0", "2-1"],
    )
    runs = study.runs()
    assert len({r.run_id for r in runs}) == len(runs) == 16
    assert [(r.setting, r.modality, r.method, r.seed) for r in runs[:3]] == [
        ("3-0", "rgb", "iuf", 0),
        ("3-0", "rgb", "iuf", 1),
        ("3-0", "rgb", "uniad", 0),
    ]


def test_numbers_that_yaml_reads_as_text_are_numbers(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text("training: {lr: 1e-4}\n", encoding="utf-8")
    assert yaml.safe_load("1e-4") == "1e-4"
    assert load_params(path).training.lr == 1e-4


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"- a\n- b\n", "mapping of keys to values, got list"),
        (b"", "got nothing"),
        (b"a: [1\n", "not valid YAML|cannot be read"),
        (b"\xff\xfe\x00", "not valid YAML|cannot be read"),
        (b"seeds: [0]\nseeds: [1]\n", "'seeds' is given twice.*line 1"),
        (b"model:\n  dim: 8\n  dim: 16\n", "'dim' is given twice"),
    ],
)
def test_a_file_that_is_no_params_file(tmp_path, content, text):
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=text) as caught:
        load_params(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: cannot be read"):
        load_params(tmp_path / "nowhere.yaml")


def test_a_part_of_the_grid_in_the_order_of_the_grid():
    study = tiny.study(methods={"iuf": {}, "ib-iumad": {}}, seeds=[0, 1, 2])
    part = study.select(methods=["ib-iumad"], seeds=iter([2, 0]))
    assert list(part.methods) == ["ib-iumad"]
    assert part.seeds == (0, 2)
    assert {r.run_id for r in part.runs()} < {r.run_id for r in study.runs()}


def test_a_method_may_have_a_part_of_the_grid():
    grid = {"modalities": ["rgb", "depth"], "settings": ["6-1", "6-4"], "seeds": [0]}
    methods = {"iuf": {}, "joint": {"modalities": ["rgb"], "settings": ["6-4"]}}
    study = StudyConfig.model_validate(grid | {"methods": methods})
    found = [(r.modality, r.setting) for r in study.runs() if r.method == "joint"]
    assert found == [("rgb", "6-4")]
    assert len(study.runs()) == 4 + 1
    with pytest.raises(ConfigError, match="no run with all of"):
        study.select(methods=["joint"], settings=["6-1"])


def test_a_method_needs_a_part_that_is_in_the_grid():
    with pytest.raises(ConfigError, match=r"methods\.iuf\.settings: none of \['9-1'\]"):
        build(StudyConfig, {"methods": {"iuf": {"settings": ["9-1"]}}}, "file.yaml")


def test_a_part_may_be_untouched_by_an_assignment_of_the_whole(repository):
    study = load_params(repository / "params/baselines.yaml", assignments=["increment.lr=1.0e-4"])
    part = study.select(settings=["10-0"])
    with pytest.raises(ConfigError, match=r"increment\.lr would change no run"):
        part.require_effect()


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        ({"seeds": [5]}, r"seeds \[5\] not in profile 'tiny': \[0\]"),
        ({"methods": ["iuf"]}, r"methods \['iuf'\] not in profile"),
        ({"method": ["iuf"]}, "no such part of the grid: 'method'"),
    ],
)
def test_an_unknown_part_of_the_grid(wanted, text):
    with pytest.raises(ConfigError, match=text):
        tiny.study().select(**wanted)


def test_configurations_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        tiny.study().training.epochs = 3


def test_modalities_are_the_streams():
    assert tiny.run(modality="rgb+depth").modalities == ("rgb", "depth")
    assert tiny.run("iuf", "depth").modalities == ("depth",)


def test_changes_for_reconstruction_methods_do_not_reach_the_memory_bank():
    assert tiny.run("bank").model == BankConfig()


def test_base_steps_of_fewer_categories_get_their_own_epochs_but_joint_and_banks_do_not():
    study = StudyConfig(
        methods={"plain": {}, "joint": {}, "bank": {}},
        settings=["10-0", "6-1"],
        training={"epochs": 3},
        base_epochs={"6-1": 5},
    )
    found = {(run.method, run.setting): run.training.epochs for run in study.runs()}
    assert found.pop(("plain", "6-1")) == 5
    assert set(found.values()) == {3}
    with pytest.raises(ConfigError, match="base_epochs"):
        build(StudyConfig, {"base_epochs": {"six": 5}}, "here")
