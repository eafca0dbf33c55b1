"""Peers side by side with Lanner on the same windows; see __main__."""
