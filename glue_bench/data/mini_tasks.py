"""The tasks of mini-GLUE, one maker each: from a wanted label to texts whose meanings carry it.

Kept apart from embedded.py, which draws the splits and the text to pretrain on. A maker takes (rng, label,
genre) and returns its texts and the label. Standard library only.
"""

import random
from collections.abc import Callable
from dataclasses import replace
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

ENTAILMENT, NEUTRAL, CONTRADICTION = range(3)


def _nouns(genre: str) -> tuple[str, ...]:
    return tuple(noun for members in GENRES[genre].values() for noun in members) if genre else NOUNS


def new_event(rng: random.Random, adjunct: float = 0.5) -> Event:
    """A random event between two people, three times in four a woman and a man."""
    if rng.random() < 0.75:
        pair = [rng.choice(grammar.WOMEN), rng.choice(grammar.MEN)]
        rng.shuffle(pair)
    else:
        pair = rng.sample(rng.choice((grammar.WOMEN, grammar.MEN)), 2)
    kind = rng.choice(("place", "time")) if rng.random() < adjunct else ""
    place, time = rng.choice(PLACES), rng.choice(TIMES)
    return Event(pair[0], rng.choice(VERBS), pair[1], place if kind == "place" else "", time if kind == "time" else "")


def reworded(event: Event, rng: random.Random, rate: float = 0.5) -> Event:
    """The same meaning, the verb perhaps exchanged for its synonym."""
    return replace(event, verb=SYNONYM[event.verb]) if rng.random() < rate else event


def _different(options: tuple[str, ...], word: str, rng: random.Random) -> str:
    """Another word that is not a synonym of this one."""
    return rng.choice([option for option in options if option not in (word, SYNONYM.get(word))])


def changed(event: Event, slot: str, rng: random.Random) -> Event:
    """The event with one slot (agent, verb, patient, adjunct) changed in meaning."""
    if slot == "verb":
        return replace(event, verb=_different(VERBS, event.verb, rng))
    if slot == "adjunct":
        if event.place:
            return replace(event, place=_different(PLACES, event.place, rng))
        return replace(event, time=_different(TIMES, event.time or TIMES[0], rng))
    return replace(event, **{slot: rng.choice([name for name in NAMES if name not in (event.agent, event.patient)])})


def said(event: Event, rng: random.Random) -> str:
    return grammar.statement(event, passive=rng.random() < 0.5, fronted=rng.random() < 0.3) + " ."


Made = tuple[tuple[str, ...], Any]


def _cola(rng: random.Random, label: int, genre: str) -> Made:
    words, verb, wrong = plain_sentence(rng)
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


def plain_sentence(rng: random.Random) -> tuple[list[str], int, str]:
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


def review(rng: random.Random, positive: bool) -> str:
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
    return (review(rng, label == 1),), label


def _mrpc(rng: random.Random, label: int, genre: str) -> Made:
    event = new_event(rng)
    other = reworded(event, rng)
    if label == 0:
        change = rng.choice(
            ("roles", "roles", "roles", "agent", "patient", "adjunct" if event.place or event.time else "verb")
        )
        other = grammar.exchanged(other) if change == "roles" else changed(other, change, rng)
    if (grammar.meaning(event) == grammar.meaning(other)) != (label == 1):
        return _mrpc(rng, label, genre)
    return (said(event, rng), said(other, rng)), label


ASKED = ("agent", "patient", "place", "time", "")


def question(event: Event, asked: str, rng: random.Random) -> str:
    return grammar.question(event, asked, passive=rng.random() < 0.5)


def _qqp(rng: random.Random, label: int, genre: str) -> Made:
    event, asked = new_event(rng), rng.choice(ASKED)
    other, other_asked = reworded(event, rng), asked
    if label == 0:
        change = rng.choice(("roles", "asked", "verb", "noun"))
        if change == "asked":
            other_asked = rng.choice([option for option in ASKED if option != asked])
        elif change == "roles":
            other = grammar.exchanged(other)
            other_asked = {"agent": "patient", "patient": "agent"}.get(asked, asked)
        else:
            slot = "verb" if change == "verb" else "patient" if asked == "agent" else "agent"
            other = changed(other, slot, rng)
    return (question(event, asked, rng), question(other, other_asked, rng)), label


def _stsb(rng: random.Random, label: int, genre: str) -> Made:
    event = new_event(rng, adjunct=1.0)
    other = reworded(event, rng)
    for slot in rng.sample(("agent", "verb", "patient", "adjunct"), min(label, 4)):
        other = changed(other, slot, rng)
    if label == 5:
        other = new_event(rng, adjunct=1.0)
    return (said(event, rng), said(other, rng)), similarity(event, other)


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


def claim_pair(rng: random.Random, label: int, genre: str) -> tuple[Claim, Claim]:
    while True:
        claim = _claim(rng, genre)
        other = _hypothesis(claim, label, rng)
        if other is not None:
            return claim, replace(other, verb=SYNONYM[other.verb] if rng.random() < 0.3 else other.verb)


def _mnli(rng: random.Random, label: int, genre: str) -> Made:
    claim, other = claim_pair(rng, label, genre)
    return (claim.words() + " .", other.words() + " ."), label


def _rte(rng: random.Random, label: int, genre: str) -> Made:
    claim, other = claim_pair(rng, ENTAILMENT if label == 0 else rng.choice((NEUTRAL, CONTRADICTION)), genre)
    if rng.random() < 0.5:
        more = f"the {rng.choice(NOUNS)} {grammar.third_person(rng.choice(grammar.INTRANSITIVE))}"
        clauses = [claim.words(), more]
        rng.shuffle(clauses)
        return (" and ".join(clauses) + " .", other.words() + " ."), label
    return (claim.words() + " .", other.words() + " ."), label


def _qnli(rng: random.Random, label: int, genre: str) -> Made:
    event = new_event(rng, adjunct=1.0)
    asked = rng.choice(("agent", "patient")) if rng.random() < 0.2 else "place" if event.place else "time"
    source = reworded(event, rng)
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
            source = changed(source, "verb" if change == "verb" else "patient" if asked == "agent" else "agent", rng)
    return (question(event, asked, rng), said(source, rng)), label


def reasoned(rng: random.Random, right: bool) -> tuple[str, str]:
    """A clause whose pronoun is resolved by its reason, and a sentence that names the right or the wrong person."""
    people, pronoun = rng.choice(((grammar.WOMEN, "she"), (grammar.MEN, "he")))
    agent, patient = rng.sample(people, 2)
    event = Event(agent, rng.choice(VERBS), patient)
    doer = rng.random() < 0.5
    reason = rng.choice(grammar.DOER_REASONS if doer else grammar.TARGET_REASONS)
    clause = grammar.statement(event, passive=rng.random() < 0.4)
    return f"{clause} because {pronoun} is {reason} .", f"{agent if doer == right else patient} is {reason} ."


def _wnli(rng: random.Random, label: int, genre: str) -> Made:
    return reasoned(rng, label == 1), label


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
