"""`python -m vit_export`, the same as the command `vit-export`."""

import os
import sys

if __name__ == "__main__":
    if sys.path[0] == os.getcwd():  # `python -m` puts it first: a json.py there would be imported
        sys.path.append(sys.path.pop(0))
    from vit_export.cli.main import main

    main()
