"""The command `iumad`, also as `python -m iumad`; an interruption ends it with one line, from the start on."""

import os
import shlex
import signal
import sys
from types import FrameType

from iumad.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main() -> None:
    """Entry point of the console script."""
    for number in SIGNALS:
        signal.signal(number, _end_at_once)
    from iumad.cli import main as command  # takes a second, in which nothing can be lost

    for number in SIGNALS:
        signal.signal(number, _interrupt)
    try:
        try:
            command()
        finally:  # nothing is left to stop: a signal could only spoil the exit code
            for number in SIGNALS:
                signal.signal(number, signal.SIG_IGN)
    except Interrupted as stop:
        _say(str(stop))
        sys.exit(128 + stop.signal)


def _end_at_once(number: int, _frame: FrameType | None) -> None:
    _say("interrupted before anything was done")
    os._exit(128 + number)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    raise Interrupted("interrupted", number)


def _say(text: str) -> None:
    command = shlex.join(["iumad", *sys.argv[1:]])
    os.write(2, f"\n{text}; go on with: {command}\n".encode("utf-8", "surrogateescape"))


if __name__ == "__main__":
    main()
