"""From images and prompts to the inputs of a vision-language model of transformers, by its own processor and template.

Processors are read without their part for videos, which needs torchvision. Images are resized by Pillow.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING

from bestofn.judge.interface import QUESTION
from bestofn.judge.loader import read_json
from bestofn.judge.pairwise import without_control_tokens
from bestofn.judge.prompting import render


class Conversation:
    """One question about one image, as a model's chat template writes it; a model without one gets image and question.

    Attributes:
        template: text of the conversation up to the answer, with `{prompt}` once.
        question: text of the question, with `{prompt}` once.
        tokenizer: the processor's.
    """

    def __init__(self, processor: Any, question: str = QUESTION) -> None:
        """
        Args:
            processor: the checkpoint's processor, for images and text.
            question: text with `{prompt}` once.

        Raises:
            ValueError: the question has no `{prompt}`, or the template fails or loses the question or the image.
        """
        if not isinstance(question, str) or question.count("{prompt}") != 1:
            raise ValueError(f"the question must hold {{prompt}} once, got {question!r}")
        self._processor = processor
        self._lock = threading.Lock()  # a fast tokenizer pads for one thread at a time
        self.question = question
        self.tokenizer = processor.tokenizer
        self.tokenizer.padding_side = "left"  # the answer's position is then the last of every row
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.template = _template(processor, question)
        bos = self.tokenizer.bos_token
        self._special = not (bos and self.template.startswith(bos))

    @classmethod
    def read(cls, folder: Path) -> Conversation:
        """The conversation of a checkpoint's folder; its bestofn.json may hold another `question`.

        Raises:
            JudgeFolderError, ValueError, OSError: the folder's config or processor cannot be read.
        """
        extras = read_json(folder / "bestofn.json") if (folder / "bestofn.json").is_file() else {}
        read_json(folder / "config.json")
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        return cls(_processor(folder, config), extras.get("question", QUESTION))

    def inputs(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> Mapping[str, Any]:
        """Tensors of a batch for the model's forward, padded on the left."""
        texts = [self.template.replace("{prompt}", without_control_tokens(prompt)) for prompt in prompts]
        with self._lock:
            made = self._processor(
                images=[[image] for image in images],
                text=texts,
                padding=True,
                return_tensors="pt",
                add_special_tokens=self._special,
            )
        return {name: value for name, value in made.items() if name != "labels"}  # PaliGemma's, for training

    def count(self, prompt: str) -> int:
        """Number of tokens of a prompt."""
        with self._lock:
            return len(self.tokenizer(without_control_tokens(prompt), add_special_tokens=False)["input_ids"])

    def spellings(self, answer: str) -> list[int]:
        """Ids of the tokens that spell an answer, in any case and with or without a space before it.

        Raises:
            ValueError: no token does.
        """
        ids = [i for token, i in self.tokenizer.get_vocab().items() if token.strip("\u0120\u2581 ").lower() == answer]
        if not ids:
            raise ValueError(f"no token of its vocabulary spells {answer!r}")
        return sorted(ids)


def _processor(folder: Path, config: Any) -> Any:
    """The processor of images and text that belongs to a configuration."""
    kind = PROCESSOR_MAPPING.get(type(config), None)
    if kind is None:
        raise ValueError(f"transformers has no processor of images and text for model_type {config.model_type!r}")

    class ImagesAndText(kind):  # type: ignore[misc,valid-type]
        @classmethod
        def get_attributes(cls) -> list[str]:
            return [name for name in super().get_attributes() if name in ("image_processor", "tokenizer")]

    try:
        images = AutoImageProcessor.from_pretrained(folder, backend="pil", trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        fields, _ = ImagesAndText.get_processor_dict(folder)
        fields.setdefault("chat_template", tokenizer.chat_template)
        return ImagesAndText.from_args_and_dict([images, tokenizer], fields)
    except Exception as error:  # each processor has errors of its own
        raise ValueError(f"the {kind.__name__} cannot be read: {' '.join(str(error).split())}") from error


def _template(processor: Any, question: str) -> str:
    if not processor.chat_template:
        return f"{processor.image_token}{question}"
    content = [{"type": "image"}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    text = render(processor, messages)
    if text.count("{prompt}") != 1 or processor.image_token not in text:
        raise ValueError(f"its chat template loses the question or the image: {text!r}")
    return text
