"""Files written in one step, whole or not at all; sealed files, in which any damage is found; peak memory."""

import errno
import os
import shutil
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iumad.errors import DamagedFileError
from iumad.machine import (
    read_sealed,
    remove_stale,
    replacing,
    write_sealed,
)


def test_a_file_is_replaced_at_the_end(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with replacing(path) as file:
        file.write(b"one")
        assert not path.exists()
    with replacing(path) as file:
        file.write(b"two")
        assert path.read_bytes() == b"one"
    assert path.read_bytes() == b"two"
    assert list(path.parent.iterdir()) == [path]


def test_after_an_error_the_old_file_is_there(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), replacing(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_permissions_are_those_of_any_new_file(tmp_path):
    plain, path = tmp_path / "plain", tmp_path / "a.txt"
    plain.touch()
    with replacing(path):
        pass
    assert path.stat().st_mode == plain.stat().st_mode


def test_a_full_disk_names_the_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match=r"No space left.*a\.txt"), replacing(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_killed_writers_left_is_removed_once_it_is_old(tmp_path):
    left = tmp_path / ".rows.csv.0123.tmp"
    left.touch()
    remove_stale(tmp_path)
    assert left.exists()  # somebody may be writing it
    os.utime(left, (0, 0))
    remove_stale(tmp_path)
    assert not left.exists()


@given(content=st.binary(max_size=300), data=st.data())
def test_any_damage_of_a_sealed_file_is_found(tmp_path_factory, content, data):
    path = tmp_path_factory.mktemp("sealed") / "step" / "rows.csv"
    write_sealed(path, content)
    assert read_sealed(path) == content
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    flipped = (
        whole[:place] + bytes([whole[place] ^ data.draw(st.integers(1, 255))]) + whole[place + 1 :]
    )
    shorter = whole[:place] + whole[place + data.draw(st.integers(1, len(whole))) :]
    for damaged in (flipped, shorter, whole + b"x", whole * 2, b""):
        path.write_bytes(damaged)
        with pytest.raises(DamagedFileError, match=r"rows\.csv: damaged.*delete it"):
            read_sealed(path)


def test_a_sealed_file_of_another_place_is_found_and_a_moved_folder_is_not(tmp_path):
    write_sealed(tmp_path / "one" / "rows.csv", b"a,b\n")
    (tmp_path / "two").mkdir()
    shutil.copy(tmp_path / "one" / "rows.csv", tmp_path / "two" / "rows.csv")
    with pytest.raises(DamagedFileError, match="from another place"):
        read_sealed(tmp_path / "two" / "rows.csv")
    (tmp_path / "deeper").mkdir()
    (tmp_path / "one").rename(tmp_path / "deeper" / "one")
    assert read_sealed(tmp_path / "deeper" / "one" / "rows.csv") == b"a,b\n"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets")
def test_peak_memory_is_that_of_what_follows():
    script = """
import numpy as np
from iumad.machine import forget_peak_memory, peak_memory_mb
large = np.ones(50_000_000)
before = peak_memory_mb()
del large
forget_peak_memory()
print(before - peak_memory_mb())
"""  # in a process of its own: in a long one other memory comes and goes
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert float(told.stdout) > 300
