"""`python -m bestofn.service.cli`: the program, whatever the PATH."""

from bestofn.service.cli.main import app

app()
