"""`python -m benchmarks SUBCOMMAND`; `SUBCOMMAND --help` says more."""

from __future__ import annotations

import argparse
import importlib
import sys

# Each module says in its docstring what it does, and has `add_arguments(parser)` and `main(arguments)`, which returns
# the exit code. Only the one that is asked for is imported.
SUBCOMMANDS = {
    "report": "benchmarks.report",
    "many": "benchmarks.many_report",
    "compare": "benchmarks.compare",
    "floors": "benchmarks.floors",
    "selftest": "benchmarks.selftest",
    "goal": "benchmarks.goal",
    "threads": "benchmarks.threads",
    "cluster": "benchmarks.cluster",
}


def main() -> int:
    """Hand the arguments to the module of the subcommand."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("subcommand", choices=SUBCOMMANDS)
    name = parser.parse_args(sys.argv[1:2]).subcommand
    module = importlib.import_module(SUBCOMMANDS[name])
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks {name}", description=module.__doc__)
    module.add_arguments(parser)
    return int(module.main(parser.parse_args(sys.argv[2:])))


if __name__ == "__main__":
    sys.exit(main())
