"""The console script, run in this process."""

import contextlib
import io
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from iumad import cli


@dataclass(frozen=True)
class Outcome:
    """Exit code, output and error output of a command."""

    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The message of a command that was refused; progress bars and warnings are not part of it."""
        lines = [line for line in re.split(r"[\r\n]", self.err) if line.strip()]
        errors = [number for number, line in enumerate(lines) if line.startswith("error: ")]
        return "\n".join(lines[errors[0] :]) if errors else ""


def iumad(folder: Path, *arguments: object, typed: str = "", encoding: str = "utf-8") -> Outcome:
    """Run `iumad` with these arguments in a folder; `typed` is what a person enters."""
    out, err = _Stream(encoding), _Stream(encoding)
    argv = ["iumad", *map(str, arguments)]
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", argv),
        mock.patch.object(sys, "stdin", io.StringIO(typed)),
        mock.patch.dict(os.environ, {"COLUMNS": "200"}),
    ):
        code: object = 0
        try:
            cli.main()
        except SystemExit as left:
            code = left.code
    assert code is None or isinstance(code, int)
    return Outcome(code or 0, out.text(), err.text())


class _Stream(io.TextIOWrapper):
    """A terminal's output, strict about its encoding."""

    def __init__(self, encoding: str) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, write_through=True)

    def text(self) -> str:
        """All that was written."""
        content: bytes = self.buffer.getvalue()  # type: ignore[attr-defined]
        return content.decode(self.encoding)
