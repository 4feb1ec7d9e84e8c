"""Figures: no text overlaps another or leaves the picture, with one student and with twelve, and with hostile names."""

from itertools import combinations

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from glue_bench.records import Interval
from glue_bench.reporting.figures import (
    RETENTION_AXIS,
    Curve,
    Point,
    losses_figure,
    parameters_figure,
    png,
    retention_figure,
    scatter_figure,
)
from glue_bench.reporting.published_numbers import PARAMETERS_MILLIONS

TITLES = ["macro", "CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI", "QNLI", "RTE", "WNLI"]
SLACK = 2.0  # pixels that glyph boxes may share


def names(count: int) -> list[str]:
    return ["_a $very$ long name of a student that goes on and on <b>", *(f"distil-{i}" for i in range(1, count))][
        :count
    ]


def ticks_out_of_view(figure: Figure) -> set[Text]:
    hidden: set[Text] = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not low <= tick.get_loc() <= high or not axes.axison:
                    hidden |= {tick.label1, tick.label2}
    return hidden


def texts(figure: Figure) -> dict[str, tuple[float, float, float, float]]:
    """What is written where, in pixels: (left, bottom, right, top)."""
    figure.canvas.draw()
    hidden = ticks_out_of_view(figure)
    found = {}
    for number, text in enumerate(figure.findobj(Text)):
        if text not in hidden and text.get_visible() and text.get_text().strip():
            box = Text.get_window_extent(text)  # of the text of an annotation without its arrow
            found[f"{number} {text.get_text()}"] = (box.x0, box.y0, box.x1, box.y1)
    return found


def assert_legible(figure: Figure) -> None:
    boxes = texts(figure)
    width, height = figure.canvas.get_width_height()
    assert len(boxes) > 3
    for name, (left, bottom, right, top) in boxes.items():
        assert left > -SLACK and bottom > -SLACK and right < width + SLACK and top < height + SLACK, f"{name} leaves it"
    for (one, a), (other, b) in combinations(boxes.items(), 2):
        apart = min(a[2], b[2]) - max(a[0], b[0]) < SLACK or min(a[3], b[3]) - max(a[1], b[1]) < SLACK
        assert apart, f"{one!r} and {other!r} overlap"


def drawn_words(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_a_value_beyond_the_edge_is_pointed_at_and_what_was_not_run_is_said_so() -> None:
    """A value without interval, three times the teacher's, and a student that lacks a task."""
    panels = {"RTE": {"a": Interval(3.0, reason="no interval")}, "CoLA": {"b": Interval(None, reason="undefined: 0")}}
    figure = retention_figure(panels)
    (axes,) = figure.axes
    arrows = [line for line in axes.lines if line.get_marker() == ">" and len(line.get_xdata())]
    assert [list(line.get_xdata()) for line in arrows] == [[RETENTION_AXIS[1]]]
    assert sorted(drawn_words(figure)) == ["not run", "not run", "undefined"]


def intervals(count: int) -> dict[str, Interval]:
    values = [Interval(0.9 - i / 40, 0.7 - i / 40, 1.1 - i / 40) for i in range(count)]
    values[-1] = Interval(None, reason="undefined")
    values[0] = Interval(0.95, -5.0, 7.0)
    return dict(zip(names(count), values, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 12])
def test_parameters(count: int) -> None:
    assert_legible(parameters_figure({name: 1.5 * (i + 1) for i, name in enumerate(names(count))}, PARAMETERS_MILLIONS))


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3, 4, 12])
def test_retention(count: int) -> None:
    assert_legible(retention_figure({title: intervals(count) for title in TITLES}))


@pytest.mark.parametrize(("panels", "lines"), [(5, [5]), (6, [3, 3]), (7, [4, 3]), (9, [5, 4]), (10, [5, 5])])
def test_panels_of_retention_fill_their_lines(panels: int, lines: list[int]) -> None:
    figure = retention_figure({title: intervals(4) for title in TITLES[:panels]})
    places = [axes.get_subplotspec().rowspan.start for axes in figure.axes if axes.axison]
    assert [places.count(line) for line in sorted(set(places))] == lines


def test_the_axis_of_retention_holds_every_interval_and_is_as_narrow_as_that_allows() -> None:
    tight = {"macro": {"a": Interval(0.97, 0.95, 0.99), "b": Interval(None, reason="undefined")}}
    low, high = retention_figure(tight).axes[0].get_xlim()
    assert 90 < low < 95 and 100 < high < 105
    wide = {"macro": {"a": Interval(0.95, -5.0, 7.0)}}
    assert retention_figure(wide).axes[0].get_xlim() == RETENTION_AXIS


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 12])
def test_retention_against_speed(count: int) -> None:
    same = [Point(name, Interval(0.9, 0.88, 0.92), Interval(1.5, 1.4, 1.6)) for name in names(count)]
    assert_legible(scatter_figure(same))


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 12])
def test_losses(count: int) -> None:
    curves = [Curve(name, [0, 1e6, 2e6], [9.0, 5.0 + i, 4.0 + i]) for i, name in enumerate(names(count))]
    figure = losses_figure({"training": curves, "held-out": curves})
    assert_legible(figure)
    assert all(len(axes.get_legend().get_texts()) == count for axes in figure.axes)


def test_the_same_numbers_give_the_same_bytes() -> None:
    curves = {"training": [Curve("a", [0.0, 1.0], [2.0, 1.0])]}
    first, second = png(losses_figure(curves)), png(losses_figure(curves))
    assert first == second and first.startswith(b"\x89PNG")
    assert b"Software" not in first and b"tEXt" not in first


def test_twelve_students_are_told_apart_without_colour() -> None:
    figure = losses_figure({"training": [Curve(name, [0, 1], [1, 2]) for name in names(12)]})
    styles = {(line.get_linestyle(), line.get_color()) for line in figure.axes[0].get_lines()}
    assert len(styles) == 12
    for line in figure.axes[0].get_lines():
        assert 0.0 <= float(line.get_color()) <= 0.65, "a grey that is still seen on white"
