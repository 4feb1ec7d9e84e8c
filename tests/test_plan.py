"""The plan: fingerprints change with exactly what a result depends on, and with nothing else."""

import dataclasses

import pytest

from glue_bench import plan as planning
from glue_bench.config import config_from, load_config, plain
from glue_bench.inputs import HashMemo
from glue_bench.machine import Facts
from glue_bench.plan import Step, fingerprints, plan, roles

FACTS = Facts(threads=2, precision="fp32", devices={"cpu": "a processor"}, job_threads=2)


def marks(raw: dict | None = None, facts: Facts = FACTS, assignments: tuple[str, ...] = ()) -> dict[str, str]:
    config = config_from(raw, "x") if raw is not None else load_config("quick", assignments)
    return fingerprints(plan(config, facts, HashMemo(None)))


def changed(assignment: str) -> set[str]:
    before, after = marks(), marks(assignments=(assignment,))
    return {name for name in before | after if before.get(name) != after.get(name)}


AFTER_ALL = {"report", "check"}


def test_every_need_comes_before_its_step() -> None:
    for name in ("quick", "minilm-like"):
        raw = plain(load_config("quick"))
        if name == "minilm-like":
            raw["students"] += [{"name": "soft", "weights_of": "distil-2", "soft_targets": 0.5}]
        seen: set[str] = set()
        for step in plan(config_from(raw, name), FACTS, HashMemo(None)):
            assert set(step.needs) <= seen, step.name
            assert step.name not in seen
            seen.add(step.name)


def test_one_setting_redoes_exactly_what_depends_on_it() -> None:
    rte = {f"finetune/{model}/rte/seed-0" for model in ("teacher", "distil-2")}
    assert changed("finetune.tasks.rte.epochs=9") == rte | AFTER_ALL
    assert changed("check.min_retention=0.1") == AFTER_ALL, "summary.json holds the verdict"
    assert changed("report.resamples=500") == AFTER_ALL
    assert changed("benchmark.examples=7") == {"benchmark/cpu"} | AFTER_ALL
    student = {name for name in marks() if name.startswith(("distill/", "finetune/distil-2/", "benchmark/"))}
    assert changed("distill.temperature=3.0") == student | AFTER_ALL
    untouched = {name for name in marks() if name.startswith(("prepare/glue", "prepare/weights", "finetune/majority"))}
    assert changed("pretrain.learning_rate=0.01") == set(marks()) - untouched - {"prepare/corpus"}
    assert changed("data.seed=5") >= {name for name in marks() if name.startswith(("prepare/glue", "finetune"))}
    assert not changed("data.seed=5") & {"prepare/corpus", "pretrain/teacher", "distill/distil-2"}
    new = changed("finetune.tasks.rte.seeds=[0,1]")
    assert new == {f"finetune/{model}/rte/seed-1" for model in ("teacher", "distil-2")} | AFTER_ALL


def test_threads_and_precision_count_but_device_does_not() -> None:
    base = marks()
    for changed_facts in (
        dataclasses.replace(FACTS, threads=1, job_threads=1),
        dataclasses.replace(FACTS, precision="bf16"),
    ):
        other = marks(facts=changed_facts)
        assert base["pretrain/teacher"] != other["pretrain/teacher"]
        assert base["prepare/corpus"] == other["prepare/corpus"]
    assert changed("machine.device=cpu") == set()
    moved = marks(facts=dataclasses.replace(FACTS, devices={"cpu": "another processor"}))
    assert {name for name in base if base[name] != moved[name]} == {"benchmark/cpu"} | AFTER_ALL


def test_no_setting_is_missing_from_the_fingerprints() -> None:
    """Every setting of every section changes some fingerprint, or is on the list of those that may not."""
    without_effect = {
        "machine.device",
        "machine.jobs_per_device",
        "data.revision",
        "teacher.revision",
        "finetune.seeds",
    }
    without_effect |= {"machine.threads", "machine.precision"}  # they act through Facts
    without_effect |= {"pretrain.checkpoint_every", "distill.checkpoint_every"}  # when, not what
    without_effect |= {"finetune.temperature", "finetune.keep_weights", "corpus.heldout", "name"}
    without_effect |= {"corpus.max_hub_tokens"}  # without a text of the hub
    without_effect |= {"pretrain.freeze_encoder"}  # for released weights only: test_roles_and_as_released
    base_raw = plain(load_config("quick"))
    base = marks(base_raw)
    for section, values in base_raw.items():
        if not isinstance(values, dict):
            continue
        for key, value in values.items():
            path = f"{section}.{key}"
            other = _another(value)
            if path in without_effect or other is None:
                continue
            if path == "corpus.sequence_length":
                other = 32
            if path == "check.students":
                other = ["distil-2"]
            raw = {**base_raw, section: {**values, key: other}}
            try:
                assert marks(raw) != base, path
            except Exception as error:
                if "is not one of" not in str(error) and "odd" not in str(error) and "divide" not in str(error):
                    raise


def _another(value: object) -> object:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value * 2 or 1
    if isinstance(value, float):
        return value / 2 or 0.1
    return None


def test_writing_more_checkpoints_makes_nothing_stale() -> None:
    assert changed("pretrain.checkpoint_every=7") == changed("distill.checkpoint_every=7") == set()


def test_keep_weights_is_seen_by_the_report() -> None:
    assert "report" in changed("finetune.keep_weights=all")


def test_paths_stay_out_of_fingerprints(tmp_path) -> None:
    texts = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "text.txt").write_text("the same words", encoding="utf-8")
        texts.append(marks(assignments=(f"corpus.text={tmp_path / folder / 'text.txt'}",)))
    assert texts[0] == texts[1]
    (tmp_path / "b" / "text.txt").write_text("other words now", encoding="utf-8")
    assert marks(assignments=(f"corpus.text={tmp_path / 'b' / 'text.txt'}",)) != texts[0]


def test_a_cap_on_hub_text_leaves_other_text_alone(tmp_path) -> None:
    """minilm.toml caps Wikipedia; the same config with a file keeps the fingerprints it had before there was a cap."""
    (tmp_path / "text.txt").write_text("some words", encoding="utf-8")
    for text, counts in (("embedded", False), (str(tmp_path / "text.txt"), False), ("hub:a/b@1f", True)):
        assignments = (f"corpus.text={text}",)
        capped = marks(assignments=(*assignments, "corpus.max_hub_tokens=5"))
        assert (capped["prepare/corpus"] != marks(assignments=assignments)["prepare/corpus"]) == counts
    config = load_config("quick", ("corpus.text=hub:a/b@1f",))
    (corpus,) = [step for step in plan(config, FACTS, HashMemo(None)) if step.name == "prepare/corpus"]
    assert "max_hub_tokens" not in corpus.settings
    for name in ("minilm", "ablation"):
        config = load_config(name)
        trained = max(config.distill.tokens, config.pretrain.tokens)
        assert config.corpus.max_hub_tokens * (1 - config.corpus.heldout_fraction) > trained, "nothing is seen twice"


def test_stage_is_the_first_part_of_the_name() -> None:
    assert Step("finetune/a/rte/seed-0", {}).stage == "finetune"


def test_roles_and_as_released() -> None:
    raw = plain(load_config("quick"))
    assert roles(config_from(raw, "x")) == {"teacher": "teacher", "distil-2": "student", "majority": "majority"}
    raw["teacher"]["weights"] = "package:glue_bench/data"
    assert roles(config_from(raw, "x"))["as-released"] == "as-released"
    steps, raw["pretrain"]["freeze_encoder"] = marks(raw), True
    assert marks(raw)["pretrain/teacher"] != steps["pretrain/teacher"]
    (frozen,) = (step for step in plan(config_from(raw, "x"), FACTS, HashMemo(None)) if step.stage == "pretrain")
    assert frozen.settings["freeze_encoder"] is True
    assert "as-released" not in roles(config_from(raw, "x")), "the teacher itself is as released"
    raw["pretrain"] |= {"freeze_encoder": False, "tokens": 0}
    assert "as-released" not in roles(config_from(raw, "x"))


def test_soft_student_needs_the_teachers_fine_tuning_and_shares_the_distilled_encoder() -> None:
    raw = plain(load_config("quick"))
    raw["students"].append({"name": "soft", "weights_of": "distil-2", "soft_targets": 0.5})
    steps = {step.name: step for step in plan(config_from(raw, "x"), FACTS, HashMemo(None))}
    soft = steps["finetune/soft/rte/seed-0"]
    assert {"finetune/teacher/rte/seed-0", "distill/distil-2", "prepare/glue/rte"} == set(soft.needs)
    assert steps["finetune/teacher/rte/seed-0"].settings["train_logits"] is True
    assert "distill/soft" not in steps


@pytest.mark.parametrize("tasks", [[], ["rte"], ["mnli"]])
def test_plans_over_fewer_tasks(tasks: list[str]) -> None:
    names = set(marks({"name": "x", "data": {"tasks": tasks}, "students": [{"name": "s", "layers": 2}]}))
    assert {f"prepare/glue/{task}" for task in tasks} <= names
    assert ("prepare/glue/ax" in names) == ("mnli" in tasks)
    assert "prepare/corpus" not in names  # nothing trains on text here


def test_int8_exports_of_teacher_and_students_need_their_fine_tunings_and_come_before_the_report() -> None:
    raw = plain(load_config("quick"))
    raw["data"]["tasks"] = ["rte", "stsb"]
    raw["finetune"] |= {"seeds": [0, 1], "tasks": {}}
    raw["benchmark"]["backends"] = ["eager", "onnx-int8"]
    steps = {step.name: step for step in plan(config_from(raw, "x"), FACTS, HashMemo(None))}
    cells = [name for name in steps if name.startswith("benchmark/int8/")]
    assert cells == [f"benchmark/int8/{model}/{task}" for task in ("rte", "stsb") for model in ("teacher", "distil-2")]
    assert set(steps[cells[1]].needs) == {
        "finetune/distil-2/rte/seed-0",
        "finetune/distil-2/rte/seed-1",
        "prepare/glue/rte",
    }
    assert set(cells) < set(steps["report"].needs)
    before, after = marks(raw), marks(raw | {"benchmark": raw["benchmark"] | {"examples": 7}})
    assert all(before[name] == after[name] for name in cells), "times and scores are apart"


def test_what_was_skipped_for_want_of_packages_is_redone_once_they_are_there(monkeypatch) -> None:
    raw = plain(load_config("quick"))
    raw["benchmark"]["backends"] = ["eager", "onnx-int8"]
    monkeypatch.setattr("glue_bench.plan.find_spec", lambda name: None)
    without = marks(raw)
    monkeypatch.setattr("glue_bench.plan.find_spec", lambda name: object())
    there = marks(raw)
    changed_steps = {name for name in there if there[name] != without[name]}
    assert {"benchmark/cpu", "benchmark/int8/teacher/rte"} < changed_steps
    assert not any(name.startswith(("finetune", "distill", "prepare", "pretrain")) for name in changed_steps)


def test_what_was_skipped_for_want_of_a_compiler_is_redone_once_there_is_one(monkeypatch) -> None:
    """And what was timed with one stays done."""
    compiled = "benchmark.backends=['eager','compile']"
    monkeypatch.setattr(planning.shutil, "which", lambda name: None)
    without = marks(assignments=(compiled,))
    eager = marks()
    monkeypatch.setattr(planning.shutil, "which", lambda name: f"/bin/{name}")
    there = marks(assignments=(compiled,))
    assert {name for name in there if there[name] != without[name]} == {"benchmark/cpu"} | AFTER_ALL
    assert eager == marks(), "no row needs a compiler"
    monkeypatch.setenv("CXX", "/bin/clang++")
    assert there == marks(assignments=(compiled,))
