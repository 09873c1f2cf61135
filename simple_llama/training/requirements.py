"""What a training refuses before anything is loaded: params that do not go with the base, its
tokenizer or the device. `simple-llama check` and the train stage ask here."""

from dataclasses import dataclass
from functools import cached_property

from simple_llama.data.prompt import ChatTokenizer
from simple_llama.data.tokens import Tokens
from simple_llama.errors import InputError
from simple_llama.model.checkpoint import check_fits, check_token_rows
from simple_llama.model.lora import LoraConfig, check_adapters
from simple_llama.model.quantisation import require_library
from simple_llama.params.train import TrainParams
from simple_llama.training.estimate import Device, Estimate, packs_on, shape_of
from simple_llama.training.fine_tuning import check_weights_type
from simple_llama.training.gradients import check_cuda_graphs
from simple_llama.training.memory import Shape


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """Of a base model, with its tokenizer, on a device."""

    base: str
    tokenizer: ChatTokenizer
    shape: Shape
    device: Device

    @classmethod
    def of(
        cls,
        base: str,
        tokenizer: ChatTokenizer,
        params: TrainParams,
        device: Device,
        *,
        without_weights: bool = False,
    ) -> "Requirements":
        """Those of this base, which fits the tokenizer and the longest example.

        without_weights: its config.json is enough. Raises InputError, and prints, as check_fits
        does, and where its eos_token_id is no token.
        """
        check_fits(
            base,
            tokenizer.vocab_size,
            params.max_seq_len,
            added_tokens=tokenizer.added_tokens,
            without_weights=without_weights,
        )
        shape = shape_of(base, tokenizer.vocab_size)
        return cls(base=base, tokenizer=tokenizer.for_model(base), shape=shape, device=device)

    def check(self, params: TrainParams) -> None:
        """Raises InputError where these params do not go with them."""
        self.check_settings(params)
        if params.lora_base == "nf4":
            require_library()

    def check_settings(self, params: TrainParams) -> None:
        """The same, whatever is installed here."""
        device, config = self.device, self.shape.config
        check_weights_type(params, device.kind, half=device.half)
        if params.cuda_graphs:
            check_cuda_graphs(device.kind, packed=packs_on(device, config, params))
        if params.lora_rank:
            check_adapters(config, self.shape.projections, LoraConfig.of(params))
            if self._untrained is not None:
                raise self._untrained

    def estimate(self, params: TrainParams, tokens: Tokens, ranks: int) -> Estimate:
        """Of the memory of a training, whose proposals they accept."""
        return Estimate(self.shape, params, tokens, self.device, ranks, check=self.check_settings)

    @cached_property
    def _untrained(self) -> InputError | None:
        """What check_token_rows raises, which reads embeddings."""
        tokenizer = self.tokenizer
        try:
            check_token_rows(self.base, tokenizer.base_vocab_size, tokenizer.control_ids)
        except InputError as error:
            return error
        return None
