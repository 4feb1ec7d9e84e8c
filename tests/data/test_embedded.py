"""mini-GLUE: seeded, closed in its vocabulary, balanced like GLUE, disjoint splits, labels that follow from meaning."""

import hashlib
import json
import random
import subprocess
import sys

import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from glue_bench.data import embedded, grammar, mini_tasks
from glue_bench.data.grammar import Event
from glue_bench.inputs import EMBEDDED_VERSION
from glue_bench.learning.metrics import score
from glue_bench.tasks import GLUE_NINE, TASKS

ALL = tuple(TASKS)


def rows_of(task: str) -> dict[str, list[dict]]:
    return {split: embedded.examples(task, split, 0) for split in embedded.SIZES[task]}


@pytest.mark.parametrize("task", ALL)
def test_shapes_of_glue(task: str) -> None:
    row, splits = TASKS[task], rows_of(task)
    wanted = {*(("train",) if row.train_rows else ()), *row.dev_splits, *row.test_splits}
    assert set(splits) == wanted
    for split, rows in splits.items():
        assert len(rows) == embedded.SIZES[task][split]
        assert [one["idx"] for one in rows] == list(range(len(rows)))
        assert all(set(one) == {*row.inputs, "label", "idx"} for one in rows)
        labels = {one["label"] for one in rows}
        if split.startswith("test"):
            assert labels == {-1}
        elif row.is_regression:
            assert all(0 <= label <= 5 and isinstance(label, float) for label in labels)
        else:
            assert labels == set(range(len(row.classes)))


@pytest.mark.parametrize("task", ALL)
def test_no_text_stands_in_two_splits_or_twice(task: str) -> None:
    keys = [tuple(sorted(one[c] for c in TASKS[task].inputs)) for rows in rows_of(task).values() for one in rows]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("task", ALL)
def test_every_word_is_in_the_vocabulary(task: str) -> None:
    known = set(embedded.vocabulary())
    for rows in rows_of(task).values():
        for one in rows:
            assert all(set(one[column].split()) <= known for column in TASKS[task].inputs)


def test_documents_are_seeded_and_closed() -> None:
    known = set(embedded.vocabulary())
    documents = list(embedded.documents(0, 300))
    assert documents == list(embedded.documents(0, 300)) != list(embedded.documents(1, 300))
    assert all(set(document.split()) <= known for document in documents)
    assert embedded.vocabulary() == sorted(set(embedded.vocabulary()))


def test_another_process_generates_the_same() -> None:
    code = "from glue_bench.data import embedded as e; print(e.examples('rte', 'train', 3)[:5], *e.documents(3, 5))"
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    expected = f"{embedded.examples('rte', 'train', 3)[:5]} {' '.join(embedded.documents(3, 5))}\n"
    assert runs == {expected}
    assert embedded.examples("rte", "train", 3) != embedded.examples("rte", "train", 4)


@pytest.mark.parametrize(
    ("task", "label", "share"),
    [("cola", 1, 0.70), ("sst2", 1, 0.52), ("mrpc", 1, 0.67), ("qqp", 1, 0.37), ("mnli", 0, 1 / 3), ("rte", 0, 0.5)],
)
def test_balance_is_like_the_originals(task: str, label: int, share: float) -> None:
    rows = embedded.examples(task, "train", 0)
    assert abs(sum(one["label"] == label for one in rows) / len(rows) - share) < 0.02


def bag_of_words(task: str) -> tuple[float, float]:
    """Headline-like score of a bag of words with both sides apart, and of the majority class (accuracy or MCC)."""
    columns = TASKS[task].inputs
    train, dev = embedded.examples(task, "train", 0), embedded.examples(task, "validation", 0)

    def text(one: dict) -> str:
        return " ".join(f"{i}{word}" for i, column in enumerate(columns) for word in one[column].split())

    bag = CountVectorizer(token_pattern=r"\S+")
    model = LogisticRegression(max_iter=500).fit(bag.fit_transform(map(text, train)), [one["label"] for one in train])
    labels = [one["label"] for one in dev]
    metric = "matthews_correlation" if task == "cola" else "accuracy"
    majority = max(set(labels), key=labels.count)
    found = score(task, list(map(int, model.predict(bag.transform(map(text, dev))))), labels)[metric]
    return found, 0.0 if task == "cola" else labels.count(majority) / len(labels)


@pytest.mark.parametrize("task", ["cola", "mrpc"])
def test_bag_of_words_stays_near_the_majority(task: str) -> None:
    found, majority = bag_of_words(task)
    assert found < majority + 0.08


EVENT = Event("anna", "chase", "paul")


def test_meaning_of_hand_written_cases() -> None:
    assert grammar.meaning(Event("anna", "pursue", "paul")) == grammar.meaning(EVENT)
    assert grammar.meaning(grammar.exchanged(EVENT)) != grammar.meaning(EVENT)
    assert grammar.statement(EVENT, passive=False) == "anna chases paul"
    assert grammar.statement(EVENT, passive=True) == "paul is chased by anna"
    assert (
        grammar.statement(Event("anna", "chase", "paul", place="park"), passive=False) == "anna chases paul in the park"
    )
    assert mini_tasks.similarity(EVENT, EVENT) == 5.0
    assert mini_tasks.similarity(EVENT, Event("anna", "pursue", "oscar")) == 3.75
    assert mini_tasks.similarity(EVENT, Event("maria", "help", "oscar", time="sunday")) == 0.0


def roles(sentence: str) -> tuple[str, str, str, set[str]]:
    """(doer, deed, done to, where or when) of a statement about people, read off its words without the grammar."""
    words = [word for word in sentence.split() if word not in (".", ",")]
    stems = {form: verb for verb in grammar.VERBS for form in (grammar.third_person(verb), grammar.participle(verb))}
    pairs = dict(grammar.VERB_PAIRS)
    canonical = {second: first for first, second in pairs.items()}
    people = [word for word in words if word in grammar.NAMES]
    (verb,) = (stems[word] for word in words if word in stems)
    first, second = people
    doer, target = (second, first) if "by" in words else (first, second)
    where = {word for word in words if word in (*grammar.PLACES, *grammar.TIMES)}
    return doer, canonical.get(verb, verb), target, where


def test_mrpc_labels_follow_from_who_does_what_to_whom() -> None:
    for one in embedded.examples("mrpc", "train", 0)[:400]:
        same = roles(one["sentence1"]) == roles(one["sentence2"])
        assert same == (one["label"] == 1), one


def test_every_maker_keeps_its_label() -> None:
    rng = random.Random(0)
    for task in GLUE_NINE:
        if not TASKS[task].is_regression:
            for label in range(len(TASKS[task].classes)):
                genre = "farm" if task == "mnli" else ""
                assert mini_tasks.MAKERS[task](rng, label, genre)[1] == label


def test_a_changed_generator_changes_its_version() -> None:
    """Runs keep what they made while the version stands, so the version must change with the content."""
    digest = hashlib.sha256()
    for task, splits in embedded.SIZES.items():
        for split in splits:
            digest.update(json.dumps(embedded.examples(task, split, 0)).encode())
    digest.update("\n".join(embedded.documents(0, 500)).encode())
    assert (EMBEDDED_VERSION, digest.hexdigest()[:16]) == ("embedded-2", "1edb726d690f4b75")
