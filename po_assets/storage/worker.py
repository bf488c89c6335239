"""A worker process: reads blocks from its standard input, writes results to its standard output.

It is started by `workers` as a fresh Python that imports only what the work needs. (The pools of the standard library
import the parent's main module again, which in a Dagster run costs seconds per worker; a fork would copy a process that
has threads.)
"""

import os
import pickle
import sys


def main() -> None:
    """Prepare the work once, then serve blocks until the input ends."""
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what the work prints must not end up among the replies
    make_work, arguments = pickle.load(requests)  # noqa: S301 - from the parent, through a pipe of its own
    work = make_work(*arguments)
    while True:
        try:
            block = pickle.load(requests)  # noqa: S301
        except EOFError:
            return
        try:
            reply = (True, work(block))
        except Exception as error:  # noqa: BLE001 - it is the parent that must fail
            reply = (False, f"{type(error).__name__}: {error}")
        pickle.dump(reply, replies, protocol=pickle.HIGHEST_PROTOCOL)
        replies.flush()


if __name__ == "__main__":
    main()
