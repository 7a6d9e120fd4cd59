"""`python -m hagane.cli` is the `hagane` command."""

from hagane.cli.main import main

main()
