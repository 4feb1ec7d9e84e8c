"""The finetune stage on tiny models: what it writes, the protocol, and the traps that others fell into."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from glue_bench.config import TaskTraining, config_from
from glue_bench.data.predictions import read_predictions, read_train_logits
from glue_bench.errors import StepError, UserError
from glue_bench.inputs import HashMemo, Input
from glue_bench.learning.metrics import score
from glue_bench.machine import Facts
from glue_bench.plan import Step, plan
from glue_bench.stages import finetune
from glue_bench.store import Store
from glue_bench.tasks import TASKS

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "book", "the", "a", "is", "was", "very"]
WORDS += [f"w{i}" for i in range(30)]
# Wide initial values, so that a model this small learns within a few dozen steps.
SHAPE = {"vocab_size": len(WORDS), "max_position_embeddings": 40, "pad_token_id": 0, "initializer_range": 0.2}
BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="[MASK]", model_max_length=512, **special)


def save_weights(folder: Path, family: str = "bert") -> None:
    torch.manual_seed(1)
    if family == "bert":
        model: Any = BertForMaskedLM(BertConfig(**SHAPE, **BERT))
    elif family == "roberta":
        model = RobertaForMaskedLM(RobertaConfig(**SHAPE, **BERT, type_vocab_size=1))
    else:
        sizes = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
        model = DistilBertForMaskedLM(DistilBertConfig(**SHAPE, **sizes))
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def sentence(rng: np.random.Generator, positive: bool) -> str:
    filler = [f"w{i}" for i in rng.integers(0, 30, rng.integers(1, 8))]
    return " ".join(["the", str(rng.choice(["film", "book"])), "is", "good" if positive else "bad", *filler])


def write_split(store: Store, task: str, split: str, rows: int, *, labelled: bool = True, seed: int = 0) -> None:
    """Texts in which the label can be read off: good, bad, or (stsb) the share of good."""
    rng = np.random.default_rng([seed, rows, len(split)])
    row = TASKS[task]
    labels = rng.integers(0, max(len(row.classes), 2), rows)
    columns: dict[str, Any] = {"idx": pa.array(rng.permutation(rows) + 100, pa.int64())}
    for name in row.inputs:
        columns[name] = pa.array([sentence(rng, label == 1) for label in labels])
    known = labels * 5.0 if row.is_regression else labels
    known = known if labelled else np.full(rows, -1)
    columns["label"] = pa.array(known, pa.float64() if row.is_regression else pa.int64())
    path = store.folder(f"prepare/glue/{task}") / f"{split}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "results", "test")
    save_weights(store.folder("prepare/weights/m") / "model")
    return store


def step(task: str, seed: int = 0, model: str = "m", **changes: Any) -> Step:
    base: dict[str, Any] = asdict(TaskTraining())
    del base["seeds"]
    base |= {"epochs": 2, "batch_size": 16, "learning_rate": 3e-3, "max_length": 24}
    settings = {"model": model, "task": task, "seed": seed, "weights": "prepare/weights/m", "threads": 1}
    return Step(f"finetune/{model}/{task}/seed-{seed}", {**base, **settings, "precision": "fp32", **changes})


def finetune_step(store: Store, one: Step) -> Mapping[str, Any]:
    result = finetune.run(one, store, "cpu")
    json.dumps(result, allow_nan=False)
    return result


def predictions_of(store: Store, one: Step) -> Any:
    return read_predictions(store.folder(one.name) / "predictions.parquet")


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta"])
def test_it_learns_and_writes_what_the_report_reads(tmp_path: Path, family: str) -> None:
    store = Store(tmp_path / "results", "test")
    save_weights(store.folder("prepare/weights/m") / "model", family)
    write_split(store, "sst2", "train", 200)
    write_split(store, "sst2", "validation", 60)
    write_split(store, "sst2", "test", 20, labelled=False)
    one = step("sst2", epochs=6)
    result = finetune_step(store, one)
    found = predictions_of(store, one)
    assert list(found) == ["validation", "test"]
    assert found["validation"].logits.shape == (60, 2)
    assert (found["validation"].prediction == found["validation"].logits.argmax(1)).all()
    source = pq.read_table(store.folder("prepare/glue/sst2") / "validation.parquet")
    assert (found["validation"].idx == source["idx"].to_numpy()).all()
    assert (found["validation"].label == source["label"].to_numpy()).all()
    assert [(s["split"], s["examples"]) for s in result["scores"]] == [("validation", 60)]
    assert result["scores"][0]["metrics"] == score("sst2", found["validation"].prediction, found["validation"].label)
    assert result["scores"][0]["metrics"]["accuracy"] > 0.95
    training = result["training"]
    assert training["steps"] == 6 * 13 and training["examples"] == 1200
    assert training["last_loss"] < training["first_loss"]
    assert result["sequences"] == {"validation": 60, "test": 20}
    saved = AutoModelForSequenceClassification.from_pretrained(store.folder(one.name) / "weights")
    assert saved.config.id2label == {0: "negative", 1: "positive"}


def test_the_same_seed_gives_the_same_bits_and_another_does_not(store: Store) -> None:
    write_split(store, "mrpc", "train", 70)
    write_split(store, "mrpc", "validation", 40)
    runs = []
    for seed in (3, 3, 4):
        finetune_step(store, step("mrpc", seed))
        runs.append(predictions_of(store, step("mrpc", seed))["validation"].logits)
    assert (runs[0] == runs[1]).all()
    assert (runs[0] != runs[2]).any()


def test_regression_is_trained_and_scored_as_such(store: Store) -> None:
    write_split(store, "stsb", "train", 150)
    write_split(store, "stsb", "validation", 40)
    one = step("stsb", epochs=6)
    metrics = finetune_step(store, one)["scores"][0]["metrics"]
    found = predictions_of(store, one)["validation"]
    assert found.logits.shape == (40, 1)
    assert np.allclose(found.prediction, found.logits[:, 0])
    assert metrics["pearson"] > 0.8 and "accuracy" not in metrics


def test_mnli_keeps_its_two_dev_sets_apart_and_predicts_ax(store: Store) -> None:
    write_split(store, "mnli", "train", 60)
    write_split(store, "mnli", "validation_matched", 30)
    write_split(store, "mnli", "validation_mismatched", 25, seed=9)
    write_split(store, "ax", "test", 10, labelled=False)
    one = step("mnli")
    one = replace(one, needs=(*one.needs, "prepare/glue/ax"))
    result = finetune_step(store, one)
    assert [(s["split"], s["examples"]) for s in result["scores"]] == [
        ("validation_matched", 30),
        ("validation_mismatched", 25),
    ]
    found = predictions_of(store, one)
    assert {split: len(one.idx) for split, one in found.items()} == {
        "validation_matched": 30,
        "validation_mismatched": 25,
        "ax": 10,
    }
    write_split(store, "ax", "test", 10)
    scores = finetune_step(store, one)["scores"]
    assert scores[2]["task"] == "ax" and list(scores[2]["metrics"]) == ["matthews_correlation"]


def test_labels_of_test_sets_are_never_scored(store: Store) -> None:
    for split in ("train", "validation", "test"):
        write_split(store, "rte", split, 20)
    assert [s["split"] for s in finetune_step(store, step("rte"))["scores"]] == ["validation"]


def test_constant_predictions_are_a_warning(store: Store) -> None:
    write_split(store, "cola", "train", 20)
    write_split(store, "cola", "validation", 20)
    constant = finetune_step(store, step("cola", epochs=1, learning_rate=1e-9))["scores"][0]
    found = predictions_of(store, step("cola"))["validation"]
    assert len(set(found.prediction)) == 1
    assert constant["metrics"] == {"matthews_correlation": 0.0} and constant["warnings"]


def majority_step(task: str) -> Step:
    return Step(f"finetune/majority/{task}/seed-0", {"model": "majority", "task": task})


def test_majority_follows_the_training_labels_not_the_dev_labels(store: Store) -> None:
    folder = store.folder("prepare/glue/cola")
    folder.mkdir(parents=True)
    for split, labels in (("train", [0, 0, 1]), ("validation", [1, 1, 1, 0])):
        columns = {"idx": range(len(labels)), "sentence": ["a"] * len(labels), "label": labels}
        pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), folder / f"{split}.parquet")
    result = finetune_step(store, majority_step("cola"))
    found = predictions_of(store, majority_step("cola"))["validation"]
    assert found.prediction.tolist() == [0.0] * 4
    assert np.allclose(np.exp(found.logits[0]), [2 / 3, 1 / 3])
    assert result["scores"][0]["metrics"] == {"matthews_correlation": 0.0} and result["scores"][0]["warnings"]


def test_majority_of_a_regression_is_the_mean(store: Store) -> None:
    write_split(store, "stsb", "train", 30)
    write_split(store, "stsb", "validation", 10)
    finetune_step(store, majority_step("stsb"))
    mean = pq.read_table(store.folder("prepare/glue/stsb") / "train.parquet")["label"].to_numpy().mean()
    assert np.allclose(predictions_of(store, majority_step("stsb"))["validation"].prediction, mean)


def test_a_users_checkpoint_with_other_label_order_scores_right(store: Store) -> None:
    """A trained RTE model whose classes are stored the other way round must predict the same."""
    write_split(store, "rte", "train", 150)
    write_split(store, "rte", "validation", 40)
    finetune_step(store, step("rte", epochs=4))
    own = store.folder(step("rte").name)
    right = read_predictions(own / "predictions.parquet")["validation"]
    assert (right.prediction == right.label).mean() > 0.9
    model = AutoModelForSequenceClassification.from_pretrained(own / "weights")
    with torch.no_grad():
        for name in ("weight", "bias"):
            parameter = getattr(model.classifier, name)
            parameter.copy_(parameter.flip(0))
    model.config.id2label = {0: "NOT_ENTAILMENT", 1: "Entailment"}
    folder = store.results / "theirs"
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    settings = {"model": "theirs", "task": "rte", "max_length": 24, "threads": 1, "precision": "fp32", "seed": 0}
    inputs = {path.name: Input(str(path), "sha256:0") for path in folder.iterdir()}
    one = Step("finetune/theirs/rte/seed-0", settings, (), inputs)
    result = finetune_step(store, one)
    found = predictions_of(store, one)["validation"]
    assert np.allclose(found.logits, right.logits, atol=1e-6)
    assert result["scores"][0]["metrics"]["accuracy"] == (right.prediction == right.label).mean()
    assert result["training"]["steps"] == 0 and "classes_assumed" not in result
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "LABEL_0", "1": "LABEL_1"}  # nameless: the wrong order cannot be seen, so it is said
    (folder / "config.json").write_text(json.dumps(config))
    assert finetune_step(store, one)["classes_assumed"] is True
    with pytest.raises(UserError, match="no config.json"):
        finetune.run(Step(one.name, settings, (), {}), store, "cpu")


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        (
            "org/a-model-of-the-hub",
            "no such folder; for a hub id: hf download org/a-model-of-the-hub --local-dir FOLDER",
        ),
        ("", "empty: no such folder"),
        ("{folder}", "holds no config.json; give the folder that save_pretrained wrote"),
        ("{folder}/none", "no such folder"),
    ],
)
def test_a_checkpoint_that_is_no_folder_is_refused_before_any_step(
    tmp_path: Path, checkpoint: str, message: str
) -> None:
    row = {"name": "theirs", "finetuned": {"rte": checkpoint.format(folder=tmp_path)}}
    config = config_from({"name": "x", "students": [row]}, "x.toml")
    with pytest.raises(UserError, match=message):
        plan(config, Facts(1, "fp32", {"cpu": "a processor"}, 1), HashMemo(None))


def test_soft_targets_teach_what_the_labels_do_not_say(store: Store) -> None:
    """With weight 1 the student follows its teacher, even where every label it is given is wrong."""
    write_split(store, "sst2", "train", 150)
    write_split(store, "sst2", "validation", 40)
    teacher = step("sst2", model="teacher", epochs=4, train_logits=True)
    finetune_step(store, teacher)
    path = store.folder("prepare/glue/sst2") / "train.parquet"
    table = pq.read_table(path)
    logits = read_train_logits(store.folder(teacher.name) / "train_logits.parquet", table["idx"].to_numpy())
    assert (logits.argmax(1) == table["label"].to_numpy()).mean() > 0.9
    order = np.random.default_rng(0).permutation(len(table))
    wrong = table.set_column(2, "label", pa.array(1 - table["label"].to_numpy())).take(order)
    pq.write_table(wrong, path)
    soft = {"soft_targets": 1.0, "temperature": 2.0, "teacher": teacher.name, "epochs": 6}
    scores = finetune_step(store, step("sst2", model="student", **soft))["scores"]
    assert scores[0]["metrics"]["accuracy"] > 0.9
    scores = finetune_step(store, step("sst2", model="student", **soft | {"soft_targets": 0.0}))["scores"]
    assert scores[0]["metrics"]["accuracy"] < 0.1
    pq.write_table(pa.concat_tables([wrong, wrong.slice(0, 1).set_column(0, "idx", pa.array([7]))]), path)
    with pytest.raises(StepError, match="idx 7"):
        finetune_step(store, step("sst2", model="student", **soft))


def test_truncation_is_counted(store: Store) -> None:
    write_split(store, "mrpc", "train", 30)
    write_split(store, "mrpc", "validation", 20)
    result = finetune_step(store, step("mrpc", max_length=16))
    words = tokenizer()
    table = pq.read_table(store.folder("prepare/glue/mrpc") / "validation.parquet")
    texts = [table[name].to_pylist() for name in TASKS["mrpc"].inputs]
    longer = sum(len(ids) > 16 for ids in words(*texts)["input_ids"])
    assert 0 < longer < 20
    assert result["truncated"]["validation"] == longer
    assert result["training"]["truncated"] > 0


def test_inputs_never_exceed_the_positions_of_the_model(store: Store) -> None:
    write_split(store, "cola", "train", 10)
    path = store.folder("prepare/glue/cola") / "validation.parquet"
    columns = {"idx": [0, 1], "sentence": ["good " * 100, "bad"], "label": [1, 0]}
    pq.write_table(pa.table(columns), path)
    assert finetune_step(store, step("cola", max_length=128))["truncated"]["validation"] == 1


def test_words_that_the_task_has_not_keep_their_vectors(store: Store) -> None:
    write_split(store, "cola", "train", 20)
    write_split(store, "cola", "validation", 20)
    path = store.folder("prepare/glue/cola") / "train.parquet"
    table = pq.read_table(path)
    few = pa.array(["good film" if label else "bad book" for label in table["label"].to_pylist()])
    pq.write_table(table.set_column(1, "sentence", few), path)
    finetune_step(store, step("cola"))
    name = "bert.embeddings.word_embeddings.weight"
    before = load_file(store.folder("prepare/weights/m") / "model" / "model.safetensors")[name]
    after = load_file(store.folder(step("cola").name) / "weights" / "model.safetensors")[name]
    moved = {WORDS[i] for i in (before != after).any(1).nonzero()[:, 0].tolist()}
    assert moved == {"[CLS]", "[SEP]", "good", "bad", "film", "book"}


def test_a_diverging_training_is_an_error_with_its_step(store: Store) -> None:
    write_split(store, "stsb", "train", 40)
    write_split(store, "stsb", "validation", 10)
    with pytest.raises(StepError, match=r"finetune/m/stsb/seed-0: the loss is .* at step \d+ of 6.*learning_rate"):
        finetune.run(step("stsb", learning_rate=1e38, warmup=0.0), store, "cpu")
    assert not (store.folder(step("stsb").name) / "weights").exists()


def test_missing_data_is_an_error(store: Store) -> None:
    with pytest.raises(StepError, match=r"validation\.parquet: missing; run prepare again"):
        finetune.run(step("rte"), store, "cpu")
