"""A model folder seen without torch: sizes under every family's names, positions, and what is no size."""

import json
from pathlib import Path

import pytest

from glue_bench.errors import UserError
from glue_bench.model_folder import longest_sequence, model_config, size_of


def test_sizes_have_two_names() -> None:
    bert = {"num_hidden_layers": 12, "hidden_size": 768, "vocab_size": 30_522, "max_position_embeddings": 512}
    distilbert = {"n_layers": 6, "dim": 768, "vocab_size": 30_522, "max_position_embeddings": 512}
    assert [size_of(one, "layers") for one in (bert, distilbert, {})] == [12, 6, None]
    assert [size_of(one, "hidden") for one in (bert, distilbert, {"hidden_size": None})] == [768, 768, None]
    assert size_of(bert, "vocabulary") == 30_522


@pytest.mark.parametrize(
    ("config", "tokens"),
    [
        ({"model_type": "bert", "max_position_embeddings": 512, "pad_token_id": 0}, 512),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "roberta", "max_position_embeddings": 514}, 512),  # the family's default is 1
        ({"model_type": "mpnet", "max_position_embeddings": 514, "pad_token_id": 0}, 513),
        ({"model_type": "bert"}, None),
    ],
)
def test_some_families_count_positions_from_the_padding(config: dict, tokens: int | None) -> None:
    assert longest_sequence(config) == tokens


@pytest.mark.parametrize("size", [0, -1, 1.5, True, "12", [12], 10**9, float("nan")])
def test_what_is_no_size(size: object, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"n_layers": size}))
    with pytest.raises(UserError, match="config.json: n_layers is .*; expected a whole number from 1 to 1,000"):
        model_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"n_layers": None, "dim": 16, "more": size}))
    assert model_config(tmp_path)["dim"] == 16
