"""The tally of attacks: what was tried in each area, what worked, was refused, or went wrong."""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import settings
from terminal import Outcome, iumad

from iumad.errors import IumadError

TALLY: dict[str, Counter[str]] = {}
OUTCOMES = ("tried", "worked", "refused", "wrong")
MAX_MESSAGE = 2000  # letters; more is no help
few_examples = settings(max_examples=int(os.environ.get("IUMAD_EXAMPLES", "10")))
"""Decorator of the property tests that are in `make test`, too."""


class Area:
    """Counts the attempts on one part of the program; see the package's text."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.counts = TALLY.setdefault(name, Counter())

    @contextmanager
    def attempt(self, what: object, *named: str) -> Iterator[None]:
        """One attempt: the block works, or raises an IumadError of one line that has the texts `named`."""
        self.counts["tried"] += 1
        try:
            try:
                yield
            except IumadError as error:
                require_message(str(error), *named)
                self.counts["refused"] += 1
            else:
                self.counts["worked"] += 1
        except Exception as error:
            self.counts["wrong"] += 1
            error.add_note(f"attack on {self.name}: {str(what)[:MAX_MESSAGE]}")
            raise

    def wrong(self, what: str) -> None:
        """Say of the last attempt that it worked, and should have been refused."""
        self.counts.update(worked=-1, wrong=1)
        pytest.fail(what)

    def command(
        self, folder: Path, *arguments: object, typed: str = "", encoding: str = "utf-8"
    ) -> Outcome:
        """One attempt with the console script in a folder: exit code 0, or one line and exit code 2."""
        self.counts["tried"] += 1
        try:
            outcome = iumad(folder, *arguments, typed=typed, encoding=encoding)
            assert "Traceback" not in outcome.out + outcome.err
            assert outcome.code in (0, 2), f"exit code {outcome.code}"
            if outcome.code == 2 and "Usage: " not in outcome.out + outcome.err:
                require_message(outcome.error)
        except Exception as error:
            self.counts["wrong"] += 1
            error.add_note(f"attack on {self.name}: iumad {' '.join(map(repr, arguments))}")
            raise
        self.counts["refused" if outcome.code else "worked"] += 1
        return outcome


def require_message(text: str, *named: str) -> None:
    """A refusal's text is one line, not endless, and has the texts `named`."""
    assert text and "\n" not in text.strip() and len(text) <= MAX_MESSAGE, f"message: {text[:4000]}"
    for name in named:
        assert name in text, f"{name} is not in the message: {text}"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand the tally of a worker of pytest-xdist to its controller."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["attack"] = {area: dict(n) for area, n in TALLY.items()}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    """Add a worker's tally to the controller's."""
    for area, counts in getattr(node, "workeroutput", {}).get("attack", {}).items():
        TALLY.setdefault(area, Counter()).update(counts)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the tally."""
    tried = {area: counts for area, counts in TALLY.items() if counts}
    if not tried:
        return
    terminalreporter.section("attacks")
    terminalreporter.write_line(f"{'area':24}" + "".join(f"{name:>10}" for name in OUTCOMES))
    whole = sum(tried.values(), Counter())
    for area, counts in [*sorted(tried.items()), ("all", whole)]:
        numbers = "".join(f"{counts[name]:10}" for name in OUTCOMES)
        terminalreporter.write_line(f"{area:24}{numbers}")
