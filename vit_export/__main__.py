"""`python -m vit_export`, the same as the command `vit-export`."""

import os
import sys


def run() -> None:
    """Run the command line without the current folder on the import path.

    `python -m` puts that folder first, where a file such as `json.py` or `click.py` would be
    imported in place of the library. It stays if it is where vit_export itself lies.
    """
    package = os.path.dirname(os.path.abspath(__file__))
    if sys.path[0] in ("", os.getcwd()) and not os.path.samefile(os.path.dirname(package), "."):
        del sys.path[0]
    from vit_export.cli.main import main

    main()


if __name__ == "__main__":
    run()
