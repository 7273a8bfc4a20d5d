"""The command line: each verb is load, call, save. Parsing and printing only."""

from immunity.cli.program import main

__all__ = ["main"]
