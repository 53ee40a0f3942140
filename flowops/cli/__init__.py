"""The `flowops` command."""
