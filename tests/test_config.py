"""Settings: every bad value ends in one ConfigError line with the file, the key path and a remedy."""

import json
from pathlib import Path

import pytest

from glue_bench.config import (
    Config,
    check_name,
    config_from,
    config_names,
    distill_settings,
    load_config,
    parse_task_threshold,
    plain,
    task_settings,
)
from glue_bench.errors import ConfigError, UserError

STUDENT = {"name": "small", "layers": 2}

BAD = [
    ({"distil": {}}, "distil: unknown setting; did you mean 'distill'?"),
    ({"distill": {"temprature": 2.0}}, "distill.temprature: unknown setting; did you mean 'temperature'?"),
    ({"distill": {"temperature": 0}}, "distill.temperature: 0.0 must be above 0"),
    ({"distill": {"learning_rate": -1e-4}}, "distill.learning_rate"),
    ({"distill": {"learning_rate": "fast"}}, "distill.learning_rate: expected a number, got 'fast'"),
    ({"distill": {"tokens": 1.5}}, "distill.tokens: expected a whole number"),
    ({"distill": {"tokens": True}}, "distill.tokens: expected a whole number"),
    ({"distill": {"tokens": -1}}, "distill.tokens: -1 is below"),
    ({"distill": {"weight_ce": float("nan")}}, "distill.weight_ce: nan is not a finite number"),
    ({"distill": {"weight_ce": float("inf")}}, "distill.weight_ce: inf is not a finite number"),
    ({"distill": {"ce_positions": "all"}}, "distill.ce_positions: 'all' is not one of attended, masked"),
    ({"distill": {"initialisation": "zeros"}}, "distill.initialisation"),
    (
        {"distill": {"freeze_positions": True}, "students": [STUDENT | {"distill": {"initialisation": "random"}}]},
        "students[0]: freeze_positions would keep random ones",
    ),
    ({"distill": {"warmup": 1.5}}, "distill.warmup: 1.5 is above the most allowed, 1"),
    ({"distill": {"dropout": 1.0}}, "distill.dropout"),
    ({"distill": {"mask_probability": 0}}, "distill.mask_probability"),
    ({"distill": {"batch_size": 0}}, "distill.batch_size"),
    ({"distill": {"checkpoint_every": 0}}, "distill.checkpoint_every"),
    ({"distill": []}, "distill: expected a table"),
    ({"pretrain": {"max_grad_norm": 0}}, "pretrain.max_grad_norm"),
    ({"pretrain": {"beta2": 1.0}}, "pretrain.beta2"),
    ({"pretrain": {"head_only_steps": -5}}, "pretrain.head_only_steps"),
    ({"pretrain": {"freeze_encoder": True}}, "pretrain.freeze_encoder: would leave random weights"),
    ({"data": {"tasks": ["rtee"]}}, "data.tasks[0]: no task 'rtee'; did you mean 'rte'?"),
    ({"data": {"tasks": ["ax"]}}, "data.tasks[0]: no task 'ax'; AX needs no entry"),
    ({"data": {"tasks": ["rte", "rte"]}}, "data.tasks: 'rte' stands twice"),
    ({"data": {"tasks": [3]}}, "data.tasks[0]: expected text"),
    ({"data": {"max_train_rows": -1}}, "data.max_train_rows"),
    ({"data": {"max_dev_rows": "all"}}, "data.max_dev_rows"),
    ({"data": {"predict_test": 1}}, "data.predict_test: expected true or false"),
    ({"data": {"seed": -1}}, "data.seed"),
    ({"corpus": {"sequence_length": 4}}, "corpus.sequence_length"),
    ({"corpus": {"sequence_length": 1024}}, "corpus.sequence_length"),
    ({"corpus": {"heldout_fraction": 0}}, "corpus.heldout_fraction"),
    ({"corpus": {"heldout_fraction": 0.9}}, "corpus.heldout_fraction"),
    ({"corpus": {"batches": "random"}}, "corpus.batches"),
    ({"corpus": {"text": 5}}, "corpus.text[0]: expected text"),
    ({"teacher": {"layers": 0}}, "teacher.layers"),
    ({"teacher": {"hidden": 130, "heads": 4}}, "teacher.heads: 4 does not divide hidden 130"),
    ({"teacher": {"name": "../up"}}, "teacher.name"),
    ({"teacher": {"name": ""}}, "teacher.name"),
    ({"teacher": {"name": ".hidden"}}, "teacher.name"),
    ({"teacher": {"weights": 3}}, "teacher.weights"),
    ({"students": [{"name": "a"}]}, "give exactly one of layers, weights, weights_of"),
    ({"students": [{"name": "a", "layers": 2, "weights": "x"}]}, "give exactly one of"),
    ({"students": [{"layers": 2}]}, "students[0].name"),
    (
        {"distill": {"weight_ce": 0.0, "weight_cos": 0.0}, "students": [STUDENT | {"distill": {"weight_mlm": 0.0}}]},
        "students[0]: weight_ce, weight_mlm, weight_cos are all 0",
    ),
    ({"students": [STUDENT, STUDENT]}, "'small' stands twice"),
    ({"students": [{"name": "teacher", "layers": 2}]}, "'teacher' stands twice"),
    ({"students": [{"name": "majority", "layers": 2}]}, "'majority' is a row of every table"),
    ({"students": [{"name": "a/b", "layers": 2}]}, "cannot name a folder"),
    ({"students": [{"name": "a", "layers": 0}]}, "at least 1 is needed"),
    ({"students": [{"name": "a", "layers": [0, 0]}]}, "0 stands twice"),
    ({"students": [{"name": "a", "layers": [-1, 2]}]}, "counted from 0"),
    ({"students": [{"name": "a", "layers": "two"}]}, "students[0].layers[0]: expected a whole number"),
    ({"students": [{"name": "a", "layers": 2, "distill": {"token": 1}}]}, "did you mean 'tokens'?"),
    ({"students": [{"name": "a", "layers": 2, "soft_targets": 1.5}]}, "soft_targets"),
    (
        {"teacher": {"finetuned": {"rte": "x"}}, "students": [{**STUDENT, "soft_targets": 0.5}]},
        "remove teacher.finetuned",
    ),
    ({"teacher": {"name": "majority"}}, "teacher.name: 'majority' is a row of every table"),
    ({"teacher": {"finetuned": {"mnil": "x"}}}, "teacher.finetuned.mnil: no such task; did you mean 'mnli'?"),
    ({"teacher": {"max_positions": 64}}, "corpus.sequence_length: 128 is above the teacher's max_positions, 64"),
    ({"students": [{"name": "a", "layers": 6}]}, "students[0].layers: [6] of a teacher that has 4"),
    ({"students": [{"name": "a", "layers": [0, 4]}]}, "students[0].layers: [0, 4] of a teacher that has 4"),
    ({"students": [STUDENT, {"name": "b", "weights_of": "smal"}]}, "did you mean 'small'?"),
    (
        {"students": [STUDENT, {"name": "b", "weights_of": "small", "distill": {"temperature": 3.0}}]},
        "students[1].distill: b is not distilled here; only rows with layers are",
    ),
    (
        {"students": [{"name": "b", "finetuned": {"rte": "folder"}, "soft_targets": 0.5}]},
        "students[0].soft_targets: b is not fine-tuned here",
    ),
    ({"students": [{"name": "a", "finetuned": {"rtee": "x"}}]}, "finetuned.rtee: no such task"),
    ({"students": "a"}, "students[0]: expected a table"),
    ({"finetune": {"seeds": []}}, "at least one seed is needed"),
    ({"finetune": {"seeds": [0.5]}}, "finetune.seeds[0]: expected a whole number"),
    ({"finetune": {"seeds": [1, 1]}}, "1 stands twice"),
    ({"finetune": {"seeds": [-1]}}, "finetune.seeds[0]"),
    ({"finetune": {"epochs": 0}}, "finetune.epochs"),
    ({"finetune": {"epochs": 2.5}}, "finetune.epochs: expected a whole number"),
    ({"finetune": {"max_length": 4}}, "finetune.max_length"),
    ({"finetune": {"max_length": 4096}}, "finetune.max_length"),
    ({"finetune": {"temperature": -1}}, "finetune.temperature"),
    ({"finetune": {"keep_weights": "best"}}, "finetune.keep_weights"),
    ({"finetune": {"tasks": {"xnli": {"epochs": 2}}}}, "finetune.tasks.xnli: no such task; did you mean 'wnli'?"),
    (
        {"finetune": {"tasks": {"rte": {"epoch": 2}}}},
        "finetune.tasks.rte.epoch: unknown setting; did you mean 'epochs'?",
    ),
    ({"finetune": {"tasks": {"rte": {"epochs": 0}}}}, "finetune.tasks.rte.epochs"),
    ({"benchmark": {"scenarios": ["stsb"]}}, "benchmark.scenarios[0]"),
    ({"benchmark": {"precisions": ["int4"]}}, "benchmark.precisions[0]"),
    ({"benchmark": {"backends": ["tensorrt"]}}, "benchmark.backends[0]"),
    ({"benchmark": {"min_passes": 3}}, "3 is odd"),
    ({"benchmark": {"batch_sizes": [0]}}, "benchmark.batch_sizes[0]"),
    ({"benchmark": {"max_seconds": 0}}, "benchmark.max_seconds"),
    ({"check": {"min_retention": 1.2}}, "check.min_retention: 1.2 is above the most allowed, 1"),
    ({"check": {"min_retention": "high"}}, "check.min_retention: expected a number"),
    ({"check": {"min_task": {"rtee": 0.8}}}, "check.min_task.rtee: no such task"),
    ({"check": {"min_task": {"rte": 1.8}}}, "check.min_task.rte: 1.8 is not between 0 and 1"),
    ({"check": {"students": ["nobody"]}}, "check.students[0]: no student 'nobody'"),
    ({"check": {"judge": "high"}}, "check.judge"),
    ({"report": {"resamples": 1}}, "report.resamples"),
    ({"machine": {"device": "tpu"}}, "machine.device: 'tpu' is not one of auto, cpu, cuda"),
    ({"machine": {"precision": "fp8"}}, "machine.precision"),
    ({"machine": {"threads": -2}}, "machine.threads"),
    ({"name": "../../etc"}, "name"),
    ({"name": "a\nb"}, "name"),
]


@pytest.mark.parametrize(("raw", "expected"), BAD, ids=[expected[:50] for _, expected in BAD])
def test_bad_setting_is_named(raw: dict, expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        config_from({"name": "bad", **raw}, "bad.toml")
    message = str(error.value)
    assert expected in message
    assert message.count("\n") <= 1


@pytest.mark.parametrize("name", config_names())
def test_shipped_config_loads_and_survives_json(name: str) -> None:
    config = load_config(name)
    assert config.name == name
    assert config.title.startswith(f"{name}:")
    assert config_from(plain(config), name) == config


def test_shipped_configs_are_those_of_the_design() -> None:
    assert set(config_names()) == {"quick", "minilm", "distilbert", "paper", "ablation", "shapes"}


def test_paper_config_has_the_published_values() -> None:
    paper = load_config("paper")
    distill = distill_settings(paper, paper.students[0])
    assert (distill.weight_ce, distill.weight_mlm, distill.weight_cos, distill.temperature) == (5.0, 2.0, 1.0, 2.0)
    assert (distill.learning_rate, distill.beta1, distill.beta2, distill.epsilon) == (5e-4, 0.9, 0.98, 1e-6)
    assert (distill.weight_decay, distill.max_grad_norm, distill.warmup, distill.epochs) == (0.0, 5.0, 0.05, 3.0)
    assert (distill.mask_probability, distill.mask_smoothing, distill.dropout) == (0.15, 0.7, 0.1)
    assert paper.students[0].layers == (0, 2, 4, 7, 9, 11)
    assert distill.ce_positions == "attended" and not distill.fold_token_types and distill.freeze_positions
    assert task_settings(paper, "rte").seeds == (0, 1, 2, 3, 4)


def test_assignments_reach_tables_and_rows() -> None:
    config = load_config("quick", ["distill.tokens=7", "students.distil-2.layers=[0,3]", "students.0.distill.seed=4"])
    assert config.students[0].layers == (0, 3)
    assert distill_settings(config, config.students[0]).tokens == 7
    assert distill_settings(config, config.students[0]).seed == 4
    assert load_config("quick", ["finetune.tasks.rte.epochs=9"]).finetune.tasks["rte"]["epochs"] == 9
    assert load_config("quick", ["data.glue=some/folder"]).data.glue == "some/folder"


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("distill.tokens", "expected key=value"),
        ("=3", "expected key=value"),
        ("distill..tokens=3", "expected key=value"),
        ("distil.tokens=3", "did you mean 'distill'?"),
        ("students.nobody.layers=2", "no row 'nobody'"),
        ("students.9.layers=2", "no row '9'"),
        ("students.0=2", "name a setting of the row"),
        ("title.x=2", "'title' is a value"),
    ],
)
def test_bad_assignment_is_named(assignment: str, expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config("quick", [assignment])
    assert expected in str(error.value)


def test_bad_config_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'minilm'"):
        load_config("minilmm")
    with pytest.raises(ConfigError, match="no such file"):
        load_config(str(tmp_path / "absent.toml"))
    broken = tmp_path / "broken.toml"
    broken.write_text("[data\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_config(str(broken))
    broken.write_bytes(b"title = '\xff'")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(str(broken))


@pytest.mark.parametrize("text", ["[1, 2]", "3", "{", '{"distil": {}}', '{"data": {"seed": NaN}}'])
def test_bad_configs_of_runs(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.json: "):
        load_config(str(path))


def test_the_config_of_a_run_is_one_to_run(tmp_path: Path) -> None:
    own = load_config("minilm", ["students.0.layers=[0,1]", "distill.tokens=5"])
    path = tmp_path / "config.json"
    path.write_text(json.dumps(plain(own)), encoding="utf-8")
    assert load_config(str(path)) == own
    assert load_config(str(path), ["distill.tokens=6"]).distill.tokens == 6


def test_config_is_named_by_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[data]\ntasks = ['rte']\n", encoding="utf-8")
    assert load_config(str(path)).name == "mine"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "-x", "x" * 81, "a b", "a\x00b", "ü"])
def test_unsafe_run_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        check_name(name, "--run")


@pytest.mark.parametrize("text", ["rte", "rte=", "rte=x", "rte=1.1", "rte=-0.1", "rtee=0.5", "rte=nan"])
def test_bad_task_threshold(text: str) -> None:
    with pytest.raises(UserError, match="--min-task"):
        parse_task_threshold(text)


def test_defaults_are_complete() -> None:
    assert config_from({"name": "x"}, "x") == Config(name="x")
    assert parse_task_threshold("rte=0.8") == ("rte", 0.8)
