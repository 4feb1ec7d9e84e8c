"""How much work a fine-tuning is, before it has run: for the guesses of `plan`, and to deal a grid out evenly.

Dealt out in turn, a grid of teacher and students can leave one process with three times the work of another: every
second step may well be a teacher's. All shards must come to the same division, so only the plan and the config count.
"""

from collections.abc import Sequence

from glue_bench.config import Config
from glue_bench.plan import Step
from glue_bench.sources import source_kind
from glue_bench.tasks import TASKS

EMBEDDED_ROWS, EMBEDDED_TOKENS = 2_000, 20
# What an example costs besides its tokens, in tokens: MiniLM-L6 on one Zen 4 core, batches of 16, takes 7.9 ms for an
# example of CoLA (11 tokens), 16 ms of STS-B (28), 28 ms of MRPC (53).
TOKENS_AN_EXAMPLE = 5


def fine_tuning_tokens(step: Step, config: Config) -> float:
    """Tokens that a fine-tuning sends forward through the teacher's layers, a backward pass counted twice."""
    if "weights" not in step.settings:
        return 0.0  # the majority row, or a checkpoint that only predicts
    task = TASKS[step.settings["task"]]
    if source_kind(config.data.glue) == "embedded":
        rows, dev, tokens = EMBEDDED_ROWS, EMBEDDED_ROWS / 4, EMBEDDED_TOKENS
    else:
        rows = min(task.train_rows, config.data.max_train_rows or task.train_rows)
        dev = sum(min(one, config.data.max_dev_rows or one) for one in task.dev_rows)
        tokens = task.typical_tokens
    share = 0.5 if step.settings["weights"].startswith("distill/") else 1.0
    return share * (tokens + TOKENS_AN_EXAMPLE) * (3.0 * rows * step.settings["epochs"] + dev)


def deal(steps: Sequence[Step], config: Config, count: int) -> dict[str, int]:
    """Step -> number of its shard, from 0: the largest first, each to whoever has least so far."""
    loads = [0.0] * count
    owners = {}
    for step in sorted(steps, key=lambda one: -fine_tuning_tokens(one, config)):
        owner = loads.index(min(loads))
        loads[owner] += fine_tuning_tokens(step, config) + 1.0  # so that steps of no known work are dealt in turn
        owners[step.name] = owner
    return owners
