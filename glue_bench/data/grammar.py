"""The small English grammar behind mini-GLUE: word lists, meanings (Event, Claim) and how they are put into words.

Meanings are plain frozen data, so that a label can be read off two meanings instead of off two strings: an Event is who
did what to whom, where and when; a Claim is a quantified statement about kinds. Standard library only.
"""

import random
from dataclasses import dataclass, replace

# kind -> its members; the two genres share verbs, places and adjectives, not nouns
GENRES: dict[str, dict[str, tuple[str, ...]]] = {
    "farm": {"animal": ("dog", "cat", "horse", "goat"), "bird": ("duck", "hawk", "owl", "parrot")},
    "town": {"worker": ("teacher", "doctor", "baker", "pilot"), "artist": ("singer", "painter", "dancer", "actor")},
}
KINDS = {kind: members for genre in GENRES.values() for kind, members in genre.items()}
KIND_OF = {member: kind for kind, members in KINDS.items() for member in members}
NOUNS = tuple(KIND_OF)

# the people of the events: names of women and of men
WOMEN = ("anna", "clara", "emma", "julia", "laura", "maria")
MEN = ("david", "jacob", "oscar", "paul", "simon", "victor")
NAMES = WOMEN + MEN

# two words, one meaning
VERB_PAIRS = (
    ("chase", "pursue"),
    ("help", "assist"),
    ("watch", "observe"),
    ("push", "shove"),
    ("greet", "welcome"),
    ("follow", "trail"),
)
VERBS = tuple(verb for pair in VERB_PAIRS for verb in pair)
INTRANSITIVE = ("jump", "dance", "laugh", "wait", "rest")
ADJECTIVE_PAIRS = (("big", "large"), ("small", "little"), ("fast", "quick"), ("happy", "glad"), ("smart", "clever"))
SINGLE_ADJECTIVES = ("old", "young", "brown", "white")
ADJECTIVES = tuple(word for pair in ADJECTIVE_PAIRS for word in pair) + SINGLE_ADJECTIVES
SYNONYM = {a: b for pair in VERB_PAIRS + ADJECTIVE_PAIRS for a, b in (pair, pair[::-1])}
PLACES = ("park", "garden", "forest", "street", "school", "market")
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
    """a all although an and are because but by dislike do does hate he i in indeed instead is it like love near never
    no nobody knows not of on perhaps she some surely the these they this we when where who whom yes , . ?""".split()  # noqa: SIM905
)


def plural(noun: str) -> str:
    """The plural of a noun."""
    return noun + "s"


def third_person(verb: str) -> str:
    """`chase` -> `chases`."""
    return verb + ("es" if verb.endswith(("sh", "ch")) else "s")


def participle(verb: str) -> str:
    """The participle; every verb here is regular."""
    return verb + ("d" if verb.endswith("e") else "ed")


def vocabulary() -> list[str]:
    """Every word form that a sentence of the grammar can hold, and its punctuation: lower-case, sorted, distinct."""
    nouns = NOUNS + tuple(KINDS)
    verbs = VERBS + INTRANSITIVE
    words = {
        *nouns,
        *map(plural, nouns),
        *verbs,
        *NAMES,
        *map(third_person, verbs),
        *map(participle, VERBS),
        *FUNCTION_WORDS,
    }
    words.update(ADJECTIVES, PLACES, TIMES, WORKS, PRAISE, BLAME, ADVERBS, NEGATIONS, DOER_REASONS, TARGET_REASONS)
    return sorted(words)


@dataclass(frozen=True)
class Entity:
    """A noun phrase: `the old dogs`."""

    noun: str
    adjective: str = ""
    many: bool = False

    def words(self, determiner: str = "the") -> str:
        """The phrase."""
        noun = plural(self.noun) if self.many else self.noun
        return " ".join(filter(None, (determiner, self.adjective, noun)))

    def form(self, verb: str) -> str:
        """The verb in this subject's number."""
        return verb if self.many else third_person(verb)


@dataclass(frozen=True)
class Event:
    """Who does what to whom, where and when; an empty place or time is unknown."""

    agent: str
    verb: str
    patient: str
    place: str = ""
    time: str = ""


def meaning(event: Event) -> Event:
    """The event with its verb replaced by the first of its synonyms: equal meanings compare equal."""
    return replace(event, verb=min(event.verb, SYNONYM[event.verb]))


def exchanged(event: Event) -> Event:
    """The event with the two roles exchanged."""
    return replace(event, agent=event.patient, patient=event.agent)


def _adjuncts(event: Event) -> str:
    place = f"in the {event.place}" if event.place else ""
    time = f"on {event.time}" if event.time else ""
    return " ".join(filter(None, (place, time)))


def statement(event: Event, passive: bool = False, fronted: bool = False) -> str:
    """The event as a clause without a full stop, in either voice, with place and time last or in front."""
    active = f"{event.agent} {third_person(event.verb)} {event.patient}"
    core = f"{event.patient} is {participle(event.verb)} by {event.agent}" if passive else active
    adjuncts = _adjuncts(event)
    if not adjuncts:
        return core
    return f"{adjuncts} , {core}" if fronted else f"{core} {adjuncts}"


def question(event: Event, asked: str, passive: bool = False) -> str:
    """A question about the event; `asked` is agent, patient, place, time, or empty for yes or no. Ends in `?`."""
    event = replace(event, **{asked: ""}) if asked in ("place", "time") else event
    agent, patient, done = event.agent, event.patient, participle(event.verb)
    if asked == "agent":
        core = f"by whom is {patient} {done}" if passive else f"who {third_person(event.verb)} {patient}"
    elif asked == "patient":
        core = f"who is {done} by {agent}" if passive else f"who does {agent} {event.verb}"
    else:
        core = f"is {patient} {done} by {agent}" if passive else f"does {agent} {event.verb} {patient}"
        core = {"place": "where ", "time": "when ", "": ""}[asked] + core
    return " ".join(filter(None, (core, _adjuncts(event), "?")))


def role_question(event: Event, asked: str) -> str:
    """`who helps ?` (agent) or `who is helped ?` (patient): the role alone says who is meant."""
    return f"who {third_person(event.verb)} ?" if asked == "agent" else f"who is {participle(event.verb)} ?"


def answer(event: Event, asked: str) -> str:
    """The short answer to a question, or `nobody knows` where the event does not say."""
    if asked in ("place", "time"):
        known = getattr(event, asked)
        return (f"in the {known}" if asked == "place" else f"on {known}") if known else "nobody knows"
    return getattr(event, asked)


@dataclass(frozen=True)
class Claim:
    """A quantified statement: quantifier (all, some, no, the) + adjective? + noun + verb + an object + place?.

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
        subject = Entity(self.noun, self.adjective, self.quantifier != "the")
        verb = f"{'do' if subject.many else 'does'} not {self.verb}" if self.negated else subject.form(self.verb)
        article = "an" if self.object[0] in "aeiou" else "a"
        place = f"in the {self.place}" if self.place else ""
        return " ".join(filter(None, (subject.words(self.quantifier), verb, article, self.object, place)))

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
