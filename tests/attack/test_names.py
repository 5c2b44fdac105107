"""Names are text: whatever a category, a defect or a file is called, it comes back from folder, index and rows."""

import tempfile
import unicodedata
from pathlib import Path

import pandas as pd
import pytest
import tiny
import trees
from hypothesis import given
from hypothesis import strategies as st

from attack.tally import Area, few_examples
from iumad.config.files import load_params
from iumad.config.schema import StudyConfig
from iumad.config.sections import FolderConfig
from iumad.data import open_dataset
from iumad.data.files import RESERVED
from iumad.data.own import Mapping, OwnDataset, new_dataset
from iumad.data.public import MVTec
from iumad.errors import ConfigError, DataError
from iumad.machine import read_table
from iumad.study.load import load_rows, with_run_columns
from iumad.study.results import (
    ROW_SCHEMA,
    final_table,
    read_step_table,
    validate_rows,
    write_step_table,
)
from iumad.study.runner import run_study

ODD = ["001", "1", "01", "1.0", "1e5", "NA", "nan", "None", "null", "true", "No", "-x", "--set"]
ODD += [
    "ü b",
    "日本",
    "<script>",
    "a,b",
    'say "x"',
    "'",
    "=1+1",
    "#1",
    "{a}",
    "[b]",
    "%s",
    "~",
    "*",
]
ODD += ["good parts", "train 2", "x" * 80, "a.b", "$HOME", "İ", "ß"]
AREA = Area("names")
letters = st.characters(
    codec="utf-8",
    categories=["L", "N", "P", "S"],
    exclude_characters="/\\:\0",
    max_codepoint=0xFFFF,
)


def is_plain(name: str) -> bool:
    """What the rule is: printable, composed, no hidden or reserved name, no separators of paths."""
    return (
        name == unicodedata.normalize("NFC", name)
        and name.isprintable()
        and name == name.strip()
        and not name.startswith(".")
        and len(name.encode()) < 200
        and name.casefold() not in (*RESERVED, "train", "thumbs.db", "desktop.ini", "__macosx")
    )


def told_apart(names: list[str]) -> bool:
    return len({unicodedata.normalize("NFC", name).casefold() for name in names}) == len(names)


names = st.one_of(st.sampled_from(ODD), st.text(letters, min_size=1, max_size=12)).filter(is_plain)
few_names = st.lists(names, min_size=2, max_size=4).filter(told_apart)


def tree(root: Path, categories: list[str], defect: str, stem: str) -> Path:
    """Two training images, one good and one defective test image a category."""
    for seed, category in enumerate(categories):
        for number in range(2):
            place = root / category / "train" / "good" / f"{stem}{number}.png"
            trees.write_png(place, trees.rgb_array(10 * seed + number))
        for kind in ("good", defect):
            place = root / category / "test" / kind / f"{stem}.png"
            trees.write_png(place, trees.rgb_array(10 * seed + 2 + (kind != "good")))
        mask = root / category / "ground_truth" / defect / f"{stem}_mask.png"
        trees.write_png(mask, trees.mask_array())
    return root


@few_examples
@given(few_names, names.filter(lambda name: name.casefold() != "good"), names)
def test_names_come_back_from_folders_indexes_and_rows(categories, defect, stem):
    what, all_worked = (categories, defect, stem), False
    with tempfile.TemporaryDirectory() as folder, AREA.attempt(what):
        root = tree(Path(folder) / "data", categories, defect, stem)
        dataset = MVTec(root)
        assert set(dataset.categories) == set(categories)
        chosen = open_dataset(FolderConfig(name="mvtec", root=root, categories=tuple(categories)))
        assert chosen.categories == tuple(categories)
        for category in categories:
            assert dataset.load(f"{category}/test/{defect}/{stem}").mask.any()
            assert dataset.ids("train", [category]) == [
                f"{category}/train/good/{stem}{number}" for number in range(2)
            ]

        own = Path(folder) / "own"
        own.mkdir()
        mapping = {
            category: {
                "good": {"rgb": root / category / "train" / "good"},
                "defects": {
                    defect: {
                        "rgb": root / category / "test" / defect,
                        "mask": root / category / "ground_truth" / defect,
                    }
                },
            }
            for category in categories
        }
        new_dataset(Mapping(categories=mapping, test_share=0, validation_share=0), own)
        again = OwnDataset(own)
        assert again.categories == tuple(categories)
        assert {*again.index["defect"]} == {"good", defect}
        assert again.load(f"{categories[0]}/test/{defect}/{stem}").mask.any()

        metrics = ("i_auroc", "p_auroc", "aupro")
        rows = pd.DataFrame(
            [(c, m, 0.1 + 0.2, 1, 1) for c in categories for m in metrics],
            columns=["category", "metric", "value", "n_good", "n_defect"],
        )
        write_step_table(rows, Path(folder) / "step" / "rows.csv")
        read = read_step_table(Path(folder) / "step" / "rows.csv")
        pd.testing.assert_frame_equal(read, rows, check_dtype=False)
        assert read["value"].tolist() == rows["value"].tolist()  # every digit
        run = tiny.run("bank")
        whole = with_run_columns(read.assign(step=0), run)[list(ROW_SCHEMA.columns)]
        assert len(final_table(validate_rows(whole))) > 0
        all_worked = True
    assert all_worked, f"{what} was refused"


def test_a_study_of_odd_names_is_run_read_and_published(tmp_path):
    """From the folder to the finished rows: names that look like numbers, truth values or nothing at all."""
    categories = ["001", "1", "01", "NA", "nan", "true", "-x", "ü b", "<i>"]
    root = tree(tmp_path / "data", categories, "NA", "007")
    content = tiny.params(methods={"bank": {}}, settings=["7-1"], modalities=["rgb"])
    content["data"] = {"name": "mvtec", "root": str(root), "image_size": 32, "title": "odd"}
    content["data"]["categories"] = categories
    with AREA.attempt(categories):
        study = StudyConfig.model_validate(content)
        rows = run_study(study, tmp_path / "results", "cpu")
    assert rows["category"].unique().tolist() == categories
    assert set(rows["dataset"]) == {"odd"}
    again = load_rows(study, tmp_path / "results")
    pd.testing.assert_frame_equal(again.drop(columns="source"), rows, check_dtype=False)


@pytest.mark.parametrize(
    "name", [" a", "a ", "a\tb", "a\nb", "mean", "Mean", "x" * 81, "a:b", "a\\b"]
)
def test_names_that_cannot_stand_in_a_table_are_refused(tmp_path, name):
    root = tree(tmp_path, ["bolt"], "cut", "0")
    (root / "bolt" / "test" / "cut").rename(root / "bolt" / "test" / "scratch")
    (root / "bolt" / "ground_truth" / "cut").rename(root / "bolt" / "ground_truth" / "scratch")
    (root / "bolt").rename(root / name)
    with pytest.raises(DataError, match="rename it") as caught:
        MVTec(root)
    assert "\n" not in str(caught.value).replace(name, "")


@pytest.mark.parametrize(
    ("one", "twin"), [("bolt", "Bolt"), ("größe", unicodedata.normalize("NFD", "größe"))]
)
@pytest.mark.parametrize("what", ["category", "defect", "stem"])
def test_twins_that_a_file_system_could_confuse_are_refused(tmp_path, what, one, twin):
    kinds = {"category": "a", "defect": "b", "stem": "c"}
    for name in (one, twin):
        kinds[what] = name
        tree(tmp_path, [kinds["category"]], kinds["defect"], kinds["stem"])
    with pytest.raises(DataError, match="shares its name with") as caught:
        MVTec(tmp_path)
    assert one in str(caught.value) or twin in str(caught.value)


@pytest.mark.parametrize("written", ["001", "1", "true", "null", "1.5"])
def test_names_that_yaml_takes_for_something_else_need_quotes(tmp_path, written):
    path = tmp_path / "a.yaml"
    path.write_text(f"data: {{name: mvtec, root: x, categories: [{written}]}}\nmodalities: [rgb]\n")
    with pytest.raises(ConfigError, match=r"names?.* put it in quotes"):
        load_params(path)
    path.write_text(path.read_text().replace(f"[{written}]", f'["{written}"]'))
    assert load_params(path).data.categories == (written,)


def test_only_columns_of_numbers_become_numbers(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("category,value,n\n001,0.1,1\nNA,,2\n")
    table = read_table(path, {"value": float, "n": int})
    assert table["category"].tolist() == ["001", "NA"]
    assert table["value"].isna().tolist() == [False, True]
    assert table["n"].dtype == int
    path.write_text("category,n\na,one\n")
    with pytest.raises(DataError, match=r"t\.csv: cannot be read as a table"):
        read_table(path, {"n": int})
