"""Experiments: set-ups, the command that runs them, their tables and figures."""
