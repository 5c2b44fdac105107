"""Commands that are killed after a while, from a process that has imported all they need: a start costs no time.

Workers of `-j` are copies of it, too, where they are usually those of a server that each command starts, and
nothing is measured beside the rows.

Reads lines of JSON, {"argv": [...], "signal": number or null, "moment": seconds}, and answers each with
{"code": exit code, "killed": whether the signal was sent, "seconds": ..., "told": last line of the error output}.
The first command is not copied: what it loads and compiles is there for all that follow.
"""

import json
import multiprocessing
import os
import signal
import sys
import time

from tqdm import tqdm


def command(argv: list[str]) -> int:
    """Exit code of a command in this process."""
    sys.argv = argv
    try:
        main()
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    return 0


def attempt(order: dict) -> dict:
    """Run a command in a copy of this process, and send it the signal if it still runs at that moment."""
    reading, writing = os.pipe()
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(0, 1)
        os.dup2(writing, 2)
        os.close(writing)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        code = 1
        try:
            code = command(order["argv"])
        except BaseException as error:  # nothing of this copy may go on
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        finally:
            sys.stderr.flush()
            os._exit(code)
    os.close(writing)
    killed = False
    while order["signal"] is not None and not killed:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            break
        if time.monotonic() - began > order["moment"]:
            os.kill(child, order["signal"])
            killed = True
        time.sleep(0.01)
    with os.fdopen(
        reading, "rb"
    ) as pipe:  # its end is that of all processes that the command started
        told = pipe.read().decode(errors="replace").strip().splitlines()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    seconds = time.monotonic() - began
    return {"code": code, "killed": killed, "seconds": seconds, "told": told[-1] if told else ""}


if __name__ == "__main__":
    from iumad.__main__ import SIGNALS, _end_at_once, main
    from iumad.study import measure, parallel

    parallel._context = lambda *_: multiprocessing.get_context("fork")
    measure.measure = lambda *_, **__: 0
    tqdm.monitor_interval = 0  # no threads, which a copy would not have
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    first = json.loads(sys.stdin.readline())
    print(json.dumps({"code": command(first["argv"])}), file=answers, flush=True)
    for number in SIGNALS:  # as a command does before it imports anything
        signal.signal(number, _end_at_once)
    for line in sys.stdin:
        print(json.dumps(attempt(json.loads(line))), file=answers, flush=True)
