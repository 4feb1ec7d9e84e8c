"""What a training would refuse after hours, found before the first one starts: between prepare and everything else.

Preflight looks at settings and folders; here is what only prepare's results tell (weights of the hub, how much text it
is), and what only torch tells. A student is built as distill will build it, but without memory; checkpoints that the
user fine-tuned are loaded once.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from glue_bench.errors import UserError
from glue_bench.learning.models import count_parameters, load_finetuned, load_tokenizer
from glue_bench.learning.students import check_student
from glue_bench.model_folder import CONFIG, check_sequence_length, longest_sequence, model_config
from glue_bench.plan import Step
from glue_bench.store import Store
from glue_bench.tasks import TASKS

CORPUS, SIZE = "prepare/corpus", "benchmark/size"


def rehearse(steps: Sequence[Step], store: Store) -> None:
    """Raise UserError, naming the step, for the first of these steps that cannot be run on what prepare has left.

    Steps whose prepared parts are not there yet are passed over.
    """
    for step in steps:
        if step.stage in ("pretrain", "distill"):
            _rehearse_training(step, store)
        elif step.stage == "finetune" and step.inputs:
            _rehearse_checkpoint(step)
        elif step.name == SIZE:
            for source in step.settings["models"].values():
                _rehearse_classifier(source, store)


def _rehearse_training(step: Step, store: Store) -> None:
    settings = step.settings
    teacher = settings["weights" if step.stage == "pretrain" else "teacher"].split("/")[-1]
    folder = store.folder(f"prepare/weights/{teacher}") / "model"
    if not (folder / CONFIG).is_file():
        return
    if CORPUS in step.needs and (record := store.record(CORPUS)) is not None:
        _check_text(step, record, longest_sequence(model_config(folder)))
    if step.stage == "distill":
        _named(step, lambda: check_student(folder, settings))


def _check_text(step: Step, record: dict[str, Any], longest: int | None) -> None:
    sequences = record["result"]["train"]["sequences"]
    length, batch_size = record["settings"]["sequence_length"], step.settings["batch_size"]
    check_sequence_length(length, longest)
    if sequences < batch_size:
        raise UserError(
            f"corpus.text: gives {sequences} sequences of {length} tokens, too few for one batch of {batch_size} "
            f"({step.name}); use more text or a smaller {step.stage}.batch_size"
        )


def _rehearse_checkpoint(step: Step) -> None:
    folder = Path(next(iter(step.inputs.values())).location).parent
    _named(step, lambda: (load_finetuned(folder, TASKS[step.settings["task"]]), _check_padding(folder)))


def _check_padding(folder: Path) -> None:
    """Inputs are padded on the right here, with the tokenizer's own token. Raises UserError where that is not so."""
    tokenizer = load_tokenizer(folder)
    if tokenizer.pad_token_id is None:
        raise UserError(f"{folder}: the tokenizer has no pad token; set one in tokenizer_config.json")
    if tokenizer.padding_side != "right":
        raise UserError(f"{folder}: the tokenizer pads on the left, and so does its family; only encoders are compared")


def _rehearse_classifier(source: str, store: Store) -> None:
    """Whether the family has a classifier for the fine-tunings: built without memory."""
    folder = store.folder(f"prepare/weights/{source.split('/')[-1]}") / "model"
    if (folder / CONFIG).is_file():
        count_parameters(folder)


def _named(step: Step, look: Callable[[], Any]) -> None:
    """Look, and put the step's name before what is wrong."""
    try:
        look()
    except UserError as error:
        raise UserError(f"{step.name}: {error}") from None
