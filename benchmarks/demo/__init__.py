"""The demo: the whole service on embedded parts, told as a story of three log days in about two minutes."""
