"""`python -m rmat` is the command `rmat`."""

from rmat.cli.main import entry

entry()
