"""A model whose folder names several ids that end a text stops at each, as in `transformers`."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from simple_llama import cli
from simple_llama.data.generation_config import read_eos_token_ids
from simple_llama.data.prompt import ChatTokenizer
from simple_llama.errors import InputError
from simple_llama.inference.export import export
from simple_llama.inference.replies import GenerationSettings, Replier, load_replier
from simple_llama.model.folder import load_model, save_model
from simple_llama.model.generation import generate
from tests.support.conversations import turns
from tests.support.models import random_model

PROMPTS = ["Hello", "What is it?", "one two", "And now?", "x"]
GREEDY = GenerationSettings(max_tokens=24, temperature=0.0, top_p=1.0, seed=0)


@pytest.fixture(scope="module")
def base(tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that ends texts with any of three ids, two of which it often says."""
    folder = tmp_path_factory.mktemp("stops")
    chat = ChatTokenizer.from_path(tiny_tokenizer, prompt_format="auto", system_prompt="Help.")
    chat.save(folder / "tokenizer")
    model = random_model(vocab_size=chat.vocab_size, max_position_embeddings=160).eval()
    save_model(model, folder / "base", folder / "tokenizer")
    prompts = [chat.prompt(turns(text)) for text in PROMPTS]
    said = generate(model, prompts, max_new_tokens=24, stop_ids=[chat.stop_id])
    ends = [chat.stop_id, said[0][9], said[1][5]]
    config = json.loads((folder / "base/generation_config.json").read_text())
    config["eos_token_id"] = ends
    (folder / "base/generation_config.json").write_text(json.dumps(config))
    return folder / "base"


def of_transformers(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy replies with the folder's own generation config, without what ended them."""
    import transformers

    library: Any = transformers
    model = library.AutoModelForCausalLM.from_pretrained(folder).eval()
    ends = model.generation_config.eos_token_id
    replies = []
    for prompt in prompts:
        ids = model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)
        reply = ids[0, len(prompt) :].tolist()
        replies.append(reply[:-1] if reply[-1] in ends else reply)
    return replies


def test_greedy_replies_are_those_of_transformers(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simple_llama.inference.replies.uses_bf16", lambda device, precision: False)
    replier = load_replier(str(base), "cpu")
    chat = replier.tokenizer
    prompts = [chat.prompt(turns(text)) for text in PROMPTS]
    theirs = of_transformers(base, prompts)
    assert min(map(len, theirs)) < 24, "one must stop early for this to say anything"
    ours = generate(replier.model, prompts, max_new_tokens=24, stop_ids=chat.stop_ids)
    assert ours == theirs
    generator = torch.Generator()
    said = ["".join(replier.reply(prompt, GREEDY, generator)) for prompt in prompts]
    assert said == [chat.decode(reply) for reply in theirs]
    one = generate(replier.model, prompts, max_new_tokens=24, stop_ids=[chat.stop_id])
    assert one != theirs


def test_every_id_comes_through_training_and_export(base: Path, tmp_path: Path) -> None:
    ends = read_eos_token_ids(base)
    tokens = ChatTokenizer.from_path(base, prompt_format="auto", system_prompt="")
    assert tokens.stop_ids == ends
    tokens.save(tmp_path / "tokenizer")
    assert ChatTokenizer.from_folder(tmp_path / "tokenizer").stop_ids == ends
    save_model(load_model(base), tmp_path / "published", tmp_path / "tokenizer")
    export(folder=str(tmp_path / "exported"), model=str(tmp_path / "published"), dtype="float32")
    for folder in (tmp_path / "published", tmp_path / "exported"):
        assert read_eos_token_ids(folder) == ends
        assert json.loads((folder / "config.json").read_text())["eos_token_id"] == ends
    other = ChatTokenizer.from_path(base, prompt_format="zephyr", system_prompt="")
    assert other.stop_ids == list(dict.fromkeys([other.stop_id, *ends]))


def test_the_config_says_it_where_no_generation_config_does(base: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"eos_token_id": 7}')
    assert read_eos_token_ids(tmp_path) == [7]
    (tmp_path / "generation_config.json").write_text("{}")
    assert read_eos_token_ids(tmp_path) == read_eos_token_ids(tmp_path / "none") == []
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, "x"]}')
    with pytest.raises(InputError, match=r"generation_config.json: eos_token_id: got 'x', wanted"):
        read_eos_token_ids(tmp_path)


def test_a_base_without_a_format_is_given_one_by_a_flag(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replier = load_replier(str(base), "cpu", prompt_format="chatml")
    prompt = replier.tokenizer.prompt(turns("Hello"))
    assert isinstance(replier, Replier) and prompt[0] >= replier.tokenizer.base_vocab_size
    data = tmp_path / "data.json"
    data.write_text(json.dumps([{"User": ["q"], "Assistant": ["a"]}]))
    flags = ["--model", str(base), "--device", "cpu", "--prompt-format", "chatml"]
    (tmp_path / "params.yaml").write_text((Path(__file__).parents[2] / "params.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    for command in (["generate", "--prompt", "Hello"], ["evaluate", "--data", str(data)]):
        monkeypatch.setattr(sys, "argv", ["simple-llama", command[0], *flags, *command[1:]])
        cli.main()
        captured = capsys.readouterr()
        assert "grows" in captured.err + captured.out, "tokens of the format were added"
