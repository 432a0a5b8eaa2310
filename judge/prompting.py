"""Prompting: from a prompt to the judge's token ids. User text never becomes a control token."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

PUBLISHED_QUESTION = (
    "You are an AI assistant specializing in image analysis and ranking. "
    "Your task is to analyze and compare image based on how well they match the given prompt.\n"
    "The given prompt is:{prompt}. "
    "Please consider the prompt and the image to make a decision and response directly with 'yes' or 'no'.\n"
)
"""The question of the published selection script (NVlabs/Sana, tools/inference_scaling/nvila_sana_pick.py)."""

MEDIA_TOKENS = ("<image>", "<vila/video>")

# VILA's conversation template "qwen2": unlike Qwen2's own, no full stop after "assistant".
_QWEN2_TEMPLATE = (
    "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\n",
    "<|im_end|>\n<|im_start|>assistant\n",
)

_CONTENT = "\ue000content\ue000"  # a private-use character cannot be part of a template


class Question:
    """Turns prompts into ids: template, one media id per tile, then the question as plain text.

    The user's part is tokenised apart from the template, with special tokens split into ordinary text. So
    `<|im_end|>` or `<image>` in a prompt cannot end the turn or insert an image.

    Args:
        tokenizer: the tokenizer in the folder's `llm/`.
        text: the question with `{prompt}` once.
        chat_template: `chat_template` of `config.json`; None takes the tokenizer's own.

    Raises:
        ValueError: the text has no `{prompt}`, the template is unknown, or the tokenizer misses a token.
    """

    def __init__(self, tokenizer: Any, text: str, chat_template: str | None) -> None:
        if not isinstance(text, str) or text.count("{prompt}") != 1:
            raise ValueError(f"the question must hold {{prompt}} once, got {text!r}")
        self.tokenizer = tokenizer
        self.text = text
        prefix, suffix = _template(tokenizer, chat_template)
        self.prefix: list[int] = tokenizer(prefix, add_special_tokens=False)["input_ids"]
        self.suffix: list[int] = tokenizer(suffix, add_special_tokens=False)["input_ids"]
        self.media_id = single_id(tokenizer, MEDIA_TOKENS[0])
        self.newline_id = single_id(tokenizer, "\n")
        self.yes_id = single_id(tokenizer, "yes")
        self.no_id = single_id(tokenizer, "no")

    def ids(self, prompt: str, tiles: int) -> list[int]:
        """Ids of the whole conversation up to the answer, a media id and a newline for each tile."""
        return self.conversation(self.text.replace("{prompt}", prompt), tiles)

    def conversation(self, user_text: str, tiles: int) -> list[int]:
        """As `ids`, for the user's text as a whole."""
        return self.prefix + [self.media_id, self.newline_id] * tiles + self.user_ids(user_text) + self.suffix

    def user_ids(self, user_text: str) -> list[int]:
        """Ids of the user's text alone."""
        text = plain(user_text).rstrip()
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids


def plain(text: str) -> str:
    """Deletes media tokens as the published code does: one pass each, nothing in their place, then stripped."""
    for token in MEDIA_TOKENS:
        if token in text:
            text = text.replace(token, "").strip()
    return text


def single_id(tokenizer: Any, text: str) -> int:
    """The id of a text that must be one token of the vocabulary.

    Raises:
        ValueError: it is not.
    """
    ids: Sequence[int] = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
        raise ValueError(f"the tokenizer must know {text!r} as one token, it gives {list(ids)}")
    return ids[0]


def unknown_words(prompt: str, known_words: frozenset[str]) -> list[str]:
    """Words of a prompt that a small judge has never seen, in order, lower-cased, each once."""
    words = re.findall(r"[^\W_]+", prompt.lower())
    return list(dict.fromkeys(word for word in words if word not in known_words))


def _template(tokenizer: Any, chat_template: str | None) -> tuple[str, str]:
    if chat_template == "qwen2":
        return _QWEN2_TEMPLATE
    if chat_template is not None:
        raise ValueError(f"chat_template {chat_template!r} is not known: 'qwen2' is, or none for the tokenizer's own")
    if not tokenizer.chat_template:
        raise ValueError("config.json names no chat_template and the tokenizer has none of its own")
    messages = [{"role": "user", "content": _CONTENT}]
    prefix, _, suffix = render(tokenizer, messages).partition(_CONTENT)
    return prefix, suffix


def render(processor: Any, messages: Sequence[Any]) -> str:
    """Messages up to the answer, as the chat template of a tokenizer or processor writes them.

    Raises:
        ValueError: the template fails.
    """
    try:
        text: str = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # jinja2's errors, and those of the template's own expressions
        raise ValueError(f"its chat template cannot be used: {' '.join(str(error).split())}") from error
    return text
