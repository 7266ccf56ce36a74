"""Entry points: `main` of the installed command, which starts `python -I -m appliance`, and this module of that."""

import os
import sys


def main() -> None:
    """Run the command line in an isolated interpreter.

    Until then nothing is imported but what every Python has in memory, so what PYTHONPATH or the current directory
    offer under the names that the appliance imports is not looked at.
    """
    if not sys.flags.isolated:
        kept = ["-B"] if sys.dont_write_bytecode else []
        os.execv(sys.executable, [sys.executable, "-I", *kept, "-m", "appliance", *sys.argv[1:]])  # noqa: S606 - no shell is wanted
    run()


def run() -> None:
    """Run the command line in this interpreter."""
    from appliance.cli.app import main

    main()


if __name__ == "__main__":
    run()
