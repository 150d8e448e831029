"""The report as a page for a browser: `build` writes it, whole in one file."""

from camexp.report.page.write import build, write_page

__all__ = ["build", "write_page"]
