"""`python -m bestofn.cli`: the program, whatever the PATH."""

from bestofn.cli.main import app

app()
