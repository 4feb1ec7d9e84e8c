"""A small experiment on embedded data, walked step by step through the real pipeline."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from glue_bench.config import Config, config_from
from glue_bench.inputs import HashMemo
from glue_bench.machine import facts
from glue_bench.pipeline import Run, Shard, run_steps, with_needs
from glue_bench.plan import Step, plan
from glue_bench.store import Store

TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"tasks": []},
    "teacher": {"layers": 3, "hidden": 16, "heads": 2, "intermediate": 32, "max_positions": 32},
    "corpus": {"documents": 200, "sequence_length": 32, "heldout_tokens": 400},
    "pretrain": {"epochs": 1, "batch_size": 16, "micro_batch_size": 8, "evaluations": 2, "checkpoint_every": 3},
    "distill": {"epochs": 1, "batch_size": 16, "micro_batch_size": 8, "evaluations": 2, "checkpoint_every": 3},
    "students": [{"name": "small", "layers": 2}],
    "machine": {"threads": 1, "device": "cpu", "precision": "fp32"},
}


@dataclass
class Walk:
    """A run's folder and its plan; `do` brings steps to done and returns the last one's result."""

    store: Store
    config: Config
    steps: dict[str, Step]
    said: list[str]

    def do(self, *names: str) -> dict[str, Any]:
        """Run the named steps and what they need."""
        everything = list(self.steps.values())
        chosen = with_needs(everything, [self.steps[name] for name in names])
        machine = self.config.machine
        run = Run(self.store, self.config, "cpu", machine.threads, "fp32", Shard(1, 1), self.said.append)
        run_steps(everything, chosen, run)
        return self.store.result(names[-1])

    def model(self, step: str) -> Path:
        """The model folder of a step."""
        return self.store.folder(step) / "model"


@pytest.fixture
def walk(tmp_path: Path) -> Callable[..., Walk]:
    """walk(section={key: value}, ..., students=[...]) -> a Walk of the tiny config with these changes."""

    def start(run: str = "run", **changes: Any) -> Walk:
        raw = {name: dict(value) if isinstance(value, dict) else value for name, value in TINY.items()}
        for name, value in changes.items():
            raw[name] = raw.get(name, {}) | value if isinstance(value, dict) else value
        config = config_from(raw, "tiny.toml")
        steps = plan(config, facts(config.machine), HashMemo.load(None))
        return Walk(Store(tmp_path / "results", run), config, {step.name: step for step in steps}, [])

    return start
