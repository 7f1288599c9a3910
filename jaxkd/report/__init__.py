"""What a run is shown as."""

from jaxkd.report.table import console, headline

__all__ = ["console", "headline"]
