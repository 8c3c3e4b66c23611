"""The report of a run: what changed from the incoming to the adapted model, in one HTML file.

capture.py      predictions of both models on a sample of the images, kept in the run folder
run_folder.py   what else the run folder says
statistics.py   numbers of two predictions: transitions, shares, agreement
findings.py     all numbers of a report
headline.py     better, worse or unknown, in words
charts.py, pictures.py, numbers.py, page.py, templates/    the page
report.py       the steps, one after the other         comparison.py   several runs in one page
"""

from das3.report.comparison import write_comparison
from das3.report.report import Report, RunReporter, write_report

__all__ = ["Report", "RunReporter", "write_comparison", "write_report"]
