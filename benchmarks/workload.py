"""The work that every implementation does: GRPO steps of a tiny decoder like Qwen2.

Prompts are `a+b=`, at most 6 characters. The reward is exact match; there is one AdamW
step per rollout batch, no KL term, and the temperature is 1. End tokens are ignored, so
that every step has exactly num_prompts * num_samples * new_tokens tokens. Imports only
the standard library, because the peers' scripts use this file in their environments.
"""

import dataclasses
import json
import random

VOCAB = 32
CHARACTERS = "0123456789+-=* "
PROMPT_TOKENS = 6


@dataclasses.dataclass(frozen=True)
class Workload:
    """Sizes of a model and of a training step."""

    num_layers: int = 4
    d_model: int = 128
    num_heads: int = 4
    d_ff: int = 256
    num_prompts: int = 32
    num_samples: int = 8
    new_tokens: int = 16

    @property
    def tokens(self) -> int:
        """Sampled tokens per step."""
        return self.num_prompts * self.num_samples * self.new_tokens

    @property
    def num_microbatches(self) -> int:
        """Microbatches whose widest activations, about 1 MiB, fit in a core's cache."""
        pieces = self.tokens * self.d_ff * 4 // 2**20
        return min(1 << max(0, pieces.bit_length() - 1), self.num_prompts)

    @property
    def weights(self) -> int:
        """Number of weights used per token: projections and the output head."""
        layer = 4 * self.d_model**2 + 3 * self.d_model * self.d_ff
        return self.num_layers * layer + VOCAB * self.d_model

    @property
    def products(self) -> tuple[tuple[int, int], ...]:
        """The different shapes of a layer's weights."""
        width, wide = self.d_model, self.d_ff
        return (width, width), (width, wide), (wide, width)

    def flops(self, shared: bool) -> float:
        """FLOPs of a step without attention.

        Per weight and token, sampling takes 2 and training 6.

        Args:
          shared: whether each prompt is computed once per group, not per sample.
        """
        copies = 1 if shared else self.num_samples
        tokens = self.tokens + self.num_prompts * copies * PROMPT_TOKENS
        return (2.0 + 6.0) * self.weights * tokens


WORKLOADS = {
    "W1": Workload(),
    "tiny": Workload(1, 32, 2, 64, num_prompts=8, num_samples=4, new_tokens=8),
    "small": Workload(num_layers=1, d_model=64, d_ff=128),
    "large": Workload(num_layers=8, d_model=256, num_heads=8, d_ff=512),
    "long": Workload(new_tokens=64),
    "longer": Workload(new_tokens=256),
    "shallow": Workload(num_layers=4, d_model=64, d_ff=128),
    "deep": Workload(num_layers=32, d_model=64, d_ff=128),
}


def problems(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Pairs of a prompt and its answer."""
    rng = random.Random(seed)
    pairs = [(rng.randrange(100), rng.randrange(100)) for _ in range(count)]
    return [(f"{a}+{b}=", str(a + b)) for a, b in pairs]


def token_ids(text: str) -> list[int]:
    """Tokens of characters, from 3 on; 0 pads, 1 begins, 2 ends a text."""
    return [3 + CHARACTERS.index(c) for c in text]


def hugging_face_tokenizer():
    """The same tokens as a transformers tokenizer."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<bos>": 1, "<eos>": 2}
    vocabulary |= {c: 3 + i for i, c in enumerate(CHARACTERS)}
    vocabulary |= {f"<u{i}>": i for i in range(len(vocabulary), VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=f"<u{VOCAB - 1}>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token=f"<u{VOCAB - 1}>",
        padding_side="left",
    )


def report(name: str, **facts) -> None:
    """Prints the measurement as one line of JSON, the last line of the script."""
    print(json.dumps({"name": name, **facts}), flush=True)
