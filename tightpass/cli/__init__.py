"""The command line: parses, calls, prints. No arithmetic here."""

import sys


def main() -> None:
    """Entry point of `tightpass`. The version is printed before anything that takes time is imported."""
    if sys.argv[1:] == ["--version"]:
        from tightpass import __version__
        from tightpass.cli.ends import ending_well

        ending_well(lambda: print(f"tightpass {__version__}"))
    from tightpass.cli.app import run

    run()
