"""Model files on real folders from start to end, with the commands a user types; tables for `results/own`.

    python benchmarks/own_images.py results/own road=FOLDER [NAME=FOLDER ...] [--methods bank-unified bank]
    python benchmarks/own_images.py results/own --example

Every command is a process of its own with one thread on one core, and seconds are those of the core. `fit.csv` has
a line for each data set, method and category: AUROC, false alarms and misses on all test images at the stored
threshold, and what the model cost; features are computed for the first method and cached for the others. For the
first method also: `learn.csv` (the last category held back, then learnt), `moved.csv` (model and test images alone
under other names) and `export.csv`. `commands.csv` is the example on drawn images.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from iumad.evaluation.metrics import image_auroc, or_missing

ANOMALOUS = 3  # exit code of `iumad predict`


@dataclass(frozen=True)
class Finished:
    """A command that ran: seconds of the core, memory at its largest in MB, and what it printed."""

    seconds: float
    memory: float
    output: str


def command(arguments: list[object], cache: Path, folder: Path | None = None) -> Finished:
    """Run `iumad` with the arguments."""
    words = [sys.executable, "-m", "iumad", *map(str, arguments)]
    env = os.environ | {"IUMAD_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            words, env=env, cwd=folder, stdout=said, stderr=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        output = said.read().decode()
    if process.returncode not in (0, ANOMALOUS):
        raise SystemExit(f"{shlex.join(words)}: exit code {process.returncode}\n{output}")
    seconds = usage.ru_utime + usage.ru_stime
    return Finished(seconds, usage.ru_maxrss / 1e3, output)


def predicted(model: Path, root: Path, place: Path, told: bool) -> tuple[pd.DataFrame, Finished]:
    """The table of all test images under a folder, with the label and the category that their folders name."""
    out = place / f"{model.stem}-{told}.csv"
    tests = sorted(path for path in root.glob("*/test") if path.is_dir())
    which = ["--category", "folder"] if told else []
    done = command(["predict", model, *tests, *which, "--out", out], place / "cache")
    table = pd.read_csv(out)
    inside = [Path(file).relative_to(root).parts for file in table["file"]]
    table["folder"] = [parts[0] for parts in inside]
    table["label"] = [int(parts[2] != "good") for parts in inside]
    return table, done


def judged(table: pd.DataFrame) -> list[dict]:
    """AUROC, false alarms and misses of each category."""
    rows = []
    for category, part in table.groupby("folder"):
        label, above = part["label"].to_numpy(), part["anomalous"].to_numpy(bool)
        rows.append(
            {
                "category": category,
                "good images": int((label == 0).sum()),
                "defects": int((label == 1).sum()),
                "image AUROC": or_missing(image_auroc, part["score"].to_numpy(), label),
                "false alarms": int((above & (label == 0)).sum()),
                "misses": int((~above & (label == 1)).sum()),
            }
        )
    return rows


def fit_rows(
    name: str, root: Path, method: str, changes: list[str], place: Path, recognise: bool
) -> list[dict]:
    """Fit, then score all test images, told their category and, if asked for, not told."""
    model = place / f"{name}-{method}.iumad"
    sets = [word for change in changes for word in ("--set", change)]
    made = command(["fit", root, "--out", model, "--method", method, *sets], place / "cache")
    table, run = predicted(model, root, place, told=True)
    recognised = {}
    if recognise:
        alone, _ = predicted(model, root, place, told=False)
        right = alone["category"] == alone["folder"]
        recognised = right.groupby(alone["folder"]).mean().round(4).to_dict()
    one = next(iter(table["file"]))
    start = command(["predict", model, one, "--category", "folder"], place / "cache").seconds
    shared = {
        "fit (s)": round(made.seconds, 1),
        "fit (MB)": round(made.memory),
        "model (MB)": round(model.stat().st_size / 1e6, 1),
        "start (s)": round(start, 1),
        "images a second": round((len(table) - 1) / (run.seconds - start), 1),
        "predict (MB)": round(run.memory),
    }
    return [
        {"data": name, "method": method, "changed": " ".join(changes)}
        | row
        | {"recognised": recognised.get(row["category"])}
        | shared
        for row in judged(table)
    ]


def moved_row(name: str, root: Path, method: str, place: Path) -> dict:
    """The same predictions from a copy of the model and the test images, without anything else, elsewhere."""
    model = place / f"{name}-{method}.iumad"
    elsewhere = place / "moved" / "renamed"
    for test in root.glob("*/test"):
        shutil.copytree(test, elsewhere / test.parent.name / "test")
    copy = shutil.copy(model, place / "moved" / "another.iumad")
    before, _ = predicted(model, root, place, told=True)
    after, _ = predicted(Path(copy), elsewhere, place, told=True)
    keys = [
        [Path(file).relative_to(folder).as_posix() for file in table["file"]]
        for table, folder in ((before, root), (after, elsewhere))
    ]
    assert keys[0] == keys[1]
    same = (before["score"] == after["score"]) & (before["anomalous"] == after["anomalous"])
    row = {"data": name, "method": method, "test images": len(before)}
    return row | {"same score and decision": int(same.sum())}


def export_rows(name: str, method: str, place: Path) -> list[dict]:
    """Both formats of the model that was fitted."""
    rows = []
    for kind, suffix in (("onnx", "onnx"), ("torch", "pt2")):
        out = place / f"{name}.{suffix}"
        model = place / f"{name}-{method}.iumad"
        command(["export", model, "--format", kind, "--out", out], place / "cache")
        check = json.loads(out.with_suffix(".json").read_text())["check"]
        model_ms = check["reference_milliseconds"]
        rows.append(
            {
                "data": name,
                "method": method,
                "format": kind,
                "file (MB)": round(out.stat().st_size / 1e6, 1),
                "images": check["images"],
                "largest difference (1e-6)": 1e6 * check["difference"],
                "of maps up to": check["highest"],
                "graph (ms)": check["milliseconds"],
                "model (ms)": model_ms,
                "ratio": check["milliseconds"] / model_ms,
            }
        )
    return rows


def learn_rows(name: str, root: Path, method: str, place: Path) -> list[dict]:
    """All categories but the last, then the last on top; every category before and after."""
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    for part, chosen in (("earlier", folders[:-1]), ("last", folders[-1:])):
        for folder in chosen:
            (place / part).mkdir(exist_ok=True)
            (place / part / folder.name).symlink_to(folder)
    old, new = place / f"{name}-old.iumad", place / f"{name}-new.iumad"
    command(["fit", place / "earlier", "--out", old, "--method", method], place / "cache")
    done = command(["learn", old, place / "last", "--out", new], place / "cache")
    before, _ = predicted(old, place / "earlier", place, told=True)
    after, _ = predicted(new, root, place, told=True)
    old_rows = {row["category"]: row for row in judged(before)}
    rows = []
    for row in judged(after):
        earlier = old_rows.get(row["category"])
        line = {"data": name, "method": method, "learnt": "last" if earlier is None else "before"}
        line |= {"category": row["category"]}
        for key in ("image AUROC", "false alarms", "misses"):
            line |= {f"{key} before": earlier and earlier[key], f"{key} after": row[key]}
        rows.append(line | {"learn (s)": round(done.seconds, 1)})
    return rows


def example_rows(place: Path) -> list[dict]:
    """Five commands on drawn images, as the page shows them."""
    lines = [
        "data export candies --n-train 12 --n-test-good 4 --n-test-defect 4",
        "data check candies",
        "fit candies --out candies.iumad",
        "predict candies.iumad candies/biscuit/test candies/waffle/test --out scores.csv --report page",
        "info candies.iumad",
    ]
    rows = []
    for line in lines:
        done = command(shlex.split(line), place / "cache", place)
        rows.append(
            {
                "command": f"iumad {line}",
                "seconds": round(done.seconds, 1),
                "output": done.output.replace(f"{place}/", "").rstrip(),
            }
        )
    return rows


def add(path: Path, rows: list[dict], keys: list[str]) -> None:
    """Put rows into a table in place of those with the same keys."""
    table = pd.DataFrame(rows)
    if path.exists():
        old = pd.read_csv(path, keep_default_na=False, na_values=[""])
        new = set(table[keys].itertuples(index=False, name=None))
        kept = [row not in new for row in old[keys].itertuples(index=False, name=None)]
        table = pd.concat([old[kept], table])
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, index=False, float_format="%.6g")
    print(table.to_string(index=False), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("folders", nargs="*", metavar="NAME=FOLDER")
    parser.add_argument("--methods", nargs="+", default=["bank-unified", "bank"])
    parser.add_argument("--set", nargs="+", default=[], help="changes of the methods' settings")
    parser.add_argument("--example", action="store_true", help="commands.csv instead")
    parser.add_argument("--only-fit", action="store_true", help="fit.csv alone")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if arguments.example:
        with tempfile.TemporaryDirectory() as folder:
            add(arguments.out / "commands.csv", example_rows(Path(folder)), ["command"])
    for given in arguments.folders:
        name, _, folder = given.partition("=")
        root, first = Path(folder).resolve(), arguments.methods[0]
        with tempfile.TemporaryDirectory() as scratch:
            place = Path(scratch)
            for method in arguments.methods:
                rows = fit_rows(name, root, method, arguments.set, place, method == first)
                add(arguments.out / "fit.csv", rows, ["data", "method"])
            if arguments.only_fit:
                continue
            moved = moved_row(name, root, first, place)
            add(arguments.out / "moved.csv", [moved], ["data", "method"])
            exported = export_rows(name, first, place)
            add(arguments.out / "export.csv", exported, ["data", "method", "format"])
            learnt = learn_rows(name, root, first, place)
            add(arguments.out / "learn.csv", learnt, ["data", "method"])


if __name__ == "__main__":
    main()
