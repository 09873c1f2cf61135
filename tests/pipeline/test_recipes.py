"""The recipes of docs/recipes.md, carried out as they stand, on tiny models for downloads."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from simple_llama.data.prompt import ChatTokenizer
from tests.support.project import Project
from tests.support.recipes import blocks, carry_out, sharegpt


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Short trainings; each recipe starts where the one before it ended."""
    project = Project.make(tmp_path_factory.mktemp("recipes"))
    project.set(epochs=1, max_steps=3, sample_prompts=0, log_checkpoint="false")
    shutil.copytree(project.root / "base", project.root / "models/base")
    return project


DATA = os.environ.get("SIMPLE_LLAMA_DATA")


@pytest.mark.slow
def test_lora_on_sharegpt_then_scoring_then_the_next_run(project: Project) -> None:
    rows = json.loads((project.root / "data/raw/few.json").read_text())
    for name, part in (("sharegpt", rows[:120]), ("held_out", rows[120:])):
        lines = [json.dumps(sharegpt(row)) for row in part]
        (project.root / f"data/raw/{name}.jsonl").write_text("\n".join(lines))
    said = carry_out(
        project,
        "My data is ShareGPT as JSONL",
        "Fine-tune SmolLM2, TinyLlama or Llama 3.2 with LoRA",
    )
    assert "120 examples, sharegpt" in said and "sharegpt.jsonl[" in said
    assert (project.root / "models/adapter/adapter_config.json").exists()
    trained, lock = project.json("reports/eval.json"), (project.root / "dvc.lock").read_text()

    carry_out(project, "Score a model without training it")
    scored = project.json("held_out.json")
    assert scored["model"] == "models/base" and scored["examples"] == 40
    assert (project.root / "dvc.lock").read_text() == lock

    carry_out(project, "Train on the output of the last run")
    assert project.json("reports/eval.json")["base_val_loss"] == trained["val_loss"]
    before, after = (
        load_file(project.root / folder / "model.safetensors")
        for folder in ("models/second", "models/sft")
    )
    assert any(not torch.equal(before[name], after[name]) for name in after)


@pytest.mark.slow
@pytest.mark.skipif(DATA is None, reason="SIMPLE_LLAMA_DATA names no reference checkpoints")
def test_a_checkpoint_of_simple_llama(project: Project) -> None:
    assert DATA is not None
    for name, target in (("mha.pth", "mine.pth"), ("bpe_8k.json", "bpe_8k.json")):
        shutil.copyfile(Path(DATA, "seed_checkpoint", name), project.root / "models" / target)
    project.set(ft_json_path="data/raw/few.json", lora_rank=0, max_steps=2, warmup_iterations=0)
    carry_out(project, "Continue from a SimpleLLaMA .pth")
    assert project.json("models/sft/config.json")["model_type"] == "llama"


def test_the_modelfile_renders_as_our_format(tiny_tokenizer: Path) -> None:
    """Go's template as Jinja, against the inference prompt."""
    import jinja2

    [modelfile] = [
        text for language, text in blocks("llama.cpp, vLLM and Ollama") if language == "text"
    ]
    found = re.search(r'TEMPLATE """(.*?)"""', modelfile, re.DOTALL)
    assert found
    template = found[1]
    for go, jinja in (
        ("{{ range .Messages }}", "{% for message in messages %}"),
        ("{{ if eq .Role ", "{% if message.role == "),
        ("{{ else if eq .Role ", "{% elif message.role == "),
        ('" }}', '" %}'),
        ("{{ end }}{{ end }}", "{% endif %}{% endfor %}"),
        (".System", "system"),
        (".Content", "message.content"),
    ):
        template = template.replace(go, jinja)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What?"},
        {"role": "assistant", "content": "That."},
        {"role": "user", "content": "Why?"},
    ]
    rendered = jinja2.Template(template).render(system="Be brief.", messages=messages)
    chat = ChatTokenizer.from_path(tiny_tokenizer, prompt_format="auto", system_prompt="")
    ours = re.sub(r"{%-? (end)?generation -?%}", "", chat.chat_template)
    assert rendered == jinja2.Template(ours).render(messages=messages, add_generation_prompt=True)
    stop = Tokenizer.from_file(str(tiny_tokenizer)).id_to_token(chat.stop_id)
    assert f"PARAMETER stop {stop}\n" in modelfile
