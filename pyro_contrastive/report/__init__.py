"""Results as one self-contained HTML page."""

from pyro_contrastive.report.html import write_report
from pyro_contrastive.report.page import Answer, ReportFigure, ReportPage, ReportTable

__all__ = ["Answer", "ReportFigure", "ReportPage", "ReportTable", "write_report"]
