"""Whether a chat template is one of our formats: by the ids of several conversations."""

import json
from pathlib import Path
from typing import Any

import pytest

from simple_llama.data.prompt import ChatTokenizer
from tests.support.conversations import turns
from tests.support.templates import QWEN, foreign, of_transformers
from tests.support.tokenizer_kinds import CHATML, byte_level

CONTENT = "message['content']"
PLAIN = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_SYSTEM = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('none') }}{% endif %}"
THOUGHTS = f"({CONTENT}.split('</think>') | last).lstrip('\\n')"
SAME = "prompt format chatml: its chat template makes the same prompt"
OTHER = "prompt format template: its own chat template"


@pytest.mark.parametrize(
    ("template", "system", "flags", "said"),
    [
        (PLAIN, "", {}, SAME),
        (PLAIN, "Be brief.", {}, SAME),
        (QWEN, "Be brief.", {}, SAME),
        (QWEN, "", {}, OTHER),
        ("{{ bos_token }}" + PLAIN, "", {}, OTHER),
        (PLAIN.replace(CONTENT, f"({CONTENT} | trim)"), "", {}, OTHER),
        (PLAIN.replace(CONTENT, THOUGHTS), "", {}, OTHER),
        (NO_SYSTEM + PLAIN, "", {}, SAME),
        (NO_SYSTEM + PLAIN, "Be brief.", {}, OTHER),
        (PLAIN, "", {"rstrip": True}, OTHER),
        (PLAIN, "", {"lstrip": True}, OTHER),
    ],
)
def test_ids_decide(
    template: str, system: str, flags: dict[str, bool], said: str, tmp_path: Path
) -> None:
    tokenizer = byte_level(tmp_path / "t.json", CHATML)
    layout = json.loads(tokenizer.read_text())
    layout["added_tokens"] = [token | flags for token in layout["added_tokens"]]
    tokenizer.write_text(json.dumps(layout))
    folder = foreign(tokenizer, tmp_path / "theirs", template, "<|im_end|>")
    config: dict[str, Any] = json.loads((folder / "tokenizer_config.json").read_text())
    config["bos_token"] = "<|endoftext|>"
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    chat = ChatTokenizer.from_path(folder, prompt_format="auto", system_prompt=system)
    assert said in chat.description
    theirs = of_transformers(folder)
    for asked in (turns("q"), turns(" What?\n", "It is. ", "\n\nAnd?", "So.", "why")):
        messages = [{"role": "system", "content": system}, *asked] if system else asked
        if system and NO_SYSTEM in template:
            assert "it shows no system prompt" in chat.description
            text = f"{system}\n\n{asked[0]['content']}"
            messages = [{"role": "user", "content": text}, *asked[1:]]
        ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert ids == chat.prompt(asked)


@pytest.mark.parametrize("special", [True, False])
def test_a_marker_in_a_message_is_text(special: bool, tmp_path: Path) -> None:
    """Also where the tokenizer has it as an added token that is not special."""
    markers = ["<|user|>", "<|assistant|>", "<|system|>"]
    tokenizer = byte_level(tmp_path / "t.json", ["</s>", *markers])
    layout = json.loads(tokenizer.read_text())
    for token in layout["added_tokens"][1:]:
        token["special"] = special
    tokenizer.write_text(json.dumps(layout))
    chat = ChatTokenizer.from_path(tokenizer, prompt_format="zephyr", system_prompt="")
    ids = [layout["model"]["vocab"][marker] for marker in markers]
    prompt = chat.prompt(turns(" ".join(markers) + " user assistant"))
    assert [prompt.count(one) for one in ids] == [1, 1, 0]
    [(whole, mask)] = chat.encode([turns("q", "".join(markers))], "last_reply")
    assert chat.decode(whole[mask]) == "".join(markers)
