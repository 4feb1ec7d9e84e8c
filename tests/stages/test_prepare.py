"""prepare: GLUE as parquet, weights as checked folders bit-equal to what came in, text as tokens."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, BertForMaskedLM, BertModel

from glue_bench.data import embedded
from glue_bench.errors import StepError, UserError
from glue_bench.store import list_outputs
from glue_bench.tasks import TASKS

WEIGHTS = "prepare/weights/teacher"


@pytest.mark.parametrize("task", ["cola", "stsb", "mnli", "ax"])
def test_embedded_glue(task: str, walk: Callable) -> None:
    """Every split as parquet with idx, the inputs and label; the test set of AX always, others where asked for."""
    tasks = ["mnli"] if task == "ax" else [task]
    here = walk(data={"tasks": tasks})
    result = here.do(f"prepare/glue/{task}")
    row = TASKS[task]
    expected = [*(["train"] if row.train_rows else []), *row.dev_splits, *(row.test_splits if task == "ax" else [])]
    assert list(result["rows"]) == expected
    assert result["complete"] is False
    for split in expected:
        table = pq.read_table(here.store.folder(f"prepare/glue/{task}") / f"{split}.parquet")
        assert set(table.column_names) == {"idx", *row.inputs, "label"}
        assert table.num_rows == result["rows"][split] == len(embedded.examples(task, split, 0))
        assert table[row.inputs[0]][0].as_py() == embedded.examples(task, split, 0)[0][row.inputs[0]]


def test_caps_and_test_splits(walk: Callable) -> None:
    """Training and dev rows are capped, test rows never; a split no longer wanted disappears."""
    everything = len(embedded.examples("rte", "train", 0))
    data = {"tasks": ["rte"], "max_train_rows": 50, "max_dev_rows": 20, "predict_test": True}
    here = walk(data=data)
    result = here.do("prepare/glue/rte")
    assert result["rows"] == {"train": 50, "validation": 20, "test": len(embedded.examples("rte", "test", 0))}
    assert result["available"]["train"] == everything > 50
    labels = pq.read_table(here.store.folder("prepare/glue/rte") / "train.parquet")["label"].to_pylist()
    assert set(labels) == {0, 1}
    again = walk(data=data | {"predict_test": False})
    assert "test" not in again.do("prepare/glue/rte")["rows"]
    assert not (here.store.folder("prepare/glue/rte") / "test.parquet").exists()


def test_glue_from_a_folder(walk: Callable, tmp_path: Path) -> None:
    """A folder in the hub's layout, here what prepare itself wrote, gives the same rows; too few are no full GLUE."""
    first = walk(data={"tasks": ["rte"]})
    first.do("prepare/glue/rte")
    source = tmp_path / "glue" / "rte"
    shutil.copytree(first.store.folder("prepare/glue/rte"), source)
    (source / "record.json").unlink()
    second = walk("second", data={"tasks": ["rte"], "glue": str(tmp_path / "glue")})
    result = second.do("prepare/glue/rte")
    assert result["complete"] is False
    assert result["official"] == {"train": 2490, "validation": 277}
    for split in ("train", "validation"):
        one, other = (pq.read_table(w.store.folder("prepare/glue/rte") / f"{split}.parquet") for w in (first, second))
        assert one.equals(other)


def test_scratch_weights(walk: Callable) -> None:
    """A random BERT of the shape with the embedded text's words; the same for the same seed."""
    here = walk()
    result = here.do(WEIGHTS)
    tokenizer = AutoTokenizer.from_pretrained(here.model(WEIGHTS))
    words = embedded.vocabulary()
    assert len(tokenizer) == len(words) + 5
    assert tokenizer.convert_ids_to_tokens(list(range(5))) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    sentence = next(iter(embedded.documents(0, 1)))
    assert tokenizer.unk_token_id not in tokenizer(sentence)["input_ids"]
    assert tokenizer(sentence)["input_ids"][0] == tokenizer.cls_token_id
    assert result["has_mlm_head"] is False
    assert (result["layers"], result["model_type"]) == (3, "bert")
    model = BertForMaskedLM.from_pretrained(here.model(WEIGHTS))
    assert model.config.vocab_size == len(tokenizer)
    other, changed = walk("other"), walk("changed", pretrain={"seed": 1})
    other.do(WEIGHTS)
    changed.do(WEIGHTS)
    files = [load_file(w.model(WEIGHTS) / "model.safetensors") for w in (here, other, changed)]
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])
    assert not all(torch.equal(files[0][name], files[2][name]) for name in files[0])


def test_scratch_vocabulary(walk: Callable) -> None:
    """Padded with [unusedN] up to what is asked for; fewer than the text's words are refused."""
    here = walk(teacher={"vocabulary": 2000})
    here.do(WEIGHTS)
    tokenizer = AutoTokenizer.from_pretrained(here.model(WEIGHTS))
    assert len(tokenizer) == 2000
    assert tokenizer.convert_ids_to_tokens([1999])[0].startswith("[unused")
    with pytest.raises(UserError, match="teacher.vocabulary: 20 words are too few"):
        walk("small", teacher={"vocabulary": 20}).do(WEIGHTS)


@pytest.fixture
def released(walk: Callable, tmp_path: Path) -> Path:
    """A folder of released weights as sentence-transformers leaves it: a bare encoder, and files of no interest."""
    here = walk("source")
    here.do(WEIGHTS)
    folder = tmp_path / "released"
    shutil.copytree(here.model(WEIGHTS), folder)
    BertModel.from_pretrained(folder).save_pretrained(folder)
    (folder / "modules.json").write_text("[]")
    (folder / "1_Pooling").mkdir()
    return folder


def test_folder_weights_are_bit_equal(released: Path, walk: Callable) -> None:
    """Config, weights and tokenizer are copied byte by byte, nothing else; a missing MLM head is noticed."""
    here = walk(teacher={"weights": str(released)})
    result = here.do(WEIGHTS)
    assert result["has_mlm_head"] is False
    copied = {path.name for path in here.model(WEIGHTS).iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= copied
    assert "modules.json" not in copied
    for name in copied:
        assert (here.model(WEIGHTS) / name).read_bytes() == (released / name).read_bytes()
    AutoModel.from_pretrained(here.model(WEIGHTS))
    listed = list_outputs(here.store.folder(WEIGHTS))
    assert "model/model.safetensors" in listed


def with_config(folder: Path, **changes: Any) -> None:
    """Change config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def spoil_nan(folder: Path) -> None:
    """Plant one NaN."""
    tensors = load_file(folder / "model.safetensors")
    name = "encoder.layer.1.output.dense.weight"
    tensors[name][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def spoil_pickle(folder: Path) -> None:
    """Weights as a pickle only."""
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def spoil_mask(folder: Path) -> None:
    """A tokenizer without [MASK]."""
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["mask_token"] = None
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


SPOILT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no weights"),
    "pickle": (spoil_pickle, "a pickle.*save_pretrained"),
    "nan": (spoil_nan, "NaN or infinity"),
    "cut": (lambda f: (f / "model.safetensors").write_bytes(b"\0" * 50), "cannot be read"),
    "other vocabulary": (lambda f: with_config(f, vocab_size=90_000), "tokenizer has .* words, the model 90000"),
    "more layers": (lambda f: with_config(f, num_hidden_layers=5), "lack"),
    "no tokenizer": (lambda f: [p.unlink() for p in f.glob("tokenizer*")], "no tokenizer"),
    "no mask token": (spoil_mask, "no mask_token"),
    "unknown kind": (lambda f: with_config(f, model_type="nonesuch"), "config.json"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_bad_weights_are_refused(name: str, released: Path, walk: Callable) -> None:
    """One or two lines with the folder; no record, so the step is not done."""
    spoil, message = SPOILT[name]
    spoil(released)
    here = walk(teacher={"weights": str(released)})
    with pytest.raises(UserError, match=message) as caught:
        here.do(WEIGHTS)
    assert len(str(caught.value).splitlines()) <= 2
    assert here.store.record(WEIGHTS) is None


def test_weights_that_change_while_they_are_read(released: Path, walk: Callable) -> None:
    """What was fingerprinted is what must be copied."""
    here = walk(teacher={"weights": str(released)})
    with_config(released, initializer_range=0.5)
    with pytest.raises(StepError, match="config.json: changed while it was read"):
        here.do(WEIGHTS)


def test_hub_weights(released: Path, walk: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder stands in for the hub; the commit is recorded, the revision passed on, failures said in one line."""
    import huggingface_hub

    asked: list[Any] = []
    snapshot = released.rename(released.parent / "abc123")

    def download(name: str, **options: Any) -> str:
        asked.append((name, options["revision"], tuple(options["allow_patterns"])))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    result = walk(teacher={"weights": "some/model", "revision": "main2"}).do(WEIGHTS)
    assert result["commit"] == "abc123"
    assert asked[0][:2] == ("some/model", "main2")
    assert not any("bin" in pattern for pattern in asked[0][2])

    def fail(name: str, **options: Any) -> str:
        raise OSError("no network\nlong story")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError, match="weights some/model: the hub gave none.*no network"):
        walk("other", teacher={"weights": "some/model"}).do(WEIGHTS)


def test_corpus_step(walk: Callable) -> None:
    """corpus.json has the cache's key and the counts; a second run with other training settings shares the cache."""
    here = walk()
    result = here.do("prepare/corpus")
    assert (here.store.cache / "corpus" / result["key"] / "manifest.json").is_file()
    assert result["train"]["tokens"] == 32 * result["train"]["sequences"]
    assert result["documents"] == 200
    assert result["train"]["unknown"] == 0
    stamp = (here.store.cache / "corpus" / result["key"] / "train.tokens.bin").stat().st_mtime_ns
    other = walk("other", distill={"learning_rate": 1e-4})
    assert other.do("prepare/corpus")["key"] == result["key"]
    assert (here.store.cache / "corpus" / result["key"] / "train.tokens.bin").stat().st_mtime_ns == stamp
