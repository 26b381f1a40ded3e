"""The command `workbench`: one verb per step; the verbs are in `commands`.

Knows: how a verb looks, and how a person's error becomes one line and an exit status: 1 for an error that can be put
right, 2 for a command that cannot be understood, 130 for Ctrl-C and for a run that was stopped.
Does not know: how anything is done; rooms are imported inside their verbs, so that `--help` is quick.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import nullcontext, redirect_stdout

from workbench import __version__, resources
from workbench.commands import (
    conversations,
    giving,
    house,
    images,
    notebooks,
    scoring,
    seeing,
    serving,
    training,
    using,
)
from workbench.commands.common import Verb
from workbench.errors import WorkbenchError


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; returns the exit status. A `WorkbenchError` is one line on stderr, never a traceback."""
    given = _parser().parse_args(arguments)
    given.stdout = sys.stdout
    # With --json everything a room prints goes to stderr, so that stdout holds the JSON and nothing else.
    quiet = redirect_stdout(sys.stderr) if getattr(given, "json", False) else nullcontext()
    try:
        with quiet, resources.disk_errors("the disk"):
            return given.verb(given) or 0
    except WorkbenchError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped by Ctrl-C; what was finished before is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has enough; keep the interpreter's own flush quiet
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="workbench",
        description="From a folder of images to a LLaVA that answers about them.",
        epilog="Start with `workbench quickstart`. `workbench VERB --help` shows an example of each.",
    )
    parser.add_argument("--version", action="version", version=f"workbench {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    def verb(name: str, does: Verb, help: str, *examples: str) -> argparse.ArgumentParser:
        shown = "examples:\n" + "\n".join(f"  workbench {example}" for example in examples)
        style = argparse.RawDescriptionHelpFormatter
        added = verbs.add_parser(name, help=help, description=help, epilog=shown, formatter_class=style)
        added.set_defaults(verb=does)
        return added

    for some in (house, notebooks, images, conversations, training, scoring, seeing, using, serving, giving):
        some.add_verbs(verb)
    return parser


if __name__ == "__main__":
    sys.exit(main())
