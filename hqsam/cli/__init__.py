"""The `hqsam` command, one file per subcommand. Libraries load inside the commands, so that `--help` is instant."""

from hqsam.cli.main import main

__all__ = ["main"]
