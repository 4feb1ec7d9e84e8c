"""Text made into token sequences: the writing side of the corpus cache.

Paragraphs are tokenised a block at a time by all cores and appended to a file, so memory stays flat for text of any
size; a second pass cuts that stream into sequences [CLS] ... [SEP]. Packed ones all have the length asked for,
documents joined by [SEP]; by_length a document is a sequence, or several.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from glue_bench.data.text import read_paragraphs
from glue_bench.errors import UserError
from glue_bench.inputs import Input

BLOCK_CHARACTERS = 1 << 20  # of text tokenised at once: more gains nothing and costs 60 bytes of memory per character
CHUNK_TOKENS = 1 << 22  # of the second pass
SHORTEST = 12  # tokens of a sequence; shorter ones and half-unknown ones are dropped (the authors' code)
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
    dtype = np.dtype(np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32)
    backend = rust_tokenizer(tokenizer)
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
    """Cut a stream into sequences [CLS] ... [SEP], write them, add to `counts`. Raises UserError where none is left."""
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
