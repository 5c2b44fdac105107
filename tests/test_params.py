"""Params files: what lies on what, which value wins, variants, changes from outside, and what is refused."""

import re
import typing

import pytest
import tiny
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from iumad.config.files import (
    base_chain,
    build_study,
    load_params,
    notebook_params,
    refuse_unknown,
)
from iumad.config.listing import all_keys
from iumad.config.methods import PRESETS
from iumad.config.schema import StudyConfig
from iumad.errors import ConfigError


def write(folder, **files):
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")


# --- base ---------------------------------------------------------------------------------------


def test_sections_merge_and_everything_else_is_replaced(tmp_path):
    write(
        tmp_path,
        low={"training": {"epochs": 9, "lr": 0.5}, "methods": {"iuf": {}}, "seeds": [0, 1]},
        middle={"base": "low.yaml", "training": {"lr": 0.25}, "profile": "named"},
        top={"base": "middle.yaml", "model": {"dim": 32}, "methods": {"uniad": {}}},
    )
    study = load_params(tmp_path / "top.yaml")
    assert (study.training.epochs, study.training.lr, study.seeds) == (9, 0.25, (0, 1))
    assert list(study.methods) == ["uniad"] and study.model == {"dim": 32}
    assert study.profile == "top"  # a name is not inherited
    assert [path.stem for path in base_chain(tmp_path / "top.yaml")] == ["low", "middle", "top"]


def test_later_bases_lie_on_earlier_ones_and_other_data_replace_the_section(tmp_path):
    write(
        tmp_path,
        grid={"methods": {"iuf": {}}, "data": {"n_train": 3}, "training": {"epochs": 2}},
        size={
            "data": {"name": "mvtec3d", "root": "somewhere"},
            "training": {"epochs": 7},
        },
        both={"base": ["grid.yaml", "size.yaml"]},
    )
    study = load_params(tmp_path / "both.yaml")
    assert list(study.methods) == ["iuf"]
    assert study.training.epochs == 7
    assert study.data.name == "mvtec3d"
    named = load_params(tmp_path / "grid.yaml", assignments=["data.name=minicandies"])
    assert named.data.n_train == 3  # the data set that the file has without naming it


def test_circles_and_missing_bases_are_refused_by_name(tmp_path):
    write(
        tmp_path, a={"base": "b.yaml"}, b={"base": "a.yaml"}, c={"base": "gone.yaml"}, d={"base": 3}
    )
    with pytest.raises(ConfigError, match=r"circle: .*a\.yaml -> .*b\.yaml -> .*a\.yaml"):
        load_params(tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match=r"c\.yaml: base: there is no file .*gone\.yaml"):
        load_params(tmp_path / "c.yaml")
    with pytest.raises(ConfigError, match="base must be a params file"):
        load_params(tmp_path / "d.yaml")


# --- which value wins ---------------------------------------------------------------------------

CHANGES = {  # section -> key -> a value that no preset has
    "model": {"jitter_scale": 7.5, "margin": 0.75, "coreset": 0.625},
    "training": {"epochs": 3, "lr": 0.125, "weight_decay": 0.0625, "schedule": "step", "clip": 9.0},
    "increment": {"epochs": 3, "lr": 0.125, "pull": 0.75, "optimizer": "sgd"},
}


@pytest.mark.parametrize("method", PRESETS)
@pytest.mark.parametrize("section", CHANGES)
def test_assignments_win_over_methods_which_win_over_presets_which_win_over_files(method, section):
    for key, value in CHANGES[section].items():
        plain = build_study({"methods": {method: {}}}, "file").runs()[0]
        if key not in getattr(plain, section).model_dump():
            continue
        preset = getattr(PRESETS[method], section)
        in_file = {"methods": {method: {}}, section: {key: value}}
        if section != "model" or plain.model.kind == "reconstruction":
            expected = preset.get(key, value)
            assert (
                getattr(build_study(in_file, "file").runs()[0], section).model_dump()[key]
                == expected
            )
        own = {"methods": {method: {section: {key: value}}}}
        assert getattr(build_study(own, "file").runs()[0], section).model_dump()[key] == value
        default = getattr(plain, section).model_dump()[key]
        both = {"methods": {method: {section: {key: default}}}}
        if key in plain.idle(section):
            continue
        assigned = build_study(both, "file", [f"{section}.{key}={value}"]).runs()[0]
        assert getattr(assigned, section).model_dump()[key] == value


def other_value(default: object, kind: object) -> object:
    """A value of the same kind that is not the default; None where there is no simple one."""
    if isinstance(default, bool):
        return not default
    names = [each for each in typing.get_args(kind) if isinstance(each, str)]
    if isinstance(default, str) and names:
        return next((name for name in names if name != default), None)
    if isinstance(default, int):
        return 2 * default or 1
    return default / 2 or 0.5 if isinstance(default, float) else None


@pytest.mark.parametrize("method", PRESETS)
def test_an_assignment_of_any_key_to_any_method_acts_or_is_refused(method):
    plain = build_study({"methods": {method: {}}}, "file").runs()[0]
    for section in ("model", "training", "increment"):
        for key, field in type(getattr(plain, section)).model_fields.items():
            value = other_value(getattr(getattr(plain, section), key), field.annotation)
            if value is None or key == "kind":
                continue
            try:
                study = build_study({"methods": {method: {}}}, "file", [f"{section}.{key}={value}"])
            except ConfigError as error:
                assert key in str(error)
                continue
            (run,) = study.runs()
            assert getattr(getattr(run, section), key) == value
            assert run.run_id != plain.run_id and key not in run.idle(section)


def test_a_strategy_behind_a_plus_sign_changes_how_increments_are_trained_and_nothing_else():
    names = [
        "iuf",
        "iuf+replay",
        "iuf+joint",
        "iuf+finetune",
        "mambaad-lite+ewc",
        "bank-unified+joint",
    ]
    study = build_study({"methods": {name: {} for name in names}}, "file")
    runs = {run.method: run for run in study.runs()}
    strategies = [run.increment.strategy for run in runs.values()]
    assert strategies == ["projection", "replay", "joint", "none", "ewc", "joint"]
    plain, replay = runs["iuf"], runs["iuf+replay"]
    assert replay.model == plain.model
    assert replay.step_key([("a",)]) == plain.step_key([("a",)])
    assert study.notes["iuf+replay"].startswith(study.notes["iuf"])
    own = {"preset": "iuf+replay", "increment": {"replay_images": 9}}
    (mine,) = build_study({"methods": {"mine": own}}, "file").runs()
    assert (mine.increment.strategy, mine.increment.replay_images) == ("replay", 9)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("iuff", "'iuff', did you mean 'iuf'?"),
        ("iuf+replays", "'iuf+replays', did you mean 'iuf+replay'?"),
        ("bank+replay", "bank is not trained, only +joint can stand behind it"),
    ],
)
def test_a_method_that_there_is_not_is_refused(name, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        build_study({"methods": {name: {}}}, "file")


def test_an_assignment_that_would_change_nothing_is_refused():
    bank = {"methods": {"simplenet": {}}}
    with pytest.raises(ConfigError, match=r"model\.dim: no method of this study has such a key"):
        build_study(bank, "file", ["model.dim=32"])
    with pytest.raises(ConfigError, match=r"increment\.ewc_weight would change no run .* ewc only"):
        build_study({"methods": {"iuf": {}}}, "file", ["increment.ewc_weight=3"])
    both = build_study({"methods": {"simplenet": {}, "iuf": {}}}, "file", ["model.dim=32"])
    assert [getattr(run.model, "dim", None) for run in both.runs()] == [None, 32]


@pytest.mark.parametrize(
    "text",
    [
        "epochs",
        "=3",
        "profile.name=3",
        "seeds=[1",
        "training.epoch=3",
        "trainin.epochs=3",
        "a..b=1",
    ],
)
def test_a_wrong_assignment_is_named(tmp_path, text):
    write(tmp_path, p={})
    with pytest.raises(ConfigError, match=r"--set|p\.yaml"):
        load_params(tmp_path / "p.yaml", assignments=[text])


# --- variants -----------------------------------------------------------------------------------


def test_vary_makes_a_method_of_every_combination():
    content = {
        "methods": {"iuf": {"model": {"dim": 32}}, "uniad": {}},
        "vary": {"training.lr": [0.5, 0.25], "increment.epochs": [3]},
    }
    study = build_study(content, "file")
    assert list(study.methods)[:2] == ["iuf[lr=0.5,epochs=3]", "iuf[lr=0.25,epochs=3]"]
    run = study.select(methods=["iuf[lr=0.25,epochs=3]"]).runs()[0]
    assert (run.training.lr, run.increment.epochs, run.model.dim) == (0.25, 3, 32)


def test_all_keys_are_a_params_file_of_the_defaults():
    text = all_keys()
    assert build_study(yaml.safe_load(text), "all") == StudyConfig()
    for key in ("pull: 0.0", "coreset: 1.0", "remove_plane: false", "own: projections"):
        assert f"  #   {key}" in text, key


@pytest.mark.parametrize(
    "vary", [3, {"lr": [1]}, {"data.seed": [1]}, {"training.lr": 3}, {"training.lr": []}]
)
def test_what_cannot_vary_is_refused(vary):
    with pytest.raises(ConfigError, match="vary"):
        build_study({"methods": {"iuf": {}}, "vary": vary}, "file")


@pytest.mark.parametrize("method", [3, [1], {"training": 3}])
def test_what_is_no_method_cannot_vary(method):
    with pytest.raises(ConfigError, match=r"file: methods\.iuf.*needs keys"):
        build_study({"methods": {"iuf": method}, "vary": {"training.lr": [1.0]}}, "file")


# --- notebooks ----------------------------------------------------------------------------------


def test_a_notebook_takes_files_sections_and_changes(tmp_path):
    write(tmp_path, p={"training": {"epochs": 9, "lr": 0.5}}, base={"model": {"dim": 32}})
    cell = {"params_file": str(tmp_path / "p.yaml"), "run": False, "results": "results"}
    assert notebook_params(cell).training.epochs == 9
    changed = notebook_params(cell | {"changes": "training.epochs=5, seeds=[0, 1]"})
    assert (changed.training.epochs, changed.training.lr, changed.seeds) == (5, 0.5, (0, 1))
    injected = notebook_params(cell | {"training": {"epochs": 4}, "seeds": "[3, 4]"})
    assert (injected.training.epochs, injected.training.lr, injected.seeds) == (4, 0.5, (3, 4))
    alone = notebook_params(cell | {"profile": "other", "settings": ["1-1"]})
    assert (alone.profile, alone.training) == ("other", StudyConfig().training)
    based = notebook_params(cell | {"base": "base.yaml", "seeds": [7]})
    assert (based.model, based.seeds) == ({"dim": 32}, (7,))


def test_unknown_parameters_of_a_notebook_are_refused():
    with pytest.raises(
        ConfigError, match="no parameter is called 'trainig', did you mean 'training'"
    ):
        refuse_unknown({"trainig": {}}, {"params_file": "", "run": False}, "05.ipynb")
    refuse_unknown({"training": {}, "run": True}, {"params_file": "", "run": False}, "05.ipynb")


# --- refused before anything is trained ---------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"seeds": [1, 1]}, "seeds: given more than once: 1"),
        ({"settings": ["6-1", "6-1"]}, "settings: given more than once"),
        ({"modalities": ["rgb", "rgb"]}, "modalities: given more than once"),
        ({"seeds": [2**31]}, "seeds"),
        ({"seeds": [-1]}, "seeds"),
        ({"settings": ["six-one"]}, "settings: must look like"),
        ({"methods": {"iuf": {}, "IUF": {"preset": "iuf"}}}, "differ in case only"),
        ({"methods": {"../x": {"preset": "iuf"}}}, "separator of paths"),
        ({"methods": {" ": {"preset": "iuf"}}}, "spaces around"),
        ({"methods": {"a\nb": {"preset": "iuf"}}}, "cannot be printed"),
        ({"methods": {"u\u0308": {"preset": "iuf"}}}, "composed form"),
        ({"methods": {"x" * 81: {"preset": "iuf"}}}, "more than 80"),
        ({"profile": "../../x"}, "profile"),
        ({"profile": "/x"}, "profile"),
        ({"profile": ""}, "profile"),
        ({"evaluation": {"pool": 129}}, "a window of 129 pixels"),
        ({"features": {"grid": 256}}, "features.grid: 256"),
        ({"data": {"depth_scaling": [0.5, 0.5]}}, "depth_scaling"),
        ({"data": {"depth_scaling": [float("nan"), 1.0]}}, "depth_scaling"),
        ({"data": {"categories": ["donut", "donut"]}}, "categories"),
        ({"data": {"categories": []}}, "categories"),
        ({"data": {"name": "mvtec", "root": ""}}, "root: needs a folder"),
        (
            {"features": {"levels": [3, 0]}},
            "levels: each level once, the finest first",
        ),
        ({"assigned": {"data": {"image_size": 32}}}, "unknown key 'assigned'"),
    ],
)
def test_what_cannot_work_is_refused(content, text):
    with pytest.raises(ConfigError, match=r"file\.yaml") as caught:
        build_study(content, "file.yaml")
    assert text in str(caught.value)


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace"))
)
def test_any_bytes_are_a_study_or_one_clear_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("yaml") / "p.yaml"
    path.write_bytes(content)
    try:
        load_params(path)
    except ConfigError as error:
        assert "p.yaml" in str(error)


@pytest.mark.parametrize(
    "text",
    [
        "a: 2026-13-45",
        "seeds: [" + "9" * 5000 + "]",
        "[" * 3000,
        "? [a]\n: 1",
        "a: !!python/name:os.system x",
        "seeds: &a [*a]",
        "{a: 1, a: 2}",
        "a: !!timestamp x",
        "1: 2",
    ],
)
def test_odd_yaml_is_one_clear_error(tmp_path, text):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"p\.yaml"):
        load_params(tmp_path / "p.yaml")


def test_every_params_file_is_valid():
    from pathlib import Path

    for path in (Path(__file__).parents[1] / "params").rglob("*.yaml"):
        assert load_params(path).runs(), path


def test_tiny_studies_are_params_files():
    assert tiny.study().runs()
