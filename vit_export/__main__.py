"""`python -m vit_export`, and the console entry `vit-export`."""

from vit_export.cli.main import main

if __name__ == "__main__":
    main()
