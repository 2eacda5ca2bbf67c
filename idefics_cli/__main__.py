"""`python -m idefics_cli`: the same as the command `idefics`."""

from idefics_cli.cli.app import main

if __name__ == "__main__":
    main()
