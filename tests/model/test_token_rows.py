"""Embeddings of control tokens that a base was never trained with."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from simple_llama.errors import InputError
from simple_llama.model.checkpoint import check_token_rows
from simple_llama.model.folder import load_model, save_model
from tests.support.models import random_model
from tests.support.project import Project


@pytest.mark.parametrize("tied", [False, True])
def test_rows_never_trained_start_as_the_mean_of_the_others(tied: bool, tmp_path: Path) -> None:
    """Of a base padded from 90 ids to 97 with zeros, whose id 5 was never trained either."""
    base = random_model(tie_word_embeddings=tied)
    with torch.no_grad():
        for weight in (base.embed_tokens.weight, base.lm_head.weight):
            weight[90:] = 0
            weight[5] = 0
    save_model(base, tmp_path / "base")
    for size in (94, 100):
        model = load_model(
            tmp_path / "base", vocab_size=size, trained_vocab_size=90, control_ids=[5, 6, 91]
        )
        assert model.config.vocab_size == max(size, 97)
        for new, old in (
            (model.embed_tokens.weight, base.embed_tokens.weight),
            (model.lm_head.weight, base.lm_head.weight),
        ):
            mean = old[:90].mean(0)
            assert torch.allclose(new[90:size], mean.expand(size - 90, -1), atol=1e-6)
            assert torch.allclose(new[5], mean, atol=1e-6)
            kept = [row for row in range(90) if row != 5]
            assert torch.equal(new[kept], old[kept]) and not new[size:].any()
    save_model(model, tmp_path / "tuned")
    again = load_model(tmp_path / "tuned", vocab_size=100)
    assert torch.equal(again.embed_tokens.weight, model.embed_tokens.weight)


def test_a_base_that_was_trained_is_read_as_it_is(tmp_path: Path) -> None:
    base = random_model()
    save_model(base, tmp_path)
    model = load_model(tmp_path, vocab_size=97, trained_vocab_size=97, control_ids=[5, 6])
    assert all(map(torch.equal, model.parameters(), base.parameters()))


def test_adapters_on_tokens_never_trained_are_refused_by_name(tmp_path: Path) -> None:
    base = random_model()
    with torch.no_grad():
        base.embed_tokens.weight[5] = 0
        base.lm_head.weight[7] = base.lm_head.weight[8]
    save_model(base, tmp_path)
    check_token_rows(tmp_path, 97, {"<trained>": 6, "<too>": 96})
    for control, names in (
        ({"<trained>": 6, "<zero>": 5, "<shared>": 7}, "<zero>, <shared>"),
        ({"<trained>": 6, "<padding>": 92}, "<padding>"),
        ({"<beyond>": 99}, "<beyond>"),
    ):
        known = 92 if "<padding>" in control else 97
        with pytest.raises(InputError, match=f"no trained embedding of {names}, and adapters"):
            check_token_rows(tmp_path, known, control)


@pytest.mark.slow
def test_a_padded_base_trains_as_one_whose_rows_are_added(tmp_path: Path) -> None:
    """Both lack the two tokens of the format; the one has rows of zeros in their place."""
    project = Project.make(tmp_path)
    project.set(prompt_format="chatml", max_steps=3, precision="fp32")
    curves = []
    for rows in (0, 2):
        weights, config = tmp_path / "base/model.safetensors", tmp_path / "base/config.json"
        tensors, shape = load_file(weights), json.loads(config.read_text())
        embedding = tensors["model.embed_tokens.weight"]
        padding = embedding.new_zeros(rows, embedding.shape[1])
        tensors["model.embed_tokens.weight"] = torch.cat([embedding, padding])
        save_file(tensors, weights, {"format": "pt"})
        config.write_text(json.dumps(shape | {"vocab_size": len(embedding) + rows}))
        assert "added" in project.call("simple-llama", "check")
        for stage in ("prepare", "tokenize", "train"):
            project.call(f"stages.{stage}")
        curves.append((tmp_path / "reports/curves/train.csv").read_text().splitlines())
    names = curves[0][0].split(",")
    for column in ("loss", "grad_norm"):
        at = names.index(column)
        plain, padded = ([float(line.split(",")[at]) for line in curve[1:]] for curve in curves)
        assert len(plain) == 3 and padded == pytest.approx(plain, rel=1e-4)
