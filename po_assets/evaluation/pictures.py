"""The pictures of an evaluation, as matplotlib figures: for Dagster's metadata and for the HTML page."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from po_assets.evaluation.gate_rows import THRESHOLDS
from po_assets.evaluation.scoring import ScoredAnswer
from po_assets.evaluation.statistics import confusion_matrix

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BASELINE, _STUDENT, _LINE = "#94a3b8", "#4f46e5", "#dc2626"


def evaluation_figures(baseline: Sequence[ScoredAnswer], student: Sequence[ScoredAnswer]) -> "dict[str, Figure]":
    """All pictures of an evaluation, by title."""
    return {
        "Baseline against student": case_scores(baseline, student, THRESHOLDS.mean_score),
        "Score histogram": score_histogram(baseline, student, THRESHOLDS.mean_score),
        "Student's statuses": confusion_picture(confusion_matrix(student), "Student's statuses"),
        "Baseline's statuses": confusion_picture(confusion_matrix(baseline), "Baseline's statuses"),
    }


def case_scores(baseline: Sequence[ScoredAnswer], student: Sequence[ScoredAnswer], threshold: float) -> "Figure":
    """Each case's two scores, joined by a line, cases in order of the student's score."""
    figure, axes = _figure((9.0, 3.4), "Score per case", "cases, lowest student score first", "score")
    by_case = {answer.case_id: answer.total for answer in baseline}
    ordered = sorted(student, key=lambda answer: answer.total)
    places = range(len(ordered))
    before, after = [by_case[answer.case_id] for answer in ordered], [answer.total for answer in ordered]
    axes.vlines(places, before, after, color="#cbd5e1", linewidth=1)
    axes.scatter(places, before, color=_BASELINE, s=22, label="baseline", zorder=3)
    axes.scatter(places, after, color=_STUDENT, s=22, label="student", zorder=3)
    axes.axhline(threshold, color=_LINE, linestyle="--", linewidth=1, label=f"mean asked for {threshold:g}")
    # A `$` in an id or a status is no formula.
    axes.set_xticks(list(places), [a.case_id for a in ordered], rotation=90, fontsize=5, parse_math=False)
    axes.set_ylim(-0.02, 1.02)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def score_histogram(baseline: Sequence[ScoredAnswer], student: Sequence[ScoredAnswer], threshold: float) -> "Figure":
    """How many answers lie where, baseline and student."""
    figure, axes = _figure((6.4, 3.0), "Scores", "score", "cases")
    bins = [edge / 20 for edge in range(21)]
    axes.hist([a.total for a in baseline], bins=bins, color=_BASELINE, alpha=0.7, label="baseline")
    axes.hist([a.total for a in student], bins=bins, color=_STUDENT, alpha=0.7, label="student")
    axes.axvline(threshold, color=_LINE, linestyle="--", label=f"mean asked for {threshold:g}")
    axes.legend(frameon=False, fontsize=8)
    return figure


def confusion_picture(matrix: Mapping[str, Mapping[str, int]], title: str) -> "Figure":
    """Reference status (rows) against answered status (columns)."""
    figure, axes = _figure((5.2, 3.2), title, "status in the answer", "right status")
    rows = list(matrix)
    columns = list(dict.fromkeys(column for row in matrix.values() for column in row))
    counts = [[matrix[row].get(column, 0) for column in columns] for row in rows]
    axes.imshow(counts, cmap="Purples", aspect="auto")
    highest = max((count for row in counts for count in row), default=0)
    for y, row in enumerate(counts):
        for x, count in enumerate(row):
            axes.text(x, y, str(count), ha="center", va="center", color="white" if count > highest / 2 else "black")
    axes.set_xticks(range(len(columns)), columns, fontsize=8, parse_math=False)
    axes.set_yticks(range(len(rows)), rows, fontsize=8)
    return figure


def data_uri(figure: "Figure") -> str:
    """The figure as a PNG inside a data URI, for an HTML page without further files."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _figure(size: tuple[float, float], title: str, xlabel: str, ylabel: str) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(xlabel, fontsize=9)
    axes.set_ylabel(ylabel, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
