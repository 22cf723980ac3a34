"""`python -m lightning_meta` is the command line."""

from lightning_meta.cli.main import console

if __name__ == "__main__":
    console()
