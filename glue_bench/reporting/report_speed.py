"""The report's sections on size and speed: the paper's scenario, every timing, and why a row was not timed."""

from collections.abc import Iterator
from typing import Any

from glue_bench.records import Interval
from glue_bench.reporting.analysis import Analysis, macro_name
from glue_bench.reporting.efficiency import LEAST_PASSES, PAPER_SCENARIO, timed_inputs
from glue_bench.reporting.published_numbers import SIZE_REDUCTION, SPEEDUP, STSB_PASS_SECONDS
from glue_bench.reporting.quantised import quantised_rows
from glue_bench.reporting.statistics import MACRO_ROWS
from glue_bench.reporting.tables import (
    DASH,
    markdown_table,
    markdown_text,
    number,
    percent,
    percent_interval,
    times_interval,
)
from glue_bench.tasks import TASKS

MEGA = 1e6


def size_section(analysis: Analysis) -> str:
    """Parameters and bytes of every row, and its speed-up in the paper's scenario."""
    run = analysis.run
    rows = []
    for model in analysis.fine_tuned:
        size, speedup = run.sizes.get(model), analysis.speedups[model]
        reduction = analysis.size_reduction(model)
        rows.append(
            [
                markdown_text(model),
                number(size.encoder / MEGA if size else None),
                number(size.without_embeddings / MEGA if size else None),
                number(size.bytes / MEGA if size else None, 1),
                DASH if model == analysis.teacher else percent(reduction),
                *(DASH if model == analysis.teacher else times_interval(speedup[one]) for one in ("cpu", "cuda")),
            ]
        )
    headers = [
        "model", "encoder, M", "without embeddings, M", "fp32 file, MB", "smaller by %", "speed-up CPU [95 %]",
        "speed-up CUDA [95 %]",
    ]  # fmt: skip
    text = (
        "Parameters of the bare encoder in millions. Speed-up is the teacher's time over the row's on the same inputs, "
        f"measured interleaved: scenario {PAPER_SCENARIO['scenario']}, batch 1, fp32, eager, "
        f"{markdown_text(timed_inputs(run))}. "
        "The interval tells how far the passes of this one measurement scatter; another day's value may lie outside. "
        "The paper, on the whole STS-B dev set: DistilBERT is "
        f"{percent(SIZE_REDUCTION)} % smaller than BERT-base and {SPEEDUP:.2f}x as fast "
        f"({STSB_PASS_SECONDS['DistilBERT']:.0f} s against {STSB_PASS_SECONDS['BERT-base']:.0f} s on a Xeon E5).\n\n"
    )
    return text + markdown_table(headers, rows) + _reasons(analysis)


def timing_section(analysis: Analysis) -> str:
    """Every timing with its percentiles and memory."""
    timed = [row for row in analysis.efficiency if not row["skipped"]]
    if not timed:
        return ""
    headers = [
        "model", "device", "backend", "precision", "scenario", "batch", "mean ms", "p50", "p90", "p99", "examples/s",
        "speed-up [95 %]", "memory MB", "device MB",
    ]  # fmt: skip
    rows = [_timing(row) for row in timed]
    text = (
        "A call is one batch, or one whole pass for stsb-pass; speed-up is against the teacher on the same device, "
        f"backend, precision, scenario and batch size, with an interval from {LEAST_PASSES} passes on.\n\n"
    )
    return text + markdown_table(headers, rows, left=5) + _exported(timed)


def quantised_section(analysis: Analysis) -> str:
    """Scores of the int8 exports beside those of the same weights in fp32 and of the teacher."""
    rows, reasons = [], {}
    for row in quantised_rows(analysis.quantised, analysis.kept_by_int8):
        if row.get("skipped"):
            name = f"{markdown_text(row['model'])}, {TASKS[row['task']].title}"
            reasons[f"- {DASH} {name}: {markdown_text(row['skipped'])}"] = None
        kept = analysis.kept_by_int8.get(row["model"])
        is_macro = row["task"] in MACRO_ROWS
        found = kept and (kept.of_fp32.macro, kept.of_fp32.macro_9)[MACRO_ROWS.index(row["task"])] if is_macro else None
        gap = row.get("largest_logit_difference")
        rows.append(
            [
                markdown_text(row["model"]),
                f"**{macro_name(found.tasks)}**" if found else TASKS[row["task"]].title,
                percent(row.get("fp32_score")),
                percent(row.get("score")),
                percent_interval(_interval(row, "retention_of_fp32", "fp32_low", "fp32_high")),
                percent_interval(_interval(row, "retention", "low", "high")),
                DASH if gap is None else f"{gap:.2g}",
                number(row["bytes_on_disk"] / MEGA if row.get("bytes_on_disk") else None, 1),
                number(row["fp32_bytes_on_disk"] / MEGA if row.get("fp32_bytes_on_disk") else None, 1),
            ]
        )
    if not rows:
        return ""
    headers = [
        "model", "task", "fp32", "int8", "int8 keeps of its fp32, % [95 %]", "of the teacher in fp32, % [95 %]",
        "largest logit difference", "int8, MB", "fp32 export, MB",
    ]  # fmt: skip
    settings = [record["settings"] for record in analysis.run.records.values()]
    machines = {one["machine"] for one in settings if "machine" in one and "models" not in one}  # of benchmark/int8
    precisions = {one["precision"] for one in settings if "task" in one and "precision" in one} - {"fp32"}
    predicted = f" (predicted in {', '.join(sorted(precisions))})" if precisions else ""
    where = markdown_text(", ".join(sorted(machines)) or "no machine yet")
    text = (
        "ONNX Runtime's dynamic quantisation of one fine-tuning, the median seed's; fp32 is that same fine-tuning as "
        f"it was scored above{predicted}, the teacher's is its own median seed. Dev sets, one example at a time, on "
        f"{where}. Integer products may saturate on CPUs without VNNI, so that another machine can score otherwise.\n\n"
    )
    table = markdown_table(headers, rows, left=2)
    return text + table + ("\n" + "\n".join(reasons) + "\n" if reasons else "")


def _interval(row: dict[str, Any], value: str, low: str, high: str) -> Interval:
    return Interval(row.get(value), row.get(low), row.get(high))


def skipped_rows(analysis: Analysis) -> Iterator[str]:
    """One line per device, backend and precision that was not timed: the reason first, then the models it concerns.

    Where the text is cut for its length, the reason stays.
    """
    found: dict[tuple[str, str, str, str], list[str]] = {}
    for row in analysis.efficiency:
        if row["skipped"]:
            key = (row["device"], row["backend"], row["precision"], row["skipped"])
            if row["model"] not in found.setdefault(key, []):
                found[key].append(row["model"])
    for (device, backend, precision, why), models in found.items():
        yield f"{device} {backend} {precision}: {why} ({', '.join(models)})"


def _timing(row: dict[str, Any]) -> list[str]:
    speedup = Interval(row["speedup"], row["speedup_low"], row["speedup_high"])
    digits = 2 if row["mean_ms"] < 1000 else 0
    return [
        markdown_text(row["model"]),
        *(markdown_text(row[name]) for name in ("device", "backend", "precision", "scenario")),
        str(row["batch_size"]),
        *(number(row[name], digits) for name in ("mean_ms", "p50_ms", "p90_ms", "p99_ms")),
        number(row["examples_per_second"], 1),
        times_interval(speedup),
        number(row["peak_memory_mb"], 0),
        number(row["device_memory_mb"], 0),
    ]


def _exported(timed: list[dict[str, Any]]) -> str:
    """Bytes on disk and agreement with the original, for every exported or reduced form."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for row in timed:
        if (row["backend"], row["precision"]) == ("eager", "fp32"):
            continue
        key = (row["model"], row["device"], row["backend"], row["precision"])
        size = None if row["bytes_on_disk"] is None else row["bytes_on_disk"] / MEGA
        gap = row["largest_logit_difference"]
        rows[key] = [*map(markdown_text, key), number(size, 1), DASH if gap is None else f"{gap:.2g}"]
    headers = ["model", "device", "backend", "precision", "on disk, MB", "largest logit difference to eager fp32"]
    table = markdown_table(headers, rows.values(), left=4)
    return f"\n{table}" if table else ""


def _reasons(analysis: Analysis) -> str:
    lines: dict[str, None] = {}
    for model in analysis.fine_tuned:
        for device in ("cpu", "cuda"):
            if reason := analysis.speedups[model][device].reason:
                lines[f"- {DASH} speed-up {device.upper()}: {markdown_text(reason)}"] = None
        if model not in analysis.run.sizes:
            lines[f"- {DASH} size of {markdown_text(model)}: not measured"] = None
    lines |= {f"- {DASH} not timed: {markdown_text(line)}": None for line in skipped_rows(analysis)}
    return "\n" + "\n".join(lines) + "\n" if lines else ""
