"""The page and its JSON twin: read-only views of the state store. `create_app` builds the application."""

from monitor.web.app import create_app

__all__ = ["create_app"]
