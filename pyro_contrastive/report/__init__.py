"""Results as one self-contained HTML page."""

from pyro_contrastive.report.html import ReportFigure, ReportTable, write_report

__all__ = ["ReportFigure", "ReportTable", "write_report"]
