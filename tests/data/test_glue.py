"""GLUE from every source: the same rows from Parquet, the original TSV layouts and the hub's format; and bad data."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import SHARED

from glue_bench.data import glue
from glue_bench.data.glue import cap_rows, data_completeness, read_split, read_split_with_warnings
from glue_bench.errors import UserError
from glue_bench.inputs import glue_in_hub_cache
from glue_bench.sources import all_splits, available_splits, source_files, source_kind
from glue_bench.tasks import GLUE_NINE, TASKS

SHARED_GLUE = SHARED / "glue"
ROWS = 6
TEXTS = ('He said "no', "A b''c ", "Ünïcode – “x”", "d,e;f", "\u2028 g", "tail\x85end")  # never to be split or quoted


def read(source: Path | str, task: str, split: str) -> pa.Table:
    return read_split(str(source), task, split, seed=0, revision="", cache=None)


def rows_of(task: str, split: str, n: int = ROWS) -> list[dict]:
    """Rows as the hub has them."""
    row = TASKS[task]
    labels = [0.0, 3.8, 5.0, 1.25, 2.0, 4.4] if row.is_regression else [i % len(row.classes) for i in range(n)]
    if split in row.test_splits:
        labels = [-1] * n
    return [
        {name: f"{split} {name} {i} {TEXTS[i % len(TEXTS)]}" for name in row.inputs} | {"label": labels[i], "idx": i}
        for i in range(n)
    ]


def write_parquet(folder: Path, task: str, split: str, rows: list[dict] | pa.Table) -> Path:
    path = folder / task / f"{split}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows), path)
    return path


def parquet_source(folder: Path, task: str) -> Path:
    for split in all_splits(task):
        write_parquet(folder, task, split, rows_of(task, split))
    return folder


def tsv(path: Path, header: str | None, lines: list[list]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = [*([header.replace(" ", "\t")] if header else []), *("\t".join(map(str, line)) for line in lines)]
    path.write_bytes(("\n".join(text) + "\n").encode())


def tsv_source(folder: Path, task: str) -> Path:
    """The same rows in the layout of the original GLUE archive."""
    names = {"train": "train", "validation": "dev", "test": "test"}
    names |= {
        f"{a}_{b}": f"{c}_{b}" for a, c in (("validation", "dev"), ("test", "test")) for b in ("matched", "mismatched")
    }
    for split in all_splits(task):
        path = folder / TASKS[task].tsv_folder / f"{names[split]}.tsv"
        test = split in TASKS[task].test_splits
        rows = rows_of(task, split)
        name = TASKS[task].classes
        match task:
            case "cola" if not test:
                tsv(path, None, [["src", r["label"], "*", r["sentence"]] for r in rows])
            case "cola":
                tsv(path, "index sentence", [[r["idx"], r["sentence"]] for r in rows])
            case "sst2" if not test:
                tsv(path, "sentence label", [[r["sentence"], r["label"]] for r in rows])
            case "sst2":
                tsv(path, "index sentence", [[r["idx"], r["sentence"]] for r in rows])
            case "mrpc":
                header = "index" if test else "Quality"
                lines = [[r["idx"] if test else r["label"], 7, 8, r["sentence1"], r["sentence2"]] for r in rows]
                tsv(path, f"{header}|#1_ID|#2_ID|#1_String|#2_String".replace("|", " "), lines)
                path.write_bytes(
                    b"\xef\xbb\xbf" + path.read_bytes().replace(b"_ID", b" ID").replace(b"_String", b" String")
                )
            case "stsb":
                header = "index genre filename year old_index source1 source2 sentence1 sentence2"
                lines = [[r["idx"], "g", "f", "y", 0, "a", "b", r["sentence1"], r["sentence2"]] for r in rows]
                lines = lines if test else [[*line, f"{r['label']:.3f}"] for line, r in zip(lines, rows, strict=True)]
                tsv(path, header + ("" if test else " score"), lines)
            case "qqp" if not test:
                lines = [[r["idx"] + 90, 1, 2, r["question1"], r["question2"], r["label"]] for r in rows]
                tsv(path, "id qid1 qid2 question1 question2 is_duplicate", lines)
            case "qqp":
                tsv(path, "id question1 question2", [[r["idx"], r["question1"], r["question2"]] for r in rows])
            case "mnli":
                lines = [[r["idx"], "p", "tree", r["premise"], r["hypothesis"]] for r in rows]
                lines = lines if test else [[*line, "x", name[r["label"]]] for line, r in zip(lines, rows, strict=True)]
                tsv(path, "index pairID parse sentence1 sentence2" + ("" if test else " label1 gold_label"), lines)
            case "ax":
                path = path.with_name("diagnostic.tsv")
                tsv(path, "index sentence1 sentence2", [[r["idx"], r["premise"], r["hypothesis"]] for r in rows])
            case _:
                first, second = TASKS[task].inputs
                by_name = name[0] == "entailment"
                lines = [[r["idx"], r[first], r[second]] for r in rows]
                labels = [name[r["label"]] if by_name else r["label"] for r in rows]
                lines = lines if test else [[*line, label] for line, label in zip(lines, labels, strict=True)]
                tsv(path, f"index {first} {second}" + ("" if test else " label"), lines)
    return folder


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("write", [parquet_source, tsv_source])
def test_every_split_of_every_layout_in_one_form(task: str, write: Callable, tmp_path: Path) -> None:
    source = write(tmp_path, task)
    assert available_splits(str(source), task) == all_splits(task)
    for split in all_splits(task):
        table, warnings = read_split_with_warnings(str(source), task, split, seed=0, revision="", cache=None)
        assert table.column_names == ["idx", *TASKS[task].inputs, "label"]
        assert table.schema.field("idx").type == pa.int64()
        assert table.schema.field("label").type == (pa.float64() if task == "stsb" else pa.int64())
        assert table.select(["idx", *TASKS[task].inputs, "label"]).to_pylist() == [
            {"idx": r["idx"], **{name: r[name] for name in TASKS[task].inputs}, "label": r["label"]}
            for r in rows_of(task, split)
        ]
        assert warnings == ()
    files = source_files(str(source), task)
    assert len(files) == len(set(files)) == len(all_splits(task))


def test_mrpc_as_microsoft_publishes_it(tmp_path: Path) -> None:
    header = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"
    rows = [(1, 11, 12, "a", "b"), (0, 21, 22, "c", "d"), (1, 31, 32, "e", "f"), (0, 41, 42, "g", "h")]
    text = header + "".join("\t".join(map(str, row)) + "\r\n" for row in rows)
    folder = tmp_path / "MRPC"
    folder.mkdir()
    for name in ("msr_paraphrase_train.txt", "msr_paraphrase_test.txt"):
        (folder / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    (folder / "dev_ids.tsv").write_text("21\t22\n", encoding="utf-8")
    train, dev, test = (read(tmp_path, "mrpc", split).to_pydict() for split in ("train", "validation", "test"))
    assert train == {"idx": [0, 2, 3], "sentence1": ["a", "e", "g"], "sentence2": ["b", "f", "h"], "label": [1, 1, 0]}
    assert dev == {"idx": [1], "sentence1": ["c"], "sentence2": ["d"], "label": [0]}
    assert test["label"] == [-1] * 4  # the file has them; test labels are never handed out
    assert [path.name for path in source_files(str(tmp_path), "mrpc")] == [
        "msr_paraphrase_train.txt",
        "dev_ids.tsv",
        "msr_paraphrase_test.txt",
    ]


def test_diagnostic_labels_where_they_exist(tmp_path: Path) -> None:
    tsv(
        tmp_path / "diagnostic/diagnostic.tsv",
        "index sentence1 sentence2",
        [[0, "a", "b"], [1, "c", "d"], [2, "e", "f"]],
    )
    lines = [["x", "c", "d", "neutral"], ["x", "a", "b", "contradiction"]]
    tsv(tmp_path / "diagnostic/diagnostic-full.tsv", "Logic Premise Hypothesis Label", lines)
    assert read(tmp_path, "ax", "test")["label"].to_pylist() == [2, 1, -1]


def test_diagnostic_labels_alone_are_no_diagnostic_set(tmp_path: Path) -> None:
    """AX may be absent; the file with the labels has no numbering of its own to stand in for it."""
    tsv(tmp_path / "diagnostic/diagnostic-full.tsv", "Logic Premise Hypothesis Label", [["x", "a", "b", "neutral"]])
    assert source_files(str(tmp_path), "ax") == []


def test_test_labels_are_never_handed_out(tmp_path: Path) -> None:
    parquet_source(tmp_path, "mrpc")
    write_parquet(tmp_path, "mrpc", "test", rows_of("mrpc", "train"))
    assert read(tmp_path, "mrpc", "test")["label"].to_pylist() == [-1] * ROWS


def test_a_clone_of_the_hub_with_shards(tmp_path: Path) -> None:
    parquet_source(tmp_path, "rte")
    whole = (tmp_path / "rte" / "train.parquet").rename(tmp_path / "rte" / "whole.parquet")
    table = pq.read_table(whole)
    for part in (0, 1):
        write_parquet(tmp_path, "rte", f"train-0000{part}-of-00002", table.slice(3 * part, 3))
    assert read(tmp_path, "rte", "train")["idx"].to_pylist() == list(range(ROWS))
    assert len(source_files(str(tmp_path), "rte")) == 4


def test_the_hub_by_way_of_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call itself, on a local repository of the hub's layout: configurations by task, shards by split."""
    repository = tmp_path / "glue"
    splits = ("train", "validation", "test")
    for split in splits:
        write_parquet(repository, "stsb", f"{split}-00000-of-00001", rows_of("stsb", split))
    listed = "".join(f"      - split: {split}\n        path: stsb/{split}-*\n" for split in splits)
    card = f"---\nconfigs:\n  - config_name: stsb\n    data_files:\n{listed}---\n"
    (repository / "README.md").write_text(card, encoding="utf-8")
    monkeypatch.setattr(glue, "HUB_DATASET", str(repository))
    table = read_split("hub", "stsb", "validation", seed=0, revision="", cache=tmp_path / "cache")
    assert table["label"].to_pylist() == [r["label"] for r in rows_of("stsb", "validation")]
    assert any((tmp_path / "cache").iterdir())


def test_files_in_the_hubs_cache_are_read_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `hf download` leaves them; a snapshot of another commit, or one of a README alone, is none."""
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("datasets was asked"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "datasets--nyu-mll--glue"
    for split in ("train", "validation", "test"):
        write_parquet(repository / "snapshots/1f", "rte", f"{split}-00000-of-00001", rows_of("rte", split))
    (repository / "refs").mkdir()
    for name in ("main", "v1"):
        (repository / "refs" / name).write_text("1f", encoding="utf-8")
    for revision in ("", "1f", "v1"):
        table = read_split("hub", "rte", "validation", seed=0, revision=revision, cache=None)
        assert table["label"].to_pylist() == [row["label"] for row in rows_of("rte", "validation")]
        assert glue_in_hub_cache("nyu-mll/glue", revision, ["rte"])
    assert not glue_in_hub_cache("nyu-mll/glue", "2e", ["rte"])
    assert not glue_in_hub_cache("nyu-mll/glue", "1f", ["rte", "cola"])


def test_no_hub_is_an_error_with_the_ways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*arguments: object, **settings: object) -> None:
        assert settings["revision"] == "abc"
        raise ConnectionError("Couldn't reach the Hub\nand more")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match="nyu-mll/glue rte/train@abc: Couldn't reach the Hub\n.*embedded"):
        read_split("hub", "rte", "train", seed=0, revision="abc", cache=tmp_path)


@pytest.mark.parametrize("task", TASKS)
def test_embedded_data_passes_the_same_checks(task: str) -> None:
    for split in all_splits(task):
        table = read("embedded", task, split)
        assert table.num_rows > 50
        assert table.equals(read("embedded", task, split))
    assert not table.equals(read_split("embedded", task, split, seed=1, revision="", cache=None))


# What is wrong -> (change of the table or file, what the message must name).
def without(name: str) -> Callable:
    return lambda table: table.drop_columns([name])


def with_values(name: str, values: list | pa.Array) -> Callable:
    return lambda table: table.set_column(table.column_names.index(name), name, [pa.array(values)])


BAD_TABLES = {
    "no text column": ("rte", without("sentence2"), "no column sentence2; rte needs idx, sentence1, sentence2, label"),
    "no label": ("rte", without("label"), "no column label"),
    "no idx": ("rte", without("idx"), "no column idx"),
    "no rows": ("rte", lambda table: table.slice(0, 0), "no rows"),
    "class too high": ("rte", with_values("label", [0, 1, 2, 0, 1, 0]), "label: row 2 is 2; expected one of 0 (entail"),
    "unknown label": ("rte", with_values("label", [0, 1, -1, 0, 1, 0]), "row 2 is -1 (-1 marks an unknown label)"),
    "NaN label": ("stsb", with_values("label", [0, 1, float("nan"), 0, 1, 0]), "label: row 2 is nan"),
    "NaN class": ("rte", with_values("label", [0, 1, float("nan"), 0, 1, 0]), "label: row 2 is nan"),
    "fractional class": ("rte", with_values("label", [0, 1, 0.5, 0, 1, 0]), "label: row 2 is 0.5"),
    "null label": ("rte", with_values("label", [0, 1, None, 0, 1, 0]), "label: row 2 is empty"),
    "text label": ("rte", with_values("label", ["entailment"] * 6), "label holds string"),
    "score too high": (
        "stsb",
        with_values("label", [0, 1, 5.1, 0, 1, 0]),
        "row 2 is 5.1; expected a number from 0 to 5",
    ),
    "one class": ("rte", with_values("label", [1] * 6), "every row of the training set is 1"),
    "one score": ("stsb", with_values("label", [2.5] * 6), "every row of the training set is 2.5"),
    "repeated idx": ("rte", with_values("idx", [0, 1, 2, 1, 4, 5]), "idx: row 3 repeats 1"),
    "null idx": ("rte", with_values("idx", [0, 1, None, 3, 4, 5]), "idx: row 2 is empty"),
    "text idx": ("rte", with_values("idx", list("abcdef")), "idx holds string"),
    "null text": ("rte", with_values("sentence1", ["a", None, "b", "c", "d", "e"]), "sentence1: row 1 is empty (null)"),
    "numbers for text": ("rte", with_values("sentence1", [1, 2, 3, 4, 5, 6]), "sentence1 holds int64"),
    "no UTF-8": (
        "rte",
        with_values(
            "sentence1",
            pa.Array.from_buffers(pa.string(), 6, pa.array([b"a", b"b", b"\xff", b"d", b"e", b"f"]).buffers()),
        ),
        "sentence1: row 2 is not valid UTF-8",
    ),
}


@pytest.mark.parametrize("what", BAD_TABLES)
def test_bad_tables_name_file_column_row_and_remedy(what: str, tmp_path: Path) -> None:
    task, change, message = BAD_TABLES[what]
    parquet_source(tmp_path, task)
    path = write_parquet(tmp_path, task, "train", change(pa.Table.from_pylist(rows_of(task, "train"))))
    with pytest.raises(UserError) as caught:
        read(tmp_path, task, "train")
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


def append(text: str) -> Callable[[bytes], bytes]:
    return lambda data: data + text.encode()


BAD_FILES = {
    "ragged row": ("rte", append("9\tonly two\n"), "line 8 has 2 fields instead of 4"),
    "blank line": ("rte", append("\n9\ta\tb\tentailment\n"), "line 8 has 1 fields"),
    "no UTF-8": ("rte", lambda data: data + b"9\t\xff\tb\tentailment\n", "line 8 is not valid UTF-8"),
    "unknown class": ("rte", append("9\ta\tb\tperhaps\n"), "line 8: the label is 'perhaps'; expected entailment or"),
    "empty label": ("rte", append("9\ta\tb\t\n"), "line 8: the label is ''"),
    "score as text": (
        "stsb",
        append("9\tg\tf\ty\t0\ta\tb\tc\td\thigh\n"),
        "line 8: the label is 'high'; expected a number",
    ),
    "score nan": ("stsb", append("9\tg\tf\ty\t0\ta\tb\tc\td\tnan\n"), "row 6 is nan"),
    "class as number": ("sst2", append("a\t2\n"), "label: row 6 is 2; expected one of 0 (negative), 1 (positive)"),
    "another header": ("rte", lambda data: data.replace(b"sentence2", b"second", 1), "no column sentence2"),
    "no header": ("rte", lambda data: data.split(b"\n", 1)[1], "no column sentence1, sentence2, label"),
    "empty file": ("rte", lambda data: b"", "the file is empty"),
    "header alone": ("rte", lambda data: data.split(b"\n")[0], "no rows"),
    "a row too wide": ("cola", append("src\t1\t*\ta\tb\n"), "line 7 has 5 fields instead of 4"),
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_bad_tsv_files_name_file_line_and_remedy(what: str, tmp_path: Path) -> None:
    task, change, message = BAD_FILES[what]
    tsv_source(tmp_path, task)
    path = tmp_path / TASKS[task].tsv_folder / "train.tsv"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(UserError) as caught:
        read(tmp_path, task, "train")
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


def test_the_few_broken_rows_of_qqp_are_left_out_and_said(tmp_path: Path) -> None:
    tsv_source(tmp_path, "qqp")
    lines = [[i, 1, 2, f"q {i}", f"r {i}", i % 2] for i in range(3000)]
    lines[5] = [5, 1, 2, "cut"]
    header = "id qid1 qid2 question1 question2 is_duplicate"
    path = tmp_path / "QQP" / "train.tsv"
    tsv(path, header, lines)
    table, warnings = read_split_with_warnings(str(tmp_path), "qqp", "train", seed=0, revision="", cache=None)
    assert table.num_rows == 2999
    assert 5 not in table["idx"].to_pylist()
    assert warnings == (f"{path}: line 7 has 4 fields instead of 6; 1 such rows are left out",)
    tsv(path, header, lines[:100])
    with pytest.raises(UserError, match="line 7 has 4 fields instead of 6"):
        read(tmp_path, "qqp", "train")


def test_empty_texts_are_let_pass_and_said(tmp_path: Path) -> None:
    parquet_source(tmp_path, "rte")
    rows = rows_of("rte", "train")
    rows[2]["sentence2"], rows[4]["sentence2"] = "", "  "
    path = write_parquet(tmp_path, "rte", "train", rows)
    _, warnings = read_split_with_warnings(str(tmp_path), "rte", "train", seed=0, revision="", cache=None)
    assert warnings == (f"{path}: sentence2 is empty in 2 rows, first in row 2",)


def test_missing_folders_and_splits(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such folder; give embedded, hub, or"):
        source_files(str(tmp_path / "nowhere"), "rte")
    with pytest.raises(
        UserError, match=r"no split train of rte: neither rte/train.parquet nor RTE/train.tsv \(the task"
    ):
        source_files(str(tmp_path), "rte")
    write_parquet(tmp_path, "rte", "train", rows_of("rte", "train"))
    write_parquet(tmp_path, "rte", "dev", rows_of("rte", "validation"))
    with pytest.raises(UserError, match=r"no split validation of rte.*found dev.parquet, train.parquet"):
        read(tmp_path, "rte", "train")
    write_parquet(tmp_path, "rte", "validation", rows_of("rte", "validation"))
    assert available_splits(str(tmp_path), "rte") == ("train", "validation")
    with pytest.raises(UserError, match="no split test of rte; there are train, validation"):
        read(tmp_path, "rte", "test")
    with pytest.raises(UserError, match="rte: no split 'validaton'; did you mean 'validation'"):
        read(tmp_path, "rte", "validaton")
    with pytest.raises(UserError, match="no task 'rtee'; did you mean 'rte'"):
        read(tmp_path, "rtee", "train")
    assert available_splits(str(tmp_path), "ax") == ()
    assert source_files(str(tmp_path), "ax") == []


def test_a_damaged_parquet_file(tmp_path: Path) -> None:
    parquet_source(tmp_path, "rte")
    path = tmp_path / "rte" / "train.parquet"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="train.parquet: cannot be read as Parquet"):
        read(tmp_path, "rte", "train")


def test_kinds_of_source() -> None:
    assert [source_kind(one) for one in ("embedded", "hub", "data/glue")] == ["embedded", "hub", "folder"]
    assert source_files("embedded", "rte") == source_files("hub", "rte") == []


def test_capped_rows_are_nested_ordered_and_seeded() -> None:
    table = pa.table({"idx": np.arange(1000)})
    small, large = (cap_rows(table, rows, 0)["idx"].to_pylist() for rows in (50, 200))
    assert len(small) == 50
    assert set(small) < set(large)
    assert large == sorted(large)
    assert small == cap_rows(table, 50, 0)["idx"].to_pylist()
    assert small != cap_rows(table, 50, 1)["idx"].to_pylist()
    assert abs(np.mean(large) - 499.5) < 80
    assert cap_rows(table, 0, 0) is table
    assert cap_rows(table, 1000, 0) is table


def test_completeness() -> None:
    full = {"rte": {"train": 2490, "validation": 277}, "ax": {"test": 1104}}
    assert data_completeness("folder", full) == "full"
    assert data_completeness("hub", full | {"wnli": {"train": 635, "validation": 70}}) == "subset"
    assert data_completeness("hub", {"rte": {"train": 100, "validation": 277}}) == "subset"
    assert data_completeness("hub", {"mnli": {"train": 392_702, "validation_matched": 9815}}) == "subset"
    assert data_completeness("embedded", full) == "embedded"
    assert data_completeness("folder", {"rte": {"train": 9999, "validation": 277}}) == "full", "more to learn from"
    assert data_completeness("folder", {"rte": {"train": 2490, "validation": 5000}}) == "subset", "not GLUE's dev set"


@pytest.mark.skipif(not SHARED_GLUE.is_dir(), reason="no real GLUE beside the repository")
def test_real_glue() -> None:
    """Every split that is there: official sizes where its provenance says complete, all labels known or hidden."""
    rows: dict[str, dict[str, int]] = {}
    for task in TASKS:
        for split in available_splits(str(SHARED_GLUE), task):
            table, warnings = read_split_with_warnings(str(SHARED_GLUE), task, split, seed=0, revision="", cache=None)
            rows.setdefault(task, {})[split] = table.num_rows
            known = np.asarray(table["label"]) != -1
            assert known.all() if split in ("train", *TASKS[task].dev_splits) else not known.any()
            assert warnings == ()
    complete = ("cola", "sst2", "mrpc", "stsb", "rte", "wnli")
    assert data_completeness(str(SHARED_GLUE), {task: rows[task] for task in complete}) == "full"
    assert {task for task in GLUE_NINE if data_completeness(str(SHARED_GLUE), {task: rows[task]}) == "subset"} == {
        "qqp",
        "mnli",
        "qnli",
    }
    assert rows["mnli"]["validation_matched"] == 9815
    assert rows["ax"]["test"] == 1104
    first = read(SHARED_GLUE, "stsb", "validation")
    assert first["sentence1"][0].as_py() == "A man with a hard hat is dancing."
    assert first["label"][0].as_py() == 5.0
