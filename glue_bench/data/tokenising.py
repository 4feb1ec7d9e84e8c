"""Text made into token sequences: the writing side of the corpus cache.

Paragraphs are tokenised a block at a time by all cores and appended to a file, so memory stays flat for text of any
size; a second pass cuts that stream into sequences [CLS] ... [SEP]. Packed ones all have the length asked for,
documents joined by [SEP]; by_length a document is a sequence, or several; with sentences each of them is a document;
with mixed, documents are one sentence, two with [SEP] between, or a passage. What is too long for a sequence is cut
into several, a pair too.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from glue_bench.data.text import BETWEEN, END, in_sentences, in_turns, read_paragraphs
from glue_bench.errors import UserError
from glue_bench.inputs import Input

BLOCK_CHARACTERS = 1 << 20  # of text tokenised at once: more gains nothing and costs 60 bytes of memory per character
CHUNK_TOKENS = 1 << 22  # of the second pass
# Tokens of a sequence; shorter ones and half-unknown ones are dropped. 12 is the authors' code's; sentences of 6 say
# something, and GLUE has many. Packed ones are all of the length asked for.
SHORTEST = {"packed": 0, "by_length": 12, "sentences": 6, "mixed": 6}
DOCUMENTS = {"sentences": in_sentences, "mixed": in_turns}  # how paragraphs become documents
LONGEST_UNKNOWN = 0.5


def rust_tokenizer(tokenizer: Any) -> Any:
    """A copy of the tokenizer's Rust side that neither cuts nor pads: a saved tokenizer.json may ask for both."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    return backend


def write_sequences(
    folder: Path, settings: Mapping[str, Any], inputs: Mapping[str, Input], tokenizer: Any
) -> dict[str, Any]:
    """Tokenise into `stream` files, cut these into sequences, remove them; returns the manifest's counts."""
    vocabulary = max(tokenizer.get_vocab().values()) + 1  # more than its words where ids have gaps
    dtype = np.dtype(np.uint16 if vocabulary <= 1 << 16 else np.uint32)
    backend = rust_tokenizer(tokenizer)
    separators = {
        END: [tokenizer.sep_token_id] if settings["batches"] == "packed" else [],
        BETWEEN: [tokenizer.sep_token_id] * max(1, backend.num_special_tokens_to_add(is_pair=True) - 2),  # RoBERTa: 2
    }
    texts = [one for name, one in inputs.items() if name.startswith("text-")]
    stream, ends = _tokenise(folder / "stream", texts, settings, backend, dtype, separators)
    train, heldout = Stream(stream, ends, 0), None
    if "heldout" in inputs:
        heldout = Stream(*_tokenise(folder / "heldout", [inputs["heldout"]], settings, backend, dtype, separators), 0)
    else:
        boundary = _heldout_start(ends, settings["heldout_fraction"])
        heldout = Stream(stream[boundary:], ends[np.searchsorted(ends, boundary, side="right") :], boundary)
        train = Stream(stream[:boundary], ends[: np.searchsorted(ends, boundary)], 0)
    counts = np.zeros(vocabulary, dtype=np.int64)
    result: dict[str, Any] = {"dtype": dtype.name, "documents": len(ends)}
    result["train"] = _cut(folder, "train", train, settings, tokenizer, counts)
    result["heldout"] = _cut(folder, "heldout", heldout, settings, tokenizer, None)
    counts.tofile(folder / "counts.bin")
    for name in ("stream", "stream.ends", "heldout", "heldout.ends"):
        (folder / name).unlink(missing_ok=True)
    return result


class Stream(NamedTuple):
    """Tokens of documents one after the other, and where these end, as places + `base`; what follows the last end is
    one more document. Both may be memory-mapped: there can be a hundred million documents."""

    tokens: np.ndarray
    ends: np.ndarray
    base: int


def _tokenise(
    path: Path,
    texts: list[Input],
    settings: Mapping[str, Any],
    backend: Any,
    dtype: np.dtype,
    separators: Mapping[str, list[int]],
) -> tuple[np.ndarray, np.ndarray]:
    """Write the tokens of all documents to a file, with `separators` at END and BETWEEN, and their ends to another.

    Returns both, memory-mapped. Of the texts from the hub, which may have no end to speak of, no more is read than
    max_hub_tokens tokens in all; each may take its equal share of what the ones before it left.
    """
    ends_path = path.with_name(f"{path.name}.ends")
    from_hub = [one.location.startswith("hub:") for one in texts]
    capped = settings.get("max_hub_tokens", 0)
    left, written = capped, 0
    with path.open("wb") as tokens, ends_path.open("wb") as ends:
        for number, one in enumerate(texts):
            limit = max(1, left // sum(from_hub[number:])) if capped and from_hub[number] else 0
            count = 0
            for ids, stops in _documents(one, settings, backend, separators, limit):
                np.asarray(ids, dtype=dtype).tofile(tokens)
                (np.asarray(stops, dtype=np.int64) + written).tofile(ends)
                count += len(ids)
            written += count
            left -= count if from_hub[number] else 0
    if not written:
        where = ", ".join(one.location for one in texts)
        raise UserError(f"corpus.text: {where}: holds no text; give a file with a paragraph a line")
    return np.memmap(path, dtype=dtype, mode="r"), np.memmap(ends_path, dtype=np.int64, mode="r")


def _documents(
    source: Input, settings: Mapping[str, Any], backend: Any, separators: Mapping[str, list[int]], limit: int
) -> Iterator[tuple[list[int], list[int]]]:
    """A text's tokens in blocks, and the ends of the documents that end in each, as places in the text's tokens.

    After `limit` tokens (0: none) nothing more is read, and the document ends there.
    """
    written = in_document = 0
    with contextlib.closing(read_paragraphs(source.location, settings)) as paragraphs:
        documents = DOCUMENTS.get(settings["batches"], iter)(paragraphs)
        for block in _blocks(documents):
            text = [paragraph for paragraph in block if paragraph not in separators]
            encodings = iter(backend.encode_batch_fast(text, add_special_tokens=False))
            tokens: list[int] = []
            ends: list[int] = []
            for paragraph in block:
                if paragraph not in separators:
                    ids = next(encodings).ids
                    tokens += ids
                    in_document += len(ids)
                elif in_document:
                    tokens += separators[paragraph]
                    if paragraph == END:
                        ends.append(written + len(tokens))
                        in_document = 0
            if limit and written + len(tokens) >= limit:
                yield tokens[: limit - written], [*(end for end in ends if end < limit), limit]
                return
            yield tokens, ends
            written += len(tokens)


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
    place = int(np.searchsorted(ends, wanted))
    nearest = min((int(end) for end in ends[max(place - 1, 0) : place + 1]), key=lambda end: abs(end - wanted))
    return nearest if abs(nearest - wanted) <= (total - wanted) / 2 else wanted


def _edges(stream: Stream, room: int, packed: bool, per_chunk: int) -> Iterator[np.ndarray]:
    """Where sequences of at most `room` tokens begin and end, about `per_chunk` of them at a time.

    [a, b, c] are two, a to b and b to c. Packed ones all have `room` tokens, else each document is cut by itself.
    """
    length = len(stream.tokens)
    if packed:
        for first in range(0, length // room, per_chunk):
            yield np.arange(first, min(first + per_chunk, length // room) + 1, dtype=np.int64) * room
        return
    start = 0
    for first in range(0, len(stream.ends) + 1, per_chunk):
        stops = np.asarray(stream.ends[first : first + per_chunk]) - stream.base
        if first + per_chunk > len(stream.ends) and (stops[-1] if len(stops) else start) < length:
            stops = np.append(stops, length)
        if not len(stops):
            return
        starts = np.concatenate([[start], stops[:-1]])
        pieces = -(-(stops - starts) // room)
        number = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        edges = np.append(np.repeat(starts, pieces) + number * room, stops[-1])
        for begin in range(0, len(edges) - 1, per_chunk):
            yield edges[begin : begin + per_chunk + 1]
        start = int(stops[-1])


def _cut(
    folder: Path,
    part: str,
    stream: Stream,
    settings: Mapping[str, Any],
    tokenizer: Any,
    counts: np.ndarray | None,
) -> dict[str, int]:
    """Cut a stream into sequences [CLS] ... [SEP], write them, add to `counts`. Raises UserError where none is left."""
    room = settings["sequence_length"] - 2
    shortest = SHORTEST[settings["batches"]]
    sequences = tokens = dropped = unknown = 0
    per_chunk = max(1, CHUNK_TOKENS // (room + 2))
    with (folder / f"{part}.tokens.bin").open("wb") as file, (folder / f"{part}.offsets.bin").open("wb") as offsets:
        np.zeros(1, dtype=np.int64).tofile(offsets)
        for here in _edges(stream, room, settings["batches"] == "packed", per_chunk):
            inner = np.asarray(stream.tokens[here[0] : here[-1]])
            is_unknown = inner == (-1 if tokenizer.unk_token_id is None else tokenizer.unk_token_id)
            lengths = np.diff(here)
            unknowns = np.add.reduceat(is_unknown, here[:-1] - here[0], dtype=np.int64)
            keep = (lengths + 2 >= shortest) & (unknowns < LONGEST_UNKNOWN * (lengths + 2))
            inner, lengths = inner[np.repeat(keep, lengths)], lengths[keep] + 2
            sequence_ends = np.cumsum(lengths)
            whole = np.empty(lengths.sum(), dtype=stream.tokens.dtype)
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
            f"corpus.text: the {part} text of {len(stream.tokens):,} tokens gives no sequence of {room + 2} tokens "
            f"({dropped} dropped as too short or half unknown); {remedy}"
        )
    return {"sequences": sequences, "tokens": tokens, "dropped": dropped, "unknown": unknown}
