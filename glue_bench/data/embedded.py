"""mini-GLUE: nine generated tasks of GLUE's shapes and the text to pretrain on, for runs without a download.

The label of every example follows from meanings of the grammar next door. Everything is drawn from `random.Random`
seeded with text, so it is the same on every machine. Standard library only. These are not GLUE results.
"""

import random
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from glue_bench.data import grammar
from glue_bench.data.grammar import Event
from glue_bench.data.mini_tasks import (
    ASKED,
    MAKERS,
    changed,
    claim_pair,
    new_event,
    plain_sentence,
    question,
    reasoned,
    review,
    reworded,
    said,
)
from glue_bench.tasks import TASKS

SIZES: dict[str, dict[str, int]] = {
    "cola": {"train": 1500, "validation": 400, "test": 200},
    "sst2": {"train": 1000, "validation": 400, "test": 200},
    "mrpc": {"train": 2000, "validation": 400, "test": 200},
    "stsb": {"train": 1200, "validation": 400, "test": 200},
    "qqp": {"train": 2000, "validation": 500, "test": 200},
    "mnli": {
        "train": 2000,
        "validation_matched": 500,
        "validation_mismatched": 500,
        "test_matched": 200,
        "test_mismatched": 200,
    },
    "qnli": {"train": 1500, "validation": 500, "test": 200},
    "rte": {"train": 1500, "validation": 300, "test": 200},
    "wnli": {"train": 600, "validation": 71, "test": 100},
    "ax": {"test": 200},
}

# shares of the classes, in the order of their integers, close to the original's
SHARES: dict[str, tuple[float, ...]] = {
    "cola": (0.3, 0.7),
    "sst2": (0.48, 0.52),
    "mrpc": (0.33, 0.67),
    "qqp": (0.63, 0.37),
    "mnli": (1 / 3, 1 / 3, 1 / 3),
    "qnli": (0.5, 0.5),
    "rte": (0.5, 0.5),
    "wnli": (0.5, 0.5),
    "ax": (0.4, 0.35, 0.25),
}


def vocabulary() -> list[str]:
    """Every word form of the grammar plus punctuation, lower-case, sorted, without special tokens."""
    return grammar.vocabulary()


def examples(task: str, split: str, seed: int) -> list[dict[str, Any]]:
    """One split of a mini-GLUE task, with the columns of nyu-mll/glue: the inputs, `label` and `idx`.

    The label is an integer, a float for stsb, and -1 in test splits. Raises KeyError for an unknown task or split.
    """
    return [dict(row) for row in _task(task, seed)[split]]


def documents(seed: int, count: int) -> Iterator[str]:
    """Text for masked-language modelling: `count` documents of a few sentences, drawn like the tasks' sentences."""
    rng = random.Random(f"mini-glue/documents/{seed}")
    for _ in range(count):
        yield _document(rng)


@lru_cache(maxsize=32)
def _task(task: str, seed: int) -> dict[str, list[dict[str, Any]]]:
    """All splits of a task, made in one go so that no text occurs twice."""
    rng = random.Random(f"mini-glue/{task}/{seed}")
    seen: set[tuple[str, ...]] = set()
    splits: dict[str, list[dict[str, Any]]] = {}
    for split, size in SIZES[task].items():
        rows: list[dict[str, Any]] = []
        genre = "" if task not in ("mnli",) else "town" if split.endswith("mismatched") else "farm"
        for label in _labels(task, size, rng):
            texts, value = _new(task, label, genre, rng, seen)
            row: dict[str, Any] = dict(zip(TASKS[task].inputs, texts, strict=True))
            unseen = -1.0 if TASKS[task].is_regression else -1
            rows.append({**row, "label": unseen if split.startswith("test") else value, "idx": len(rows)})
        splits[split] = rows
    return splits


def _labels(task: str, size: int, rng: random.Random) -> list[int]:
    """Labels in the task's shares, exactly, in random order; for the regression the number of changes."""
    shares = SHARES.get(task, (1 / 6,) * 6)
    counts = [round(share * size) for share in shares]
    counts[-1] += size - sum(counts)
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    rng.shuffle(labels)
    return labels


def _new(
    task: str, label: int, genre: str, rng: random.Random, seen: set[tuple[str, ...]]
) -> tuple[tuple[str, ...], Any]:
    """An example with this label that is not drawn before."""
    while True:
        texts, value = MAKERS[task](rng, label, genre)
        key = tuple(sorted(texts))
        if key not in seen and len(set(texts)) == len(texts):
            seen.add(key)
            return texts, value


# --- documents --------------------------------------------------------------------------------------------------------


def _document(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.55:
        return _story(rng)
    if kind < 0.75:
        relation = rng.randrange(3)
        claim, other = claim_pair(rng, relation, "")
        return f"{claim.words()} . {('surely', 'perhaps', 'never')[relation]} {other.words()} ."
    if kind < 0.87:
        positive = rng.random() < 0.5
        verdict = "love" if positive else "hate"
        return f"{review(rng, positive)} {rng.choice(('i', 'we', 'they'))} {verdict} it ."
    if kind < 0.95:
        return " ".join(" ".join(plain_sentence(rng)[0]) for _ in range(2))
    return " ".join(reasoned(rng, True))


def _story(rng: random.Random) -> str:
    """A statement and what follows from it: who plays which role, a paraphrase or a correction, an answer."""
    event = new_event(rng)
    parts = [said(event, rng)]
    kind = rng.choice(("roles", "roles", "restated", "restated", "asked", "doubted"))
    if kind == "roles":
        asked = rng.choice(("agent", "patient"))
        parts.append(f"{grammar.role_question(event, asked)} {grammar.answer(event, asked)} .")
    elif kind == "restated":
        same = rng.random() < 0.6
        other = reworded(event if same else _other(event, rng), rng)
        parts.append(f"{'indeed' if same else 'instead'} {said(other, rng)}")
    elif kind == "asked":
        asked = rng.choice(ASKED[:4])
        parts.append(f"{question(reworded(event, rng), asked, rng)} {grammar.answer(event, asked)} .")
    else:
        same = rng.random() < 0.5
        other = reworded(event if same else _other(event, rng), rng)
        parts.append(f"{question(other, '', rng)} {'yes' if same else 'no'} .")
    return " ".join(parts)


def _other(event: Event, rng: random.Random) -> Event:
    """An event with another meaning: roles exchanged half of the time, else one slot changed."""
    return (
        grammar.exchanged(event)
        if rng.random() < 0.5
        else changed(event, rng.choice(("agent", "verb", "patient")), rng)
    )
