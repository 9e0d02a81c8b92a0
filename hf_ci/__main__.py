import os
import sys

from hf_ci.cli import main
from hf_ci.errors import EXIT_INTERNAL


def program() -> None:
    """`main`, and out at once: on the usual way out, threads of libraries have been seen to abort a process (with a code
    that is none of ours) whose report was complete."""
    try:
        main()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else EXIT_INTERNAL
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except BrokenPipeError:  # whoever was reading has seen enough
                pass
            except OSError:
                code = EXIT_INTERNAL
        os._exit(code)


if __name__ == "__main__":
    program()
