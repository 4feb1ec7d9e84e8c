"""Text made into token sequences once, kept in a memory-mapped cache that runs share.

The cache is keyed by the text's identity, the tokenizer's content and the settings. Its manifest holds sizes and
hashes, looked at whenever it is opened: a damaged cache is made anew.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from glue_bench.data.rounding import round_up
from glue_bench.data.text import hub_commit
from glue_bench.data.tokenising import rust_tokenizer, write_sequences
from glue_bench.errors import StepError, UserError
from glue_bench.inputs import Input
from glue_bench.locks import lock
from glue_bench.records import SEAL, seal_holds, sealed
from glue_bench.store import Store, atomic_folder, sha256_file, write_atomic

STEP = "prepare/corpus"
FORMAT = 1  # raised when the cache's content would differ for the same key
POOL_BATCHES = 50  # not packed: batches sorted by length together; sorting more would make the order less random
KEYED = ("batches", "heldout_fraction", "sequence_length")
KEYED_WHERE_SET = ("max_hub_tokens",)  # settings that came later: without them a cache keeps its key
LOCK_WAIT_S = 24 * 3600.0


class DamagedCache(Exception):
    """A cache folder that is missing, incomplete or changed; the message names the file."""


@dataclass(frozen=True)
class Sequences:
    """Token sequences of one part of the text, memory-mapped: sequence i is tokens[offsets[i] : offsets[i + 1]]."""

    tokens: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return int(np.diff(self.offsets).max())

    def batch(self, numbers: np.ndarray, pad_id: int, multiple: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """(input_ids, attention_mask) of the numbered sequences, (n, width) int64, padded on the right.

        The width is that of the longest of them, rounded up to a multiple but never over that of all sequences.
        """
        starts = np.asarray(self.offsets[numbers])
        lengths = np.asarray(self.offsets[np.asarray(numbers) + 1]) - starts
        columns = np.arange(min(round_up(int(lengths.max()), multiple), self.longest))
        mask = columns < lengths[:, None]
        places = np.minimum(starts[:, None] + columns, len(self.tokens) - 1)
        ids = np.where(mask, self.tokens[places], pad_id)
        return ids.astype(np.int64), mask.astype(np.int64)


@dataclass(frozen=True)
class Corpus:
    """Tokenised text: sequences for training and held-out ones, counts (vocabulary,) of the training tokens."""

    train: Sequences
    heldout: Sequences
    counts: np.ndarray
    manifest: Mapping[str, Any]

    def epoch_batches(self, seed: int, epoch: int, batch_size: int) -> np.ndarray:
        """Sequence numbers of an epoch's batches, (batches, batch_size), by (seed, epoch) alone.

        What fills no batch is left out, another part each epoch. Packed sequences are drawn at random.
        Otherwise those of similar length come together: random pools of POOL_BATCHES batches are sorted by length,
        cut into batches, and the batches shuffled. Raises UserError where the text is too short for one batch.
        """
        batches = len(self.train) // batch_size
        settings = self.manifest["settings"]
        if not batches:
            raise UserError(
                f"the corpus gives {len(self.train)} sequences of {settings['sequence_length']} tokens, "
                f"too few for one batch of {batch_size}; use more text or a smaller batch_size"
            )
        random = np.random.default_rng([seed, epoch])
        order = random.permutation(len(self.train))[: batches * batch_size]
        if settings["batches"] == "packed":
            return order.reshape(batches, batch_size)
        lengths = np.diff(self.train.offsets)
        pool = POOL_BATCHES * batch_size
        sorted_pools = [
            part[np.argsort(lengths[part], kind="stable")]
            for part in (order[start : start + pool] for start in range(0, len(order), pool))
        ]
        return random.permutation(np.concatenate(sorted_pools).reshape(batches, batch_size))


def cache_key(settings: Mapping[str, Any], inputs: Mapping[str, Input], tokenizer: Any) -> str:
    """Key of a cache: hash over text identities (embedded text by its settings), tokenizer content and settings."""
    texts = {name: _identity(one, settings) for name, one in inputs.items()}
    chosen = {name: settings[name] for name in KEYED}
    chosen |= {name: settings[name] for name in KEYED_WHERE_SET if settings.get(name)}
    content = [FORMAT, texts, tokenizer_content(tokenizer), chosen]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def build_corpus(
    cache: Path, settings: Mapping[str, Any], inputs: Mapping[str, Input], tokenizer: Any
) -> dict[str, Any]:
    """Tokenise the inputs (text-0, text-1 ..., heldout) into cache/KEY unless that is there; returns its manifest.

    settings: those of the step prepare/corpus. Raises UserError where the text is unreadable or too short.
    """
    inputs = {name: _resolved(one) for name, one in inputs.items()}
    key = cache_key(settings, inputs, tokenizer)
    folder = cache / key
    with lock(cache / f".{key}.lock", wait_s=LOCK_WAIT_S):
        try:
            return open_corpus(cache, key).manifest
        except DamagedCache:
            pass
        for killed in cache.glob(f".{key}.*.partial"):  # what a killed process left: gigabytes
            shutil.rmtree(killed, ignore_errors=True)
        with atomic_folder(folder) as temporary:
            manifest = {
                "key": key,
                "settings": dict(settings),
                **write_sequences(temporary, settings, inputs, tokenizer),
            }
            manifest["texts"] = {name: one.identity for name, one in inputs.items()}
            manifest["files"] = {
                path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
                for path in sorted(temporary.glob("*.bin"))
            }
            write_atomic(temporary / "manifest.json", json.dumps(sealed(manifest), indent=1, sort_keys=True) + "\n")
    return open_corpus(cache, key).manifest


def record_corpus(
    store: Store, settings: Mapping[str, Any], inputs: Mapping[str, Input], tokenizer: Any, tokenizer_step: str
) -> dict[str, Any]:
    """build_corpus into the store's cache, and corpus.json in the step's folder; returns the step's result."""
    inputs = {name: _resolved(one) for name, one in inputs.items()}  # so that a lost cache is made of the same text
    manifest = build_corpus(store.cache / "corpus", settings, inputs, tokenizer)
    result = {name: manifest[name] for name in ("key", "documents", "train", "heldout", "texts")}
    rebuilt_from = {
        "settings": dict(settings),
        "inputs": {name: asdict(one) for name, one in inputs.items()},
        "tokenizer": tokenizer_step,
    }
    text = json.dumps(result | rebuilt_from, indent=1, sort_keys=True) + "\n"
    write_atomic(store.folder(STEP) / "corpus.json", text)
    return result


def corpus_of(store: Store, load_tokenizer: Callable[[Path], Any]) -> Corpus:
    """The corpus that the step prepare/corpus made; tokenised anew where the cache was lost or damaged since.

    Raises StepError where that is not possible: the text is no longer there, or no longer the same.
    """
    made = made_from(store)
    key, inputs = made["key"], {name: Input(**one) for name, one in made["inputs"].items()}
    cache = store.cache / "corpus"
    try:
        return open_corpus(cache, key)
    except DamagedCache as damage:
        for one in inputs.values():
            if one.identity.startswith("sha256:") and f"sha256:{_hash(one.location)}" != one.identity:
                again = f"delete {store.folder('prepare/corpus')} and run prepare again"
                raise StepError(f"{damage}, and {one.location} is not the text it was; {again}") from None
        tokenizer = load_tokenizer(store.folder(made["tokenizer"]) / "model")
        if build_corpus(cache, made["settings"], inputs, tokenizer)["key"] != key:
            raise StepError(f"{damage}, and the tokenizer is not what it was; run prepare again") from None
        return open_corpus(cache, key)


def made_from(store: Store) -> dict[str, Any]:
    """corpus.json of the step prepare/corpus: key, settings, inputs, tokenizer. Raises StepError where amiss."""
    path = store.folder(STEP) / "corpus.json"
    try:
        made = json.loads(path.read_text(encoding="utf-8"))
        for one in made["inputs"].values():
            Input(**one)
        return {name: made[name] for name in ("key", "settings", "inputs", "tokenizer")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise StepError(f"{path}: missing or unreadable; run prepare again") from None


def open_corpus(cache: Path, key: str) -> Corpus:
    """Open cache/KEY, every file checked by size and hash. Raises DamagedCache naming the first file that is amiss."""
    folder = cache / key
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if SEAL not in manifest or not seal_holds(manifest) or manifest["key"] != key:
            raise DamagedCache(f"{folder / 'manifest.json'} was changed")
        for name, listed in manifest["files"].items():
            path = folder / name
            if path.stat().st_size != listed["bytes"] or sha256_file(path) != listed["sha256"]:
                raise DamagedCache(f"{path} was changed or cut short")
        parts = []
        for part in ("train", "heldout"):
            tokens = np.memmap(folder / f"{part}.tokens.bin", dtype=manifest["dtype"], mode="r")
            parts.append(Sequences(tokens, np.memmap(folder / f"{part}.offsets.bin", dtype=np.int64, mode="r")))
        counts = np.fromfile(folder / "counts.bin", dtype=np.int64)
    except OSError as error:
        raise DamagedCache(f"{error.filename or folder}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedCache(f"{folder / 'manifest.json'} cannot be read ({error})") from None
    return Corpus(*parts, counts, manifest)


def tokenizer_content(tokenizer: Any) -> str:
    """What a tokenizer does to text, as a hash: its rules and vocabulary without truncation and padding."""
    return hashlib.sha256(rust_tokenizer(tokenizer).to_str().encode()).hexdigest()


def _hash(location: str) -> str:
    return sha256_file(Path(location)) if Path(location).is_file() else "missing"


def _identity(source: Input, settings: Mapping[str, Any]) -> list[Any]:
    embedded = source.location == "embedded"
    return [source.identity, *([settings["seed"], settings["documents"]] if embedded else [])]


def _resolved(source: Input) -> Input:
    """A hub text without a commit stands for whatever the hub has now, so its present commit becomes its identity."""
    if not source.location.startswith("hub:"):
        return source
    location = f"{source.location.partition('@')[0]}@{hub_commit(source.location)}"
    return Input(location, location)
