"""The ``stemma`` command: a table of names, each resolved when it is called, so that ``--help`` imports nothing.

Exit codes: 0 done; 1 the answer is no, or a bar is missed; 2 the call cannot be carried out.
"""

from __future__ import annotations

import sys
from importlib import import_module

COMMANDS = {
    "ingest": ("stemma.commands:ingest", "store pictures in a collection"),
    "search": ("stemma.commands:search", "ask where pictures come from"),
    "compare": ("stemma.compare_command:compare", "show what was changed between two pictures"),
    "delete": ("stemma.commands:delete", "forget originals"),
    "fsck": ("stemma.commands:fsck", "check every row and segment of a collection"),
    "status": ("serving.commands:status", "what is there and how it is; --config prints every setting"),
    "up": ("serving.commands:up", "serve collections on Ray, over HTTP"),
    "down": ("serving.commands:down", "stop what `up` started"),
    "demo": ("evaluation.commands:demo", "see the product work on real photographs"),
    "evaluate": ("evaluation.commands:evaluate", "measure it on queries with known answers"),
    "bench": ("benchmarks.commands:bench", "measure its speed"),
    "train": ("training.commands:train", "fit the networks' projections, codec and thresholds"),
    "weights": ("training.weights_commands:weights", "list, verify, import and export the networks' weights"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if arguments[0] == "--version":
        print(import_module("stemma").__version__)
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"stemma: no command {name!r}\n\n{usage()}", file=sys.stderr)
        return 2
    module, _, function = COMMANDS[name][0].partition(":")
    try:
        code: int = getattr(import_module(module), function)(rest)
    except KeyboardInterrupt:  # while the command was still being loaded
        return 130
    return code


def usage() -> str:
    """The help text."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {meaning}" for name, (_, meaning) in COMMANDS.items()]
    head = ["stemma: where does a picture come from, and what was changed in it?", "", "usage: stemma COMMAND …", ""]
    return "\n".join([*head, *lines, "", "stemma COMMAND --help tells more."])


if __name__ == "__main__":
    raise SystemExit(main())
