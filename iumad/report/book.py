"""Execute the notebooks for a params file, and build the book from the executed copies.

    notebooks/*.ipynb --papermill--> <out>/executed/*.ipynb
    book/ + executed notebooks ----> <out>/source --jupyter-book--> <out>/html

`book/executed` holds the published notebooks; nothing here writes to it. Neither step needs torch in this process.
"""

import base64
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm

from iumad.config.files import load_params
from iumad.errors import IumadError
from iumad.machine import usable_cores
from iumad.report.notebooks import notebook_parameters, seen_from

LOG_LINES = 25  # of the builder's log shown when it fails


class BookError(IumadError):
    """A notebook failed, or the book could not be built."""


def make_book(
    params: Path | None, out: Path, root: Path = Path(), results: Path | None = None
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

    Returns
    -------
    Path
        Page to open.

    Raises
    ------
    BookError, ConfigError
    """
    if params is None:
        executed = sorted((root / "book" / "executed").glob("*.ipynb"))
    else:
        executed = execute_notebooks(params, out, root, results)
    return build_book(executed, out, root)


def execute_notebooks(
    params: Path, out: Path, root: Path = Path(), results: Path | None = None
) -> list[Path]:
    """Run every notebook with the content of a params file as its parameters, one on each core.

    A notebook whose own params file is not the common one compares runs of a study of its own: it shows the
    file of that name beside `params` if there is one, trains nothing, and says what of it is not run.

    Parameters
    ----------
    params : Path
        Checked against the schema first, because papermill accepts any key.
    out : Path
        Executed notebooks go to ``<out>/executed``.
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
    notebooks = sorted((root / "notebooks").glob("*.ipynb"))
    if not notebooks:
        raise BookError(f"no notebooks in {root / 'notebooks'}: run this in the repository")
    load_params(params)  # a mistake in it shows before anything runs
    executed = out / "executed"
    jobs = min(usable_cores(), len(notebooks))
    spawn, threads = multiprocessing.get_context("spawn"), usable_cores() // jobs
    with ProcessPoolExecutor(jobs, spawn, _share_cores, (threads,)) as pool:
        tasks = [pool.submit(execute_notebook, n, params, executed, results) for n in notebooks]
        try:
            for task in tqdm(as_completed(tasks), total=len(tasks), desc="notebooks", unit="page"):
                task.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
        return [task.result() for task in tasks]


def _share_cores(threads: int) -> None:
    """Limit the threads of the kernels that this process starts; more threads than cores wait for each other."""
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))


def execute_notebook(notebook: Path, params: Path, out: Path, results: Path | None = None) -> Path:
    """Run one notebook and write it to a folder; see `execute_notebooks`."""
    out.mkdir(parents=True, exist_ok=True)
    parameters = notebook_parameters(notebook, params)
    if results is not None:
        parameters["results"] = seen_from(notebook, results)
    return _execute(notebook, out / notebook.name, parameters)


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
    (source / "executed").mkdir()
    for path in executed:
        shutil.copy(path, source / "executed")
        extract_figures(path, source / "figures")

    _jupyter_book(source, out, root)
    html = out / "html"
    shutil.rmtree(html, ignore_errors=True)
    shutil.move(out / "_build" / "html", html)
    shutil.copytree(source / "figures", html / "figures", dirs_exist_ok=True)
    return html / "index.html"


def _execute(notebook: Path, output: Path, parameters: Mapping[str, Any]) -> Path:
    try:
        papermill.execute_notebook(
            notebook,
            output,
            parameters=dict(parameters),
            kernel_name="python3",
            cwd=notebook.parent,
            coalesce_streams=True,
            progress_bar=False,
        )
    except PapermillExecutionError as error:
        raise BookError(f"{notebook.name}: {error.ename}: {error.evalue}; see {output}") from error

    content = nbformat.read(output, as_version=4)
    content.metadata.papermill.update(input_path=notebook.name, output_path=output.name)
    nbformat.write(content, output)
    return output


def extract_figures(notebook: Path, folder: Path) -> None:
    """Write the picture of each cell that names its figure, for prose pages to show, and its data."""
    folder.mkdir(exist_ok=True)
    for cell in nbformat.read(notebook, as_version=4).cells:
        name = cell.metadata.get("mystnb", {}).get("figure", {}).get("name")
        for output in cell.get("outputs", []) if name else []:
            data = output.get("data", {})
            if "image/png" in data:
                (folder / f"{name}.png").write_bytes(base64.b64decode(data["image/png"]))
            for kind, suffix in (("image/svg+xml", "svg"), ("text/csv", "csv")):
                if kind in data:
                    (folder / f"{name}.{suffix}").write_text(data[kind], encoding="utf-8")


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
