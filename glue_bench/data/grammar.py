"""The small English grammar behind mini-GLUE: word lists, meanings (Event, Claim) and how they are put into words.

Meanings are plain frozen data, so that a label can be read off two meanings instead of off two strings: an Event is who
did what to whom, where and when; a Claim is a quantified statement about kinds. Standard library only.
"""

import random
from dataclasses import dataclass, replace

# kind -> its members; the two genres share verbs, places and adjectives, not nouns
GENRES: dict[str, dict[str, tuple[str, ...]]] = {
    "farm": {"animal": ("dog", "cat", "horse", "wolf", "goat", "tiger"), "bird": ("duck", "hawk", "owl", "parrot")},
    "town": {
        "worker": ("teacher", "doctor", "farmer", "baker", "nurse", "pilot"),
        "artist": ("singer", "painter", "dancer", "actor"),
    },
}
KINDS = {kind: members for genre in GENRES.values() for kind, members in genre.items()}
KIND_OF = {member: kind for kind, members in KINDS.items() for member in members}
NOUNS = tuple(KIND_OF)
IRREGULAR_PLURALS = {"wolf": "wolves"}

# two words, one meaning; base form -> past tense, which is the participle too
VERB_PAIRS = (
    ("chase", "pursue"),
    ("help", "assist"),
    ("watch", "observe"),
    ("push", "shove"),
    ("greet", "welcome"),
    ("follow", "trail"),
    ("scare", "frighten"),
    ("call", "phone"),
)
VERBS = tuple(verb for pair in VERB_PAIRS for verb in pair)
INTRANSITIVE = ("jump", "dance", "laugh", "wait", "rest")
ADJECTIVE_PAIRS = (("big", "large"), ("small", "little"), ("fast", "quick"), ("happy", "glad"), ("smart", "clever"))
SINGLE_ADJECTIVES = ("old", "young", "brown", "white")
ADJECTIVES = tuple(word for pair in ADJECTIVE_PAIRS for word in pair) + SINGLE_ADJECTIVES
SYNONYM = {a: b for pair in VERB_PAIRS + ADJECTIVE_PAIRS for a, b in (pair, pair[::-1])}
PLACES = ("park", "garden", "forest", "street", "barn", "kitchen", "school", "market")
TIMES = ("monday", "tuesday", "friday", "sunday")

# reviews
WORKS = ("film", "movie", "story", "plot", "song", "book", "show", "cast", "ending", "music")
PRAISE = ("good", "great", "lovely", "funny", "brilliant", "charming", "fresh", "moving", "warm", "witty")
BLAME = ("bad", "awful", "dull", "boring", "silly", "stale", "clumsy", "cold", "flat", "slow")
ADVERBS = ("very", "really", "quite", "truly")
NEGATIONS = ("not", "never", "hardly")

# reasons: what explains the doer of any of the verbs, and what explains the one it is done to
DOER_REASONS = ("brave", "proud", "bold", "eager")
TARGET_REASONS = ("lost", "weak", "shy", "afraid")

FUNCTION_WORDS = tuple(
    "a all although an and are because but by did do does everybody hated he i in indeed instead is it liked loved "
    "near no nobody knows of on one perhaps some surely that the there these they this was we were when where who "
    "whom yes never so disliked them , . ?".split()
)


def plural(noun: str) -> str:
    """The plural of a noun."""
    return IRREGULAR_PLURALS.get(noun, noun + "s")


def third_person(verb: str) -> str:
    """`chase` -> `chases`."""
    return verb + ("es" if verb.endswith(("sh", "ch")) else "s")


def past(verb: str) -> str:
    """The past tense and participle; every verb here is regular."""
    return verb + ("d" if verb.endswith("e") else "ed")


def vocabulary() -> list[str]:
    """Every word form that a sentence of the grammar can hold, and its punctuation: lower-case, sorted, distinct."""
    nouns = NOUNS + tuple(KINDS)
    verbs = VERBS + INTRANSITIVE
    words = {*nouns, *map(plural, nouns), *verbs, *map(third_person, verbs), *map(past, verbs), *FUNCTION_WORDS}
    words.update(ADJECTIVES, PLACES, TIMES, WORKS, PRAISE, BLAME, ADVERBS, NEGATIONS, DOER_REASONS, TARGET_REASONS)
    return sorted(words)


@dataclass(frozen=True)
class Entity:
    """A definite noun phrase: `the old dogs`."""

    noun: str
    adjective: str = ""
    many: bool = False

    def words(self, determiner: str = "the") -> str:
        """The phrase, without double spaces."""
        noun = plural(self.noun) if self.many else self.noun
        return " ".join(filter(None, (determiner, self.adjective, noun)))


@dataclass(frozen=True)
class Event:
    """Who did what to whom, where and when; an empty place or time is unknown."""

    agent: Entity
    verb: str
    patient: Entity
    place: str = ""
    time: str = ""


def meaning(event: Event) -> Event:
    """The event with every word replaced by the first of its synonyms: equal meanings compare equal."""

    def first(word: str) -> str:
        return min(word, SYNONYM.get(word, word))

    return replace(
        event,
        verb=first(event.verb),
        agent=replace(event.agent, adjective=first(event.agent.adjective)),
        patient=replace(event.patient, adjective=first(event.patient.adjective)),
    )


def exchanged(event: Event) -> Event:
    """The event with the two roles exchanged."""
    return replace(event, agent=event.patient, patient=event.agent)


def _adjuncts(event: Event) -> str:
    place = f"in the {event.place}" if event.place else ""
    time = f"on {event.time}" if event.time else ""
    return " ".join(filter(None, (place, time)))


def _copula(entity: Entity, present: bool) -> str:
    return ("are" if entity.many else "is") if present else ("were" if entity.many else "was")


def statement(event: Event, passive: bool = False, fronted: bool = False, present: bool = False) -> str:
    """The event as a clause without a full stop, in either voice, with place and time last or in front."""
    agent, patient = event.agent, event.patient
    if passive:
        core = f"{patient.words()} {_copula(patient, present)} {past(event.verb)} by {agent.words()}"
    elif present:
        core = f"{agent.words()} {event.verb if agent.many else third_person(event.verb)} {patient.words()}"
    else:
        core = f"{agent.words()} {past(event.verb)} {patient.words()}"
    adjuncts = _adjuncts(event)
    if not adjuncts:
        return core
    return f"{adjuncts} , {core}" if fronted else f"{core} {adjuncts}"


def question(event: Event, asked: str, passive: bool = False) -> str:
    """A question about the event; `asked` is agent, patient, place, time, or empty for yes or no. Ends in `?`."""
    event = replace(event, **{asked: ""}) if asked in ("place", "time") else event
    agent, patient = event.agent.words(), event.patient.words()
    was = _copula(event.patient, False)
    if asked == "agent":
        core = f"by whom {was} {patient} {past(event.verb)}" if passive else f"who {past(event.verb)} {patient}"
    elif asked == "patient":
        core = f"who was {past(event.verb)} by {agent}" if passive else f"who did {agent} {event.verb}"
    else:
        core = f"{was} {patient} {past(event.verb)} by {agent}" if passive else f"did {agent} {event.verb} {patient}"
        core = {"place": "where ", "time": "when ", "": ""}[asked] + core
    return " ".join(filter(None, (core, _adjuncts(event), "?")))


def answer(event: Event, asked: str) -> str:
    """The short answer to a question, or `nobody knows` where the event does not say."""
    if asked in ("place", "time"):
        known = getattr(event, asked)
        return (f"in the {known}" if asked == "place" else f"on {known}") if known else "nobody knows"
    return getattr(event, asked).words()


@dataclass(frozen=True)
class Claim:
    """A quantified statement: quantifier (all, some, no, the) + adjective? + noun + did + an object + place?.

    `the` is one individual and the only quantifier that can be negated.
    """

    quantifier: str
    noun: str
    verb: str
    object: str
    adjective: str = ""
    place: str = ""
    negated: bool = False

    def words(self) -> str:
        """The claim as a clause without a full stop."""
        subject = Entity(self.noun, self.adjective, self.quantifier != "the").words(self.quantifier)
        verb = f"did not {self.verb}" if self.negated else past(self.verb)
        article = "an" if self.object[0] in "aeiou" else "a"
        place = f"in the {self.place}" if self.place else ""
        return " ".join(filter(None, (subject, verb, article, self.object, place)))

    def widens(self, slot: str) -> bool:
        """Whether a wider set in this slot follows from the claim (else a narrower one does)."""
        if slot in ("noun", "adjective"):
            return self.quantifier in ("some", "the")
        return self.quantifier != "no" and not self.negated


def wider(claim: Claim, slot: str) -> Claim | None:
    """The claim with a wider set in one slot (noun, adjective, object, place); None where it is the widest."""
    value = getattr(claim, slot)
    if slot in ("noun", "object"):
        return replace(claim, **{slot: KIND_OF[value]}) if value in KIND_OF else None
    return replace(claim, **{slot: ""}) if value else None


def narrower(claim: Claim, slot: str, rng: random.Random) -> Claim | None:
    """The claim with a narrower set in one slot; None where it is the narrowest."""
    value = getattr(claim, slot)
    if slot in ("noun", "object"):
        return replace(claim, **{slot: rng.choice(KINDS[value])}) if value in KINDS else None
    return None if value else replace(claim, **{slot: rng.choice(ADJECTIVES if slot == "adjective" else PLACES)})
