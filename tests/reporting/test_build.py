"""The report's files: the contract's columns, scores from predictions alone, and everything said that must be."""

import csv
import io
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from statistics import mean, median

import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from synthetic_run import SKILL, change_predictions, copy_run, make_run, reported_run, settings, small_run

from glue_bench.config import load_config, plain
from glue_bench.data.predictions import Predictions, read_predictions, write_predictions
from glue_bench.errors import GlueBenchError, UserError
from glue_bench.records import sealed
from glue_bench.reporting.analysis import analyse
from glue_bench.reporting.build import build, build_tables
from glue_bench.reporting.report_background import repeat_command
from glue_bench.reporting.report_text import notes_of
from glue_bench.reporting.run_folder import RunFolder, load_run
from glue_bench.store import Store, write_atomic
from glue_bench.tasks import GLUE_NINE, TASKS, WITHOUT_WNLI

RETENTION_COLUMNS = "model,task,score,teacher_score,retention,low,high,gain_retained,p_value,n_seeds"
EFFICIENCY_COLUMNS = (
    "model,device,backend,precision,scenario,batch_size,examples,mean_ms,p50_ms,p90_ms,p99_ms,examples_per_second,"
    "speedup,speedup_low,speedup_high,peak_memory_mb,device_memory_mb"
)


def tables_of(store: Store) -> dict[str, str]:
    return build_tables(analyse(load_run(store.root)), "python -m glue_bench run-all")[0]


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def section(report: str, title: str) -> str:
    return report.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_files_have_the_columns_and_keys_of_the_contract() -> None:
    root = reported_run().root
    assert (root / "scores.csv").read_text().splitlines()[0] == "model,task,split,seed,metric,value"
    assert (root / "retention.csv").read_text().splitlines()[0] == RETENTION_COLUMNS
    assert (root / "efficiency.csv").read_text().splitlines()[0] == EFFICIENCY_COLUMNS
    summary = json.loads((root / "summary.json").read_text())
    assert {"run", "config", "complete", "data", "environment", "gate", "models"} <= set(summary)
    assert summary["complete"] is True and summary["data"] == "embedded" and summary["run"] == "synthetic"
    assert set(summary["gate"]) == {"passed", "reasons"}
    wanted = {"role", "parameters", "bytes", "scores", "macro", "macro_without_wnli", "retention", "retention_9"}
    wanted |= {"gain_retained", "size_reduction", "speedup"}
    for name, model in summary["models"].items():
        assert wanted <= set(model), name
    student = summary["models"]["distil-2"]
    assert {"value", "low", "high"} <= set(student["retention"]) and set(student["speedup"]) == {"cpu", "cuda"}
    assert student["size_reduction"] == pytest.approx(1 - 600_000 / 990_000)
    assert [summary["models"][m]["role"] for m in ("teacher", "distil-2", "majority")] == [
        "teacher",
        "student",
        "majority",
    ]


def reference_metrics(task: str, label: pd.Series, prediction: pd.Series) -> dict[str, float]:
    if task == "cola":
        return {"matthews_correlation": matthews_corrcoef(label, prediction)}
    if task == "stsb":
        return {"pearson": pearsonr(label, prediction)[0], "spearman": spearmanr(label, prediction)[0]}
    metrics = {"accuracy": accuracy_score(label, prediction)}
    return metrics | ({"f1": f1_score(label, prediction)} if task in ("mrpc", "qqp") else {})


def test_scores_are_those_of_the_predictions_by_an_independent_reference() -> None:
    store = reported_run()
    stored = {
        (row["model"], row["task"], row["split"], int(row["seed"]), row["metric"]): float(row["value"])
        for row in rows((store.root / "scores.csv").read_text())
    }
    summary = json.loads((store.root / "summary.json").read_text())
    seen = 0
    for model in ("teacher", "distil-2", "copied-2"):
        medians, means = {}, {}
        for task in GLUE_NINE:
            headlines = []
            for seed in (0, 1, 2):
                table = pd.read_parquet(store.root / f"finetune/{model}/{task}/seed-{seed}/predictions.parquet")
                for split, part in table.groupby("split", sort=False):
                    metrics = reference_metrics(task, part["label"], part["prediction"])
                    for metric, value in metrics.items():
                        assert stored[model, task, split, seed, metric] == pytest.approx(value)
                        seen += 1
                    if split in ("validation", "validation_matched"):
                        headlines.append(mean(metrics.values()))
            medians[task], means[task] = median(headlines), mean(headlines)
        assert summary["models"][model]["scores"] == pytest.approx(medians)
        assert summary["models"][model]["macro"] == pytest.approx(mean(medians.values()))
        eight = mean(medians[task] for task in WITHOUT_WNLI)
        assert summary["models"][model]["macro_without_wnli"] == pytest.approx(eight)
        macro = mean(means[task] for task in WITHOUT_WNLI)
        if model == "teacher":
            teacher = macro
        else:
            assert summary["models"][model]["retention"]["value"] == pytest.approx(macro / teacher)
    assert seen == len([key for key in stored if key[0] != "majority"])


def test_a_records_own_scores_are_never_trusted(tmp_path: Path) -> None:
    store = copy_run(tmp_path)
    before = tables_of(store)
    path = store.root / "finetune/distil-2/rte/seed-0/record.json"
    forged = json.loads(path.read_text())
    forged["result"]["scores"][0]["metrics"]["accuracy"] = 1.0
    path.write_text(json.dumps(sealed(forged)))
    assert tables_of(store) == before
    change_predictions(store, "finetune/distil-2/rte/seed-0", lambda prediction: 1 - prediction)
    assert tables_of(store)["scores.csv"] != before["scores.csv"]


def test_the_first_line_is_the_finding() -> None:
    root = reported_run().root
    first, _, title, *_ = (root / "report.md").read_text().splitlines()
    finding = json.loads((root / "summary.json").read_text())["finding"]
    assert first == f"{finding}."
    assert finding == reported_run().result("report")["headline"]
    assert finding.startswith("distil-2 keeps ") and " over 8 tasks and 3 seeds" in finding
    assert "is 39.4 % smaller" in finding and "as fast on CPU" in finding and "[" in finding
    assert "no GLUE result" in title and "embedded" in title


def test_markdown_prints_percent_and_marks_the_best_of_each_column() -> None:
    root = reported_run().root
    summary = json.loads((root / "summary.json").read_text())
    text = section((root / "report.md").read_text(), "Scores")
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    for name, model in summary["models"].items():
        cells = [cell.strip() for cell in lines[name].split("|")[2:-1]]
        values = [*(model["scores"][task] for task in GLUE_NINE), model["macro"], model["macro_without_wnli"]]
        assert [cell.strip("*") for cell in cells] == [f"{100 * value:.1f}" for value in values]
        best = [
            value == max(other["scores"][task] for other in summary["models"].values())
            for task, value in zip(GLUE_NINE, values, strict=False)
        ]
        assert [cell.startswith("**") for cell in cells[:9]] == best


def test_always_the_same_class_is_best_where_it_is(tmp_path: Path) -> None:
    """On WNLI it often is, which a bold row below it would hide."""
    weak = {"teacher": 0.52, "distil-2": 0.4, "copied-2": 0.3}
    store = make_run(tmp_path, settings(data={"tasks": ["rte", "wnli"]}), skill=weak, reported=False)
    tables = tables_of(store)
    models = json.loads(tables["summary.json"])["models"]
    assert models["majority"]["scores"]["wnli"] == max(one["scores"]["wnli"] for one in models.values())
    (row,) = [line for line in section(tables["report.md"], "Scores").splitlines() if line.startswith("| majority")]
    assert "**" in row.split("|")[3]


def test_every_table_of_the_report_is_there() -> None:
    report = (reported_run().root / "report.md").read_text()
    for title in (
        "Gate", "Scores", "Retention", "Distilled against merely copied", "Size and speed", "Figures",
        "Published numbers", "Scores over seeds", "All metrics", "All timings", "Data", "Training", "Settings",
        "Environment", "Wall time", "To repeat",
    ):  # fmt: skip
        assert len(section(report, title).strip()) > 20, title
    published = section(report, "Published numbers")
    assert "**Not comparable**" in published and "79.5" in published and "77.0" in published and "ELMo" in published
    assert "validation_mismatched" in section(report, "All metrics")
    assert "± " in section(report, "Scores over seeds")
    assert "no CUDA device" in section(report, "Size and speed")


def test_what_distillation_added_stands_per_task_too() -> None:
    """Each difference is that of the two rows' means over seeds; a report without copied rows has no such section."""
    root = reported_run().root
    models = json.loads((root / "summary.json").read_text())["models"]
    text = section((root / "report.md").read_text(), "Distilled against merely copied")
    header, _, *rows = [line for line in text.split("Per task, points:")[1].splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in header.split("|")[3:-1]] == [TASKS[task].title for task in GLUE_NINE]
    for line in rows:
        trained, copy, *cells = [cell.strip() for cell in line.split("|")[1:-1]]
        for task, cell in zip(GLUE_NINE, cells, strict=True):
            difference = models[trained]["mean_scores"][task] - models[copy]["mean_scores"][task]
            assert float(cell.split()[0]) == pytest.approx(100 * difference, abs=0.051)
    assert rows


def test_figures_that_the_report_shows_are_written() -> None:
    root = reported_run().root
    shown = {
        line.split("](")[1].rstrip(")") for line in (root / "report.md").read_text().splitlines() if "](fig" in line
    }
    assert shown == {f"figures/{path.name}" for path in (root / "figures").iterdir()}
    assert len(shown) == 4


@pytest.mark.slow
def test_building_twice_gives_the_same_bytes() -> None:
    first, second = build(small_run().root), build(small_run().root)
    assert first == second
    assert all(first[name].startswith(b"\x89PNG") for name in first if name.endswith(".png"))


def test_missing_cells_say_why_and_the_run_is_incomplete(tmp_path: Path) -> None:
    gone = "finetune/distil-2/rte/"
    store = make_run(tmp_path, without=lambda step: step.startswith(gone), reported=False)
    tables = tables_of(store)
    summary = json.loads(tables["summary.json"])
    assert summary["complete"] is False and summary["missing"] == [f"{gone}seed-{seed}" for seed in (0, 1, 2)]
    assert summary["models"]["distil-2"]["macro"] is None
    assert summary["models"]["distil-2"]["retention_tasks"] == [task for task in WITHOUT_WNLI if task != "rte"]
    report = tables["report.md"]
    assert report.startswith("INCOMPLETE, 3 steps missing: ")
    assert "distil-2: RTE: not run yet" in section(report, "Scores")
    assert "Retention on 7 of 8 tasks only" in report


def test_nothing_has_run_yet(tmp_path: Path) -> None:
    store = make_run(tmp_path, without=lambda step: True, reported=False)
    tables = tables_of(store)
    assert json.loads(tables["summary.json"])["complete"] is False
    assert rows(tables["scores.csv"]) == rows(tables["retention.csv"]) == rows(tables["efficiency.csv"]) == []
    assert "teacher has not been fine-tuned" in tables["report.md"]


def test_steps_of_an_older_config_are_not_reported(tmp_path: Path) -> None:
    store = copy_run(tmp_path)
    config = json.loads((store.root / "config.json").read_text())
    config["students"] = config["students"][:1]
    write_atomic(store.root / "config.json", json.dumps(config))
    tables = tables_of(store)
    assert "copied-2" not in tables["scores.csv"] and "copied-2" not in tables["summary.json"]


def test_a_damaged_teacher_is_reported(tmp_path: Path) -> None:
    weights = tmp_path / "MiniLM-like"
    weights.mkdir()
    (weights / "config.json").write_text("{}")
    raw = settings(teacher={"weights": str(weights)}, data={"tasks": ["rte", "sst2"]})
    better = make_run(tmp_path, raw, skill={**SKILL, "as-released": 0.98}, reported=False)
    report = tables_of(better)["report.md"]
    assert "WARNING: the weights as released score higher" in report
    worse = make_run(tmp_path, raw, name="worse", skill={**SKILL, "as-released": 0.6}, reported=False)
    assert "WARNING" not in tables_of(worse)["report.md"]


def test_assumed_classes_are_reported(tmp_path: Path) -> None:
    """A checkpoint without names of classes may have them in another order: the reader is told."""
    store = copy_run(tmp_path)
    assert "names no classes" not in tables_of(store)["report.md"]
    path = store.folder("finetune/distil-2/rte/seed-0") / "record.json"
    record = json.loads(path.read_text())
    record["result"]["classes_assumed"] = True
    write_atomic(path, json.dumps(sealed({key: value for key, value in record.items() if key != "seal"})))
    assert "The checkpoint of distil-2 names no classes on RTE" in tables_of(store)["report.md"]


def test_an_ablation_stands_beside_the_papers(tmp_path: Path) -> None:
    students = [
        {"name": "triple", "layers": [0, 2]},
        {"name": "no-ce", "layers": [0, 2], "distill": {"weight_ce": 0.0}},
        {"name": "random", "layers": [0, 2], "distill": {"initialisation": "random"}},
    ]
    raw = settings(students=students, data={"tasks": ["rte", "sst2"]})
    store = make_run(tmp_path, raw, skill={"teacher": 0.9, "triple": 0.8, "no-ce": 0.7, "random": 0.6}, reported=False)
    tables = tables_of(store)
    ablation = section(tables["report.md"], "Ablation of the triple loss")
    assert "-2.96" in ablation and "-3.69" in ablation and "Against triple" in ablation
    assert "L_ce at attended positions" in ablation
    assert ablation.count("SST-2, RTE") == 2, "the tasks by name, as they are not all nine"
    summary = json.loads(tables["summary.json"])["models"]
    change = mean(summary["no-ce"]["mean_scores"].values()) - mean(summary["triple"]["mean_scores"].values())
    assert f"| {100 * change:+.1f} [" in " ".join(ablation.split())
    assert "macro over 2 tasks" in tables["report.md"]


def test_a_users_own_checkpoint_with_few_tasks(tmp_path: Path) -> None:
    mine = tmp_path / "checkpoint"
    mine.mkdir()
    (mine / "config.json").write_text("{}")
    raw = settings(students=[{"name": "mine", "finetuned": {"rte": str(mine)}}])
    store = make_run(tmp_path, raw, reported=False)
    tables = tables_of(store)
    summary = json.loads(tables["summary.json"])
    assert summary["complete"] is True
    assert summary["models"]["mine"]["retention_tasks"] == ["rte"]
    assert "mine: CoLA, SST-2, MRPC, STS-B, QQP, MNLI, QNLI, WNLI: no weights or" in tables["report.md"]
    assert "over 1 of 8 tasks" in tables["report.md"]


def test_the_best_student_is_one_of_those_scored_on_the_most_tasks(tmp_path: Path) -> None:
    """A retention of one easy task is no match for one of two; seeds are counted where the row stands."""
    mine = tmp_path / "checkpoint"
    mine.mkdir()
    (mine / "config.json").write_text("{}")
    students = [
        {"name": "distil-2", "layers": [0, 2]},
        {"name": "copied-2", "layers": [0, 2], "distill": {"tokens": 0}},
        {"name": "mine", "finetuned": {"rte": str(mine)}},
    ]
    raw = settings(students=students, data={"tasks": ["rte", "mnli"]})
    raw["finetune"] = {"seeds": [0, 1], "tasks": {"rte": {"seeds": [0]}}}
    tables = tables_of(make_run(tmp_path, raw, skill=SKILL | {"mine": 0.99}, reported=False))
    models = json.loads(tables["summary.json"])["models"]
    assert models["mine"]["retention"]["value"] > models["distil-2"]["retention"]["value"]
    first = tables["report.md"].splitlines()[0]
    assert first.startswith("distil-2 keeps ") and "over 2 tasks and 1 to 2 seeds" in first
    assert "(best of 2 students)" in first
    assert models["mine"]["seeds"] == models["distil-2"]["seeds"] == 1
    assert "One seed on RTE: intervals there know the sampling" in tables["report.md"]


def test_wnli_alone_is_no_retention_but_a_score(tmp_path: Path) -> None:
    raw = settings(data={"tasks": ["wnli"]})
    store = make_run(tmp_path, raw, without=lambda step: step.startswith("benchmark"), reported=False)
    first = tables_of(store)["report.md"].splitlines()[0]
    assert "distil-2 has no retention and was not measured: no task besides WNLI was scored" in first
    alone = make_run(tmp_path, raw | {"students": []}, name="alone", reported=False)
    first = tables_of(alone)["report.md"].splitlines()[0]
    assert re.match(r"teacher scores \d+\.\d over WNLI; there is no student", first), first


@pytest.mark.parametrize(
    ("weights", "row", "glue"),
    [
        ("all-MiniLM-L6-v2", "teacher", "folder"),
        ("all-MiniLM-L6-v2", "student", "folder"),
        ("all-MiniLM-L6-v2", "teacher", "embedded"),
        ("MiniLM-L12-H384-uncased", "teacher", "folder"),
    ],
)
def test_what_the_released_minilm_has_seen_is_said_of_it_alone(weights: str, row: str, glue: str) -> None:
    analysis = analyse(load_run(small_run().root))
    config = analysis.run.config
    if row == "teacher":
        config = replace(config, teacher=replace(config.teacher, weights=f"some/{weights}"))
    else:
        first, *others = config.students
        config = replace(config, students=(replace(first, weights=f"some/{weights}"), *others))
    data = replace(config.data, glue=glue if glue == "embedded" else str(Path.cwd()))
    run = replace(analysis.run, config=replace(config, data=data))
    notes = [note for note in notes_of(replace(analysis, run=run)) if "Quora" in note]
    expected = {"teacher": "The teacher is all-MiniLM", "student": "distil-2 is all-MiniLM"}[row]
    assert [note.startswith(expected) for note in notes] == ([True] if weights[0] == "a" and glue == "folder" else [])


def test_sizes_and_times_without_any_task(tmp_path: Path) -> None:
    store = make_run(tmp_path, settings(data={"tasks": []}), reported=False)
    tables = tables_of(store)
    summary = json.loads(tables["summary.json"])
    assert summary["complete"] is True and summary["models"]["distil-2"]["retention"]["value"] is None
    first = tables["report.md"].splitlines()[0]
    assert first.startswith("distil-2 is 39.4 % smaller and ") and "the paper reports 1.63x" in first
    assert "sizes and times only" in tables["report.md"]


def test_a_teacher_without_skill_has_no_retention(tmp_path: Path) -> None:
    raw = settings(data={"tasks": ["cola"]})
    store = make_run(tmp_path, raw, skill={"teacher": 0.3, "distil-2": 0.4}, reported=False)
    tables = tables_of(store)
    kept = json.loads(tables["summary.json"])["models"]["distil-2"]["retention"]
    assert kept["value"] is None and "undefined" in kept["reason"]
    assert "undefined" in tables["report.md"].splitlines()[0]
    assert "not above the majority class on CoLA" in tables["report.md"]


def test_one_seed_is_said_to_be_one(tmp_path: Path) -> None:
    raw = settings(finetune={"seeds": [7]}, data={"tasks": ["rte", "mnli"]})
    report = tables_of(make_run(tmp_path, raw, reported=False))["report.md"]
    assert "and 1 seed," in report.splitlines()[0]
    assert "One seed: intervals know the sampling of examples only" in report


def test_data_are_full_only_with_every_official_row(tmp_path: Path) -> None:
    store = make_run(tmp_path, settings(data={"tasks": ["rte"]}), reported=False)
    config = json.loads((store.root / "config.json").read_text())
    config["data"]["glue"] = "somewhere"
    write_atomic(store.root / "config.json", json.dumps(config))
    path = store.root / "prepare/glue/rte/record.json"
    for dev_rows, expected in ((276, "subset"), (277, "full")):
        content = json.loads(path.read_text())
        content["result"]["rows"] = {"train": 2490, "validation": dev_rows}
        path.write_text(json.dumps(sealed(content)))
        tables = tables_of(store)
        assert json.loads(tables["summary.json"])["data"] == expected
        assert ("**Not comparable**" in tables["report.md"]) == (expected == "subset")


def test_steps_that_ran_elsewhere_are_told_apart(tmp_path: Path) -> None:
    store = copy_run(tmp_path)
    path = store.root / "benchmark/cpu/record.json"
    content = json.loads(path.read_text())
    content["environment"]["cpu"] = "another | processor"
    path.write_text(json.dumps(sealed(content)))
    environment = section(tables_of(store)["report.md"], "Environment")
    assert "2 environments" in environment and "another &#124; processor" in environment


def test_hostile_titles_and_settings_break_nothing(tmp_path: Path) -> None:
    title = "x | y # heading <script> [a](b) ``` =1+1"
    raw = settings(title=title, data={"tasks": ["rte"]})
    report = tables_of(make_run(tmp_path, raw, reported=False))["report.md"]
    assert "<script>" not in report.split("## Settings")[0]
    assert "\n# heading" not in report
    assert report.count("\n# ") == 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda root: (root / "finetune/teacher/rte/seed-0/predictions.parquet").write_bytes(b"PAR1 no more"),
        lambda root: (root / "finetune/teacher/rte/seed-0/predictions.parquet").unlink(),
        lambda root: (root / "config.json").write_text("{"),
        lambda root: (root / "config.json").unlink(),
        lambda root: (root / "distill/distil-2/training.csv").write_text("step,tokens\n1,x\n"),
    ],
)
def test_damaged_files_give_one_error_that_names_them(damage, tmp_path: Path) -> None:
    store = copy_run(tmp_path)
    damage(store.root)
    with pytest.raises(GlueBenchError) as error:
        tables_of(store)
    assert str(store.root) in str(error.value) and "\n" not in str(error.value)


def test_predictions_of_other_examples_are_refused(tmp_path: Path) -> None:
    store = copy_run(tmp_path)
    source = store.root / "finetune/distil-2/mnli/seed-0/predictions.parquet"
    table = pd.read_parquet(source)
    for change, words in (
        (lambda t: t.assign(idx=t["idx"] + 1), "not the 120 of"),
        (lambda t: t.assign(label=(t["label"] + 1) % 3), "labels differ"),
        (lambda t: t.assign(idx=0), "stands twice"),
        (lambda t: t.assign(prediction=float("nan")), "nan"),
        (lambda t: t.assign(prediction=5.0), "expected a class from 0 to 2"),
        (lambda t: t[t["split"] == "validation_matched"], "validation_mismatched: no predictions"),
    ):
        change(table).to_parquet(source)
        with pytest.raises(UserError, match=words):
            tables_of(store)


def test_predictions_in_another_order_are_the_same(tmp_path: Path) -> None:
    store = copy_run(tmp_path)
    before = tables_of(store)
    source = store.root / "finetune/distil-2/mnli/seed-0/predictions.parquet"
    pd.read_parquet(source).sample(frac=1.0, random_state=0).to_parquet(source)
    assert tables_of(store) == before


def test_the_command_repeats_what_differs_from_the_shipped_config(tmp_path: Path) -> None:
    own = load_config("quick", ["finetune.seeds=[0]", "report.resamples=500", "data.tasks=['rte']"])
    command = repeat_command(RunFolder(tmp_path / "mine", "mine", own, {}, ()))
    assert command.startswith("python -m glue_bench run-all --config quick --run mine --set ")
    words = shlex.split(command)
    again = load_config("quick", [words[i + 1] for i, word in enumerate(words) if word == "--set"])
    assert plain(again) == plain(own)


def test_what_set_cannot_say_is_repeated_from_the_config_beside_the_report(tmp_path: Path) -> None:
    store = make_run(tmp_path, reported=False)
    text = section(build(store.root)["report.md"], "To repeat")
    assert "run-all --config config.json\n" in text and "`config.json` is the file beside this report" in text
    assert "beside" not in section(tables_of(store)["report.md"], "To repeat")
    again = load_config(str(store.root / "config.json"))
    assert plain(again) == json.loads((store.root / "config.json").read_text(encoding="utf-8"))


def test_scores_of_the_diagnostic_set_are_shown_where_it_has_labels(tmp_path: Path) -> None:
    store = make_run(tmp_path, settings(data={"tasks": ["mnli"]}), reported=False)
    label = np.arange(12) % 3
    for seed in (0, 1, 2):
        path = store.root / f"finetune/teacher/mnli/seed-{seed}/predictions.parquet"
        known = label if seed else np.full(12, -1)
        extra = Predictions(
            "ax", np.arange(12), known.astype(float), label.astype(float), np.zeros((12, 3), np.float32)
        )
        write_predictions(path, [*read_predictions(path).values(), extra])
    found = [row for row in rows(tables_of(store)["scores.csv"]) if row["task"] == "ax"]
    assert [(row["seed"], float(row["value"])) for row in found] == [("1", 1.0), ("2", 1.0)]


def test_wall_time_of_a_resumed_training_counts_all_its_sittings(tmp_path: Path) -> None:
    store = make_run(tmp_path, reported=False)
    records = {path: json.loads(path.read_text()) for path in store.root.glob("distill/*/record.json")}
    trained = {path: record for path, record in records.items() if record["result"].get("training")}
    found = []
    for seconds in (70.0, 110.0):  # of the last sitting, and of all
        for path, record in trained.items():
            result = record["result"] | {"training": record["result"]["training"] | {"seconds": seconds}}
            unsealed = {key: value for key, value in record.items() if key != "seal"}
            write_atomic(path, json.dumps(sealed(unsealed | {"seconds": 100.0, "result": result})))
        table = section(tables_of(store)["report.md"], "Wall time")
        found += [float(row.split("|")[2]) for row in table.splitlines() if row.startswith("| distill ")]
    assert trained and found[1] - found[0] == pytest.approx(10.0 * len(trained))


def test_wall_time_of_the_fine_tunings_by_model_and_task(tmp_path: Path) -> None:
    store = make_run(tmp_path, reported=False)
    for number, path in enumerate(sorted(store.root.glob("finetune/*/rte/*/record.json")), start=1):
        record = json.loads(path.read_text())
        write_atomic(
            path, json.dumps(sealed({key: record[key] for key in record if key != "seal"} | {"seconds": number}))
        )
    table = section(tables_of(store)["report.md"], "Wall time")
    found = {row.split("|")[1].strip(): row.split("|") for row in table.splitlines() if row.startswith("|")}
    column = [cell.strip() for cell in found["model"]].index("RTE")
    records = {path.parts[-4]: 0 for path in store.root.glob("finetune/*/rte/*/record.json")}
    for path in store.root.glob("finetune/*/rte/*/record.json"):
        records[path.parts[-4]] += json.loads(path.read_text())["seconds"]
    assert "majority" not in found and len(records) > 2
    for model, seconds in records.items():
        if model != "majority":
            assert found[model][column].strip() == str(seconds)
