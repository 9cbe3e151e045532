"""The results for people and machines, from plain data: the page, the summary, the tidy rows."""

from offmodel.report.data import ReportData
from offmodel.report.summary import FORMATS, render, write_report

__all__ = ["FORMATS", "ReportData", "render", "write_report"]
