"""The report's figures: legible in black and white, with twelve students, and nothing overlapping.

Drawn with matplotlib's Agg canvas and no global state, without time stamps, so the same numbers give the same bytes.
"""

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, NullFormatter

from glue_bench.records import Interval
from glue_bench.reporting.tables import one_line

DPI = 120
WIDTH_IN = 8.0
ROW_IN = 0.28  # of one bar or one student's line
LONGEST_NAME = 32
RETENTION_AXIS = (-10.0, 170.0)  # percent, at the widest; wider intervals end in an arrow at the edge
PANEL_COLUMNS = 5
FEW_STUDENTS = 3  # so many share one chart, told apart by their markers
LINE_STYLES = ("-", "--", "-.", ":")
LINE_GREYS = ("0.0", "0.35", "0.6")
MARKERS = "osD^v<>Pp*Xh"


@dataclass(frozen=True)
class Point:
    """One student in the scatter: retention against speed-up."""

    name: str
    retention: Interval
    speedup: Interval


@dataclass(frozen=True)
class Curve:
    """One line of the loss chart: x in tokens, y a loss."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def short(name: str) -> str:
    """A name that fits beside an axis."""
    flat = one_line(name)
    return flat if len(flat) <= LONGEST_NAME else flat[: LONGEST_NAME - 1] + "…"


def parameters_figure(ours: Mapping[str, float], published: Mapping[str, float]) -> Figure:
    """Bars of millions of parameters, logarithmic, smallest at the bottom; ours black, published ones hatched."""
    bars = [(name, value, True) for name, value in ours.items()]
    bars += [(f"{name} (published)", value, False) for name, value in published.items()]
    bars.sort(key=lambda bar: bar[1])
    figure = _figure(WIDTH_IN, 1.1 + ROW_IN * len(bars))
    axes = figure.add_subplot()
    for row, (_, value, is_ours) in enumerate(bars):
        style = {"color": "0.1"} if is_ours else {"facecolor": "white", "edgecolor": "0.4", "hatch": "////"}
        axes.barh(row, value, height=0.7, **style)
        text = f"{value:,.0f}" if value >= 100 else f"{value:,.1f}"
        axes.annotate(text, (value, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(min(value for _, value, _ in bars) / 2, max(value for _, value, _ in bars) * 2.5)
    axes.set_yticks(range(len(bars)), labels=[short(name) for name, _, _ in bars], fontsize=8, parse_math=False)
    axes.set_ylim(-0.6, len(bars) - 0.4)
    axes.set_xlabel("parameters of the bare encoder, millions (logarithmic)")
    _bare(axes)
    return figure


def retention_figure(panels: Mapping[str, Mapping[str, Interval]]) -> Figure:
    """Retention with 95 % intervals (title of a task -> student -> fraction), 100 % as a line.

    Up to FEW_STUDENTS students share one chart with a group of rows per task; more get a panel per task.
    """
    students = list(dict.fromkeys(name for rows in panels.values() for name in rows))
    if len(students) <= FEW_STUDENTS:
        return _retention_in_one(panels, students)
    lines = -(-len(panels) // PANEL_COLUMNS)
    columns = -(-len(panels) // lines)  # 6 panels in threes: a last line of one would leave its neighbours' axes bare
    figure = _figure(1.9 * columns + 2.4, lines * (0.62 + ROW_IN * len(students)) + 0.4)
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    edges = _retention_edges(panels)
    for place, axes in enumerate(grid.flat):
        if place >= len(panels):
            axes.set_axis_off()
            continue
        title = list(panels)[place]
        axes.set_title(title, fontsize=9, loc="left", parse_math=False)
        for row, student in enumerate(students):
            _whisker(axes, row, panels[title].get(student), "o", True, edges)
        axes.set_yticks(range(len(students)), labels=[short(one) for one in students], fontsize=8, parse_math=False)
        axes.set_ylim(len(students) - 0.4, -0.6)
        _retention_axis(axes, edges, labelled=place + columns >= len(panels))
    return figure


def _retention_in_one(panels: Mapping[str, Mapping[str, Interval]], students: Sequence[str]) -> Figure:
    step = len(students) + 0.6  # rows of one task and a gap
    figure = _figure(WIDTH_IN, 1.2 + ROW_IN * step * len(panels))
    axes = figure.add_subplot()
    edges = _retention_edges(panels)
    for group, rows in enumerate(panels.values()):
        for place, student in enumerate(students):
            number = place % len(MARKERS)
            _whisker(axes, group * step + place, rows.get(student), MARKERS[number], place == 0, edges)
        if group:
            axes.axhline(group * step - 0.8, color="0.9", linewidth=0.6)
    middles = [group * step + (len(students) - 1) / 2 for group in range(len(panels))]
    axes.set_yticks(middles, labels=list(panels), fontsize=9, parse_math=False)
    axes.set_ylim(step * len(panels) - 0.8, -0.8)
    _retention_axis(axes, edges, labelled=True)
    for place, student in enumerate(students):
        fill = "0.1" if place == 0 else "white"
        style = {"linestyle": "", "color": "0.1", "markerfacecolor": fill, "label": _label(student)}
        axes.plot([], [], marker=MARKERS[place], **style)
    _legend(axes)
    return figure


def _retention_edges(panels: Mapping[str, Mapping[str, Interval]]) -> tuple[float, float]:
    """The axis in percent: 100 and every interval, with a margin, but never wider than RETENTION_AXIS."""
    known = [one for rows in panels.values() for one in rows.values() if one.value is not None]
    values = [100.0, *(100 * end for one in known for end in (one.value, one.low, one.high) if end is not None)]
    margin = max(2.0, 0.08 * (max(values) - min(values)))
    return max(RETENTION_AXIS[0], min(values) - margin), min(RETENTION_AXIS[1], max(values) + margin)


def _retention_axis(axes: Axes, edges: tuple[float, float], *, labelled: bool) -> None:
    axes.axvline(100, color="0.6", linewidth=0.8, zorder=0)
    axes.set_xlim(*edges)
    axes.tick_params(axis="x", labelsize=8, labelbottom=labelled)
    if labelled:
        axes.set_xlabel("% of the teacher's score", fontsize=8)
    _bare(axes)


def scatter_figure(points: Sequence[Point]) -> Figure:
    """Retention (%) against speed-up on CPU. Names stand in a column beside the axes, tied to their points by lines."""
    figure = _figure(WIDTH_IN, max(3.6, 1.0 + ROW_IN * len(points)))
    axes = figure.add_subplot()
    for number, point in enumerate(points):
        x, y = point.speedup.value or 0.0, 100 * (point.retention.value or 0.0)
        axes.errorbar(
            [x],
            [y],
            xerr=_arms(point.speedup, 1),
            yerr=_arms(point.retention, 100),
            fmt=MARKERS[number % len(MARKERS)],
            markersize=6,
            markerfacecolor="white" if number % 2 else "0.1",
            markeredgecolor="0.1",
            ecolor="0.65",
            elinewidth=0.9,
            capsize=2,
        )
    axes.axhline(100, color="0.6", linewidth=0.8)
    axes.axvline(1, color="0.6", linewidth=0.8)
    axes.margins(0.08)
    _name_column(axes, points)
    axes.set_xlabel("speed-up on CPU (teacher = 1; scenario stsb-pass, batch 1, fp32)")
    axes.set_ylabel("retention of the macro without WNLI, %")
    _bare(axes)
    return figure


def losses_figure(panels: Mapping[str, Sequence[Curve]]) -> Figure:
    """Loss against tokens, one panel per kind of loss (title -> curves), told apart by line style and grey."""
    most = max(len(curves) for curves in panels.values())
    figure = _figure(WIDTH_IN + 1.0, len(panels) * max(2.6, 0.7 + 0.2 * most))
    for axes, (title, curves) in zip(figure.subplots(len(panels), 1, squeeze=False).flat, panels.items(), strict=True):
        for number, curve in enumerate(curves):
            style = LINE_STYLES[number % len(LINE_STYLES)]
            grey = LINE_GREYS[number // len(LINE_STYLES) % len(LINE_GREYS)]
            marker = "o" if len(curve.x) < 3 else None
            (line,) = axes.plot(curve.x, curve.y, linestyle=style, color=grey, linewidth=1.3, marker=marker)
            line.set_label(_label(curve.name))
        axes.set_title(title, fontsize=9, loc="left", parse_math=False)
        axes.set_xlabel("tokens", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        _legend(axes)
        _bare(axes)
    return figure


def _whisker(
    axes: Axes, row: float, interval: Interval | None, marker: str, filled: bool, edges: tuple[float, float]
) -> None:
    """A value with its interval; an arrow at the edge that either passes. None: the student was not run there."""
    low_edge, high_edge = edges
    if interval is None or interval.value is None:
        words = "not run" if interval is None else "undefined"
        axes.text((low_edge + high_edge) / 2, row, words, fontsize=7, color="0.4", va="center", ha="center")
        return
    value = 100 * interval.value
    low, high = value, value
    if interval.low is not None and interval.high is not None:
        low, high = 100 * interval.low, 100 * interval.high
        axes.plot([max(low, low_edge), min(high, high_edge)], [row, row], color="0.35", linewidth=1.4)
    for beyond, edge, arrow in ((low < low_edge, low_edge, "<"), (high > high_edge, high_edge, ">")):
        if beyond:
            axes.plot([edge], [row], marker=arrow, color="0.35", markersize=5, clip_on=False)
    if low_edge <= value <= high_edge:
        fill = "0.1" if filled else "white"
        axes.plot([value], [row], marker=marker, color="0.1", markerfacecolor=fill, markersize=5)


def _arms(interval: Interval, scale: float) -> list[list[float]] | None:
    if interval.value is None or interval.low is None or interval.high is None:
        return None
    return [[scale * max(0.0, interval.value - interval.low)], [scale * max(0.0, interval.high - interval.value)]]


def _name_column(axes: Axes, points: Sequence[Point]) -> None:
    """Names right of the axes in the order of their points' heights, evenly spread, with a thin line to each point."""
    order = sorted(points, key=lambda one: (one.retention.value or 0.0, one.speedup.value or 0.0))
    for place, point in enumerate(order):
        height = (place + 0.5) / len(order)
        axes.annotate(
            short(point.name),
            xy=(point.speedup.value or 0.0, 100 * (point.retention.value or 0.0)),
            xycoords="data",
            xytext=(1.04, height),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            parse_math=False,
            arrowprops={"arrowstyle": "-", "color": "0.75", "linewidth": 0.6, "shrinkB": 5, "relpos": (0, 0.5)},
        )


def _label(name: str) -> str:
    """A name for a legend, behind a space, as matplotlib leaves out labels that start with an underscore."""
    return f" {short(name)}"


def _legend(axes: Axes) -> None:
    """A legend right of the axes, where it covers nothing."""
    legend = axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False, handlelength=3)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _bare(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def png(figure: Figure) -> bytes:
    """The figure as PNG, without time stamp or version."""
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # glyphs that the font lacks, in names from outside
        figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()
