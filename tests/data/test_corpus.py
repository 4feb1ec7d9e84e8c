"""Text to token sequences: nothing lost, nothing padded, bad text refused by file and line, damage noticed."""

import gzip
import json
import shutil
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from transformers import BertTokenizer, RobertaTokenizer

from glue_bench.data import corpus as corpus_module
from glue_bench.data import text as text_module
from glue_bench.data import tokenising
from glue_bench.data.corpus import (
    DamagedCache,
    build_corpus,
    cache_key,
    corpus_of,
    open_corpus,
    record_corpus,
)
from glue_bench.data.text import END, hub_parts, read_paragraphs, reworded, split_sentences
from glue_bench.errors import StepError, UserError
from glue_bench.inputs import Input
from glue_bench.store import Store, sha256_file

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(50)), "é"]
SETTINGS: dict[str, Any] = {
    "batches": "packed",
    "heldout_fraction": 0.2,
    "heldout_tokens": 100,
    "sequence_length": 16,
    "seed": 0,
    "documents": 300,
}


@pytest.fixture(scope="module")
def tokenizer() -> BertTokenizer:
    """Whole words w0 ... w49; anything else is unknown. It asks for truncation and padding, as MiniLM's file does."""
    made = BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, strip_accents=False)
    made.backend_tokenizer.enable_truncation(4)
    made.backend_tokenizer.enable_padding(length=8)
    return made


def document(length: int, first: int = 0) -> list[str]:
    """`length` words in paragraphs of 7."""
    words = [f"w{(first + i) % 50}" for i in range(length)]
    return [" ".join(words[start : start + 7]) for start in range(0, length, 7)]


def write_text(path: Path, documents: list[list[str]]) -> Input:
    """A text file of these documents."""
    path.write_text("\n\n".join("\n".join(paragraphs) for paragraphs in documents) + "\n", encoding="utf-8")
    return as_input(path)


def as_input(path: Path) -> Input:
    """The file with its content hash."""
    return Input(str(path), f"sha256:{sha256_file(path)}")


def rows(part: Any) -> list[list[int]]:
    """All sequences of a part."""
    return [list(map(int, part.tokens[a:b])) for a, b in zip(part.offsets[:-1], part.offsets[1:], strict=True)]


def test_packed_sequences_lose_nothing(tmp_path: Path, tokenizer: BertTokenizer) -> None:
    """Each is [CLS] 14 tokens [SEP]; joined again they are the documents with [SEP] between; only the end is cut."""
    documents = [document(20 + 3 * i, i) for i in range(10)]
    one = write_text(tmp_path / "a.txt", documents)
    manifest = build_corpus(tmp_path / "cache", SETTINGS, {"text-0": one}, tokenizer)
    corpus = open_corpus(tmp_path / "cache", manifest["key"])
    stream: list[int] = []
    for paragraphs in documents:
        stream += [tokenizer.convert_tokens_to_ids(word) for word in " ".join(paragraphs).split()] + [3]
    train, heldout = rows(corpus.train), rows(corpus.heldout)
    for row in train + heldout:
        assert (len(row), row[0], row[-1]) == (16, 2, 3)
    joined = [token for row in train for token in row[1:-1]]
    assert joined == stream[: len(joined)]
    start = sum(len(" ".join(p).split()) + 1 for p in documents[:9])  # 297 of 345 tokens
    tail = [token for row in heldout for token in row[1:-1]]
    assert tail == stream[start : start + len(tail)]
    assert 0 <= start - len(joined) < 14
    assert np.array_equal(corpus.counts, np.bincount([token for row in train for token in row], minlength=len(WORDS)))
    assert manifest["documents"] == 10
    assert manifest["train"] == {"sequences": len(train), "tokens": 16 * len(train), "dropped": 0, "unknown": 0}


def test_a_vocabulary_with_a_gap_in_its_ids(tmp_path: Path) -> None:
    """As of a vocab.txt that has a word twice: the largest id is not below the number of words."""
    gap = BertTokenizer(vocab={word: i + (word == WORDS[-1]) for i, word in enumerate(WORDS)}, strip_accents=False)
    one = write_text(tmp_path / "a.txt", [[f"{WORDS[-1]} " * 40] for _ in range(6)])
    manifest = build_corpus(tmp_path / "cache", SETTINGS, {"text-0": one}, gap)
    corpus = open_corpus(tmp_path / "cache", manifest["key"])
    assert len(corpus.counts) == len(WORDS) + 1 and corpus.counts[len(WORDS)] > 0


def test_by_length_keeps_documents_apart(tmp_path: Path, tokenizer: BertTokenizer) -> None:
    """A document is a sequence or several; those of 11 tokens or fewer and half-unknown ones are dropped."""
    kept, short = document(10, 5), document(9, 5)
    unknown = ["nothing known here at all " + " ".join(document(5)[0].split())] * 2
    documents = [kept, short, document(30), unknown, kept, kept, kept, kept, kept, kept]
    one = write_text(tmp_path / "a.txt", documents)
    settings = SETTINGS | {"batches": "by_length"}
    manifest = build_corpus(tmp_path / "cache", settings, {"text-0": one}, tokenizer)
    corpus = open_corpus(tmp_path / "cache", manifest["key"])
    train = rows(corpus.train)
    ids = [2, *range(10, 20), 3]
    assert train[0] == ids
    assert [len(row) for row in train[:3]] == [12, 16, 16]  # the 30 words in 14 + 14 + 2: the last piece is too short
    assert manifest["train"]["dropped"] == 4  # the short one, the piece of 2, both halves of the unknown one
    assert all(row == ids for row in train[3:])
    input_ids, mask = corpus.train.batch(np.array([1, 0]), pad_id=0)
    assert mask.sum(axis=1).tolist() == [16, 12]
    assert input_ids[1].tolist() == [*ids, 0, 0, 0, 0]
    widths = [corpus.train.batch(np.array([0]), 0, multiple)[0].shape[1] for multiple in (1, 4, 5, 9)]
    assert widths == [12, 12, 15, 16]  # rounded up, but never over the longest sequence, which the model must take
    batches = corpus.epoch_batches(0, 0, 2)
    assert sorted(batches.ravel()) == sorted(set(batches.ravel()))
    lengths = np.diff(corpus.train.offsets)
    assert sum(len(set(lengths[batch])) > 1 for batch in batches) <= 1


def test_sentences_are_sequences_of_their_own(tmp_path: Path, tokenizer: BertTokenizer) -> None:
    """Each sentence is a sequence, cut where it is too long; those of fewer than 4 tokens are dropped."""
    text = tmp_path / "a.txt"
    paragraph = "w1 w2 w3 w4 w5. W w6 w7 w8! W w9." + " W" + " w1" * 16 + "?"
    text.write_text("\n".join([paragraph] * 10), encoding="utf-8")
    vocab = {word: i for i, word in enumerate([*WORDS, "w", ".", "!", "?"])}
    settings = SETTINGS | {"batches": "sentences"}
    lower = BertTokenizer(vocab=vocab, do_lower_case=True)
    manifest = build_corpus(tmp_path / "cache", settings, {"text-0": as_input(text)}, lower)
    corpus = open_corpus(tmp_path / "cache", manifest["key"])
    read = [lower.convert_ids_to_tokens(row[1:-1]) for row in rows(corpus.train)]
    assert read[0] == ["w1", "w2", "w3", "w4", "w5", "."]
    assert read[1] == ["w", "w6", "w7", "w8", "!"]
    assert read[2:4] == [["w"] + ["w1"] * 13, ["w1"] * 3 + ["?"]]  # "W w9." has 3 tokens and is dropped
    assert read[4] == read[0]
    assert manifest["documents"] == 40


def test_mixed_takes_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One alone, two neighbours joined as the tokenizer joins pairs, one and itself reworded, five in a passage; never
    across a paragraph."""
    monkeypatch.setattr(text_module, "reworded", lambda one, other, random: f"{one} with {other}")
    text = tmp_path / "a.txt"
    first = [f"W w{i} w{i + 1} w{i + 2}." for i in range(1, 8)]
    paragraphs = [*[" ".join(first)], "W w2 w2 w2. W w3 w3 w3.", "W w4 w4 w4. W w5 w5 w5. W w6 w6 w6."]
    text.write_text("\n".join(paragraphs * 4), encoding="utf-8")
    lower = BertTokenizer(vocab={word: i for i, word in enumerate([*WORDS, "w", "."])}, do_lower_case=True)
    settings = SETTINGS | {"batches": "mixed", "sequence_length": 64}
    manifest = build_corpus(tmp_path / "cache", settings, {"text-0": as_input(text)}, lower)
    read = rows(open_corpus(tmp_path / "cache", manifest["key"]).train)
    expected = [
        (first[0],),
        (first[1], first[2]),
        (first[3],),
        None,  # first[4] and what was made of it and first[5]
        (first[6],),  # a passage's turn, but alone in what is left of its paragraph
        ("W w2 w2 w2.",),
        ("W w3 w3 w3.",),  # a pair's turn
        ("W w4 w4 w4.",),
        None,
        (" ".join(first[:5]),),
        (first[5],),
        (first[6],),
    ]
    assert len(read) > len(expected)
    for parts, there in zip(expected, read, strict=False):
        if parts is not None:
            assert there == lower(*parts)["input_ids"]
    for number, one, other in ((3, first[4], first[5]), (8, "W w5 w5 w5.", "W w6 w6 w6.")):
        parts = [one, f"{one} with {other}"]
        assert read[number] in [lower(*order)["input_ids"] for order in (parts, parts[::-1])]


def test_a_reworded_sentence_shares_most_words() -> None:
    """Of twelve words no more than four come from the other sentence, one at least; something is always left."""
    sentence, other = "a b c d e f g h i j k l", "1 2 3 4 5 6 7"
    made = [reworded(sentence, other, Random(seed)).split() for seed in range(200)]
    assert all(any(word in other for word in one) for one in made)
    assert all(sum(word in other for word in one) <= 4 for one in made)
    kept = np.mean([sum(word in sentence for word in one) / 12 for one in made])
    assert 0.6 < kept < 0.75  # 85 % are not left out, of which 1 to a third are replaced
    own = [[word for word in one if word in sentence] for one in made]
    turns = [sum(a > b for a, b in zip(one, one[1:], strict=False)) for one in own]  # where the order goes back
    assert set(turns) == {0, 1}
    assert 0.25 < np.mean(turns) < 0.45  # 40 %, less where the place drawn is the first word
    assert all(reworded("a", "b", Random(seed)) for seed in range(50))


def test_pairs_are_joined_as_the_tokenizer_does(tmp_path: Path) -> None:
    """RoBERTa puts two separators between the parts of a pair."""
    vocab = {word: i for i, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", *"abcdefgh.", "Ġ", "W"])}
    roberta = RobertaTokenizer(vocab=vocab, merges=[])
    text = tmp_path / "a.txt"
    text.write_text("W a b cc. W dd. W ee.\n" * 9, encoding="utf-8")
    settings = SETTINGS | {"batches": "mixed"}
    manifest = build_corpus(tmp_path / "cache", settings, {"text-0": as_input(text)}, roberta)
    read = rows(open_corpus(tmp_path / "cache", manifest["key"]).train)
    assert read[:2] == [roberta("W a b cc.")["input_ids"], roberta("W dd.", "W ee.")["input_ids"]]
    assert read[1].count(roberta.sep_token_id) == 3


def test_where_sentences_end() -> None:
    """After . ! ? with what closes there, before a capital, a digit or an opening quote; nothing is lost."""
    cases = {
        'He said "Go." Then he left! (Why?) "I know. You?" 3 came.': [
            'He said "Go."',
            "Then he left!",
            "(Why?)",
            '"I know.',
            'You?"',
            "3 came.",
        ],
        "Mr. Smith and J. K. Rowling (b. 1965) met on No. 5 St. James. So did I. Then 3.5 m... and so on": [
            "Mr. Smith and J. K. Rowling (b. 1965) met on No. 5 St. James.",
            "So did I.",
            "Then 3.5 m... and so on",
        ],
        "no end": ["no end"],
        "": [],
        "One.": ["One."],
        "A. ": ["A."],
    }
    for paragraph, sentences in cases.items():
        assert split_sentences(paragraph) == sentences
        assert "".join(sentences).replace(" ", "") == paragraph.replace(" ", "")


def test_all_kinds_of_file_give_the_same_tokens(tmp_path: Path, tokenizer: BertTokenizer) -> None:
    """.txt, .txt.gz, .txt.zst and .parquet; with Windows line ends, a byte-order mark and blank lines around."""
    documents = [document(25, i) for i in range(8)]
    plain = write_text(tmp_path / "a.txt", documents)
    content = Path(plain.location).read_bytes()
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(content[:50]) + gzip.compress(content[50:]))
    (tmp_path / "c.txt.zst").write_bytes(zstandard.compress(content))
    pq.write_table(pa.table({"text": ["\n\n".join(p) for p in documents]}), tmp_path / "d.parquet")
    (tmp_path / "e.txt").write_bytes(b"\xef\xbb\xbf\r\n\r\n" + content.replace(b"\n", b"\r\n") + b"\r\n\r\n\r\n")
    expected = None
    for name in ("a.txt", "b.txt.gz", "c.txt.zst", "d.parquet", "e.txt"):
        manifest = build_corpus(tmp_path / "cache", SETTINGS, {"text-0": as_input(tmp_path / name)}, tokenizer)
        found = {part: manifest["files"][f"{part}.tokens.bin"]["sha256"] for part in ("train", "heldout")}
        expected = expected or found
        assert found == expected, name


@pytest.mark.parametrize("block", [1, 2, 3, 7, 64])
def test_blocks_cut_nothing(block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Characters of several bytes and lines across blocks come out whole; a line without end is cut at a space."""
    lines = ["w1 é w2", "", "日本語 w3", "w4 " * 20]
    (tmp_path / "a.txt").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.setattr(text_module, "BLOCK_BYTES", block)
    found = list(read_paragraphs(str(tmp_path / "a.txt"), {}))
    assert found == ["w1 é w2", END, "日本語 w3", ("w4 " * 20).strip(), END]
    monkeypatch.setattr(text_module, "LONGEST_PARAGRAPH", 10)
    pieces = list(read_paragraphs(str(tmp_path / "a.txt"), {}))
    assert " ".join(piece for piece in pieces if piece).split() == " ".join(lines).split()
    assert max(map(len, pieces)) <= 10 + block


BAD = {
    "empty.txt": (b"", "holds no text"),
    "blank.txt": (b"\n \n\t\n", "holds no text"),
    "binary.txt": (b"w1\nw2 \x00\x01", "line 2: holds a zero byte"),
    "latin.txt": ("w1\nw2\ncaf\xe9 w3".encode("latin-1"), "line 3: not valid UTF-8"),
    "cut.txt": ("w1\né".encode()[:-1], "line 2: not valid UTF-8"),
    "not.txt.gz": (b"w1 w2 w3", "cannot be read as text"),
    "cut.txt.gz": (gzip.compress(b"w1 w2\n" * 1000)[:-9], "cannot be read as text"),
    "cut.txt.zst": (zstandard.compress(b"w1 w2\n" * 100_000)[:-9], "cannot be read as text"),
    "not.parquet": (b"w1 w2", "cannot be read as parquet"),
    "short.txt": (b"w1 w2 w3\n", "gives no sequence of 16 tokens"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_text_is_refused(name: str, tmp_path: Path, tokenizer: BertTokenizer) -> None:
    """One line with the file, the line where there is one, and nothing left in the cache."""
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        build_corpus(tmp_path / "cache", SETTINGS, {"text-0": as_input(tmp_path / name)}, tokenizer)
    assert len(str(caught.value).splitlines()) <= 2
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == []


def test_parquet_columns(tmp_path: Path, tokenizer: BertTokenizer) -> None:
    """A missing or ill-typed column text is named."""
    pq.write_table(pa.table({"words": ["w1"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="no column text; its columns are words"):
        list(read_paragraphs(str(tmp_path / "a.parquet"), {}))
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match="holds int64, not strings"):
        list(read_paragraphs(str(tmp_path / "b.parquet"), {}))


def test_decompression_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What grows a thousandfold is stopped while it is read; what grows fivefold is not."""
    monkeypatch.setattr(text_module, "LARGEST_UNCHECKED", 1 << 20)
    (tmp_path / "bomb.txt.zst").write_bytes(zstandard.compress(b"w1 w2\n" * 4_000_000))
    with pytest.raises(UserError, match="grows beyond 1,048,576 bytes"):
        list(read_paragraphs(str(tmp_path / "bomb.txt.zst"), {}))
    random = np.random.default_rng(0)
    honest = "\n".join(" ".join(f"w{i}" for i in random.integers(0, 50, 10)) for _ in range(40_000))
    (tmp_path / "text.txt.zst").write_bytes(zstandard.compress(honest.encode()))
    assert sum(map(bool, read_paragraphs(str(tmp_path / "text.txt.zst"), {}))) == 40_000


def test_heldout_file_and_share(tmp_path: Path, tokenizer: BertTokenizer) -> None:
    """A held-out file leaves the whole text for training; without one the last share of it is held out."""
    one = write_text(tmp_path / "a.txt", [document(30, i) for i in range(20)])
    other = write_text(tmp_path / "b.txt", [document(50, 7)])
    cache = tmp_path / "cache"
    both = build_corpus(cache, SETTINGS, {"text-0": one, "heldout": other}, tokenizer)
    assert both["train"]["sequences"] == 20 * 31 // 14
    assert both["heldout"]["sequences"] == 51 // 14
    split = build_corpus(cache, SETTINGS, {"text-0": one}, tokenizer)
    assert split["train"]["sequences"] == 16 * 31 // 14
    assert split["heldout"]["sequences"] == 4 * 31 // 14
    single = write_text(tmp_path / "c.txt", [document(500)])
    split = build_corpus(cache, SETTINGS, {"text-0": single}, tokenizer)
    assert split["heldout"]["sequences"] == 501 * 2 // 10 // 14  # one document is cut in two
    several = build_corpus(cache, SETTINGS, {"text-0": one, "text-1": other}, tokenizer)
    assert several["documents"] == 21


def test_key_is_made_of_what_matters(tmp_path: Path, tokenizer: BertTokenizer) -> None:
    """Text, tokenizer and the settings of the cut; not where the text lies, nor how much of it is evaluated."""
    one = write_text(tmp_path / "a.txt", [document(30)])
    key = cache_key(SETTINGS, {"text-0": one}, tokenizer)
    assert cache_key(SETTINGS | {"heldout_tokens": 5}, {"text-0": Input("elsewhere", one.identity)}, tokenizer) == key
    for change in (
        {"sequence_length": 12},
        {"batches": "by_length"},
        {"batches": "sentences"},
        {"batches": "mixed"},
        {"heldout_fraction": 0.1},
    ):
        assert cache_key(SETTINGS | change, {"text-0": one}, tokenizer) != key
    assert cache_key(SETTINGS, {"text-0": Input(one.location, "sha256:0")}, tokenizer) != key
    more = BertTokenizer(vocab={word: i for i, word in enumerate([*WORDS, "new"])}, strip_accents=False)
    assert cache_key(SETTINGS, {"text-0": one}, more) != key
    words = Input("embedded", "embedded-1")
    keys = {cache_key(SETTINGS | {"seed": seed}, {"text-0": words}, tokenizer) for seed in (0, 1)}
    assert len(keys) == 2
    assert cache_key(SETTINGS | {"seed": 1}, {"text-0": one}, tokenizer) == key


def test_several_blocks_and_chunks(tmp_path: Path, tokenizer: BertTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small blocks, in which documents go on from one to the next, change nothing."""
    one = write_text(tmp_path / "a.txt", [document(40 + i, i) for i in range(30)])
    sentences = tmp_path / "b.txt"
    sentences.write_text("W1 w2 w3 w4 w5. W6 w7 w8 w9 w1. W2 w3 w4 w5 w6. W7 w8.\n" * 30, encoding="utf-8")
    for kind in ("packed", "by_length", "sentences", "mixed"):
        settings = SETTINGS | {"batches": kind}
        one = as_input(sentences) if kind == "mixed" else one
        whole = build_corpus(tmp_path / "one", settings, {"text-0": one}, tokenizer)
        monkeypatch.setattr(tokenising, "BLOCK_CHARACTERS", 50)
        monkeypatch.setattr(tokenising, "CHUNK_TOKENS", 64)
        parts = build_corpus(tmp_path / "two", settings, {"text-0": one}, tokenizer)
        monkeypatch.undo()
        assert whole == parts
        read = rows(open_corpus(tmp_path / "two", parts["key"]).train)
        assert any(row[:-1].count(tokenizer.sep_token_id) for row in read) == (kind in ("packed", "mixed"))


@pytest.mark.parametrize("damage", ["change", "cut", "delete", "manifest", "folder"])
def test_damage_is_noticed_and_mended(damage: str, tmp_path: Path, tokenizer: BertTokenizer) -> None:
    """A cache that was changed, cut or deleted is made anew when it is opened; without its text the error says so."""
    store = Store(tmp_path, "run")
    one = write_text(tmp_path / "a.txt", [document(30, i) for i in range(20)])
    result = record_corpus(store, SETTINGS, {"text-0": one}, tokenizer, "prepare/weights/teacher")
    cache, key = store.cache / "corpus", result["key"]
    before = rows(open_corpus(cache, key).train)
    path = cache / key / "train.tokens.bin"

    def spoil() -> None:
        if damage == "change":
            content = bytearray(path.read_bytes())
            content[40] ^= 1
            path.write_bytes(content)
        elif damage == "cut":
            path.write_bytes(path.read_bytes()[:-2])
        elif damage == "delete":
            path.unlink()
        elif damage == "manifest":
            (cache / key / "manifest.json").write_text("[]")
        else:
            shutil.rmtree(cache / key)

    spoil()
    with pytest.raises(DamagedCache):
        open_corpus(cache, key)
    assert rows(corpus_of(store, lambda folder: tokenizer).train) == before
    spoil()
    Path(one.location).write_text("another text")
    with pytest.raises(StepError, match="not the text it was"):
        corpus_of(store, lambda folder: tokenizer)


def test_unreadable_corpus_record(tmp_path: Path, tokenizer: BertTokenizer) -> None:
    """A damaged corpus.json names itself and the way out."""
    store = Store(tmp_path, "run")
    one = write_text(tmp_path / "a.txt", [document(30, i) for i in range(20)])
    record_corpus(store, SETTINGS, {"text-0": one}, tokenizer, "prepare/weights/teacher")
    path = store.folder("prepare/corpus") / "corpus.json"
    assert json.loads(path.read_text())["documents"] == 20
    path.write_text("{}")
    with pytest.raises(StepError, match="corpus.json.*run prepare again"):
        corpus_of(store, lambda folder: tokenizer)


def test_embedded_text(tmp_path: Path, tokenizer: BertTokenizer) -> None:
    """The generator is a source like any other: seeded, with the number of documents asked for."""
    paragraphs = list(read_paragraphs("embedded", SETTINGS))
    assert sum(paragraph == END for paragraph in paragraphs) >= 300
    assert paragraphs == list(read_paragraphs("embedded", SETTINGS))
    assert paragraphs != list(read_paragraphs("embedded", SETTINGS | {"seed": 1}))


def test_too_short_for_one_batch(tmp_path: Path, tokenizer: BertTokenizer) -> None:
    """Said with both numbers before anything trains."""
    one = write_text(tmp_path / "a.txt", [document(30, i) for i in range(20)])
    manifest = build_corpus(tmp_path / "cache", SETTINGS, {"text-0": one}, tokenizer)
    corpus = open_corpus(tmp_path / "cache", manifest["key"])
    with pytest.raises(UserError, match="35 sequences of 16 tokens, too few for one batch of 36"):
        corpus.epoch_batches(0, 0, 36)


def hub_rows(counts: dict[str, int], length: int) -> Any:
    """A stand-in for the hub: data sets without end, of documents of `length` words; `counts` says how many were read.

    A name that holds "short" has four documents.
    """

    def rows(location: str) -> Any:
        counts[location] = 0
        while "short" not in location or counts[location] < 4:
            counts[location] += 1
            yield "\n".join(document(length, counts[location]))

    return rows


@pytest.mark.parametrize("kind", ["packed", "by_length"])
def test_hub_text_is_read_up_to_its_cap(
    kind: str, tmp_path: Path, tokenizer: BertTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stream without end is left after max_hub_tokens tokens and little more is read; files are never cut; the key
    knows the cap."""
    counts: dict[str, int] = {}
    monkeypatch.setattr(text_module, "_hub_rows", hub_rows(counts, 30))
    monkeypatch.setattr(tokenising, "BLOCK_CHARACTERS", 500)
    hub = Input("hub:a/b@1f", "hub:a/b@1f")
    settings = SETTINGS | {"batches": kind, "max_hub_tokens": 1000}
    manifest = build_corpus(tmp_path / "cache", settings, {"text-0": hub}, tokenizer)
    per_document = 31 if kind == "packed" else 30
    assert manifest["documents"] == -(-1000 // per_document)
    assert counts["hub:a/b@1f"] < 2 * manifest["documents"]
    corpus = open_corpus(tmp_path / "cache", manifest["key"])
    words = [tokenizer.convert_tokens_to_ids(word) for word in " ".join(document(30, 1)).split()]
    first = rows(corpus.train)[0]
    assert first[1:-1] == words[:14]
    inner = sum(manifest[part]["tokens"] - 2 * manifest[part]["sequences"] for part in ("train", "heldout"))
    assert 0.8 * 1000 < inner <= 1000
    other = cache_key(settings | {"max_hub_tokens": 999}, {"text-0": hub}, tokenizer)
    assert other != manifest["key"]
    file = write_text(tmp_path / "a.txt", [document(50, i) for i in range(60)])
    whole = build_corpus(tmp_path / "cache", settings | {"max_hub_tokens": 7}, {"text-0": file}, tokenizer)
    assert whole["documents"] == 60
    assert cache_key(SETTINGS | {"max_hub_tokens": 0}, {"text-0": hub}, tokenizer) == cache_key(
        SETTINGS, {"text-0": hub}, tokenizer
    )


def test_a_lost_cache_is_made_anew_from_the_commit_it_was_made_of(
    tmp_path: Path, tokenizer: BertTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not from what the hub has under that name today."""
    commits = iter(["1f", "2e", "3d"])
    monkeypatch.setattr(corpus_module, "hub_commit", lambda location: location.partition("@")[2] or next(commits))
    monkeypatch.setattr(text_module, "_hub_rows", hub_rows({}, 30))
    settings = SETTINGS | {"max_hub_tokens": 200}
    store = Store(tmp_path, "run")
    made = record_corpus(store, settings, {"text-0": Input("hub:a/b", "hub:a/b")}, tokenizer, "prepare/weights/t")
    assert made["texts"] == {"text-0": "hub:a/b@1f"}
    shutil.rmtree(store.cache / "corpus")
    assert corpus_of(store, lambda _: tokenizer).manifest["texts"] == {"text-0": "hub:a/b@1f"}


def test_hub_texts_share_their_cap(tmp_path: Path, tokenizer: BertTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half each of two; what a short one leaves is for those after it; a held-out file is read whole."""
    counts: dict[str, int] = {}
    monkeypatch.setattr(text_module, "_hub_rows", hub_rows(counts, 30))
    monkeypatch.setattr(tokenising, "BLOCK_CHARACTERS", 100)
    heldout = write_text(tmp_path / "a.txt", [document(50)])
    settings = SETTINGS | {"max_hub_tokens": 1000}
    texts = {"text-0": Input("hub:one@1", "one"), "text-1": Input("hub:two@1", "two"), "heldout": heldout}
    manifest = build_corpus(tmp_path / "cache", settings, texts, tokenizer)
    assert manifest["documents"] == 2 * -(-500 // 31)
    assert manifest["heldout"]["sequences"] == 51 // 14
    texts = {"text-0": Input("hub:short@1", "short"), "text-1": Input("hub:two@1", "two"), "heldout": heldout}
    manifest = build_corpus(tmp_path / "cache", settings, texts, tokenizer)
    assert manifest["documents"] == 4 + -(-(1000 - 4 * 31) // 31)
    tiny = settings | {"max_hub_tokens": 1, "sequence_length": 3, "heldout_fraction": 0.5}
    texts = {f"text-{i}": Input(f"hub:{i}@1", str(i)) for i in range(3)} | {"heldout": heldout}
    assert build_corpus(tmp_path / "cache", tiny, texts, tokenizer)["documents"] == 3, "one token each at the least"


def test_hub_data_sets_are_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for by id, subset and commit, as a stream; a row is a document, a null one none; no column text is said."""
    import datasets

    asked: list[Any] = []

    def load_dataset(*arguments: Any, **options: Any) -> Any:
        asked.append((arguments, options))
        return iter([{"text": "one\n\ntwo"}, {"text": None}, {"text": "three"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = list(read_paragraphs("hub:a/b:c@1f", {}))
    assert found == ["one", "two", END, "three", END, END]
    assert asked == [(("a/b", "c"), {"split": "train", "streaming": True, "revision": "1f"})]
    for other in (["a", "b"], {"a": "b"}):
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, rows=other, **__: iter([{"text": rows}]))
        with pytest.raises(UserError, match="hub:a/b@1f: the column text holds (list|dict), not strings"):
            list(read_paragraphs("hub:a/b@1f", {}))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: iter([{"words": "x"}]))
    with pytest.raises(UserError, match="has no column text"):
        list(read_paragraphs("hub:a/b@1f", {}))


def test_many_documents_cut_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Edges of sequences, chunk by chunk, against the plain loop; documents of all lengths, a tail without an end."""
    random = np.random.default_rng(2)
    for trial in range(60):
        lengths = random.integers(1, 40, random.integers(0, 12))
        tail, base, room = int(random.integers(0, 30)) * (trial % 2), trial % 7, int(random.integers(1, 15))
        if not lengths.sum() + tail:
            continue
        tokens = np.zeros(lengths.sum() + tail)
        stream = tokenising.Stream(tokens, np.cumsum(lengths) + base, base)
        expected, start = [], 0
        for length in [*lengths, *([tail] if tail else [])]:
            expected += [(at, min(at + room, start + length)) for at in range(start, start + length, room)]
            start += length
        for per_chunk in (1, 2, 3, 100):
            chunks = list(tokenising._edges(stream, room, False, per_chunk))
            found = [pair for chunk in chunks for pair in zip(chunk[:-1], chunk[1:], strict=True)]
            assert found == expected, (lengths, tail, room, per_chunk)
            assert max(len(chunk) for chunk in chunks) <= per_chunk + 1
            packed = list(tokenising._edges(stream, room, True, per_chunk))
            pairs = [pair for chunk in packed for pair in zip(chunk[:-1], chunk[1:], strict=True)]
            assert pairs == [(at, at + room) for at in range(0, len(tokens) // room * room, room)]


def test_hub_locations() -> None:
    """hub:ID[:SUBSET][@COMMIT]."""
    assert hub_parts("hub:a/b") == ("a/b", "", "")
    assert hub_parts("hub:a/b:c@1f") == ("a/b", "c", "1f")


def test_what_a_killed_process_left_of_a_cache_goes(tmp_path: Path, tokenizer: BertTokenizer) -> None:
    one = write_text(tmp_path / "a.txt", [document(30, i) for i in range(20)])
    key = cache_key(SETTINGS, {"text-0": one}, tokenizer)
    ours, others = (tmp_path / "cache" / f".{name}.0a1b.partial" for name in (key, "other"))
    for folder in (ours, others):
        folder.mkdir(parents=True)
        (folder / "train.tokens.bin").write_bytes(b"gigabytes")
    assert build_corpus(tmp_path / "cache", SETTINGS, {"text-0": one}, tokenizer)["key"] == key
    assert not ours.exists() and others.exists(), "another text's may be in the making"
