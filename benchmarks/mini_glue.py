"""What mini-GLUE asks for: teacher, student, majority, bag of words, and the teacher trained on shuffled labels.

Takes a finished `run-all --config quick`; fits scikit-learn's bag of words and fine-tunes the same teacher on shuffled
training labels. Prints a table for people and, as its very last line, one JSON object with the same figures.

    python benchmarks/mini_glue.py --run results/quick
"""

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from tabulate import tabulate

from glue_bench.config import config_from
from glue_bench.inputs import HashMemo
from glue_bench.learning.metrics import headline, score
from glue_bench.machine import facts, use_threads
from glue_bench.plan import plan
from glue_bench.stages import finetune
from glue_bench.store import Store
from glue_bench.tasks import TASKS


def bag_of_words(task: str, train: pa.Table, dev: pa.Table) -> float:
    """Headline of logistic regression (ridge for STS-B) on word counts, the words of each side kept apart."""
    row = TASKS[task]

    def texts(table: pa.Table) -> list[str]:
        sides = [table.column(column).to_pylist() for column in row.inputs]
        return [
            " ".join(f"{i}{w}" for i, text in enumerate(one) for w in text.split()) for one in zip(*sides, strict=True)
        ]

    bag = CountVectorizer(token_pattern=r"\S+")
    model = Ridge() if row.is_regression else LogisticRegression(max_iter=1000)
    model.fit(bag.fit_transform(texts(train)), train.column("label").to_pylist())
    predictions = model.predict(bag.transform(texts(dev))).tolist()
    return headline(task, score(task, predictions, dev.column("label").to_pylist()))


def shuffled_teacher(run: Path, task: str) -> float:
    """Headline of the run's teacher fine-tuned on the same rows with their labels shuffled."""
    config = config_from(json.loads((run / "config.json").read_text(encoding="utf-8")), "config.json")
    steps = plan(config, facts(config.machine), HashMemo(None))
    step = next(one for one in steps if one.name.startswith(f"finetune/{config.teacher.name}/{task}/"))
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder), "shuffled")
        weights = step.settings["weights"]
        shutil.copytree(run / weights / "model", store.folder(weights) / "model")
        for need in step.needs:
            if need.startswith("prepare/glue/"):
                shutil.copytree(run / need, store.folder(need))
        file = store.folder(f"prepare/glue/{task}") / "train.parquet"
        table = pq.read_table(file)
        labels = table.column("label").to_pylist()
        random.Random(0).shuffle(labels)
        column = table.schema.get_field_index("label")
        pq.write_table(
            table.set_column(column, table.schema.field(column), pa.array(labels, table.schema.types[column])), file
        )
        store.folder(step.name).mkdir(parents=True)
        result = finetune.run(replace(step, settings=dict(step.settings)), store, "cpu")
    return headline(task, result["scores"][0]["metrics"])


def main() -> int:
    """Print the table; exit code 1 where mini-GLUE does not ask what it promises to ask."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("results/quick"))
    options = parser.parse_args()
    summary = json.loads((options.run / "summary.json").read_text(encoding="utf-8"))
    use_threads(facts(config_from({"name": "x"}, "x").machine).threads)
    roles = {model["role"]: name for name, model in summary["models"].items()}
    rows = {}
    for task in summary["models"][roles["teacher"]]["scores"]:
        folder = options.run / "prepare" / "glue" / task
        train, dev = (
            pq.read_table(folder / "train.parquet"),
            pq.read_table(folder / f"{TASKS[task].dev_splits[0]}.parquet"),
        )
        rows[task] = {role: summary["models"][name]["scores"][task] for role, name in roles.items()}
        rows[task] |= {"bag_of_words": bag_of_words(task, train, dev), "shuffled": shuffled_teacher(options.run, task)}
    columns = ("teacher", "student", "majority", "bag_of_words", "shuffled")
    table = [[TASKS[task].title, *(f"{100 * row[column]:.1f}" for column in columns)] for task, row in rows.items()]
    print(tabulate(table, headers=["task", *columns], disable_numparse=True, stralign="right"))
    above = sum(row["teacher"] >= row["majority"] + 0.10 for row in rows.values())
    gain = {task: row["shuffled"] - row["majority"] for task, row in rows.items()}
    print(f"\nteacher 10 points or more above the majority on {above} of {len(rows)} tasks")
    print(f"shuffled labels: {100 * statistics.fmean(gain.values()):+.1f} points from the majority on average")
    print(json.dumps({"tasks": rows, "teacher_above": above, "shuffled_gain": statistics.fmean(gain.values())}))
    return 0 if above >= 7 else 1


if __name__ == "__main__":
    sys.exit(main())
