"""Tokenizers that need no file: one token a byte, and the few special tokens that pipelines look for."""

from __future__ import annotations

from typing import Any

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

SPECIAL = (
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    "<|im_start|>",
    "<|im_end|>",
    "<|image_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|video_pad|>",
    "<|end_header_id|>",
)
VOCAB = 256 + len(SPECIAL)
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_vocabulary() -> dict[str, int]:
    """Return the numbers of all tokens: the special ones, then a letter for each byte."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    return {token: number for number, token in enumerate([*SPECIAL, *letters])}


class PlacedTokenizer(transformers.PreTrainedTokenizerFast):
    """Also numbers the tokens of each text, as ChatGLM's does."""

    def __call__(self, *texts: Any, **options: Any) -> Any:
        out = super().__call__(*texts, **options)
        out["position_ids"] = (out["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        return out


def tokenizer(
    length: int = 77,
    begin: bool = False,
    end: bool = True,
    cls: Any = transformers.PreTrainedTokenizerFast,
    **more: Any,
) -> Any:
    """Return a fast tokenizer of at most `length` tokens, with a token at the beginning or the end of the text."""
    words = Tokenizer(models.BPE(vocab=byte_vocabulary(), merges=[], unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    template = " ".join(["<s>"] * begin + ["$A"] + ["</s>"] * end)
    words.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return cls(
        tokenizer_object=words,
        model_max_length=length,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=list(SPECIAL[4:]),
        chat_template=CHAT,
        **more,
    )


def clip_tokenizer() -> Any:
    """Return a tokenizer that marks beginning and end, as CLIP's does."""
    return tokenizer(begin=True)
