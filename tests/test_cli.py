import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import trees
import typer.main
import yaml
from typer.testing import CliRunner

from iumad import cli
from iumad.cli import common as cli_output
from iumad.config.files import build_study
from iumad.config.schema import StudyConfig
from iumad.data import open_dataset
from iumad.machine import cache_folder
from iumad.study.steps import steps_of


@pytest.fixture
def iumad(monkeypatch, capsys, tmp_path):
    """The console script in an empty folder: arguments -> exit code, output, errors."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["iumad", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        out, err = capsys.readouterr()
        return left.value.code or 0, out, err

    return call


@pytest.fixture
def files(tmp_path, finished) -> dict[str, Path]:
    """Inputs for `predict`: good ones and broken ones."""
    dataset = open_dataset(finished.study.data)
    sample = dataset.load(dataset.index["sample_id"].iloc[-1])
    folder = tmp_path / "in"
    image = trees.write_png(folder / "image.png", sample.rgb)
    truncated = folder / "truncated.png"
    truncated.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    results = Path(shutil.copytree(finished.results, tmp_path / "damaged"))
    for method, content in (("iuf", b"damage"), ("ib-iumad", None)):
        (run,) = finished.study.select(methods=[method]).runs()
        path = steps_of(run, results)[1].checkpoint
        if content is None:  # the model of another step
            shutil.copy(steps_of(run, results)[0].checkpoint, path)
        else:
            path.write_bytes(content)
    return {
        "image": image,
        "cloud": trees.write_xyz(folder / "cloud.tiff", sample.xyz),
        "small": trees.write_xyz(folder / "small.tiff", np.ones((8, 8, 3), dtype=np.float32)),
        "truncated": truncated,
        "damaged": results,
    }


def everything(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.name != "lock"}


# --- what it does -------------------------------------------------------------------------------


def commands() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = [()]

    def walk(command, path) -> None:
        for name, each in getattr(command, "commands", {}).items():
            found.append((*path, name))
            walk(each, (*path, name))

    walk(typer.main.get_command(cli.app), ())
    return found


@pytest.mark.parametrize("path", commands(), ids=" ".join)
def test_every_command_has_help(path):
    done = CliRunner().invoke(cli.app, [*path, "--help"], env={"COLUMNS": "200"})
    assert done.exit_code == 0
    assert "Usage:" in done.output
    command = typer.main.get_command(cli.app)
    for name in path:
        command = command.commands[name]
    assert command.help
    for parameter in command.params:
        if parameter.name not in ("help", "results", "install_completion", "show_completion"):
            assert getattr(parameter, "help", None), f"{path}: {parameter.name}"


def test_all_commands_are_there():
    names = {" ".join(path) for path in commands()}
    assert names >= {
        *("run", "evaluate", "predict", "params", "book", "plan", "publish", "notebook"),
        *("fit", "learn", "threshold", "info", "export", "pack"),
        *("data export", "data check", "data show", "data new", "cache info", "cache prune"),
    }


def test_run_loads_what_is_finished_and_plan_counts_it(iumad, finished):
    part = ("--results", finished.results, "--method", "bank")  # the others are measured long
    code, out, _ = iumad("run", finished.params, *part)
    assert code == 0
    for text in ("bank", "rgb+depth", "2-1", "i_auroc", "aupro"):
        assert text in out
    code, out, _ = iumad("plan", finished.params, "--results", finished.results)
    assert code == 0
    assert "3 runs, 3 finished; time left: 0.00 h" in out
    code, out, _ = iumad("plan", finished.params)
    assert "3 runs, 0 finished; time left: unknown" in out


def test_evaluate_prints_and_writes_the_rows(iumad, finished, tmp_path):
    arguments = ("--results", finished.results, "--method", "iuf", "--csv", "rows.csv")
    code, out, _ = iumad("evaluate", finished.params, *arguments)
    assert code == 0
    for category in tiny.CATEGORIES:
        assert category in out
    rows = pd.read_csv(tmp_path / "rows.csv")
    assert set(rows["method"]) == {"iuf"} and not rows.empty
    assert f"{len(rows)} rows written to rows.csv" in out


def test_params_prints_all_keys_and_checks_files(iumad, finished):
    code, out, _ = iumad("params")
    assert code == 0
    assert build_study(yaml.safe_load(out), "all keys") == StudyConfig()
    for arguments in ((finished.params,), ("--check", finished.params)):
        code, out, _ = iumad("params", *arguments)
        assert code == 0
        assert "valid, 3 runs" in out
        for each in finished.study.runs():
            assert each.run_id in out


@pytest.mark.usefixtures("finished")
def test_the_cache_is_shown_and_pruned(iumad, monkeypatch, tmp_path):
    code, out, _ = iumad("cache", "info")
    assert code == 0
    assert str(cache_folder()) in out
    shutil.copytree(cache_folder(), tmp_path / "cache")
    monkeypatch.setenv("IUMAD_CACHE", str(tmp_path / "cache"))
    code, out, _ = iumad("cache", "prune", "--max-gb", "0")
    assert code == 0
    assert out.startswith("freed ")
    code, out, _ = iumad("cache", "info")
    assert out.count(" 0 entries") == 3


# --- what a user can get wrong ------------------------------------------------------------------


def check_refusal(result: tuple[int, str, str], parts: list[str]) -> None:
    code, _, err = result
    message = [line for line in err.splitlines() if "it/s" not in line and "img/s" not in line]
    assert code == 2
    assert len(message) == 1, err
    assert message[0].startswith("error: ")
    assert "Traceback" not in err
    for part in parts:
        assert part in message[0]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (None, ["params.yaml: cannot be read"]),
        ("training: {epoch: 3}", ["params.yaml", "'training.epoch', did you mean 'epochs'?"]),
        ("training: [1", ["params.yaml: not valid YAML"]),
        ("just text", ["mapping of keys to values, got str"]),
        ("methods: {iuuf: {}}", ["'iuuf'", "did you mean 'iuf'?"]),
        ("features: {grid: -1}", ["features.grid", "given: -1"]),
        ("data: {name: mvtec3d, root: nowhere/data}", ["nowhere/data"]),
        ("data: {name: minicandies, categories: [cooky]}", ["'cooky'", "'cookie'"]),
        ("settings: ['6-3']", ["setting 6-3 does not fit 10 categories"]),
        ("settings: [six-one]", ["settings: must look like"]),
        ("model: {neighbour_mask: 31}", ["neighbour_mask 31 hides every token"]),
        ("features: {backbone: vgg99}", ["timm has no model 'vgg99'"]),
    ],
    ids=lambda value: "" if isinstance(value, list) else value,
)
def test_params_files_that_cannot_be_run(iumad, tmp_path, content, parts):
    path = tmp_path / "params.yaml"
    if content is not None:
        path.write_text(content)
    before = everything(tmp_path)
    check_refusal(iumad("run", "params.yaml"), parts)
    made = everything(tmp_path) - before
    assert not [path for path in made if path.is_file()]


@pytest.mark.parametrize("command", ["run", "evaluate", "plan"])
def test_every_command_refuses_a_missing_params_file(iumad, command):
    check_refusal(iumad(command, "nowhere.yaml"), ["nowhere.yaml: cannot be read"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
def test_cuda_where_there_is_none(iumad, finished):
    result = iumad("run", finished.params, "--device", "cuda", "--results", finished.results)
    check_refusal(result, ["cuda", "this machine has only: cpu"])


def test_evaluating_what_is_not_trained(iumad, finished):
    check_refusal(
        iumad("evaluate", finished.params),
        ["none of the 3 runs is trained", "iuf rgb+depth 2-1 seed 0", "iumad run"],
    )


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["data", "check", "nowhere"], ["nowhere"]),
        (["data", "show", "nowhere"], ["nowhere"]),
        (["data", "new", "out", "--mapping", "nowhere.yaml"], ["nowhere.yaml"]),
        (["data", "export", "out", "--image-size", "33"], ["image_size", "given: 33"]),
        (["data", "export", "out", "--n-train", "0"], ["n_train", "given: 0"]),
        (["params", "--check", "nowhere.yaml"], ["nowhere.yaml: cannot be read"]),
    ],
    ids=" ".join,
)
def test_other_commands(iumad, tmp_path, arguments, parts):
    check_refusal(iumad(*arguments), parts)
    assert not everything(tmp_path)


def test_a_results_folder_that_is_a_file(iumad, finished, tmp_path):
    (tmp_path / "file").write_text("mine")
    check_refusal(iumad("run", finished.params, "--results", "file", "--method", "iuf"), ["file"])
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_results_folder_that_may_not_be_written(iumad, finished, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    check_refusal(iumad("run", finished.params, "--results", "locked/results"), ["locked"])


@pytest.mark.parametrize(
    "arguments", [["run"], ["run", "a.yaml", "--sed", "1"], ["predit"], ["run", "a", "--seed", "x"]]
)
def test_usage_errors_have_the_same_exit_code(iumad, arguments):
    code, _, err = iumad(*arguments)
    assert code == 2
    assert "Traceback" not in err


def test_square_brackets_are_not_markup(iumad, tmp_path):
    (tmp_path / "[bold] a.yaml").write_text("training: {epoch: 1}")
    check_refusal(iumad("run", "[bold] a.yaml"), ["[bold] a.yaml"])
    assert cli_output.escaped("a[b]") == r"a\[b]"


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_the_work_changes_nothing(which):
    program = f"""
import atexit, os
from iumad.__main__ import main
atexit.register(os.kill, os.getpid(), {int(which)})
main()
"""
    ended = subprocess.run(
        [sys.executable, "-c", program, "--version"], capture_output=True, text=True
    )
    assert (ended.returncode, ended.stderr) == (0, "") and "iumad" in ended.stdout


def test_the_version_is_that_of_the_package(iumad):
    code, out, _ = iumad("--version")
    assert code == 0
    assert re.fullmatch(r"iumad \d+\.\d+\.\d+\s*", out)


def test_plan_takes_a_part_of_the_grid_and_changes(iumad, finished):
    arguments = (finished.params, "--results", finished.results, "--method", "iuf")
    code, out, _ = iumad("plan", *arguments)
    assert code == 0 and "1 runs, 1 finished" in out
    code, out, _ = iumad("plan", *arguments, "--set", "training.epochs=77")
    assert code == 0 and "1 runs, 0 finished" in out


def test_a_params_file_lists_what_it_builds_on(iumad, finished, tmp_path):
    (tmp_path / "top.yaml").write_text(f"base: {finished.params}\nseeds: [3]\n")
    code, out, _ = iumad("params", "top.yaml")
    assert code == 0
    assert re.search(r"\.yaml <- .*top\.yaml: valid", out.replace("\n", ""))


def test_evaluate_shows_what_exists_when_a_run_is_missing(iumad, finished):
    arguments = (finished.params, "--results", finished.results)
    code, out, _ = iumad("evaluate", *arguments, "--set", "seeds=[0, 9]")
    assert code == 0
    assert "not trained:" in out and "seed 9" in out
    check_refusal(
        iumad("evaluate", *arguments, "--set", "seeds=[9]"), ["seed 9", "train it with `iumad run"]
    )


@pytest.mark.parametrize(
    "change", ["a.b", "training=[", "seeds=[1, 1]", "data.root=\udcff", "seeds=[1e400]"]
)
def test_changes_from_the_command_line_are_one_line_and_exit_code_2(iumad, finished, change):
    check_refusal(iumad("plan", finished.params, "--set", change), [])


def test_the_cache_may_keep_everything(iumad):
    code, out, _ = iumad("cache", "prune", "--max-gb", "inf")
    assert code == 0 and "freed 0.0 MB" in out


def test_two_studies_are_compared_on_a_page(iumad, tmp_path):
    code, _, error = iumad("compare", tmp_path, tmp_path)
    assert code == 2
    assert "--params" in error
    page, params = tmp_path / "page.html", tmp_path / "one.yaml"
    params.write_text("seeds: [3]\n")
    code, out, _ = iumad("compare", params, params, "--page", page)
    assert code == 0
    assert out.count("0 keys differ") == page.read_text().count("0 keys differ") == 1


def test_a_part_of_a_study_is_measured_alone(iumad, finished, tmp_path):
    measured = shutil.ignore_patterns("defects*")  # by another test
    results = shutil.copytree(finished.results, tmp_path / "copy", ignore=measured)
    part = ["--results", results, "--kind", "defects", "--method", "bank"]
    code, out, _ = iumad("measure", finished.params, *part)
    assert code == 0 and "1 tables measured" in out
    (path,) = results.rglob("defects*")
    assert set(pd.read_csv(path)["category"]) == set(tiny.CATEGORIES)
    code, _, err = iumad("measure", finished.params, *part, "--seed", "9")
    assert code == 2 and "9" in err
