"""`iumad data`: questions and answers, damaged data sets; nothing half-written."""

import io
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import trees
import yaml
from test_corruption import DAMAGES, damage

from iumad import cli
from iumad.config.schema import StudyConfig
from iumad.data.check import open_folder
from iumad.data.own import SAMPLES_FILE, SETTINGS_FILE, Mapping, OwnDataset


@pytest.fixture
def iumad(monkeypatch, capsys, tmp_path):
    """The console script in an empty folder: arguments and typed lines -> exit code, output, errors."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object, typed: list[str] | None = None) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in typed or [])))
        monkeypatch.setattr(sys, "argv", ["iumad", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return left.value.code or 0, out, err

    return call


def captures(root: Path) -> Path:
    """Ten good captures with depth in millimetres, two scratched ones with masks."""
    depth = (trees.xyz_array()[..., 2] * 1000).astype(np.uint16)
    for kind, number in (("good", 10), ("scratch", 2)):
        for stem in map(str, range(number)):
            seed = int(stem) + 100 * (kind != "good")
            trees.write_png(root / kind / f"{stem}.png", trees.rgb_array(seed))
            trees.write_png(root / f"{kind} depth" / f"{stem}.png", depth)
            if kind != "good":
                trees.write_png(root / "masks" / f"{stem}.png", trees.mask_array())
    return root


ANSWERS = ["", "bracket", "good", "good depth", "scratch", "masks", "scratch", "scratch depth"]


def test_new_by_answering_questions(iumad, tmp_path):
    root = captures(tmp_path / "my data")
    code, out, err = iumad("data", "new", root, typed=[*ANSWERS, "", ""])
    assert code == 0, err
    assert "index written to" in out
    dataset = OwnDataset(root)
    assert dataset.modalities == ("rgb", "depth")
    assert dataset.index["split"].value_counts().to_dict() == {
        "train": 7,
        "validation": 1,
        "test": 4,
    }
    sample = dataset.load("bracket/test/scratch/1")
    assert sample.mask.any()
    assert 0.5 < sample.xyz[..., 2].mean() < 0.52  # millimetres by default
    code, out, _ = iumad("data", "check", root)
    assert code == 0
    assert "no errors" in out


@pytest.mark.parametrize(
    ("typed", "part"),
    [
        (["", ""], "answers: categories"),  # no category at all
        (["-1", *ANSWERS[1:], "", ""], "answers: depth_scale"),
        (["", "bracket", "nowhere", "", "", ""], "nowhere: does not exist"),
        ([*ANSWERS[:5], "good", *ANSWERS[6:], "", ""], "in one of them only"),
    ],
)
def test_wrong_answers_write_nothing(iumad, tmp_path, typed, part):
    root = captures(tmp_path / "data")
    before = sorted(root.rglob("*"))
    code, _, err = iumad("data", "new", root, typed=typed)
    assert code == 2
    assert part in err
    assert len(err.splitlines()) == 1
    assert sorted(root.rglob("*")) == before


def test_leaving_in_the_middle_writes_nothing(iumad, tmp_path):
    root = captures(tmp_path / "data")
    before = sorted(root.rglob("*"))
    code, _, _ = iumad("data", "new", root, typed=ANSWERS[:4])  # the input ends here
    assert code == 1
    assert sorted(root.rglob("*")) == before


def test_an_existing_index_is_found_before_any_question(iumad, tmp_path):
    root = captures(tmp_path / "data")
    (root / SETTINGS_FILE).write_text("mine")
    code, out, err = iumad("data", "new", root)
    assert code == 2
    assert "exists already" in err
    assert out == ""
    code, _, err = iumad("data", "new", tmp_path / "none")
    assert code == 2
    assert "none: does not exist" in err


def test_a_failing_disk_leaves_no_index(iumad, tmp_path, monkeypatch):
    root = captures(tmp_path / "data")

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    code, _, err = iumad("data", "new", root, typed=[*ANSWERS, "", ""])
    assert code == 2
    assert "No space left" in err
    assert not (root / SAMPLES_FILE).exists()


def test_the_snippets_of_the_book_are_valid(repository):
    text = (repository / "book" / "datasets.md").read_text(encoding="utf-8")
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    mappings = [block for block in blocks if "data" not in block]
    assert len(mappings) == 1
    assert Mapping.model_validate(mappings[0]).intrinsics is not None
    names = [StudyConfig.model_validate(b).data.name for b in blocks if b not in mappings]
    assert names == ["mvtec3d", "eyecandies", "mvtec", "minicandies", "folder"]


# --- damaged and complete data sets -------------------------------------------------------------


def test_options_that_cannot_be_meant(iumad, tmp_path):
    mapping = tmp_path / "m.yaml"
    for command, text in {
        ("data", "show", "--out", "sheet.svg"): "--out sheet.svg: a picture's name ends in .png",
        (
            "data",
            "new",
            tmp_path,
            "--mapping",
            mapping,
            "--source",
            tmp_path,
        ): "give one of the two",
    }.items():
        code, _, err = iumad(*command)
        assert code == 2 and text in err


def test_an_exported_minicandies_is_clean(iumad, tmp_path):
    options = ["--n-train", "2", "--n-test-good", "1", "--n-test-defect", "1", "--image-size", "64"]
    code, _, err = iumad("data", "export", "candies", *options)
    assert code == 0, err
    code, out, err = iumad("data", "check", "candies")
    assert code == 0, err
    assert "layout: MVTec 3D-AD" in out
    assert "images: rgb + depth" in out
    assert re.search(r"depth of all training images: 0\.3\d+ to 0\.4\d+ m", out)
    assert "no errors" in out
    assert "published" not in out
    assert "warning" not in out
    counts = open_folder(tmp_path / "candies").index.groupby(["category", "split"]).size()
    assert counts.unstack()[["train", "validation", "test"]].to_numpy().tolist() == [[2, 8, 2]] * 10
    code, _, _ = iumad("data", "show", "candies")
    assert code == 0
    assert (tmp_path / "contact_sheet.png").is_file()


def test_damaged_data_sets_are_refused_by_name_or_whole(iumad, tmp_path, real_data):
    """One file of a real sample is damaged at a time: exit code 2 that names it, or 0."""
    whole = tmp_path / "whole"
    source = real_data / "real_rgbd" / "pothole_a"
    for split, defect in (("train", "good"), ("test", "pothole")):
        for kind in ("rgb", "xyz", "gt"):
            for path in sorted((source / split / defect / kind).glob("000.*")):
                to = whole / "tile" / split / defect / kind / path.name
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, to)
    rng = np.random.default_rng(1)
    files = sorted(path.relative_to(whole) for path in whole.rglob("*.*") if path.is_file())
    refused = 0
    for number in range(30):
        root = tmp_path / f"{number:02d}"
        shutil.copytree(whole, root)
        victim = root / files[number % len(files)]
        damage(victim, DAMAGES[number % len(DAMAGES)], rng)
        code, out, err = iumad("data", "check", root)
        assert code in (0, 2)
        assert (code == 0) == ("no errors" in out)
        if code == 2:
            refused += 1
            message = re.sub(r".*\r", "", err)  # the progress bar
            assert "error: " in message
            message += out  # which lists them
            # a colour image of another size is said of the sample's other files
            assert f"{victim.parent.parent}/" in message
            assert victim.stem in message
        shutil.rmtree(root)
    assert refused >= 10
