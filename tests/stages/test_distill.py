"""distill: the student nears its teacher and is saved as any model; an untrained teacher is refused."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertModel, RobertaConfig, RobertaModel

from glue_bench.errors import UserError
from glue_bench.learning import loop
from glue_bench.learning.models import load_classifier
from glue_bench.stages import distill
from glue_bench.tasks import TASKS

STEP = "distill/small"


def test_student_nears_its_teacher(walk: Callable) -> None:
    """KL to the teacher and held-out loss fall from a random start; the folder loads as a DistilBERT."""
    here = walk(
        corpus={"documents": 600},
        pretrain={"epochs": 4, "learning_rate": 5e-3},
        distill={"epochs": 4, "learning_rate": 5e-3, "initialisation": "random"},
    )
    result = here.do(STEP)
    before, after = result["heldout"]["before"], result["heldout"]["after"]
    assert after["kl_to_teacher"] < 0.5 * before["kl_to_teacher"]
    assert after["mlm_loss"] < before["mlm_loss"]
    assert result["layers"] == [0, 2]
    assert result["ce_positions"] == "attended"
    folder = here.store.folder(STEP)
    model = AutoModelForMaskedLM.from_pretrained(folder / "model")
    assert model.config.model_type == "distilbert"
    assert sum(one.numel() for one in model.distilbert.parameters()) == result["parameters"]
    assert len(AutoTokenizer.from_pretrained(folder / "model")) == model.config.vocab_size
    card = (folder / "model" / "README.md").read_text()
    assert "weight of soft targets | 5 |" in card
    with (folder / "training.csv").open() as file:
        log = list(csv.DictReader(file))
    row = {name: float(value) for name, value in log[-1].items()}
    assert row["loss"] == pytest.approx(5 * row["soft"] + 2 * row["mlm"] + row["cosine"], rel=1e-4)


def test_all_layers_lose_nothing(walk: Callable) -> None:
    """A student of all layers with folded types stands where its teacher does: KL and cosine 0 before it trains."""
    here = walk(
        students=[{"name": "small", "layers": [0, 1, 2]}],
        pretrain={"epochs": 2, "learning_rate": 3e-3},
        distill={"fold_token_types": True, "tokens": 1, "learning_rate": 1e-9, "dropout": 0.0},
    )
    result = here.do(STEP)
    assert abs(result["heldout"]["before"]["kl_to_teacher"]) < 1e-6
    with (here.store.folder(STEP) / "training.csv").open() as file:
        row = next(csv.DictReader(file))
    assert abs(float(row["cosine"])) < 1e-6
    assert abs(float(row["soft"])) < 1e-6
    assert float(row["mlm"]) > 1


def test_a_roberta_teacher_gives_a_smaller_roberta(walk: Callable, tmp_path: Path) -> None:
    """Another family, released without an MLM head: pretrain gives it one, and then it can be distilled."""
    source = walk("source")
    source.do("prepare/weights/teacher")
    folder = tmp_path / "released"
    shutil.copytree(source.model("prepare/weights/teacher"), folder)
    words = AutoTokenizer.from_pretrained(folder)
    shape = {"num_hidden_layers": 3, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    ids = {"vocab_size": len(words), "pad_token_id": words.pad_token_id, "type_vocab_size": 1}
    RobertaModel(RobertaConfig(max_position_embeddings=40, **shape, **ids)).save_pretrained(folder)
    taught, distilled = {"epochs": 2, "learning_rate": 5e-3}, {"initialisation": "random", "learning_rate": 5e-3}
    here = walk(teacher={"weights": str(folder)}, pretrain=taught, distill=distilled)
    result = here.do(STEP)
    assert here.store.result("prepare/weights/teacher")["has_mlm_head"] is False
    assert here.store.result("pretrain/teacher")["head_was_new"] is True
    assert (result["layers"], result["model_type"]) == ([0, 2], "roberta")
    model = AutoModelForMaskedLM.from_pretrained(here.model(STEP))
    assert (model.config.model_type, model.config.num_hidden_layers) == ("roberta", 2)
    before, after = result["heldout"]["before"], result["heldout"]["after"]
    assert after["kl_to_teacher"] < before["kl_to_teacher"]


@pytest.mark.parametrize("initialisation", ["teacher", "random"])
def test_a_bert_student_has_its_teachers_pooler(initialisation: str, walk: Callable, tmp_path: Path) -> None:
    """Its classifiers stand on it, trained or only copied; one that starts from random weights has a new one."""
    source = walk("source")
    source.do("prepare/weights/teacher")
    folder = tmp_path / "released"
    shutil.copytree(source.model("prepare/weights/teacher"), folder)
    BertModel.from_pretrained(folder).save_pretrained(folder)
    released = load_file(folder / "model.safetensors")["pooler.dense.weight"]
    for budget in ({"epochs": 1}, {"epochs": 0}):
        settings = {"family": "same", "initialisation": initialisation, **budget}
        here = walk(f"run-{budget['epochs']}", teacher={"weights": str(folder)}, distill=settings)
        here.do(STEP)
        classifier = load_classifier(here.model(STEP), TASKS["rte"], seed=1)
        kept = torch.equal(classifier.bert.pooler.dense.weight, released)
        assert kept == (initialisation == "teacher")
    assert "keeps_pooler" not in walk("distilbert").steps[STEP].settings, "other students stay done"


def test_without_budget_the_student_is_only_built(walk: Callable) -> None:
    """tokens 0 and epochs 0: the copied layers, bit-equal, no corpus, no curves; an untrained teacher will do."""
    here = walk(pretrain={"epochs": 0}, distill={"epochs": 0}, students=[{"name": "small", "layers": [2, 0]}])
    assert "prepare/corpus" not in here.steps
    result = here.do(STEP)
    assert result["layers"] == [2, 0]
    assert result["has_mlm_head"] is False
    assert not (here.store.folder(STEP) / "training.csv").exists()
    teacher = load_file(here.model("prepare/weights/teacher") / "model.safetensors")
    student = load_file(here.model(STEP) / "model.safetensors")
    for place, layer in enumerate((2, 0)):
        copied = student[f"distilbert.transformer.layer.{place}.attention.q_lin.weight"]
        assert torch.equal(copied, teacher[f"bert.encoder.layer.{layer}.attention.self.query.weight"])


def test_teacher_without_a_trained_head_is_refused(walk: Callable) -> None:
    """Soft targets of a random head would be noise."""
    with pytest.raises(UserError, match="no trained MLM head.*set pretrain.tokens"):
        walk(pretrain={"epochs": 0}).do(STEP)


def test_layers_out_of_range(walk: Callable) -> None:
    """Named with what the teacher has."""
    with pytest.raises(UserError, match=r"layers: \[0, 3\] of a teacher that has 3"):
        walk(students=[{"name": "small", "layers": [0, 3]}]).do(STEP)


def test_frozen_positions(walk: Callable) -> None:
    """With freeze_positions they stay the teacher's; without they move. Word embeddings train in both."""
    moved = {}
    for frozen in (True, False):
        here = walk(f"frozen-{frozen}", distill={"freeze_positions": frozen})
        here.do(STEP)
        teacher = load_file(here.model("pretrain/teacher") / "model.safetensors")
        student = load_file(here.model(STEP) / "model.safetensors")
        names = ("position_embeddings", "word_embeddings")
        pairs = [(teacher[f"bert.embeddings.{n}.weight"], student[f"distilbert.embeddings.{n}.weight"]) for n in names]
        moved[frozen] = [not torch.equal(*pair) for pair in pairs]
    assert moved == {True: [False, True], False: [True, True]}


@pytest.mark.parametrize("term", ["weight_ce", "weight_mlm", "weight_cos"])
def test_each_term_can_be_left_out(term: str, walk: Callable) -> None:
    """The ablation: a term of weight 0 adds nothing to the loss; soft targets and cosine are not even computed."""
    here = walk(distill={term: 0.0})
    result = here.do(STEP)
    with (here.store.folder(STEP) / "training.csv").open() as file:
        rows = list(csv.DictReader(file))
    columns = {"weight_ce": "soft", "weight_mlm": "mlm", "weight_cos": "cosine"}
    weights = {"weight_ce": 5.0, "weight_mlm": 2.0, "weight_cos": 1.0} | {term: 0.0}
    for row in rows:
        loss = sum(weights[name] * float(row[column]) for name, column in columns.items())
        assert float(row["loss"]) == pytest.approx(loss, rel=1e-4)
        assert all(float(row[column]) > 0 for name, column in columns.items() if name != term)
        assert term == "weight_mlm" or float(row[columns[term]]) == 0
    assert result["training"]["steps"] == len(rows)


def test_masked_positions_do_less(walk: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """ce_positions "masked" puts the masked positions alone through the heads; the teacher runs without dropout."""
    seen: list[tuple[int, int, bool, bool]] = []
    original = distill.Distillation.share

    def share(self, batch, counts):  # noqa: ANN001, ANN202
        seen.append((len(batch.positions.rows), counts.soft, self.teacher.training, self.model.training))
        return original(self, batch, counts)

    monkeypatch.setattr(distill.Distillation, "share", share)
    walk("masked", distill={"ce_positions": "masked", "tokens": 1}).do(STEP)
    assert all(rows < 8 * 32 // 4 and not teacher and student for rows, _, teacher, student in seen)
    assert seen[0][1] == -(-16 * 32 * 15 // 100)
    seen.clear()
    walk("attended", distill={"tokens": 1}).do(STEP)
    assert all(rows == 8 * 32 for rows, *_ in seen)
    assert seen[0][1] == 16 * 32


def test_nan_stops_the_step(walk: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """No record is written, so the step is not done."""
    from glue_bench.errors import StepError

    here = walk()
    here.do("pretrain/teacher")
    monkeypatch.setattr(loop, "EXPLODED", 0.0)
    with pytest.raises(StepError, match="training step 1 of"):
        here.do(STEP)
    assert here.store.record(STEP) is None
