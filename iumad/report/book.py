"""Execute the notebooks, and build the book from the executed copies.

    notebooks/*.ipynb --papermill--> <out>/executed/*.ipynb, or book/executed for the published ones
    book/ + executed notebooks ----> <out>/source --jupyter-book--> <out>/html

Neither step needs torch, unless a notebook is told to run its study.
"""

import base64
import importlib.util
import itertools
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import nbformat
import papermill
import yaml
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm

from iumad.config.files import load_params, refuse_unknown
from iumad.errors import IumadError
from iumad.machine import usable_cores
from iumad.study.steps import code_and_machine

COMMON = "mini.yaml"  # what notebooks name that show the main job of any params file
OWN = ("steps", "efficiency")  # folders of a results folder that are not published
CELL_SECONDS = 600  # after which a cell is given up: no page trains, and the slowest takes seconds
LOG_LINES = 25  # of the builder's log shown when it fails
UNKNOWN = "-"  # when a notebook was executed
KINDS = {"image/png": "png", "image/svg+xml": "svg", "text/csv": "csv"}


class BookError(IumadError):
    """A notebook failed, or the book could not be built."""


def make_book(
    params: Path | None,
    out: Path,
    root: Path = Path(),
    results: Path | None = None,
    execute: bool = False,
) -> Path:
    """Build the book for a params file, or the published one.

    Parameters
    ----------
    params : Path or None
        Params file of the notebooks; None takes the published notebooks in ``book/executed``.
    out : Path
        Folder to write to.
    root : Path
        The repository.
    results : Path, optional
        Folder of runs; default: the notebooks' own, ``results/`` of the repository.
    execute : bool
        Without a params file: execute the published notebooks anew first, from the published tables alone.

    Returns
    -------
    Path
        Page to open.

    Raises
    ------
    BookError, ConfigError
    """
    _notebooks(root)  # else this is not the repository
    published = root / "book" / "executed"
    if params is not None:
        executed = execute_notebooks(params, out / "executed", root, results)
    elif execute:
        executed = republish(published, root)
        _refresh(root / "book" / "figures", executed, out / "figures")
    else:
        executed = sorted(published.glob("*.ipynb"))
    return build_book(executed, out, root)


def execute_notebooks(
    params: Path, out: Path, root: Path = Path(), results: Path | None = None
) -> list[Path]:
    """Run every notebook for a params file, one on each core.

    A notebook whose own params file is not the common one compares runs of a study of its own: it shows the
    file of that name beside `params` if there is one.

    Parameters
    ----------
    params : Path
        Checked against the schema first.
    out : Path
        Folder of the executed notebooks.
    root, results : Path
        See `make_book`.

    Returns
    -------
    list of Path
        The executed notebooks, in order.

    Raises
    ------
    BookError, ConfigError
    """
    load_params(params)  # a mistake in it shows before anything runs
    here, kept = _executable(root, out)
    jobs = {path: (path, params, out, results) for path in here}
    return sorted([*_execute_all(jobs, execute_notebook), *kept])


def republish(out: Path, root: Path = Path()) -> list[Path]:
    """Execute all notebooks as they are, from the published tables: own runs are not looked at."""
    with _published_alone(root) as folder:
        here, kept = _executable(root, out)
        jobs = {path: (path, out / path.name, dict[str, Any](), folder) for path in here}
        return sorted([*_execute_all(jobs, _execute), *kept])


def execute_notebook(notebook: Path, params: Path, out: Path, results: Path | None = None) -> Path:
    """Run one notebook for a params file and write it to a folder; see `execute_notebooks`."""
    parameters = notebook_parameters(notebook, params)
    if results is not None and "results" in papermill.inspect_notebook(str(notebook)):
        parameters["results"] = _seen_from(notebook, results)
    return _execute(notebook, out / notebook.name, parameters, notebook.parent)


def notebook_parameters(notebook: Path, params: Path) -> dict[str, Any]:
    """What a notebook has to be told to show a params file, or its own study of the same folder.

    A notebook without a study of its own shows `params`. Another shows the file of its study in the folder of
    `params`; its default, if that is the same file or there is none.
    """
    own = own_study(notebook)
    if own is None:
        shows = "params_file" in papermill.inspect_notebook(str(notebook))
        return {"params_file": _seen_from(notebook, params)} if shows else {}
    beside = params.with_name(own.name)
    if not beside.exists() or beside.resolve() == own.resolve():
        return {}
    return {"params_file": _seen_from(notebook, beside)}


def own_study(notebook: Path) -> Path | None:
    """The params file of a notebook that has a study of its own; None if it shows the main job of any, or none."""
    try:
        if notebook.suffix != ".ipynb" or not notebook.is_file():
            raise ValueError("there is no such file .ipynb")
        parameters = papermill.inspect_notebook(str(notebook))
    except (ValueError, AttributeError, nbformat.ValidationError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BookError(f"{notebook}: cannot be read as a notebook: {reason}") from error
    if "params_file" not in parameters:
        return None
    path = notebook.parent / parameters["params_file"]["default"].strip("\"'")
    return None if path.name == COMMON else path


def failures(notebook: Path) -> list[str]:
    """What papermill recorded as failed in an executed notebook; empty if all of it ran.

    A failed notebook still renders without a warning, so this has to be asked.
    """
    content = nbformat.read(notebook, as_version=4)
    record = content.metadata.get("papermill")
    if record is None:
        return ["it was never executed"]
    found = ["an exception was raised"] if record.get("exception") else []
    for number, cell in enumerate(content.cells, start=1):
        status = cell.metadata.get("papermill", {}).get("status", "completed")
        errors = [o.ename for o in cell.get("outputs", []) if o.output_type == "error"]
        if errors or (cell.cell_type == "code" and status != "completed"):
            found.append(f"cell {number} is {' '.join([status, *errors])}")
    return found


def build_book(executed: list[Path], out: Path, root: Path = Path()) -> Path:
    """Render the prose pages and the executed notebooks; any warning is an error.

    Parameters
    ----------
    executed : list of Path
        Executed notebooks; all that the table of contents names.
    out : Path
        The copied sources go to ``<out>/source``, the pages to ``<out>/html``.
    root : Path
        The repository.

    Returns
    -------
    Path
        ``<out>/html/index.html``.

    Raises
    ------
    BookError
        A notebook had failed, or the builder found fault with a page.
    """
    if not executed:
        raise BookError("no executed notebooks: run `iumad book PARAMS` first")
    failed = {path.name: failures(path) for path in executed}
    if any(failed.values()):
        raise BookError(
            "; ".join(f"{name}: {', '.join(why)}" for name, why in failed.items() if why)
        )

    source = out / "source"
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(root / "book", source, ignore=shutil.ignore_patterns("executed"))
    write_pages(root, executed, source / "generated")
    (source / "executed").mkdir()
    for path in executed:
        files = extract_figures(path, source / "figures")
        _write_with_links(path, source / "executed" / path.name, files)

    _jupyter_book(source, out, root)
    html = out / "html"
    shutil.rmtree(html, ignore_errors=True)
    shutil.move(out / "_build" / "html", html)
    return html / "index.html"


def write_pages(root: Path, executed: Sequence[Path], folder: Path) -> None:
    """Write the parts that the pages `cite`, `executions` and `changes` include.

    Parameters
    ----------
    root : Path
        The repository: CITATION.cff and CHANGELOG.md.
    executed : sequence of Path
        Executed notebooks.
    folder : Path
        Is made; `citation.bib`, `executions.txt` and `changes.txt` go there.
    """
    folder.mkdir()
    (folder / "executions.txt").write_text(executions(executed), encoding="utf-8")
    if (root / "CITATION.cff").exists():
        content = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
        (folder / "citation.bib").write_text(bibtex(content), encoding="utf-8")
    if (root / "CHANGELOG.md").exists():
        _, _, changes = (root / "CHANGELOG.md").read_text(encoding="utf-8").partition("\n")
        (folder / "changes.txt").write_text(changes, encoding="utf-8")


def bibtex(citation: dict[str, Any]) -> str:
    """A CITATION.cff as BibTeX: the software, then what it refers to."""
    year = str(citation.get("date-released", citation["references"][0]["year"]))[:4]
    software = {
        "author": _authors(citation["authors"]),
        "title": citation["title"],
        "version": citation["version"],
        "year": year,
        "license": citation["license"],
    }
    entries = [_entry("software", "iumad", software)]
    for reference in citation["references"]:
        fields = {
            "author": _authors(reference["authors"]),
            "title": " ".join(reference["title"].split()),
            "booktitle": reference["collection-title"],
            "year": reference["year"],
        }
        key = f"{reference['authors'][0]['family-names'].lower()}{reference['year']}"
        entries.append(_entry("inproceedings", key, fields))
    return "\n".join(entries)


def _authors(people: Sequence[dict[str, str]]) -> str:
    names = [
        f"{person['family-names']}, {person['given-names']}"
        if "family-names" in person
        else f"{{{person['name']}}}"
        for person in people
    ]
    return " and ".join(names)


def _entry(kind: str, key: str, fields: dict[str, Any]) -> str:
    lines = "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items())
    return f"@{kind}{{{key},\n{lines}}}\n"


def executions(notebooks: Sequence[Path]) -> str:
    """A table in MyST: every notebook, when it was executed, how long that took, from which commit, where."""
    lines = [
        "| notebook | executed (UTC) | seconds | commit | machine |",
        "|---|---|--:|---|---|",
    ]
    for path in sorted(notebooks):
        metadata = nbformat.read(path, as_version=4).metadata
        run, where = metadata.get("papermill", {}), metadata.get("iumad", {})
        when = str(run.get("start_time", UNKNOWN))[:16].replace("T", " ")
        took = f"{run['duration']:.0f}" if "duration" in run else UNKNOWN
        commit = where.get("commit") or UNKNOWN
        machine = str(where.get("machine", UNKNOWN)).replace("|", "/")
        name = f"[](executed/{path.name})"
        lines.append(f"| {name} | {when} | {took} | {commit} | {machine} |")
    return "\n".join(lines) + "\n"


def extract_figures(notebook: Path, folder: Path) -> dict[str, list[str]]:
    """Write the picture of each cell that names its figure, and its data, for prose pages and readers.

    Returns
    -------
    dict
        Figure -> names of its files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, list[str]] = {}
    for cell in nbformat.read(notebook, as_version=4).cells:
        name = cell.metadata.get("mystnb", {}).get("figure", {}).get("name")
        for output in cell.get("outputs", []) if name else []:
            for kind, suffix in KINDS.items():
                if kind in output.get("data", {}):
                    content = output.data[kind]
                    data = base64.b64decode(content) if suffix == "png" else content.encode()
                    (folder / f"{name}.{suffix}").write_bytes(data)
                    files.setdefault(name, []).append(f"{name}.{suffix}")
    return files


def _refresh(folder: Path, executed: Sequence[Path], out: Path) -> None:
    """Replace the pictures in a folder that notebooks made; those that they did not make stay."""
    for path in executed:
        for name in itertools.chain(*extract_figures(path, out).values()):
            if (folder / name).exists():
                shutil.copy(out / name, folder)


def _write_with_links(notebook: Path, copy: Path, files: Mapping[str, list[str]]) -> None:
    """A copy of a notebook whose captions link to the files of their figures."""
    content = nbformat.read(notebook, as_version=4)
    for cell in content.cells:
        figure = cell.metadata.get("mystnb", {}).get("figure", {})
        if names := files.get(figure.get("name", "")):
            links = [
                f"{{download}}`{n.rpartition('.')[2].upper()} <../figures/{n}>`" for n in names
            ]
            figure["caption"] = f"{figure['caption']} {' '.join(links)}"
    nbformat.write(content, copy)


def _notebooks(root: Path) -> list[Path]:
    notebooks = sorted((root / "notebooks").glob("*.ipynb"))
    if not notebooks:
        raise BookError(f"no notebooks in {root / 'notebooks'}: run this in the repository")
    return notebooks


def _executable(root: Path, out: Path) -> tuple[list[Path], list[Path]]:
    """The notebooks that can run here, and copies in `out` of published ones that need what is absent."""
    here, kept = [], []
    for path in _notebooks(root):
        needed = nbformat.read(path, as_version=4).metadata.get("iumad", {}).get("needs")
        published, copy = root / "book" / "executed" / path.name, out / path.name
        if needed is None or _is_installed(needed) or not published.exists():
            here.append(path)
            continue
        print(f"{path.stem}: kept as published, executing it needs {needed} (the extra `train`)")
        out.mkdir(parents=True, exist_ok=True)
        if published.resolve() != copy.resolve():
            shutil.copy(published, copy)
        kept.append(copy)
    return here, kept


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False


DATA_FOLDER = "IUMAD_DATA"  # environment variable in params files


@contextmanager
def _published_alone(root: Path) -> Iterator[Path]:
    """A folder to run notebooks in, from which they see the params files and the published results alone.

    Not the data of whoever runs them either: with these at hand, more can be said of unfinished runs.
    """
    data = {DATA_FOLDER: os.environ.pop(DATA_FOLDER)} if DATA_FOLDER in os.environ else {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as after:
        after.callback(os.environ.update, data)
        folder = Path(name)
        for part in ("notebooks", "results"):
            (folder / part).mkdir()
        (folder / "params").symlink_to((root / "params").resolve())
        for path in sorted((root / "results").iterdir()):
            if path.is_dir() and path.name not in OWN:
                (folder / "results" / path.name).symlink_to(path.resolve())
        yield folder / "notebooks"


def _execute_all(jobs: Mapping[Path, tuple[Any, ...]], execute: Any) -> list[Path]:
    """Execute notebooks in processes of their own, and say how long all and the slowest took."""
    count = max(1, min(usable_cores(), len(jobs)))
    spawn, threads = multiprocessing.get_context("spawn"), usable_cores() // count
    with ProcessPoolExecutor(count, spawn, _share_cores, (threads,)) as pool:
        tasks = {pool.submit(_timed, execute, job): path.stem for path, job in jobs.items()}
        quiet, begun = not sys.stderr.isatty(), time.monotonic()
        try:
            with tqdm(total=len(tasks), desc="notebooks", unit="page", disable=quiet) as bar:
                for task in as_completed(tasks):
                    task.result()
                    bar.set_postfix_str(tasks[task])
                    bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if tasks:
        slowest = max(tasks, key=lambda task: task.result()[1])
        took, name = slowest.result()[1], tasks[slowest]
        all_took = time.monotonic() - begun
        print(f"{len(tasks)} pages executed in {all_took:.0f} s, {name} in {took:.0f} s")
    return [task.result()[0] for task in tasks]


def _share_cores(threads: int) -> None:
    """Limit the threads of the kernels that this process starts; more threads than cores wait for each other."""
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))


def _timed(execute: Any, arguments: tuple) -> tuple[Path, float]:
    start = time.monotonic()
    return execute(*arguments), time.monotonic() - start


def _execute(notebook: Path, output: Path, parameters: Mapping[str, Any], folder: Path) -> Path:
    """Run one notebook in a folder; its record names no path of this machine and no time of a single cell."""
    defaults = {
        name: one["default"] for name, one in papermill.inspect_notebook(str(notebook)).items()
    }
    refuse_unknown(parameters, defaults, notebook.name)
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(
            notebook,
            output,
            parameters=dict(parameters),
            kernel_name="python3",
            cwd=folder,
            coalesce_streams=True,
            progress_bar=False,
            # a local kernel warns that it is not encrypted, and calls the interrupt before its end an error
            extra_arguments=["--log-level=CRITICAL"],
            execution_timeout=CELL_SECONDS,
        )
    except PapermillExecutionError as error:
        raise BookError(f"{notebook.name}: {error.ename}: {error.evalue}; see {output}") from error
    except TimeoutError as error:
        raise BookError(
            f"{notebook.name}: a cell was not done after {CELL_SECONDS} s and was given up; see {output}"
        ) from error

    content = nbformat.read(output, as_version=4)
    content.metadata.papermill.update(input_path=notebook.name, output_path=output.name)
    content.metadata["iumad"] = code_and_machine()
    for cell in content.cells:
        cell.metadata.pop("execution", None)
        status = cell.metadata.pop("papermill", {}).get("status")
        if status and cell.cell_type == "code":
            cell.metadata["papermill"] = {"status": status}
        cell["outputs"] = [o for o in cell.get("outputs", []) if o.get("name") != "stderr"]
        if cell.cell_type != "code":
            del cell["outputs"]
    nbformat.write(content, output)
    return output


def _seen_from(notebook: Path, path: Path) -> str:
    """A path as the notebook's kernel finds it: relative, so that pages do not name the machine."""
    return os.path.relpath(path.resolve(), notebook.resolve().parent)


def _jupyter_book(source: Path, out: Path, root: Path) -> None:
    command = [
        str(Path(sys.executable).with_name("jupyter-book")), "build", str(source),
        "--config", str(root / "_config.yml"), "--path-output", str(out), "--all", "-W", "--keep-going",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    log = out / "build.log"
    log.write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode:
        lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
        told = [line for line in lines if "WARNING" in line or "ERROR" in line] or lines
        raise BookError("\n".join([f"the book was not built, see {log}:", *told[-LOG_LINES:]]))
