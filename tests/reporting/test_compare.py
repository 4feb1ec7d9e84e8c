"""compare names what changed between two runs, with intervals where both answered the same examples."""

from pathlib import Path

from synthetic_run import SKILL, make_run, settings, small_run

from glue_bench.reporting.compare import compare


def test_a_run_with_itself() -> None:
    root = small_run().root
    text = compare(root, root)
    assert text.split("## Settings")[1].split("##")[0].strip() == "No difference."
    assert text.split("## Environment")[1].split("##")[0].strip() == "No difference."
    macros = [line for line in text.splitlines() if "**macro" in line]
    assert len(macros) == 4 and all("+0.0 [" in line for line in macros if "majority" not in line)


def test_what_changed_is_named(tmp_path: Path) -> None:
    tasks = {"tasks": ["rte", "sst2"]}
    first = make_run(tmp_path, settings(name="first", data=tasks), name="first", reported=False)
    students = [{"name": "distil-2", "layers": [0, 3]}, {"name": "new", "layers": [1]}]
    raw = settings(name="second", data=tasks, students=students, finetune={"seeds": [0, 1, 2], "epochs": 5})
    second = make_run(tmp_path, raw, name="second", skill=SKILL | {"distil-2": 0.3, "new": 0.5}, reported=False)
    text = compare(first.root, second.root)
    changes = text.split("## Settings")[1].split("##")[0]
    assert "finetune.epochs" in changes and "| 3 " in changes and "| 5 " in changes
    assert "students.distil-2.layers" in changes and "[0, 2]" in changes and "[0, 3]" in changes
    assert "learning_rate" not in changes
    macro = next(line for line in text.splitlines() if "distil-2" in line and "**macro" in line)
    change = macro.split("|")[5].strip()
    assert change.startswith("-") and change.count("-") == 3, "the fall and both ends of its interval"
    assert "only in A: copied-2" in text and "only in B: new" in text
    kept = next(line for line in text.split("## Retention")[1].splitlines() if "distil-2" in line)
    change = kept.split("|")[4].strip()
    assert change.startswith("-") and change.count("-") == 3 and "[" in change
    assert "whether they overlap is no test of the change" in text
    assert "speed-up CPU A" in text and "retention" in text.lower()


def test_runs_on_other_examples_are_compared_without_intervals(tmp_path: Path, monkeypatch) -> None:
    tasks = {"tasks": ["rte"]}
    first = make_run(tmp_path, settings(data=tasks), name="first", reported=False)
    monkeypatch.setattr("synthetic_run.DEV_ROWS", 90)
    second = make_run(tmp_path, settings(data=tasks), name="second", reported=False)
    text = compare(first.root, second.root)
    assert "no intervals" in text and "different examples" in text
    line = next(line for line in text.splitlines() if line.startswith("| distil-2") and " RTE" in line)
    assert "[" not in line
    kept = next(line for line in text.split("## Retention")[1].splitlines() if "distil-2" in line)
    assert "[" in kept.split("|")[2] and "[" not in kept.split("|")[4]
