"""What a stranger's folder, file or name must never do: run code, write elsewhere, fill the memory, take secrets."""

import contextlib
import gzip
import json
import re
import shutil
import sys
import tomllib
import tracemalloc
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import zstandard
from conftest import REPOSITORY
from synthetic_run import copy_run, make_run, settings, small_run, undrawn
from transformers import BertTokenizer

from glue_bench import cli
from glue_bench.data import text as text_module
from glue_bench.data.text import read_paragraphs
from glue_bench.errors import StepError, UserError, printable
from glue_bench.learning.models import load_finetuned, load_masked_lm, load_tokenizer, new_bert
from glue_bench.learning.saving import save_model
from glue_bench.reporting.publish import publish, without_paths
from glue_bench.reporting.run_folder import load_run
from glue_bench.reporting.verify import verify
from glue_bench.store import atomic_folder, write_atomic
from glue_bench.tasks import TASKS

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(30)))
TINY = """
[data]
tasks = ["rte"]
max_train_rows = 16
max_dev_rows = 16
[teacher]
layers = 2
hidden = 16
heads = 2
intermediate = 32
max_positions = 32
[corpus]
documents = 100
sequence_length = 16
heldout_tokens = 100
[pretrain]
tokens = 500
batch_size = 8
evaluations = 1
[distill]
tokens = 500
batch_size = 8
evaluations = 1
[[students]]
name = "small"
layers = 1
[finetune]
seeds = [0]
epochs = 1
[benchmark]
examples = 2
min_passes = 2
min_seconds = 0.0
[report]
resamples = 100
[machine]
threads = 1
device = "cpu"
precision = "fp32"
"""


@pytest.fixture(scope="module", autouse=True)
def no_drawing() -> Iterator[None]:
    with undrawn():
        yield


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A good tiny BERT with its tokenizer."""
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, model_max_length=32)
    shape = {"layers": 2, "hidden": 16, "heads": 2, "intermediate": 32, "max_positions": 32}
    bert = new_bert(**shape, initializer_range=0.02, vocab_size=len(WORDS), pad_id=0, seed=0)
    save_model(bert, tokenizer, tmp_path / "model", "# tiny\n", {})
    return tmp_path / "model"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.toml"
    path.write_text(TINY, encoding="utf-8")
    return path


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# Code


def evil_module(folder: Path, marker: Path) -> None:
    """Python files as a hub repository with remote code has them: running any of them leaves a marker."""
    for name in ("evil.py", "modeling_evil.py", "tokenization_evil.py", "configuration_evil.py", "setup.py"):
        code = f"from pathlib import Path\nPath({str(marker)!r}).write_text('ran')\n"
        (folder / name).write_text(code + "class Evil:\n    pass\nclass Model(Evil): pass\n")


AUTO_MAP = {
    "AutoConfig": "evil.Evil",
    "AutoModel": "modeling_evil.Model",
    "AutoModelForMaskedLM": "modeling_evil.Model",
    "AutoModelForSequenceClassification": "modeling_evil.Model",
    "AutoTokenizer": ["tokenization_evil.Evil", "tokenization_evil.Evil"],
}


@pytest.mark.parametrize("load", [lambda f: load_masked_lm(f, seed=0), load_tokenizer], ids=["model", "tokenizer"])
@pytest.mark.parametrize("kind", ["bert", "evil", None])
def test_remote_code_is_never_run(
    load: Callable, kind: str | None, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A known family loads with transformers' own code whatever auto_map says; an unknown one is refused."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to trust it"))
    marker = tmp_path / "marker"
    evil_module(model, marker)
    change_json(model / "config.json", auto_map=AUTO_MAP, model_type=kind)
    change_json(model / "tokenizer_config.json", auto_map={"AutoTokenizer": AUTO_MAP["AutoTokenizer"]})
    with contextlib.nullcontext() if kind == "bert" else pytest.raises(UserError, match="config.json: "):
        load(model)
    assert not marker.exists()


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation", "_experts_implementation"])
def test_no_kernel_is_fetched(key: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A config.json may name attention from the hub, which is code: it is either not looked at, or refused."""
    change_json(model / "config.json", **{key: "someone/evil-kernel"})
    monkeypatch.setitem(sys.modules, "kernels", None)
    try:
        loaded, _ = load_masked_lm(model, seed=0)
    except UserError:
        return
    assert loaded.config._attn_implementation in ("sdpa", "eager")


def test_a_quantised_model_is_refused_in_a_line(model: Path) -> None:
    """It would need another library's code; the error is the user's, not a traceback."""
    change_json(model / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    with pytest.raises(UserError) as caught:
        load_masked_lm(model, seed=0)
    assert "\n" not in str(caught.value)


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.write_text, (self.marker, "ran")


def no_torch_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load was called"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00001.bin", "model.pt"])
def test_pickles_are_refused_with_the_remedy(
    name: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"weight": Bomb(tmp_path / "marker")}, model / name)
    (model / "model.safetensors").unlink()
    no_torch_load(monkeypatch)
    for load in (lambda: load_masked_lm(model, seed=0), lambda: load_finetuned(model, TASKS["rte"])):
        with pytest.raises(UserError, match=rf"only {name}, a pickle, which is never read; .* save_pretrained"):
            load()
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("shard", ["evil.bin", "../evil.safetensors", "/etc/passwd", 3])
def test_an_index_names_nothing_but_safetensors_beside_it(
    shard: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"weight": Bomb(tmp_path / "marker")}, model / "evil.bin")
    shutil.copyfile(model / "model.safetensors", tmp_path / "evil.safetensors")
    (model / "model.safetensors").rename(model / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": {"bert.embeddings.word_embeddings.weight": shard}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    no_torch_load(monkeypatch)
    with pytest.raises(UserError, match=re.escape(f"names {shard!r}, which is no .safetensors file in this folder")):
        load_masked_lm(model, seed=0)
    assert not (tmp_path / "marker").exists()


def test_a_pickle_beside_safetensors_is_not_looked_at(model: Path, tmp_path: Path, monkeypatch) -> None:
    torch.save({"weight": Bomb(tmp_path / "marker")}, model / "pytorch_model.bin")
    no_torch_load(monkeypatch)
    load_masked_lm(model, seed=0)
    assert not (tmp_path / "marker").exists()


# Places


@pytest.mark.parametrize("what", ["run", "step", "inside", "cache", "corpus", "locks"])
def test_no_folder_of_a_run_may_be_a_link(
    what: str, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2 with the link's name, and nothing at its end."""
    elsewhere, results = tmp_path / "elsewhere", tmp_path / "results"
    elsewhere.mkdir()
    link = {
        "run": results / "tiny",
        "step": results / "tiny" / "prepare",
        "inside": results / "tiny" / "prepare" / "glue" / "rte" / "x",
        "cache": results / "cache",
        "corpus": results / "cache" / "corpus",
        "locks": results / "tiny" / ".locks",
    }[what]
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere)
    assert cli.main(["prepare", "--config", str(config), "--results", str(results)]) == 2
    said = capsys.readouterr().err
    assert f"{link}: is a symbolic link; results are not written through links" in said
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize(
    "name", ["report.md", "summary.json", "scores.csv", "figures", "report/record.json", "config.json"]
)
def test_the_report_is_not_written_through_links(name: str, tmp_path: Path, capsys) -> None:
    store = copy_run(tmp_path)
    victim = tmp_path / "victim"
    (victim.mkdir if name == "figures" else victim.touch)()
    path = store.root / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(victim)
    if name == "config.json":
        with pytest.raises(UserError, match="is a symbolic link"):
            write_atomic(path, "x")
    else:
        from synthetic_run import report_again

        with contextlib.suppress(UserError):
            report_again(store)
    assert victim.is_dir() and not list(victim.iterdir()) if name == "figures" else victim.read_bytes() == b""


def test_nothing_is_written_through_a_temporary_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporary names cannot be guessed; where one is, the file is still made anew, never opened."""
    monkeypatch.setattr("glue_bench.store.secrets.token_hex", lambda _: "guessed")
    victim, folder = tmp_path / "victim", tmp_path / "folder"
    victim.write_text("before")
    folder.mkdir()
    (tmp_path / ".file.txt.guessed.partial").symlink_to(victim)
    with pytest.raises(StepError):
        write_atomic(tmp_path / "file.txt", "after")
    assert victim.read_text() == "before" and not (tmp_path / "file.txt").exists()
    (tmp_path / ".model.guessed.partial").symlink_to(folder)
    with pytest.raises(StepError), atomic_folder(tmp_path / "model") as temporary:
        (temporary / "weights").write_text("after")
    assert not list(folder.iterdir())


def test_needs_cannot_lead_out_of_a_run(tmp_path: Path) -> None:
    """A record that claims to stand on a folder elsewhere is no record; publish neither reads nor copies that."""
    store = copy_run(tmp_path)
    outside = tmp_path / "outside"
    (outside / "secret").mkdir(parents=True)
    name = "../outside/secret"
    path = store.folder("finetune/teacher/rte/seed-0") / "record.json"
    record = json.loads(path.read_text())
    planted = record | {"step": name, "needs": {}, "outputs": {}}
    (outside / "secret" / "record.json").write_text(json.dumps({k: v for k, v in planted.items() if k != "seal"}))
    for needs in ({name: record["fingerprint"]}, {"/etc": "x"}, {"prepare/../../outside/secret": "x"}):
        changed = {key: value for key, value in record.items() if key != "seal"} | {"needs": record["needs"] | needs}
        path.write_text(json.dumps(changed))
        assert store.record("finetune/teacher/rte/seed-0") is None
        assert not [step for step in load_run(store.root).records if ".." in step or step.startswith("/")]
        with pytest.raises(UserError):
            publish(store.root, tmp_path / "published")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outside", "synthetic"]


def test_a_published_name_cannot_escape(tmp_path: Path) -> None:
    store = copy_run(tmp_path)
    odd = store.root.rename(tmp_path / "-rf *")
    with pytest.raises(UserError, match="cannot name a folder"):
        publish(odd, tmp_path / "published")
    assert not (tmp_path / "published").exists()


# Memory


@pytest.mark.parametrize("kind", ["gz", "zst"])
@pytest.mark.parametrize("line", [b"a" * 65_536, b"w1 w2 " * 10_000], ids=["endless", "words"])
def test_compressed_text_is_bounded(kind: str, line: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 MB of one line out of some kB: refused at the limit, with a small share of that in memory."""
    monkeypatch.setattr(text_module, "LARGEST_UNCHECKED", 1 << 22)
    monkeypatch.setattr(text_module, "LARGEST_RATIO", 2)
    content = line * (40_000_000 // len(line))
    path = tmp_path / f"bomb.txt.{kind}"
    path.write_bytes(gzip.compress(content, 1) if kind == "gz" else zstandard.compress(content))
    assert path.stat().st_size < 400_000
    del content
    longest = 0
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="bomb.txt.*grows beyond 4,194,304 bytes when uncompressed"):
            for paragraph in read_paragraphs(str(path), {}):
                longest = max(longest, len(paragraph))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert longest <= text_module.LONGEST_PARAGRAPH + text_module.BLOCK_BYTES
    assert peak < 16_000_000


def test_repeated_rows_of_parquet_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dictionary says once what a million rows repeat."""
    monkeypatch.setattr(text_module, "LARGEST_UNCHECKED", 1 << 22)
    path = tmp_path / "bomb.parquet"
    words = pa.DictionaryArray.from_arrays(pa.array([0] * 10_000, pa.int32()), ["w1 " * 3_000])
    pq.write_table(pa.table({"text": words.cast(pa.string())}), path, compression="zstd")
    assert path.stat().st_size < 20_000
    with pytest.raises(UserError, match="bomb.parquet: grows beyond 4,194,304 bytes when uncompressed"):
        list(read_paragraphs(str(path), {}))


# Secrets


MARKER = "s3cr3t-0123456789"
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "DB_PASSWORD", "GH_TOKEN")


@pytest.mark.slow
def test_secrets_reach_neither_records_nor_output(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A whole tiny run with secrets in its environment: no file and no line of output holds them."""
    for name in SECRETS:
        monkeypatch.setenv(name, MARKER)
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://user:{MARKER}@127.0.0.1:9")
    for name in ("USER", "LOGNAME", "HOSTNAME"):
        monkeypatch.setenv(name, f"name-{MARKER}")
    assert cli.main(["run-all", "--config", str(config), "--results", "results", "--debug"]) == 0
    said = capfd.readouterr()
    files = [path for path in (tmp_path / "results").rglob("*") if path.is_file()]
    assert {"summary.json", "report.md", "predictions.parquet", "corpus.json", "manifest.json"} <= {
        path.name for path in files
    }
    for path in files:
        assert MARKER.encode() not in path.read_bytes(), path
    assert said.out.count("\n") > 10 and MARKER not in said.out + said.err


def test_messages_carry_no_secrets(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A library's error may quote an address with its password, or a token."""
    monkeypatch.setenv("HF_TOKEN", MARKER)
    monkeypatch.setenv("SHORT_TOKEN", "abc")
    assert printable(f"no answer from https://me:pass@host/x with {MARKER}, abc") == (
        "no answer from https://***@host/x with ***, abc"
    )

    def fail(options: Any) -> int:
        raise RuntimeError(f"403 for {MARKER} at http://me:{MARKER}@proxy:80")

    monkeypatch.setattr(cli, "_dispatch", fail)
    assert cli.main(["plan", "--debug"]) == 3
    said = capsys.readouterr().err
    assert "Traceback" in said and MARKER not in said and "me:" not in said


def test_messages_are_two_lines_without_control_characters() -> None:
    assert printable("a\x1b[31m\tb\u202ec\r\nd\n\n e\nf") == "a\\x1b[31m\\tb\\u202ec\\r\nd  e f"
    assert printable("") == "" and printable("größer, 日本語\xa0x") == "größer, 日本語\xa0x"


def test_publish_leaves_no_paths_inside_texts(tmp_path: Path) -> None:
    """The verdict on a baseline that is gone names it; so do warnings of prepare. Neither says where it was."""
    secret = tmp_path / "home of-someone" / "my.json"
    secret.parent.mkdir()
    summary = json.loads((small_run().root / "summary.json").read_text())
    summary["gate"]["reasons"] = [f"the baseline {tmp_path}/x/old.json could not be read"]
    secret.write_text(json.dumps(summary))
    store = make_run(tmp_path, settings(data={"tasks": ["rte"]}, check={"baseline": str(secret)}), reported=False)
    path = store.folder("prepare/glue/rte") / "record.json"
    warnings = [f"{secret.parent}/train.parquet: sentence1 is empty in 2 rows, see {tmp_path}/notes"]
    record = json.loads(path.read_text())
    record["result"]["warnings"] = warnings
    path.write_text(json.dumps({key: value for key, value in record.items() if key != "seal"}))
    from synthetic_run import report_again

    report_again(store)
    copy = publish(store.root, tmp_path / "published")
    for file in copy.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert b"home of" not in content and str(tmp_path).encode() not in content, file
    assert verify(copy) == []


def test_paths_are_cut_wherever_they_stand() -> None:
    cut = {
        "/data/my glue/train.parquet: no rows, see /home/me/x": ".../train.parquet: no rows, see .../x",
        "the baseline /home/me/b.json could not be read": "the baseline .../b.json could not be read",
        "at ~me/x, file:///home/me/y and (/srv/z)": "at .../x, .../y and (.../z)",
        "1/2 of ../shared/glue, https://host/a/b, hub:org/set@1, and/or 3 / 4": None,
        "tokens/s": None,
    }
    for before, after in cut.items():
        assert without_paths(before) == (before if after is None else after)


# Dependencies


def pinned() -> dict[str, str]:
    """Name -> version of constraints.txt."""
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    found = {}
    for pin in pins:
        name, equals, version = pin.partition("==")
        assert equals and re.fullmatch(r"[\w.+!-]+", version), f"{pin} is no pin"
        assert plain(name) not in found, f"{name} stands twice"
        found[plain(name)] = version
    return found


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def required() -> set[str]:
    """Everything that pyproject.toml asks for: to run, to build, and in every extra."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    extras = project["project"]["optional-dependencies"].values()
    lists = [project["project"]["dependencies"], project["build-system"]["requires"], *extras]
    return {plain(re.match(r"[\w.-]+", one)[0]) for requirements in lists for one in requirements}


def test_every_requirement_is_pinned() -> None:
    assert sorted(required() - set(pinned())) == []


def test_what_the_requirements_require_is_pinned() -> None:
    """Transitively, as far as it is installed here; CUDA's own packages come with the CUDA build of torch."""
    from packaging.requirements import Requirement

    pins, seen, waiting = pinned(), set(), [(name, "") for name in required()]
    missing = set()
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        if name not in pins:
            missing.add(name)
        for text in needs:
            one = Requirement(text)
            if one.marker is None or one.marker.evaluate({"extra": extra}):
                waiting += [(plain(one.name), more) for more in ("", *one.extras)]
    assert sorted(name for name in missing if not name.startswith(("nvidia-", "cuda-", "triton"))) == []
