"""How a grid of fine-tunings is dealt out: the same in every shard, everything once, and about as much to each."""

import pytest

from glue_bench.config import load_config
from glue_bench.inputs import HashMemo
from glue_bench.machine import Facts
from glue_bench.plan import Step, plan
from glue_bench.work import deal, fine_tuning_tokens

GLUE = ["data.glue=hub", "corpus.text=embedded", "teacher.weights=package:glue_bench/data"]


def grid(config: object) -> list[Step]:
    facts = Facts(threads=2, precision="fp32", devices={"cpu": "a processor"}, job_threads=2)
    return [step for step in plan(config, facts, HashMemo(None)) if step.stage == "finetune"]


def test_a_task_costs_its_rows_epochs_and_length_and_half_of_it_for_a_student() -> None:
    epochs = ["finetune.tasks.rte.epochs=8", "finetune.tasks.mnli.epochs=3"]
    config = load_config("minilm", [*GLUE, "data.max_train_rows=1000", "data.max_dev_rows=100", *epochs])
    cost = {step.name: fine_tuning_tokens(step, config) for step in grid(config)}
    assert cost["finetune/minilm-6/rte/seed-0"] == (73 + 5) * (3 * 1000 * 8 + 100)
    assert cost["finetune/distil-3/rte/seed-1"] == cost["finetune/minilm-6/rte/seed-0"] / 2
    assert cost["finetune/minilm-6/mnli/seed-0"] == (40 + 5) * (3 * 1000 * 3 + 200), "both dev sets"
    assert cost["finetune/majority/rte/seed-0"] == 0.0


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_shards_get_about_as_much_and_everything_once(count: int) -> None:
    config = load_config("minilm", GLUE)
    steps = grid(config)
    owners = deal(steps, config, count)
    assert set(owners) == {step.name for step in steps} and set(owners.values()) == set(range(count))
    costs = {step.name: fine_tuning_tokens(step, config) for step in steps}
    loads = [sum(cost for name, cost in costs.items() if owners[name] == shard) for shard in range(count)]
    largest = max(costs.values())
    assert max(loads) <= max(largest, 1.2 * sum(loads) / count)
    assert owners == deal(steps, config, count)


def test_steps_of_no_known_work_are_dealt_in_turn() -> None:
    steps = [Step(f"finetune/majority/task-{i}/seed-0", {}) for i in range(6)]
    assert list(deal(steps, load_config("quick"), 3).values()) == [0, 1, 2, 0, 1, 2]
