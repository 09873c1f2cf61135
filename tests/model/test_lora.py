"""Adapters: they start as nothing, alone are trained and kept, and merge into what they were."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from simple_llama.data.prompt import ChatTokenizer
from simple_llama.errors import InputError
from simple_llama.model.config import MLA, MLAConfig
from simple_llama.model.decoder import Decoder
from simple_llama.model.folder import load_model, save_model
from simple_llama.model.lora import (
    LoraConfig,
    LoraLinear,
    adapter_parameters,
    add_adapters,
    keep_frozen_in_bf16,
    load_adapter,
    merge_adapters,
    save_adapter,
)
from simple_llama.params.train import PROJECTIONS
from simple_llama.training.distributed import SINGLE_PROCESS, Ranks
from simple_llama.training.fine_tuning import fine_tuning_method, persistent_path
from simple_llama.training.loop import Trainer, train
from simple_llama.training.optimizer import trainable_parameters
from simple_llama.training.resume import ResumeFolder
from tests.support.models import logits_of, random_model, tiny_config
from tests.support.ranks import together
from tests.support.trainings import Listener, data, new_model, params

ALL = LoraConfig(rank=3, alpha=6.0, dropout=0.0, targets=PROJECTIONS)
IDS = torch.randint(0, 97, (3, 20), generator=torch.Generator().manual_seed(1))


def adapted_model(lora: LoraConfig = ALL, **changes: object) -> Decoder:
    """A random model whose adapters are not zero, as after a training."""
    model = random_model(**changes)
    add_adapters(model, lora, seed=0)
    generator = torch.Generator().manual_seed(2)
    for parameter in adapter_parameters(model).values():
        parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def base_weights(model: Decoder) -> dict[str, nn.Parameter]:
    """By the names that they have without adapters."""
    return {name.replace(".base_layer", ""): p for name, p in model.named_parameters()}


def test_the_start_is_the_base_to_the_last_bit() -> None:
    base, model = random_model().train(), random_model().train()
    add_adapters(model, ALL, seed=0)
    assert torch.equal(logits_of(model, IDS), logits_of(base, IDS))
    matrices = adapter_parameters(model)
    assert len(matrices) == 2 * 7 * 2, "two in each projection of each layer"
    for name, matrix in matrices.items():
        assert (matrix.abs().max() == 0) == ("lora_B" in name)
    weights = base_weights(model)
    for name, weight in base.named_parameters():
        assert torch.equal(weights[name], weight)


def test_the_seed_alone_decides_the_start() -> None:
    def first_matrix(seed: int) -> Tensor:
        torch.rand(3)  # the global random state has no part in it
        model = random_model()
        add_adapters(model, ALL, seed)
        return next(iter(adapter_parameters(model).values()))

    assert torch.equal(first_matrix(4), first_matrix(4))
    assert not torch.equal(first_matrix(4), first_matrix(5))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lora_targets": "q_proj+v_proj"},
        pytest.param({"enable_compilation": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_training_changes_adapters_only_and_they_learn(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda model, **_: real(model, backend="eager", dynamic=True)
    )
    settings = params(lora_rank=4, epochs=4, max_lr=0.03, **changes)
    base, model, listener = random_model(), random_model(), Listener()
    fine_tuning_method(settings, "base", Path("tokenizer")).prepare(model, settings)
    start = {name: weight.clone() for name, weight in adapter_parameters(model).items()}
    result = train(model, data(), settings, listener)
    assert result.train_loss < 0.95 * listener.steps[0].loss
    after = base_weights(model)
    for name, weight in base.named_parameters():
        assert torch.equal(after[name], weight)
        assert after[name].grad is None
    for name, weight in adapter_parameters(model).items():
        assert not torch.equal(weight, start[name]), f"{name} is trained"


def test_optimizer_and_resume_state_hold_adapters_only(tmp_path: Path) -> None:
    sizes = {}
    for rank in (0, 2):
        settings = params(lora_rank=rank, max_steps=3)
        model = new_model()
        fine_tuning_method(settings, "base", Path("tokenizer")).prepare(model, settings)
        trainer = Trainer(model, data(), settings, Listener(), SINGLE_PROCESS)
        trainer.run()
        tensors = trainer.snapshot().tensors
        weights = sum(weight.nbytes for weight in trainable_parameters(model).values())
        assert len(trainer.optimizer.state) == len(trainable_parameters(model))
        names = {name.removeprefix("model.") for name in tensors if name.startswith("model.")}
        assert names == set(trainable_parameters(model))
        ResumeFolder(tmp_path / str(rank), interval=0.0).save(tensors, {}, step=3, best=0)
        size = (tmp_path / str(rank) / "state-3.safetensors").stat().st_size
        assert 3 * weights < size < 3 * weights + 20_000, "weights, moments and a header"
        sizes[rank] = weights
    assert sizes[2] < 0.2 * sizes[0]


def test_dropout_is_of_training_only() -> None:
    model = adapted_model(LoraConfig(rank=3, alpha=6.0, dropout=0.5, targets=PROJECTIONS))
    assert torch.equal(logits_of(model, IDS), logits_of(model, IDS))
    assert torch.equal(logits_of(model, IDS), logits_of(adapted_model(), IDS))
    model.train()
    assert not torch.equal(logits_of(model, IDS), logits_of(model, IDS))


@pytest.mark.parametrize(
    ("targets", "changes"),
    [
        (PROJECTIONS, {}),
        (("q_proj", "v_proj"), {"tie_word_embeddings": True}),
        (("down_proj", "o_proj"), {"attention_bias": True, "mlp_bias": True}),
        (("q_proj", "k_proj"), {"model_type": "qwen3"}),
    ],
)
def test_merged_equals_unmerged(targets: tuple[str, ...], changes: dict[str, Any]) -> None:
    model = adapted_model(LoraConfig(rank=3, alpha=6.0, dropout=0.1, targets=targets), **changes)
    expected = logits_of(model, IDS)
    merge_adapters(model)
    assert not any(isinstance(module, LoraLinear) for module in model.modules())
    assert [name for name, _ in model.named_parameters()] == [
        name for name, _ in random_model(**changes).named_parameters()
    ]
    base = logits_of(random_model(**changes), IDS)
    found = logits_of(model, IDS)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (found - base).abs().max() > 0.1, "the adapters do something"


def test_what_is_published_is_the_best_and_the_kept_ones_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_tokenizer: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    base = random_model()
    save_model(base, "base")
    settings = params(lora_rank=3, lora_alpha=6.0)
    chat = ChatTokenizer.from_path(tiny_tokenizer, prompt_format="auto", system_prompt="")
    chat.save(tmp_path / "tokenizer")
    tuning = fine_tuning_method(settings, "base", tmp_path / "tokenizer")
    kept = ResumeFolder(tmp_path / "kept", interval=0.0)
    models = [adapted_model(), adapted_model()]
    for parameter in adapter_parameters(models[1]).values():
        parameter.data *= -0.5
    tuning.save(models[0], kept.epoch_path(1))
    tuning.save(models[1], kept.best_path(7))
    found = tuning.publish(kept, 7, IDS)
    assert float(found["lora.merged_logits_differ_by"]) < 1e-4
    for model, folder in zip(models, ("models/checkpoints/epoch-01", "models/sft"), strict=True):
        difference = logits_of(load_model(folder).eval(), IDS) - logits_of(model, IDS)
        assert difference.abs().max() < 1e-4
    again = adapted_model()
    load_adapter(again, Path("models/adapter"))
    assert torch.equal(logits_of(again, IDS), logits_of(models[1], IDS))
    config = json.loads(Path("models/adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path.resolve() / "base")

    whole = fine_tuning_method(params(), "base", tmp_path / "tokenizer")
    whole.save(base, kept.best_path(8))
    assert whole.publish(ResumeFolder(kept.folder, interval=0.0), 8, IDS) == {}
    assert list(Path("models/adapter").iterdir()) == [], "no adapter of another training is left"


def test_an_adapters_base_outlives_the_copy_that_an_experiment_runs_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DVC_ROOT", raising=False)
    root = tmp_path.resolve()
    for place in ("", ".dvc/tmp/exps/tmpabc", ".dvc/tmp/exps/standalone/tmpdef"):
        (root / place / ".dvc").mkdir(parents=True)
        (root / place / "below").mkdir()
        monkeypatch.chdir(root / place)
        assert persistent_path("models/base") == root / "models/base"
        assert persistent_path("/srv/base") == Path("/srv/base")
        monkeypatch.chdir(root / place / "below")
        assert persistent_path("base") == root / "below/base"


def test_activations_computed_again_see_the_same_dropout() -> None:
    losses = []
    for kept in ("none", "blocks"):
        settings = params(lora_rank=2, lora_dropout=0.3, max_steps=4, activation_checkpointing=kept)
        model, listener = random_model(), Listener()
        fine_tuning_method(settings, "base", Path("tokenizer")).prepare(model, settings)
        train(model, data(), settings, listener)
        losses.append([(step.loss, step.grad_norm) for step in listener.steps])
    assert losses[0] == losses[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("targets", "changes"),
    [
        (PROJECTIONS, {}),
        (("q_proj", "v_proj"), {"tie_word_embeddings": True, "attention_bias": True}),
    ],
)
def test_the_folder_is_pefts(
    targets: tuple[str, ...],
    changes: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import peft
    import transformers

    lora = LoraConfig(rank=3, alpha=6.0, dropout=0.1, targets=targets)
    model = adapted_model(lora, **changes)
    save_model(random_model(**changes), tmp_path / "base")
    save_adapter(model, tmp_path / "adapter", lora, str(tmp_path / "base"))
    monkeypatch.chdir(tmp_path / "adapter")  # the base is found from anywhere
    alone = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    with torch.inference_mode():
        difference = alone(IDS).logits - logits_of(model, IDS)
    assert difference.abs().max() < 1e-5 * logits_of(model, IDS).abs().max()
    base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.inference_mode():
        difference = theirs(IDS).logits - logits_of(model, IDS)
    assert difference.abs().max() < 1e-5 * logits_of(model, IDS).abs().max()

    # and what PEFT writes for the same model has our names, shapes and settings
    theirs.save_pretrained(str(tmp_path / "theirs"))
    written = {
        name: {key: t.shape for key, t in load_file(file).items()}
        for name, file in (
            ("ours", tmp_path / "adapter/adapter_model.safetensors"),
            ("theirs", tmp_path / "theirs/adapter_model.safetensors"),
        )
    }
    assert written["ours"] == written["theirs"]
    ours, other = (
        json.loads((tmp_path / name / "adapter_config.json").read_text())
        for name in ("adapter", "theirs")
    )
    other["target_modules"].sort()
    assert ours == {key: other[key] for key in ours}


def test_frozen_weights_in_bf16_change_no_bit() -> None:
    def steps(exact: bool, compact: bool) -> tuple[list[float], Decoder]:
        model = new_model()
        if exact:
            for parameter in model.parameters():
                parameter.data = parameter.data.bfloat16().float()
        settings = params(lora_rank=2, precision="bf16", max_steps=4, sample_prompts=1)
        add_adapters(model, LoraConfig(rank=2, alpha=4.0, dropout=0.0, targets=("q_proj",)), seed=0)
        if compact:
            keep_frozen_in_bf16(model)
        listener = Listener()
        train(model, data(), settings, listener)
        return [value for step in listener.steps for value in (step.loss, step.grad_norm)], model

    plain, _ = steps(exact=True, compact=False)
    halved, model = steps(exact=True, compact=True)
    assert halved == plain
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    types = {linear.weight.dtype for linear in linears if not linear.weight.requires_grad}
    assert types == {torch.bfloat16}
    assert {p.dtype for p in trainable_parameters(model).values()} == {torch.float32}
    _, model = steps(exact=False, compact=True)
    types = {linear.weight.dtype for linear in model.modules() if isinstance(linear, nn.Linear)}
    assert types == {torch.float32}, "bfloat16 would lose digits"


def losses_of(ranks: Ranks) -> list[float]:
    model, listener = random_model(), Listener()
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    settings = params(lora_rank=2, precision="bf16", epochs=1)
    fine_tuning_method(settings, "base", Path("tokenizer")).prepare(model, settings)
    train(model, data(), settings, listener, ranks=ranks)
    return [step.loss for step in listener.steps]


@pytest.mark.slow
def test_two_ranks_train_the_same_adapters() -> None:
    one, other = together(2, losses_of)
    assert one == other == pytest.approx(losses_of(SINGLE_PROCESS), rel=2e-3), "bf16 rounds"


def test_tied_embeddings_stay_in_float32() -> None:
    model = random_model(tie_word_embeddings=True)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    add_adapters(model, ALL, seed=0)
    keep_frozen_in_bf16(model)
    assert model.lm_head.weight.dtype == model.norm.weight.dtype == torch.float32


def test_the_targets_are_the_projections_of_a_layer() -> None:
    linears = set()
    for model in (new_model(), random_model(model_type="phi3")):
        modules = model.layers[0].named_modules()
        linears |= {n.rpartition(".")[2] for n, m in modules if isinstance(m, nn.Linear)}
    assert linears == set(PROJECTIONS)
    assert params(lora_targets="all-linear").lora_projections == PROJECTIONS
    for written in ("v_proj+q_proj", "q_proj,v_proj", "q_proj v_proj", "q_proj, v_proj, q_proj"):
        assert params(lora_targets=written).lora_projections == ("q_proj", "v_proj")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lora_targets": "q_proj+query"}, r"lora_targets: got 'q_proj\+query', wanted all-linear"),
        ({"lora_targets": " "}, "lora_targets: got ' ', wanted all-linear, or some of down_proj"),
        (
            {"lora_targets": "lm_head"},
            "wanted all-linear, or some of down_proj, gate_proj",
        ),
        ({"lora_rank": -1}, "lora_rank: got -1, wanted 0 or more"),
        ({"lora_alpha": 0.0}, "lora_alpha: got 0.0, wanted above 0"),
        ({"lora_dropout": 1.0}, "lora_dropout: got 1.0, wanted 0 to below 1"),
    ],
)
def test_bad_values_are_one_line(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        params(**change)


def test_a_target_that_the_model_has_not_is_refused() -> None:
    with pytest.raises(
        InputError,
        match=r"^lora_targets: got q_proj, wanted all-linear, or some of down_proj, gate_up_proj, "
        r"o_proj, qkv_proj, which this model has$",
    ):
        adapted_model(
            LoraConfig(rank=2, alpha=1.0, dropout=0.0, targets=("o_proj", "q_proj")),
            model_type="phi3",
        )


def test_latent_attention_is_refused() -> None:
    shape = MLAConfig(
        q_lora_rank=None, kv_lora_rank=8, qk_nope_head_dim=4, qk_rope_head_dim=4, v_head_dim=8
    )
    config = tiny_config(model_type=MLA, mla=shape, num_key_value_heads=4, attention_bias=True)
    with pytest.raises(InputError, match="lora_rank: got 3, wanted 0 for a model with latent"):
        add_adapters(Decoder(config), ALL, seed=0)


def test_a_rank_beyond_the_matrices_is_refused_before_memory_is_taken() -> None:
    with pytest.raises(InputError, match=r"lora_rank: got 10000000000, wanted at most 16"):
        add_adapters(
            new_model(),
            LoraConfig(rank=10**10, alpha=1.0, dropout=0.0, targets=PROJECTIONS),
            seed=0,
        )
