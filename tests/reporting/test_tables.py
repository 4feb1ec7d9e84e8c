"""Names and texts from outside cannot break Markdown or CSV; numbers are printed as the contract says."""

import csv
import io
import re

import pytest

from glue_bench.records import Interval
from glue_bench.reporting.tables import (
    code_block,
    csv_text,
    markdown_table,
    markdown_text,
    percent,
    percent_interval,
    read_csv,
    signed_points,
    times_interval,
)

HOSTILE = [
    "a|b",
    "\\|",
    "a\nb",
    "a\r\n\r\n# heading",
    "<script>alert(1)</script>",
    "<!-- --> &lt;b&gt;",
    "[click](javascript:alert)",
    "[label]: https://example.org",
    "![image](x.png)",
    "https://example.org www.example.org",
    "`code` ``` ~~~",
    "**bold** _slanted_ ~~gone~~ $x$",
    "---",
    "===",
    "1. item",
    "- item",
    "# heading",
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "'=1",
    "＝1+1",
    "＠SUM(A1)",
    "\t=1",
    "‮evil\x00\x1b[31m",
    "x" * 10_000,
    "",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text_in_markdown(text: str) -> None:
    shown = markdown_text(text)
    assert "\n" not in shown and "\r" not in shown and "|" not in shown and "<" not in shown and ">" not in shown
    assert not re.search(r"(?<!\\)[`*$]", shown)
    assert not re.search(r"(?<!\\)\][(\[:]", shown), "a link or a link's definition"
    assert "://" not in shown and "www." not in shown
    assert not re.match(r"[-+#=](\s|[-+#=])|\d+[.)]\s", shown), "a heading, list or rule"
    assert len(shown) < 2000


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_in_its_cell(text: str) -> None:
    table = markdown_table(["model", "value"], [[markdown_text(text), "1.0"], ["next", "2.0"]])
    lines = table.strip("\n").split("\n")
    assert len(lines) == 4
    assert {line.count("|") for line in lines} == {3}


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_no_formula_and_reads_back(text: str) -> None:
    written = csv_text(("model", "value"), [{"model": text, "value": 0.5}])
    rows = list(csv.reader(io.StringIO(written)))
    assert len(rows) == 2 and len(rows[1]) == 2
    assert not rows[1][0].startswith(("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠"))
    expected = " ".join("".join(c if c.isprintable() else " " for c in text).split())[:299]
    assert read_csv(written)[0]["model"].rstrip("…") == expected


def test_ordinary_names_are_left_alone() -> None:
    for name in ("distil-3", "bert_base.v2", "96.4 % [95.1, 97.6]", "0.0001", "-0.5"):
        assert markdown_text(name) == name


def test_a_block_of_code_cannot_be_left() -> None:
    block = code_block("text\n````\n# out", "json")
    assert block.startswith("`````json\n") and block.endswith("\n`````\n")


def test_csv_holds_fractions_at_full_precision_and_no_nan() -> None:
    assert csv_text(("a", "b", "c"), [{"a": 1 / 3, "b": None, "c": 3}]) == "a,b,c\n0.3333333333333333,,3\n"
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="cell"):
            csv_text(("a",), [{"a": bad}])


def test_numbers_in_markdown() -> None:
    assert percent(0.9135) == "91.3" or percent(0.9135) == "91.4"  # the float lies just beside the half
    assert percent(0.5) == "50.0" and percent(None) == "–"
    assert percent_interval(Interval(0.964, 0.951, 0.976)) == "96.4 [95.1, 97.6]"
    assert percent_interval(Interval(0.964)) == "96.4"
    assert percent_interval(Interval(None, reason="why")) == "–"
    assert times_interval(Interval(1.631, 1.6, 1.66)) == "1.63x [1.60, 1.66]"
    assert signed_points(0.012) == "+1.2" and signed_points(-0.012) == "-1.2"
