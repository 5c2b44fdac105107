"""Damaged, cut, swapped and foreign files in a results folder: found by name, or harmless and the rows right."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attack.tally import Area
from iumad.study.load import load_provenance, load_rows, plan, progress, training_log
from iumad.study.steps import steps_of
from iumad.training.checkpoint import load_checkpoint

AREA = Area("results")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(finished, tmp_path_factory) -> Path:
    """Results of the finished study, to be damaged and mended."""
    return Path(shutil.copytree(finished.results, tmp_path_factory.mktemp("damage") / "results"))


@st.composite
def damages(draw, content: bytes, others: list[bytes]) -> bytes:
    """Another content of a file."""
    how = draw(
        st.sampled_from(["flip", "cut", "lose", "repeat", "append", "other", "noise", "empty"])
    )
    place = draw(st.integers(0, max(len(content) - 1, 0)))
    end = draw(st.integers(place, len(content)))
    lines = content.splitlines(keepends=True)
    line = draw(st.integers(0, max(len(lines) - 1, 0)))
    return {
        "flip": content[:place]
        + bytes([content[place] ^ draw(st.integers(1, 255))])
        + content[place + 1 :],
        "cut": content[:place],
        "lose": b"".join(lines[:line] + lines[line + 1 :]),
        "repeat": content[:end] + content[place:end] + content[end:],
        "append": content + draw(st.binary(min_size=1, max_size=50)),
        "other": draw(st.sampled_from(others)),
        "noise": draw(st.binary(max_size=300)),
        "empty": b"",
    }[how]


def read_everything(finished, results: Path) -> pd.DataFrame:
    """Whatever reads a results folder without training."""
    for run in finished.study.runs():
        for step in steps_of(run, results):
            for path in (step.checkpoint, step.remembered):
                if path.exists():
                    load_checkpoint(path, {"step": step.key})
    training_log(finished.study, results)
    load_provenance(finished.study, results)
    plan(finished.study, results)
    assert progress(finished.study, results)["finished"].all()
    return load_rows(finished.study, results).drop(columns="source")


@given(data=st.data())
def test_damaged_results(finished, results, data):
    files = sorted(path for path in results.rglob("*") if path.is_file() and path.name != "lock")
    path = data.draw(st.sampled_from(files))
    content = path.read_bytes()
    others = [other.read_bytes() for other in files if other != path]
    damaged = data.draw(damages(content, others))
    path.write_bytes(damaged)
    try:
        with AREA.attempt(f"{path.name}: {damaged[:100]!r}", str(path)):
            rows = read_everything(finished, results)
            assert damaged == content or path.name == "provenance.json"  # which holds no result
            pd.testing.assert_frame_equal(rows, finished.rows, check_exact=True)
    finally:
        path.write_bytes(content)


@given(data=st.data())
def test_lost_and_odd_files(finished, results, data):
    """A file that is gone or became a folder, and files that nobody asked for."""
    files = sorted(path for path in results.rglob("*") if path.is_file() and path.name != "lock")
    path = data.draw(st.sampled_from(files))
    how = data.draw(st.sampled_from(["lost", "folder", "beside"]))
    aside = path.with_name("aside")
    odd = path.with_name(
        data.draw(st.sampled_from(["x", ".rows.csv.1.tmp", "rows-.csv", "log.csv.bak", "ü"]))
    )
    if how == "beside":
        odd.write_bytes(b"\x00")
    else:
        path.rename(aside)
        if how == "folder":
            path.mkdir()
    try:
        with AREA.attempt(f"{path.name}: {how}"):
            rows = load_rows(finished.study, results).drop(columns="source")
            expected = finished.rows
            if how == "lost" and path.name.startswith("rows-"):
                expected = expected[expected["method"].isin(rows["method"])].reset_index(drop=True)
            pd.testing.assert_frame_equal(rows, expected, check_exact=True)
    finally:
        if how == "beside":
            odd.unlink()
        else:
            if how == "folder":
                path.rmdir()
            aside.rename(path)
