"""Text made into token sequences once, kept in a memory-mapped cache that runs share.

The cache is keyed by the text's identity, the tokenizer's content and the settings. Paragraphs are tokenised a block at a
time by all cores and appended to a file, so memory stays flat for text of any size; a second pass cuts that stream into
sequences. Its manifest holds sizes and hashes: a damaged cache is noticed and made anew.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from glue_bench.data.text import END, hub_commit, read_paragraphs
from glue_bench.errors import UserError
from glue_bench.inputs import Input
from glue_bench.store import atomic_folder, lock, sha256_file, write_atomic

FORMAT = 1  # raised when the cache's content would differ for the same key
BLOCK_CHARACTERS = 1 << 20  # of text tokenised at once: more gains nothing and costs 60 bytes of memory per character
CHUNK_TOKENS = 1 << 22  # of the second pass
SHORTEST = 12  # tokens of a sequence; shorter ones and half-unknown ones are dropped (the authors' code)
LONGEST_UNKNOWN = 0.5
POOL_BATCHES = 50  # by_length: batches sorted by length together; sorting more would make the order less random
KEYED = ("batches", "heldout_fraction", "sequence_length")
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

    def batch(self, numbers: np.ndarray, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
        """(input_ids, attention_mask) of the numbered sequences, (n, longest) int64, padded on the right."""
        starts = np.asarray(self.offsets[numbers])
        lengths = np.asarray(self.offsets[np.asarray(numbers) + 1]) - starts
        columns = np.arange(lengths.max())
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
        """Sequence numbers of an epoch's batches, (batches, batch_size), by (seed, epoch) alone; what fills no batch is left out.

        Packed sequences are drawn at random. With by_length those of similar length come together: random pools of
        POOL_BATCHES batches are sorted by length, cut into batches, and the batches shuffled. Raises UserError where
        the text is too short for one batch.
        """
        batches = len(self.train) // batch_size
        if not batches:
            raise UserError(
                f"the corpus gives {len(self.train)} sequences of {self.manifest['settings']['sequence_length']} tokens, "
                f"too few for one batch of {batch_size}; use more text or a smaller batch_size"
            )
        random = np.random.default_rng([seed, epoch])
        order = random.permutation(len(self.train))[: batches * batch_size]
        if self.manifest["settings"]["batches"] == "packed":
            return order.reshape(batches, batch_size)
        lengths = np.diff(self.offsets_of_train())
        pool = POOL_BATCHES * batch_size
        sorted_pools = [
            part[np.argsort(lengths[part], kind="stable")]
            for part in (order[start : start + pool] for start in range(0, len(order), pool))
        ]
        return random.permutation(np.concatenate(sorted_pools).reshape(batches, batch_size))

    def offsets_of_train(self) -> np.ndarray:
        """Offsets of the training sequences, in memory."""
        return np.asarray(self.train.offsets)


def cache_key(settings: Mapping[str, Any], inputs: Mapping[str, Input], tokenizer: Any) -> str:
    """Key of a cache: hash over text identities (embedded text by its settings), tokenizer content and settings."""
    texts = {name: _identity(one, settings) for name, one in inputs.items()}
    content = [FORMAT, texts, tokenizer_content(tokenizer), {name: settings[name] for name in KEYED}]
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
        with atomic_folder(folder) as temporary:
            manifest = {"key": key, "settings": dict(settings), **_write(temporary, settings, inputs, tokenizer)}
            manifest["texts"] = {name: one.identity for name, one in inputs.items()}
            manifest["files"] = {
                path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
                for path in sorted(temporary.glob("*.bin"))
            }
            write_atomic(temporary / "manifest.json", json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    return open_corpus(cache, key).manifest


def open_corpus(cache: Path, key: str) -> Corpus:
    """Open cache/KEY, every file checked by size and hash. Raises DamagedCache naming the first file that is amiss."""
    folder = cache / key
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
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
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedCache(f"{folder / 'manifest.json'} cannot be read ({error})") from None
    return Corpus(*parts, counts, manifest)


def tokenizer_content(tokenizer: Any) -> str:
    """What a tokenizer does to text, as a hash: its rules and vocabulary without truncation and padding."""
    return hashlib.sha256(_backend(tokenizer).to_str().encode()).hexdigest()


def _identity(source: Input, settings: Mapping[str, Any]) -> list[Any]:
    embedded = source.location == "embedded"
    return [source.identity, *([settings["seed"], settings["documents"]] if embedded else [])]


def _resolved(source: Input) -> Input:
    """A hub text without a commit stands for whatever the hub has now, so its present commit becomes its identity."""
    if not source.location.startswith("hub:"):
        return source
    location = f"{source.location.partition('@')[0]}@{hub_commit(source.location)}"
    return Input(location, location)


def _backend(tokenizer: Any) -> Any:
    """A copy of the tokenizer's Rust side that neither cuts nor pads: a saved tokenizer.json may ask for both."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    return backend


def _write(folder: Path, settings: Mapping[str, Any], inputs: Mapping[str, Input], tokenizer: Any) -> dict[str, Any]:
    """Tokenise into `stream` files, cut these into sequences, remove them; returns the manifest's counts."""
    dtype = np.dtype(np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32)
    backend = _backend(tokenizer)
    separator = tokenizer.sep_token_id if settings["batches"] == "packed" else None
    texts = [one for name, one in inputs.items() if name.startswith("text-")]
    ends = _tokenise(folder / "stream", texts, settings, backend, dtype, separator)
    boundary, documents = int(ends[-1]), len(ends)
    stream = np.memmap(folder / "stream", dtype=dtype, mode="r")
    if "heldout" in inputs:
        heldout_ends = _tokenise(folder / "heldout", [inputs["heldout"]], settings, backend, dtype, separator)
        heldout_stream = np.memmap(folder / "heldout", dtype=dtype, mode="r")
    else:
        boundary = _heldout_start(ends, settings["heldout_fraction"])
        heldout_ends = np.append(ends[ends > boundary], []).astype(np.int64) - boundary
        heldout_stream = stream[boundary:]
        ends = np.append(ends[ends < boundary], boundary)
    counts = np.zeros(len(tokenizer), dtype=np.int64)
    result: dict[str, Any] = {"dtype": dtype.name, "documents": documents}
    result["train"] = _cut(folder, "train", stream[:boundary], ends, settings, tokenizer, counts)
    result["heldout"] = _cut(folder, "heldout", heldout_stream, heldout_ends, settings, tokenizer, None)
    counts.tofile(folder / "counts.bin")
    for name in ("stream", "heldout"):
        (folder / name).unlink(missing_ok=True)
    return result


def _tokenise(
    path: Path, texts: list[Input], settings: Mapping[str, Any], backend: Any, dtype: np.dtype, separator: int | None
) -> np.ndarray:
    """Append the tokens of all documents to a file, each followed by the separator; returns their ends (documents,)."""
    ends: list[np.ndarray] = []
    written = in_document = 0
    with path.open("wb") as file:
        for block in _blocks(paragraph for one in texts for paragraph in read_paragraphs(one.location, settings)):
            encodings = iter(backend.encode_batch_fast([p for p in block if p], add_special_tokens=False))
            tokens: list[int] = []
            ends_here: list[int] = []
            for paragraph in block:
                if paragraph:
                    ids = next(encodings).ids
                    tokens += ids
                    in_document += len(ids)
                elif in_document:
                    tokens += [separator] if separator is not None else []
                    ends_here.append(written + len(tokens))
                    in_document = 0
            np.asarray(tokens, dtype=dtype).tofile(file)
            written += len(tokens)
            ends.append(np.asarray(ends_here, dtype=np.int64))
    if not written:
        where = ", ".join(one.location for one in texts)
        raise UserError(f"corpus.text: {where}: holds no text; give a file with a paragraph a line")
    return np.concatenate(ends)


def _blocks(paragraphs: Iterator[str]) -> Iterator[list[str]]:
    """Paragraphs in lists of about BLOCK_CHARACTERS characters."""
    block: list[str] = []
    size = 0
    for paragraph in paragraphs:
        block.append(paragraph)
        size += len(paragraph) + 1
        if size >= BLOCK_CHARACTERS:
            yield block
            block, size = [], 0
    yield block


def _heldout_start(ends: np.ndarray, fraction: float) -> int:
    """Where the held-out last part of the stream starts: at the document nearest to its share of the tokens.

    Few long documents may have no start near by (within half of the share); then the cut goes through one of them.
    """
    total = int(ends[-1])
    wanted = int(total * (1 - fraction))
    nearest = int(ends[np.argmin(np.abs(ends - wanted))])
    return nearest if abs(nearest - wanted) <= (total - wanted) / 2 else wanted


def _cut(
    folder: Path,
    part: str,
    stream: np.ndarray,
    ends: np.ndarray,
    settings: Mapping[str, Any],
    tokenizer: Any,
    counts: np.ndarray | None,
) -> dict[str, int]:
    """Cut a stream into sequences [CLS] ... [SEP] and write them; adds to `counts`. Raises UserError where none is left."""
    room = settings["sequence_length"] - 2
    if settings["batches"] == "packed":
        edges = np.arange(len(stream) // room + 1, dtype=np.int64) * room
    else:
        starts = np.concatenate([[0], ends[:-1]])
        pieces = [np.arange(start, end, room, dtype=np.int64) for start, end in zip(starts, ends, strict=True)]
        edges = np.concatenate([*pieces, ends[-1:]])
    shortest = SHORTEST if settings["batches"] == "by_length" else 0  # packed ones are all of the length asked for
    sequences = tokens = dropped = unknown = 0
    per_chunk = max(1, CHUNK_TOKENS // (room + 2))
    with (folder / f"{part}.tokens.bin").open("wb") as file, (folder / f"{part}.offsets.bin").open("wb") as offsets:
        np.zeros(1, dtype=np.int64).tofile(offsets)
        for first in range(0, len(edges) - 1, per_chunk):
            here = edges[first : first + per_chunk + 1]
            inner = np.asarray(stream[here[0] : here[-1]])
            is_unknown = inner == (-1 if tokenizer.unk_token_id is None else tokenizer.unk_token_id)
            lengths = np.diff(here)
            unknowns = np.add.reduceat(is_unknown, here[:-1] - here[0], dtype=np.int64)
            keep = (lengths + 2 >= shortest) & (unknowns < LONGEST_UNKNOWN * (lengths + 2))
            inner, lengths = inner[np.repeat(keep, lengths)], lengths[keep] + 2
            sequence_ends = np.cumsum(lengths)
            whole = np.empty(lengths.sum(), dtype=stream.dtype)
            whole[sequence_ends - 1], whole[sequence_ends - lengths] = tokenizer.sep_token_id, tokenizer.cls_token_id
            ordinary = np.ones(len(whole), dtype=bool)
            ordinary[sequence_ends - 1] = ordinary[sequence_ends - lengths] = False
            whole[ordinary] = inner
            whole.tofile(file)
            (tokens + sequence_ends).astype(np.int64).tofile(offsets)
            if counts is not None:
                counts += np.bincount(whole, minlength=len(counts))
            sequences, tokens = sequences + len(lengths), tokens + len(whole)
            dropped, unknown = dropped + int((~keep).sum()), unknown + int(unknowns[keep].sum())
    if not sequences:
        remedy = "use more text or a shorter sequence_length"
        raise UserError(
            f"corpus.text: the {part} text of {len(stream):,} tokens gives no sequence of {room + 2} tokens "
            f"({dropped} dropped as too short or half unknown); {remedy}"
        )
    return {"sequences": sequences, "tokens": tokens, "dropped": dropped, "unknown": unknown}
