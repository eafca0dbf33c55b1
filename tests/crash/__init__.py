"""Processes that end themselves with SIGKILL at named points of the ingest path, and the count of what they stored."""
