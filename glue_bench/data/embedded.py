"""mini-GLUE: nine generated tasks of GLUE's shapes and the text to pretrain on, so that everything runs without a download.

The label of every example follows from meanings of the grammar next door. Everything is drawn from `random.Random` seeded
with text, so it is the same on every machine. Standard library only. These are not GLUE results.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

from glue_bench.data import grammar
from glue_bench.data.grammar import (
    ADJECTIVES,
    GENRES,
    NAMES,
    NOUNS,
    PLACES,
    SYNONYM,
    TIMES,
    VERBS,
    Claim,
    Entity,
    Event,
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
ENTAILMENT, NEUTRAL, CONTRADICTION = range(3)


def vocabulary() -> list[str]:
    """Every word form of the grammar plus punctuation, lower-case, sorted, without special tokens."""
    return grammar.vocabulary()


def examples(task: str, split: str, seed: int) -> list[dict[str, Any]]:
    """One split of a mini-GLUE task, with the columns of nyu-mll/glue: the inputs, `label` and `idx`.

    The label is an integer, a float for stsb, and -1 in test splits. Raises KeyError for an unknown task or split.
    """
    return [dict(row) for row in _task(task, seed)[split]]


def documents(seed: int, count: int) -> Iterator[str]:
    """Text for masked-language modelling: `count` documents of a few sentences each, drawn like the tasks' sentences."""
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


# --- meanings ---------------------------------------------------------------------------------------------------------


def _nouns(genre: str) -> tuple[str, ...]:
    return tuple(noun for members in GENRES[genre].values() for noun in members) if genre else NOUNS


def _event(rng: random.Random, adjunct: float = 0.5) -> Event:
    """A random event between two people, three times in four a woman and a man."""
    if rng.random() < 0.75:
        pair = [rng.choice(grammar.WOMEN), rng.choice(grammar.MEN)]
        rng.shuffle(pair)
    else:
        pair = rng.sample(rng.choice((grammar.WOMEN, grammar.MEN)), 2)
    kind = rng.choice(("place", "time")) if rng.random() < adjunct else ""
    place, time = rng.choice(PLACES), rng.choice(TIMES)
    return Event(pair[0], rng.choice(VERBS), pair[1], place if kind == "place" else "", time if kind == "time" else "")


def _reworded(event: Event, rng: random.Random, rate: float = 0.5) -> Event:
    """The same meaning, the verb perhaps exchanged for its synonym."""
    return replace(event, verb=SYNONYM[event.verb]) if rng.random() < rate else event


def _different(options: tuple[str, ...], word: str, rng: random.Random) -> str:
    """Another word that is not a synonym of this one."""
    return rng.choice([option for option in options if option not in (word, SYNONYM.get(word))])


def _changed(event: Event, slot: str, rng: random.Random) -> Event:
    """The event with one slot (agent, verb, patient, adjunct) changed in meaning."""
    if slot == "verb":
        return replace(event, verb=_different(VERBS, event.verb, rng))
    if slot == "adjunct":
        if event.place:
            return replace(event, place=_different(PLACES, event.place, rng))
        return replace(event, time=_different(TIMES, event.time or TIMES[0], rng))
    return replace(event, **{slot: rng.choice([name for name in NAMES if name not in (event.agent, event.patient)])})


def _say(event: Event, rng: random.Random) -> str:
    return grammar.statement(event, passive=rng.random() < 0.5, fronted=rng.random() < 0.3) + " ."


# --- the tasks: (rng, wanted label, genre) -> texts, label -----------------------------------------------------------------

Made = tuple[tuple[str, ...], Any]


def _cola(rng: random.Random, label: int, genre: str) -> Made:
    words, verb, wrong = _plain_sentence(rng)
    if label == 0:
        places = [i for i, word in enumerate(words) if word in ("the", "this", "these", "that")]
        kind = rng.choice(("agreement", "agreement", "determiner", "verb"))
        if kind == "agreement":
            words[verb] = wrong
        elif kind == "determiner":
            at = rng.choice(places)
            words[at], words[at + 1] = words[at + 1], words[at]
        else:
            words.insert(rng.choice([p for p in places if p < verb]), words.pop(verb))
    return (" ".join(words),), label


def _plain_sentence(rng: random.Random) -> tuple[list[str], int, str]:
    """A present-tense sentence as words, the position of its finite verb and that verb in the wrong number."""
    nouns = rng.sample(NOUNS, 3)
    many = rng.random() < 0.5
    subject = Entity(nouns[0], rng.choice(ADJECTIVES) if rng.random() < 0.3 else "", many)
    words = subject.words(rng.choice(("the", "the", "these" if many else "this"))).split()
    if rng.random() < 0.4:
        words += ["near", *Entity(nouns[1], many=rng.random() < 0.5).words().split()]
    verb = len(words)
    patient = Entity(nouns[2], many=rng.random() < 0.5).words().split()
    kind = rng.choice(("transitive", "intransitive", "copula", "passive"))
    if kind == "transitive":
        base = rng.choice(VERBS)
        forms, rest = (base, grammar.third_person(base)), patient
    elif kind == "intransitive":
        base = rng.choice(grammar.INTRANSITIVE)
        forms, rest = (base, grammar.third_person(base)), ["in", "the", rng.choice(PLACES)]
    elif kind == "copula":
        forms, rest = ("are", "is"), [rng.choice(ADJECTIVES)]
    else:
        forms, rest = ("are", "is"), [grammar.participle(rng.choice(VERBS)), "by", *patient]
    return [*words, forms[0] if many else forms[1], *rest, "."], verb, forms[1] if many else forms[0]


def _opinion(rng: random.Random, positive: bool) -> str:
    if rng.random() < 0.2:
        return f"{rng.choice(grammar.NEGATIONS)} {rng.choice(grammar.BLAME if positive else grammar.PRAISE)}"
    adverb = f"{rng.choice(grammar.ADVERBS)} " if rng.random() < 0.4 else ""
    return adverb + rng.choice(grammar.PRAISE if positive else grammar.BLAME)


def _review(rng: random.Random, positive: bool) -> str:
    first, second = rng.sample(grammar.WORKS, 2)
    main, other = _opinion(rng, positive), _opinion(rng, not positive)
    kind = rng.random()
    if kind < 0.3:
        return f"the {first} is {main} ."
    if kind < 0.5:
        return f"the {first} is {main} and {_opinion(rng, positive)} ."
    if kind < 0.7:
        return f"the {first} is {other} but {main} ."
    if kind < 0.85:
        return f"although the {second} is {other} , the {first} is {main} ."
    return f"the {first} is {main} although the {second} is {other} ."


def _sst2(rng: random.Random, label: int, genre: str) -> Made:
    return (_review(rng, label == 1),), label


def _mrpc(rng: random.Random, label: int, genre: str) -> Made:
    event = _event(rng)
    other = _reworded(event, rng)
    if label == 0:
        change = rng.choice(
            ("roles", "roles", "roles", "agent", "patient", "adjunct" if event.place or event.time else "verb")
        )
        other = grammar.exchanged(other) if change == "roles" else _changed(other, change, rng)
    if (grammar.meaning(event) == grammar.meaning(other)) != (label == 1):
        return _mrpc(rng, label, genre)
    return (_say(event, rng), _say(other, rng)), label


ASKED = ("agent", "patient", "place", "time", "")


def _ask(event: Event, asked: str, rng: random.Random) -> str:
    return grammar.question(event, asked, passive=rng.random() < 0.5)


def _qqp(rng: random.Random, label: int, genre: str) -> Made:
    event, asked = _event(rng), rng.choice(ASKED)
    other, other_asked = _reworded(event, rng), asked
    if label == 0:
        change = rng.choice(("roles", "asked", "verb", "noun"))
        if change == "asked":
            other_asked = rng.choice([option for option in ASKED if option != asked])
        elif change == "roles":
            other = grammar.exchanged(other)
            other_asked = {"agent": "patient", "patient": "agent"}.get(asked, asked)
        else:
            slot = "verb" if change == "verb" else "patient" if asked == "agent" else "agent"
            other = _changed(other, slot, rng)
    return (_ask(event, asked, rng), _ask(other, other_asked, rng)), label


def _stsb(rng: random.Random, label: int, genre: str) -> Made:
    event = _event(rng, adjunct=1.0)
    other = _reworded(event, rng)
    for slot in rng.sample(("agent", "verb", "patient", "adjunct"), min(label, 4)):
        other = _changed(other, slot, rng)
    if label == 5:
        other = _event(rng, adjunct=1.0)
    return (_say(event, rng), _say(other, rng)), similarity(event, other)


def similarity(one: Event, two: Event) -> float:
    """Shared meaning from 0 to 5: the doer, the deed and the one it is done to weigh 1.25 each, place and time 1.25.

    Two nouns of one kind count half.
    """
    one, two = grammar.meaning(one), grammar.meaning(two)
    score = float(one.verb == two.verb) + float((one.place, one.time) == (two.place, two.time))
    score += float(one.agent == two.agent) + float(one.patient == two.patient)
    return 1.25 * score


def _claim(rng: random.Random, genre: str) -> Claim:
    noun, object_ = rng.sample(_nouns(genre), 2)
    quantifier = rng.choice(("all", "some", "no", "the", "the"))
    kind = grammar.KIND_OF
    return Claim(
        quantifier,
        kind[noun] if rng.random() < 0.4 else noun,
        rng.choice(VERBS),
        kind[object_] if rng.random() < 0.4 else object_,
        rng.choice(ADJECTIVES) if rng.random() < 0.4 else "",
        rng.choice(PLACES) if rng.random() < 0.4 else "",
        quantifier == "the" and rng.random() < 0.4,
    )


SLOTS = ("noun", "adjective", "object", "place")


def _edited(claim: Claim, follows: bool, rng: random.Random) -> Claim | None:
    """The claim with one slot made wider or narrower so that the result follows from it, or does not."""
    slot = rng.choice(SLOTS)
    if claim.widens(slot) == follows:
        return grammar.wider(claim, slot)
    return grammar.narrower(claim, slot, rng)


def _hypothesis(claim: Claim, label: int, rng: random.Random) -> Claim | None:
    """A claim that stands in the wanted relation to this one; None where the draw came to nothing."""
    if label == NEUTRAL:
        if claim.quantifier == "some" and rng.random() < 0.3:
            return replace(claim, quantifier="all")
        if rng.random() < 0.2:
            return replace(claim, verb=_different(VERBS, claim.verb, rng))
        return _edited(claim, False, rng)
    if label == CONTRADICTION:
        # a denial of what follows from the claim, or of a narrower claim where the claim says that there is none
        if claim.quantifier == "no":
            claim = replace(claim, quantifier="some")
            slot = rng.choice(SLOTS)
            return grammar.narrower(claim, slot, rng) if rng.random() < 0.6 else claim
        if claim.quantifier in ("all", "some"):
            claim = replace(claim, quantifier="some")
        follows = _edited(claim, True, rng) if rng.random() < 0.6 else claim
        if follows is None:
            return None
        return (
            replace(follows, quantifier="no")
            if claim.quantifier == "some"
            else replace(follows, negated=not follows.negated)
        )
    if claim.quantifier == "all" and rng.random() < 0.3:
        return replace(claim, quantifier="some")
    return _edited(claim, True, rng)


def _pair(rng: random.Random, label: int, genre: str) -> tuple[Claim, Claim]:
    while True:
        claim = _claim(rng, genre)
        other = _hypothesis(claim, label, rng)
        if other is not None:
            return claim, replace(other, verb=SYNONYM[other.verb] if rng.random() < 0.3 else other.verb)


def _mnli(rng: random.Random, label: int, genre: str) -> Made:
    claim, other = _pair(rng, label, genre)
    return (claim.words() + " .", other.words() + " ."), label


def _rte(rng: random.Random, label: int, genre: str) -> Made:
    claim, other = _pair(rng, ENTAILMENT if label == 0 else rng.choice((NEUTRAL, CONTRADICTION)), genre)
    if rng.random() < 0.5:
        more = f"the {rng.choice(NOUNS)} {grammar.third_person(rng.choice(grammar.INTRANSITIVE))}"
        clauses = [claim.words(), more]
        rng.shuffle(clauses)
        return (" and ".join(clauses) + " .", other.words() + " ."), label
    return (claim.words() + " .", other.words() + " ."), label


def _qnli(rng: random.Random, label: int, genre: str) -> Made:
    event = _event(rng, adjunct=1.0)
    asked = rng.choice(("agent", "patient")) if rng.random() < 0.2 else "place" if event.place else "time"
    source = _reworded(event, rng)
    if asked in ("agent", "patient"):
        event = replace(event, place="", time="")
    if label == 1:
        change = rng.choice(("verb", "name", "roles"))
        if asked in ("place", "time") and rng.random() < 0.8:  # the sentence is silent on what is asked
            other = asked if rng.random() < 0.4 else "neither"
            place = rng.choice(PLACES) if other == "time" else ""
            source = replace(source, place=place, time=rng.choice(TIMES) if other == "place" else "")
        elif change == "roles":
            source = grammar.exchanged(source)
        else:
            source = _changed(source, "verb" if change == "verb" else "patient" if asked == "agent" else "agent", rng)
    return (_ask(event, asked, rng), _say(source, rng)), label


def _reason(rng: random.Random, right: bool) -> tuple[str, str]:
    """A clause whose pronoun is resolved by its reason, and a sentence that names the right or the wrong person."""
    people, pronoun = rng.choice(((grammar.WOMEN, "she"), (grammar.MEN, "he")))
    agent, patient = rng.sample(people, 2)
    event = Event(agent, rng.choice(VERBS), patient)
    doer = rng.random() < 0.5
    reason = rng.choice(grammar.DOER_REASONS if doer else grammar.TARGET_REASONS)
    clause = grammar.statement(event, passive=rng.random() < 0.4)
    return f"{clause} because {pronoun} is {reason} .", f"{agent if doer == right else patient} is {reason} ."


def _wnli(rng: random.Random, label: int, genre: str) -> Made:
    return _reason(rng, label == 1), label


MAKERS: dict[str, Callable[[random.Random, int, str], Made]] = {
    "cola": _cola,
    "sst2": _sst2,
    "mrpc": _mrpc,
    "stsb": _stsb,
    "qqp": _qqp,
    "mnli": _mnli,
    "qnli": _qnli,
    "rte": _rte,
    "wnli": _wnli,
    "ax": _mnli,
}

# --- documents --------------------------------------------------------------------------------------------------------


def _document(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.55:
        return _story(rng)
    if kind < 0.75:
        relation = rng.randrange(3)
        claim, other = _pair(rng, relation, "")
        return f"{claim.words()} . {('surely', 'perhaps', 'never')[relation]} {other.words()} ."
    if kind < 0.87:
        positive = rng.random() < 0.5
        verdict = "love" if positive else "hate"
        return f"{_review(rng, positive)} {rng.choice(('i', 'we', 'they'))} {verdict} it ."
    if kind < 0.95:
        return " ".join(" ".join(_plain_sentence(rng)[0]) for _ in range(2))
    return " ".join(_reason(rng, True))


def _story(rng: random.Random) -> str:
    """A statement and what follows from it: who plays which role, a paraphrase or a correction, questions and answers."""
    event = _event(rng)
    parts = [_say(event, rng)]
    kind = rng.choice(("roles", "roles", "restated", "restated", "asked", "doubted"))
    if kind == "roles":
        asked = rng.choice(("agent", "patient"))
        parts.append(f"{grammar.role_question(event, asked)} {grammar.answer(event, asked)} .")
    elif kind == "restated":
        same = rng.random() < 0.6
        other = _reworded(event if same else _other(event, rng), rng)
        parts.append(f"{'indeed' if same else 'instead'} {_say(other, rng)}")
    elif kind == "asked":
        asked = rng.choice(ASKED[:4])
        parts.append(f"{_ask(_reworded(event, rng), asked, rng)} {grammar.answer(event, asked)} .")
    else:
        same = rng.random() < 0.5
        other = _reworded(event if same else _other(event, rng), rng)
        parts.append(f"{_ask(other, '', rng)} {'yes' if same else 'no'} .")
    return " ".join(parts)


def _other(event: Event, rng: random.Random) -> Event:
    """An event with another meaning: roles exchanged half of the time, else one slot changed."""
    return (
        grammar.exchanged(event)
        if rng.random() < 0.5
        else _changed(event, rng.choice(("agent", "verb", "patient")), rng)
    )
