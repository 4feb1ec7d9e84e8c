"""What is refused before the first training: here, checkpoints that the user fine-tuned and that cannot be padded."""

import json
from pathlib import Path

import pytest
from transformers import BertTokenizer

from glue_bench.errors import UserError
from glue_bench.inputs import Input
from glue_bench.learning.models import load_classifier, new_bert
from glue_bench.learning.rehearsal import rehearse
from glue_bench.learning.saving import save_model
from glue_bench.plan import Step
from glue_bench.store import Store
from glue_bench.tasks import TASKS

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]
SHAPE = {"layers": 1, "hidden": 8, "heads": 2, "intermediate": 8, "max_positions": 20, "initializer_range": 0.02}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A tiny BERT fine-tuned on RTE, as it were."""
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, model_max_length=20)
    model = new_bert(**SHAPE, vocab_size=len(WORDS), pad_id=0, seed=0)
    save_model(model, tokenizer, tmp_path / "bert", "# tiny\n", {})
    save_model(load_classifier(tmp_path / "bert", TASKS["rte"], seed=0), tokenizer, tmp_path / "rte", "# tiny\n", {})
    return tmp_path / "rte"


def rehearse_checkpoint(folder: Path) -> None:
    inputs = {"config.json": Input(str(folder / "config.json"), "sha256:1")}
    rehearse([Step("finetune/mine/rte/seed-0", {"task": "rte"}, (), inputs)], Store(folder, "run"))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"padding_side": "left"}, "the tokenizer pads on the left"), ({"pad_token": None}, "no pad token")],
)
def test_inputs_must_be_padded_on_the_right(checkpoint: Path, change: dict, message: str) -> None:
    rehearse_checkpoint(checkpoint)
    path = checkpoint / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=f"finetune/mine/rte/seed-0: .*{message}"):
        rehearse_checkpoint(checkpoint)
