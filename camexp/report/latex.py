"""Tables in LaTeX with booktabs, in the papers' layout; ASCII only, to be read by \\input."""

import pandas as pd

from camexp.experiment import Experiment
from camexp.report.layout import Entry, Line, lines, model_name
from camexp.report.notes import notes
from camexp.report.verdicts import Tolerance

STYLES = ("{}", r"\textbf{{{}}}", r"\underline{{{}}}")
KINDS = {"interval": r"{{\scriptsize {}}}", "published": r"\textit{{{}}}", "difference": r"{{\scriptsize {}}}"}

SYMBOLS = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    "–": "--",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "≈": r"$\approx$",
    "≠": r"$\neq$",
    "†": r"$^{\dagger}$",
    "‡": r"$^{\ddagger}$",
    "§": r"$^{\S}$",
    "µ": r"$\mu$",
    "μ": r"$\mu$",
    "×": r"$\times$",
    "±": r"$\pm$",
    "→": r"$\rightarrow$",
}

HEAD = r"""% Needs \usepackage{{booktabs}} and \usepackage{{graphicx}}.
\begin{{table*}}
\centering
\caption{{{title}}}
\label{{tab:{name}}}
\resizebox{{\ifdim\width>\textwidth\textwidth\else\width\fi}}{{!}}{{%
\begin{{tabular}}{{ll{columns}}}
\toprule
"""

FOOT = r"""\bottomrule
\end{{tabular}}}}
\par\smallskip
\begin{{minipage}}{{\textwidth}}\footnotesize
{notes}
\end{{minipage}}
\end{{table*}}
"""


def render(experiment: Experiment, cells: pd.DataFrame, tolerance: Tolerance | None = None) -> str:
    """A table* environment: best bold, second underlined, rules of booktabs, notes below."""
    labels = [column.label for column in experiment.columns]
    name = experiment.name.replace("_", "-")
    parts = [HEAD.format(title=escape(experiment.title), name=name, columns="r" * len(labels))]
    parts.append(_row(["Model", "", *map(escape, labels)]) + "\\midrule\n")
    for position, line in enumerate(lines(experiment, cells)):
        parts.append("\\midrule\n" if line.first and position else "")
        model = escape(model_name(line.model)) if line.first else ""
        parts.append(_row([model, escape(line.heading), *(_entry(entry, line) for entry in line.entries)]))
    listed = "\n".join(f"{escape(note)}\\par" for note in notes(experiment, cells, tolerance))
    return "".join(parts) + FOOT.format(notes=listed)


def escape(text: str) -> str:
    """Text as LaTeX sets it; a character that has no replacement here becomes a question mark."""
    return "".join(SYMBOLS.get(c, c) for c in text).encode("ascii", "replace").decode("ascii")


def _entry(entry: Entry, line: Line) -> str:
    if not entry.text:
        return ""
    return KINDS.get(line.kind, "{}").format(STYLES[entry.rank].format(escape(entry.text))) + escape(entry.marks)


def _row(texts: list[str]) -> str:
    return " & ".join(texts) + " \\\\\n"
