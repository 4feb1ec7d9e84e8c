"""The pipeline: done steps are skipped, stale and damaged ones redone, shards share the work, nothing is done twice."""

import json
import shutil
import sys
import threading
import types
from dataclasses import replace
from pathlib import Path

import pytest

from glue_bench import executors, pipeline
from glue_bench.config import load_config
from glue_bench.errors import StepError, UserError
from glue_bench.pipeline import Run, Shard, run_steps, states, with_needs
from glue_bench.plan import Step, checkpoint_key
from glue_bench.store import Store, checkpoints_of, list_outputs, write_atomic

STEPS = (
    Step("prepare/glue/rte", {"a": 1}),
    Step("finetune/teacher/rte/seed-0", {"epochs": 3}, ("prepare/glue/rte",)),
    Step("finetune/teacher/rte/seed-1", {"epochs": 3}, ("prepare/glue/rte",)),
    Step("finetune/small/rte/seed-0", {"epochs": 3}, ("prepare/glue/rte", "finetune/teacher/rte/seed-0")),
    Step("report", {}, ("finetune/teacher/rte/seed-0", "finetune/teacher/rte/seed-1", "finetune/small/rte/seed-0")),
)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fake stages that note which steps were computed and leave a file each."""
    names: list[str] = []

    def run(step: Step, store: Store, device: str) -> dict:
        names.append(step.name)
        write_atomic(store.folder(step.name) / "out.txt", json.dumps(dict(step.settings)))
        return {"device": device}

    for stage in ("prepare", "pretrain", "distill", "finetune", "report"):
        module = types.ModuleType(f"glue_bench.stages.{stage}")
        module.run = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, f"glue_bench.stages.{stage}", module)
    return names


ALL = Shard(1, 1)


def make_run(folder: Path, shard: Shard = ALL, threads: int = 1, *changes: str) -> tuple[Run, list[str]]:
    lines: list[str] = []
    config = load_config("quick", changes)
    return Run(Store(folder, "run"), config, "cpu", threads, "fp32", shard, lines.append, shard.count > 1), lines


def test_second_run_computes_nothing(tmp_path: Path, computed: list[str]) -> None:
    run, _ = make_run(tmp_path)
    assert run_steps(STEPS, STEPS, run)
    assert computed == [step.name for step in STEPS]
    run, lines = make_run(tmp_path)
    assert run_steps(STEPS, STEPS, run)
    assert len(computed) == len(STEPS)
    assert lines == ["all 5 steps are done already; nothing to compute"]
    record = run.store.record("report")
    assert record["environment"]["versions"] and record["seconds"] >= 0


def test_changed_setting_redoes_dependants_and_says_why(tmp_path: Path, computed: list[str]) -> None:
    run_steps(STEPS, STEPS, make_run(tmp_path)[0])
    computed.clear()
    changed = tuple(Step(s.name, {"epochs": 5}, s.needs) if "seed-1" in s.name else s for s in STEPS)
    run, lines = make_run(tmp_path)
    run_steps(changed, changed, run)
    assert computed == ["finetune/teacher/rte/seed-1", "report"]
    assert any("finetune/teacher/rte/seed-1: stale, computed anew (epochs: 3 -> 5)" in line for line in lines)
    assert any("report: stale, computed anew (finetune/teacher/rte/seed-1 changed)" in line for line in lines)


def test_damaged_output_is_redone_alone(tmp_path: Path, computed: list[str]) -> None:
    run, _ = make_run(tmp_path)
    run_steps(STEPS, STEPS, run)
    computed.clear()
    (run.store.folder("prepare/glue/rte") / "out.txt").write_text("{}", encoding="utf-8")
    run, lines = make_run(tmp_path)
    run_steps(STEPS, STEPS, run)
    assert computed == ["prepare/glue/rte"]
    assert "damaged" in lines[0]


def test_force_redoes_a_stage(tmp_path: Path, computed: list[str]) -> None:
    run_steps(STEPS, STEPS, make_run(tmp_path)[0])
    run_steps(STEPS, STEPS, make_run(tmp_path)[0], force=("report",))
    assert computed.count("report") == 2


def test_failed_step_keeps_what_was_done(tmp_path: Path, computed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    good = sys.modules["glue_bench.stages.finetune"].run

    def bad(step: Step, store: Store, device: str) -> dict:
        if "seed-1" in step.name:
            raise StepError("the loss is NaN")
        return good(step, store, device)

    monkeypatch.setattr(sys.modules["glue_bench.stages.finetune"], "run", bad)
    run, _ = make_run(tmp_path)
    with pytest.raises(StepError):
        run_steps(STEPS, STEPS, run)
    kinds = {name: state.kind for name, state in states(STEPS, run.store).items()}
    assert kinds["finetune/teacher/rte/seed-0"] == "done"
    assert kinds["finetune/teacher/rte/seed-1"] == "pending"
    monkeypatch.setattr(sys.modules["glue_bench.stages.finetune"], "run", good)
    assert run_steps(STEPS, STEPS, make_run(tmp_path)[0])
    assert sorted(computed) == sorted(step.name for step in STEPS)


def test_nan_in_a_result_is_no_record(tmp_path: Path, computed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["glue_bench.stages.prepare"], "run", lambda *_: {"loss": float("nan")})
    run, _ = make_run(tmp_path)
    with pytest.raises(StepError, match="NaN"):
        run_steps(STEPS, STEPS, run)
    assert run.store.record("prepare/glue/rte") is None


def test_shards_share_the_work(tmp_path: Path, computed: list[str]) -> None:
    first, lines = make_run(tmp_path, Shard(1, 2))
    assert not run_steps(STEPS, STEPS, first)
    assert "waits for the other shards" in lines[-1]
    assert "finetune/teacher/rte/seed-1" not in computed
    second, _ = make_run(tmp_path, Shard(2, 2))
    assert run_steps(STEPS, STEPS, second)
    assert sorted(computed) == sorted(step.name for step in STEPS)


def test_shards_at_once_do_nothing_twice(tmp_path: Path, computed: list[str]) -> None:
    threads = [
        threading.Thread(target=lambda i=i: run_steps(STEPS, STEPS, make_run(tmp_path, Shard(i, 3))[0]))
        for i in (1, 2, 3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run_steps(STEPS, STEPS, make_run(tmp_path)[0])
    assert sorted(computed) == sorted(step.name for step in STEPS)


def test_needs_are_found_transitively() -> None:
    wanted = with_needs(STEPS, STEPS[1:4])
    assert [step.name for step in wanted] == [step.name for step in STEPS[:4]]
    assert with_needs(STEPS, STEPS[:1]) == [STEPS[0]]


def test_a_damaged_training_is_not_redone_without_asking(
    tmp_path: Path, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An edited model card must not cost days: the error names the file and how to have the step computed anew."""
    monkeypatch.setitem(sys.modules, "glue_bench.stages.distill", sys.modules["glue_bench.stages.finetune"])
    monkeypatch.setattr("glue_bench.pipeline.REHEARSED", ())
    steps = (Step("distill/small", {"tokens": 5}),)
    run_steps(steps, steps, make_run(tmp_path)[0])
    run, _ = make_run(tmp_path)
    folder = run.store.folder("distill/small")
    (folder / "out.txt").write_text("edited", encoding="utf-8")
    with pytest.raises(StepError, match=r"out.txt has 6 bytes instead of .*; restore it, or delete .*distill/small"):
        run_steps(steps, steps, run)
    assert computed == ["distill/small"]
    shutil.rmtree(folder)
    assert run_steps(steps, steps, run)


def test_changed_weights_are_trained_anew_and_pruned_ones_are_not_missed(
    tmp_path: Path, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_stage(step: Step, store: Store, device: str) -> dict:
        computed.append(step.name)
        write_atomic(store.folder(step.name) / "weights" / "model.safetensors", b"weights")
        return {"weights_files": list_outputs(store.folder(step.name) / "weights")}

    monkeypatch.setattr(sys.modules["glue_bench.stages.finetune"], "run", run_stage)
    steps = (Step("finetune/teacher/rte/seed-0", {}),)
    run, lines = make_run(tmp_path)
    run_steps(steps, steps, run)
    weights = run.store.folder(steps[0].name) / "weights"
    (weights / "model.safetensors").write_bytes(b"w3ights")
    run_steps(steps, steps, run)
    assert len(computed) == 2 and "model.safetensors was changed" in lines[-2]
    shutil.rmtree(weights)
    run_steps(steps, steps, run)
    assert len(computed) == 2


def test_a_single_open_fine_tuning_is_left_to_this_process(
    tmp_path: Path, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker for it would be told --shard 1/1, see two jobs a device again, and start a worker of its own."""
    run, _ = make_run(tmp_path)
    run_steps(STEPS, STEPS, run)
    shutil.rmtree(run.store.folder(STEPS[3].name))
    monkeypatch.setattr(executors, "worker_environments", lambda jobs, device: [{}, {}])
    monkeypatch.setattr(executors, "fan_out", lambda *_: pytest.fail("a worker was started"))
    executors.run_in_parallel(STEPS, run, [], "local")
    assert run_steps(STEPS, STEPS, run)
    assert computed[len(STEPS) :] == [STEPS[3].name, "report"]


def test_where_only_fine_tunings_are_left_it_says_how_many(
    tmp_path: Path, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It said "all 14 steps are done already; nothing to compute", of those before, and went on for hours."""
    steps = (*STEPS, Step("finetune/small/cola/seed-1", {}, STEPS[3].needs))
    run_steps(steps, STEPS[:3], make_run(tmp_path)[0])
    run, lines = make_run(tmp_path)
    rehearsed: list[bool] = []
    monkeypatch.setattr(pipeline, "_rehearse", lambda *_: rehearsed.append(True))
    monkeypatch.setattr(executors, "worker_environments", lambda jobs, device: [{}, {}])
    monkeypatch.setattr(executors, "fan_out", lambda *_: None)
    executors.run_in_parallel(steps, run, [], "local")
    assert lines == ["2 fine-tunings to do, 2 at once"]
    assert rehearsed, "what a fine-tuning would refuse is refused before the first one starts"


def test_a_shard_on_another_kind_of_machine_does_not_train_again(
    tmp_path: Path, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "_rehearse", lambda *_: None)

    def steps(threads: int, tokens: int, jobs: int = 1) -> tuple[Step, ...]:
        machine = {"threads": threads, "precision": "fp32"}
        return (
            Step("pretrain/teacher", {"tokens": tokens, **machine}),
            Step("distill/small", {"tokens": 1, **machine}, ("pretrain/teacher",)),
            Step("finetune/small/rte/seed-0", {"threads": threads // jobs}, ("distill/small",)),
        )

    assert run_steps(steps(64, 9), steps(64, 9), make_run(tmp_path, threads=64)[0])
    first, second = (make_run(tmp_path, Shard(index, 2), 8)[0] for index in (1, 2))
    with pytest.raises(UserError, match="pretrain/teacher: done on another kind of machine.*machine.threads=64"):
        run_steps(steps(8, 9), steps(8, 9), first)
    with pytest.raises(UserError, match="finetune/small/rte/seed-0: done on another kind of machine"):
        run_steps(steps(64, 9, jobs=2), steps(64, 9, jobs=2), first)
    assert run_steps(steps(8, 10), steps(8, 10), first), "what was really changed is done anew, and what needs it"
    report = Step("report", {}, ("finetune/small/rte/seed-0",))
    with pytest.raises(UserError, match="finetune/small/rte/seed-0: done on another kind of machine"):
        run_steps((*steps(8, 10, jobs=2), report), (*steps(8, 10, jobs=2), report), second)
    with pytest.raises(UserError, match="--set machine.threads=8 keeps it, --set machine.threads=64 trains it anew"):
        run_steps(steps(64, 10), steps(64, 10), make_run(tmp_path, threads=64)[0])  # by another number of cores
    assert computed.count("distill/small") == 2
    asked, _ = make_run(tmp_path, ALL, 64, "machine.threads=64")
    assert run_steps(steps(64, 10), steps(64, 10), asked), "by the user's own setting"
    assert computed.count("distill/small") == 3


def test_more_jobs_at_once_name_a_remedy_that_works(
    tmp_path: Path, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two jobs share the threads; fine-tunings done one at a time are kept by machine.jobs_per_device, not threads."""
    monkeypatch.setattr(pipeline, "_rehearse", lambda *_: None)

    def steps(job_threads: int) -> tuple[Step, ...]:
        machine = {"threads": job_threads, "precision": "fp32"}
        pretrain = Step("pretrain/teacher", {"threads": 8, "precision": "fp32"})
        return pretrain, Step("finetune/teacher/rte/seed-0", machine, ("pretrain/teacher",))

    assert run_steps(steps(8), steps(8), make_run(tmp_path, threads=8)[0])
    one_of_two = make_run(tmp_path, Shard(1, 2), 8, "machine.jobs_per_device=2")[0]
    with pytest.raises(UserError, match="give every process --set machine.jobs_per_device=1, or run it alone"):
        run_steps(steps(4), steps(4), one_of_two)
    assert run_steps(steps(8), steps(8), make_run(tmp_path, Shard(1, 2), 8, "machine.jobs_per_device=1")[0])
    assert len(computed) == 2, "kept"


def test_another_number_of_cores_is_no_other_number_of_jobs(
    tmp_path: Path, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two jobs at once on 64 cores, then on 8; a training before them has all of the threads; then a GPU."""
    monkeypatch.setattr(pipeline, "_rehearse", lambda *_: None)

    def steps(threads: int, job_threads: int) -> tuple[Step, ...]:
        pretrain = Step("pretrain/teacher", {"threads": threads, "precision": "fp32"})
        return pretrain, Step("finetune/teacher/rte/seed-0", {"threads": job_threads}, ("pretrain/teacher",))

    two = "machine.jobs_per_device=2"
    assert run_steps(steps(64, 32), steps(64, 32), make_run(tmp_path, ALL, 64, two)[0])
    small, shard = make_run(tmp_path, ALL, 8, two)[0], make_run(tmp_path, Shard(1, 2), 8, two)[0]
    with pytest.raises(UserError, match="teacher: done on another kind of machine; --set machine.threads=64 keeps it"):
        run_steps(steps(8, 4), steps(8, 4), small)
    with pytest.raises(UserError, match="seed-0: done on another kind.*; give every process --set machine.threads=64,"):
        run_steps(steps(64, 4), steps(64, 4), shard)
    monkeypatch.setattr(pipeline, "gpu_names", lambda: ("H200",))
    gpu = replace(shard, device="auto", threads=64)
    with pytest.raises(UserError, match="seed-0: done on another kind of machine; give every process --device cpu, or"):
        run_steps(steps(64, 64), steps(64, 64), gpu)


def test_finished_training_leaves_the_checkpoints_of_other_settings(
    tmp_path: Path, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours of another training are not lost to a short trial in the same run; the trial's own go."""
    monkeypatch.setattr(pipeline, "_rehearse", lambda *_: None)
    teacher = Step("pretrain/teacher", {"tokens": 9})
    run, _ = make_run(tmp_path)
    run_steps((teacher,), (teacher,), run)
    folder = run.store.folder("distill/small")
    needs = {teacher.name: run.store.record(teacher.name)["fingerprint"]}
    long, short = (Step("distill/small", {"tokens": tokens}, (teacher.name,)) for tokens in (10**9, 10))
    for one in (long, short):
        (checkpoints_of(folder, checkpoint_key(one, needs)) / "step-00000001").mkdir(parents=True)
    run_steps((teacher, short), (teacher, short), make_run(tmp_path)[0])
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [checkpoint_key(long, needs)[:12]]
    run_steps((teacher, long), (teacher, long), make_run(tmp_path)[0])
    assert not (folder / "checkpoints").exists() and computed.count("distill/small") == 2


def test_a_process_that_does_not_share_the_folder_gives_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(pipeline, "SHARED_FOLDER_WAIT_S", 0.0)
    run, _ = make_run(tmp_path)
    with pytest.raises(UserError, match="nothing is written there; all processes need a common --results folder"):
        run_steps(STEPS, STEPS, run)
