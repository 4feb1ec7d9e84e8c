"""Text as it comes: files, hub data sets and the embedded generator, as a stream of paragraphs.

One paragraph at a time, so that memory stays flat whatever the size. Files have a paragraph a line and a blank line
between documents; a row of a parquet file or a hub data set is a document. What is no text is refused by file and line.
"""

import codecs
import re
from collections.abc import Iterator, Mapping
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from glue_bench.data import embedded
from glue_bench.errors import UserError

END = ""  # stands in the stream after the last paragraph of a document
BETWEEN = "\x1c"  # stands between the two parts of a pair: ASCII's file separator, which strip() takes from any text
BLOCK_BYTES = 1 << 20
LONGEST_PARAGRAPH = 1 << 20  # characters; a longer line is cut at a space
# Compressed text may grow to this many bytes, or this many times its size where that is more: real text grows 3 to 10
# times, a decompression bomb 1,000 times and up.
LARGEST_UNCHECKED = 1 << 30
LARGEST_RATIO = 200
PARQUET_ROWS = 64  # rows read at once
# A sentence ends at . ! ? (and what closes there) before a space and an ASCII capital, a digit or an opening quote, but
# not after a title, a common abbreviation or a single letter other than I.
SENTENCE_END = re.compile(r"""[.!?]["'”’)\]]*(?=\s+["'“‘(\[]?[A-Z0-9])""")
NO_END = re.compile(
    r"(?:\b(?:Mr|Mrs|Ms|Dr|St|Mt|Lt|Col|Gen|Capt|Sgt|Rev|Prof|Jr|Sr|No|vs|vol|ca|cf|etc|[A-HJ-Za-z]))\.$"
)
LONGEST_ABBREVIATION = 8  # characters looked at before a full stop
TURNS = ("sentence", "neighbours", "sentence", "reworded", "passage")  # documents of mixed batches
SENTENCES = {"sentence": 1, "neighbours": 2, "reworded": 2, "passage": 5}  # that each takes; 5 are about 128 tokens
LEFT_OUT, EXCHANGED = 0.15, 0.4  # of the words, and of the sentences, that are reworded
COMPRESSION = {".gz": "gzip", ".zst": "zstd"}


def read_paragraphs(location: str, settings: Mapping[str, Any]) -> Iterator[str]:
    """Paragraphs of one source, with one END or more after each document.

    location: "embedded" (of which `settings` has the number of documents and the seed), hub:ID[:SUBSET][@COMMIT], or a
    .txt, .txt.gz, .txt.zst or .parquet file. Raises UserError, naming file and line, on anything but UTF-8 text.
    """
    if location == "embedded":
        raw = _documents(embedded.documents(settings["seed"], settings["documents"]))
    elif location.startswith("hub:"):
        raw = _documents(_hub_rows(location))
    elif location.endswith(".parquet"):
        raw = _documents(_parquet_rows(Path(location)))
    else:
        raw = _file_lines(Path(location))
    for paragraph in raw:
        yield paragraph.strip()
    yield END


def in_sentences(paragraphs: Iterator[str]) -> Iterator[str]:
    """The sentences of a stream of paragraphs, each a document of its own: END after every one."""
    for paragraph in paragraphs:
        for sentence in split_sentences(paragraph):
            yield sentence
            yield END


def in_turns(paragraphs: Iterator[str]) -> Iterator[str]:
    """Sentences of each paragraph dealt out as documents in turn: one alone, pairs with BETWEEN in them, a passage.

    What a student learns on one kind carries over to the others only in part, and GLUE has all of them. In every other
    pair one part is the other reworded, with words of the sentence that follows, which is used up: GLUE's pairs share
    words, neighbours hardly any. Nothing crosses a paragraph, and a turn that its end cuts short is over: where
    paragraphs are single sentences, or have no sentence ends that are known, every document is one paragraph. Of
    Wikipedia and books (45 million tokens) 32 % come in pairs, 36 % in passages of over 48 tokens, the rest alone.
    """
    turns, random = cycle(TURNS), Random(0)
    for paragraph in paragraphs:
        sentences, start = split_sentences(paragraph), 0
        while start < len(sentences):
            kind = next(turns)
            taken = sentences[start : start + SENTENCES[kind]]
            start += len(taken)
            if kind == "reworded" and len(taken) == 2:
                taken = random.sample([taken[0], reworded(*taken, random)], 2)
            if kind == "passage" or len(taken) == 1:
                yield " ".join(taken)
            else:
                yield from (taken[0], BETWEEN, taken[1])
            yield END


def reworded(sentence: str, other: str, random: Random) -> str:
    """A sentence with some words left out, up to a third (at least one) replaced by words of another one, and at times
    its two parts exchanged: no grammar, but most of its words."""
    words = sentence.split()
    words = [word for word in words if random.random() > LEFT_OUT] or words
    there = other.split()
    count, place = random.randint(1, max(1, len(words) // 3)), random.randrange(len(words))
    first = random.randrange(len(there))
    words[place : place + count] = there[first : first + count]
    if random.random() < EXCHANGED:
        middle = random.randrange(len(words))
        words = words[middle:] + words[:middle]
    return " ".join(words)


def split_sentences(paragraph: str) -> list[str]:
    """A paragraph cut after its sentences by punctuation; where they begin with no ASCII capital it stays whole."""
    sentences, start = [], 0
    for end in SENTENCE_END.finditer(paragraph):
        if not NO_END.search(paragraph, max(start, end.start() - LONGEST_ABBREVIATION), end.start() + 1):
            sentences.append(paragraph[start : end.end()].strip())
            start = end.end()
    return [*sentences, rest] if (rest := paragraph[start:].strip()) else sentences


def hub_parts(location: str) -> tuple[str, str, str]:
    """(id, subset, commit) of hub:ID[:SUBSET][@COMMIT]; subset and commit may be empty."""
    name, _, commit = location.removeprefix("hub:").partition("@")
    name, _, subset = name.partition(":")
    return name, subset, commit


def hub_commit(location: str) -> str:
    """The commit that a hub text stands for now. Raises UserError where the hub cannot be asked."""
    name, _, commit = hub_parts(location)
    if commit:
        return commit
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(name, timeout=10).sha
    except Exception as error:
        raise UserError(_hub_message(location, error)) from None


def _documents(texts: Iterator[str]) -> Iterator[str]:
    """Each text as a document: blank lines inside it separate no documents."""
    for text in texts:
        yield from (line for line in text.splitlines() if line.strip())
        yield END


def _file_lines(path: Path) -> Iterator[str]:
    try:
        compression = COMPRESSION.get(path.suffix)
        limit = _largest(path) if compression else 0
        with pa.input_stream(str(path), compression=compression) as stream:
            yield from _lines(stream, path, limit)
    except OSError as error:
        raise UserError(f"{path}: cannot be read as text: {error}; check that the file is whole") from None


def _lines(stream: BinaryIO, path: Path, limit: int) -> Iterator[str]:
    """Lines of a byte stream, decoded block by block. `limit` bounds its bytes, 0: unbounded."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    rest, lines_before, total = "", 0, 0
    while True:
        block = stream.read(BLOCK_BYTES)
        total += len(block)
        if limit and total > limit:
            raise UserError(f"{path}: grows beyond {limit:,} bytes when uncompressed; unpack it if it is really text")
        if b"\0" in block:
            line = lines_before + block[: block.index(b"\0")].count(b"\n") + 1
            raise UserError(f"{path}, line {line}: holds a zero byte, so this is no text; give UTF-8 text")
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            line = lines_before + error.object[: error.start].count(b"\n") + 1
            raise UserError(f"{path}, line {line}: not valid UTF-8; convert the file to UTF-8") from None
        if not total - len(block):
            text = text.removeprefix("\ufeff")
        lines_before += block.count(b"\n")
        *lines, rest = (rest + text).split("\n")
        yield from lines
        if not block:
            yield rest
            return
        if len(rest) > LONGEST_PARAGRAPH:
            cut = rest.rfind(" ")
            cut = cut if cut > 0 else len(rest)
            yield rest[:cut]
            rest = rest[cut:]


def _parquet_rows(path: Path) -> Iterator[str]:
    try:
        file = pq.ParquetFile(path)
        if "text" not in file.schema_arrow.names:
            raise UserError(f"{path}: has no column text; its columns are {', '.join(file.schema_arrow.names)}")
        made = file.metadata
        chunks = (made.row_group(i).column(j) for i in range(made.num_row_groups) for j in range(made.num_columns))
        _check_growth(path, sum(one.total_uncompressed_size for one in chunks if one.path_in_schema == "text"))
        kind = file.schema_arrow.field("text").type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise UserError(f"{path}: the column text holds {kind}, not strings")
        total = 0
        for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=["text"]):
            total += batch.nbytes
            _check_growth(path, total)  # a dictionary says once what the rows repeat
            yield from (text for text in batch.column(0).to_pylist() if text)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as parquet: {str(error).splitlines()[0][:200]}") from None


def _check_growth(path: Path, size: int) -> None:
    if size > _largest(path):
        raise UserError(f"{path}: grows beyond {_largest(path):,} bytes when uncompressed; save it as plain text")


def _largest(path: Path) -> int:
    """The bytes to which a compressed file may grow."""
    return max(LARGEST_UNCHECKED, LARGEST_RATIO * path.stat().st_size)


def _hub_rows(location: str) -> Iterator[str]:
    import datasets

    name, subset, commit = hub_parts(location)
    try:
        rows = datasets.load_dataset(name, subset or None, split="train", streaming=True, revision=commit or None)
        for row in rows:
            text = row["text"]
            if text is not None and not isinstance(text, str):
                raise UserError(f"{location}: the column text holds {type(text).__name__}, not strings")
            if text:  # a null row is no document
                yield text
    except UserError:
        raise
    except KeyError:
        raise UserError(f"{location}: the data set has no column text") from None
    except Exception as error:  # the hub's libraries raise many kinds; all of them mean that the text is not there
        raise UserError(_hub_message(location, error)) from None


def _hub_message(location: str, error: Exception) -> str:
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return f"{location}: the hub gave no text ({reason[0][:200]}); check the network, or set corpus.text to a file"
