"""What a run is shown as."""

from jaxkd.report.table import headline

__all__ = ["headline"]
