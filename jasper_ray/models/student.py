"""The student: a transformer body, a pooling, one independent linear head per vector size, and optional vision.

All heads read the same pooled state; none is a prefix of another (arXiv 2412.19048, section 2.2).
"""

# Shape legend: B texts or images, T tokens, H hidden size of the body, D size of one head's vector.

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from jasper_ray.config import ConfigError, Settings
from jasper_ray.models.body import BodySettings, load_body, meta_body
from jasper_ray.models.tokens import IMAGE_MARKS, TokenGroup
from jasper_ray.models.vision import Vision, VisionSettings, build_vision, meta_vision

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Pooling = Literal["mean", "cls", "lasttoken"]
STELLA_PROMPTS = {
    "s2p_query": "Instruct: Given a web search query, retrieve relevant passages that answer the query.\nQuery: ",
    "s2s_query": "Instruct: Retrieve semantically similar text.\nQuery: ",
}


class StudentSettings(Settings):
    """The student's shape, and the weights it starts from."""

    body: BodySettings
    pooling: Pooling = "mean"
    heads: tuple[int, ...] = Field(min_length=1)
    """Sizes of the vectors, one independent linear head each. The first is the full head: the size of the target."""
    default_head: int | None = None
    """The head that plain sentence-transformers loads. Default: the full head."""
    max_length: int = Field(gt=0)
    """Longest text, in tokens; longer texts are truncated."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout inside the body while training. 0: the teachers' vectors are targets without noise."""
    prompts: dict[str, str] = Field(default_factory=lambda: dict(STELLA_PROMPTS))
    """Text put before a text, by name; saved with the student."""
    vision: VisionSettings | None = None
    """The vision encoder, added to the student when the first stage on images begins."""

    @model_validator(mode="after")
    def _heads_are_sound(self) -> StudentSettings:
        if len(set(self.heads)) != len(self.heads) or min(self.heads) < 1:
            raise ConfigError(f"student.heads is {list(self.heads)}; sizes must be positive and each appear once")
        if list(self.heads) != sorted(self.heads, reverse=True):
            raise ConfigError(
                f"student.heads is {list(self.heads)}; write the sizes from large to small, the full head first"
            )
        if self.default_head is not None and self.default_head not in self.heads:
            raise ConfigError(
                f"student.default_head is {self.default_head}, which is not among heads {list(self.heads)}"
            )
        return self

    @model_validator(mode="after")
    def _an_image_fits(self) -> StudentSettings:
        if self.vision and self.vision.image_tokens + len(IMAGE_MARKS) + 1 > self.max_length:
            raise ConfigError(
                f"student.vision.image_tokens is {self.vision.image_tokens}, which with the marks around them is more "
                f"than student.max_length {self.max_length}; change one of the two"
            )
        return self

    @property
    def first_shown(self) -> int:
        """Head that plain sentence-transformers loads."""
        return self.default_head or self.heads[0]


class Student(nn.Module):
    """Body, pooling, heads, and optional vision. Parameters are named `body.…`, `heads.<dim>.…`, `vision.…`."""

    def __init__(
        self, body: PreTrainedModel, heads: Sequence[int], pooling: Pooling = "mean", vision: Vision | None = None
    ) -> None:
        super().__init__()
        self.body = body
        self.pooling: Pooling = pooling
        self.heads = nn.ModuleDict({str(dim): nn.Linear(body.config.hidden_size, dim) for dim in heads})
        self.vision = vision
        self.freeze_all_but(["*"])

    @property
    def dims(self) -> tuple[int, ...]:
        return tuple(int(dim) for dim in self.heads)

    def pooled(self, group: TokenGroup) -> Tensor:
        """Compute the body's pooled state `[B, H]`, which every head reads."""
        if group.pixels_B3SS is None:
            states_BTH = self.body(input_ids=group.ids_BT, attention_mask=group.mask_BT).last_hidden_state
        else:
            inputs_BTH = self.with_images(group)
            states_BTH = self.body(inputs_embeds=inputs_BTH, attention_mask=group.mask_BT).last_hidden_state
        return pool(states_BTH, group.mask_BT, self.pooling)

    def with_images(self, group: TokenGroup) -> Tensor:
        """Compute the embeddings `[B, T, H]` of the rows' tokens, with those of the images in their places."""
        assert self.vision is not None, "a student without vision was given an image"
        assert group.places_BT is not None, "images have places"
        tokens_BTH = self.body.get_input_embeddings()(group.ids_BT)
        images_BNH = self.vision(group.pixels_B3SS).to(tokens_BTH.dtype)
        return tokens_BTH.masked_scatter(group.places_BT.unsqueeze(-1), images_BNH)

    def forward(self, groups: Iterable[TokenGroup], dims: Sequence[int] | None = None) -> tuple[Tensor, ...]:
        """Compute the vectors of every head, or of the heads `dims`: `[B, D]` each, in that order, not normalised.

        A batch is a list of groups of rows of similar length, each padded to its own longest row, so that the body
        computes little padding. The result holds the rows of all groups in order.
        """
        pooled_BH = torch.cat([self.pooled(group) for group in groups])
        return tuple(self.heads[str(dim)](pooled_BH) for dim in dims or self.dims)

    def trainable_names(self, patterns: Sequence[str]) -> list[str]:
        """List the parameters that any of the shell-style `patterns` matches (`heads.1024.*`, `body.layers.2?.*`)."""
        names = self.learnable_names()
        for pattern in patterns:
            if not fnmatch.filter(names, pattern):
                raise ConfigError(
                    f"train: the pattern {pattern!r} matches no parameter of the student; "
                    f"its parameters are named like {names[0]}, {names[len(names) // 2]} and {names[-1]}"
                )
        return [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]

    def learnable_names(self) -> list[str]:
        """List the parameters that some vector depends on. Others, such as a pooler's, are only kept so that the saved
        models are whole."""
        unused = {f"vision.{name}" for name in self.vision.never_trained} if self.vision else set()
        return [
            name for name, _ in self.named_parameters() if not name.startswith("body.pooler.") and name not in unused
        ]

    def freeze_all_but(self, patterns: Sequence[str]) -> None:
        """Train the matching parameters and no others."""
        trainable = set(self.trainable_names(patterns))
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in trainable)

    def set_dropout(self, share: float) -> None:
        """Set the share of activations that training drops, everywhere in the body."""
        for module in self.body.modules():
            if isinstance(module, nn.Dropout):
                module.p = share
            for name in ("attention_dropout", "dropout"):  # attention kernels read the share from such a number
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, share)


def pool(states_BTH: Tensor, mask_BT: Tensor, pooling: Pooling) -> Tensor:
    """Pool the states of the tokens that `mask_BT` marks with 1 to `[B, H]`; padding may be on either side.

    The mean is summed in the states' own precision; a row has at least one token.
    """
    if pooling == "mean":
        weights_BT1 = mask_BT.unsqueeze(-1).to(states_BTH.dtype)
        return (states_BTH * weights_BT1).sum(dim=1) / weights_BT1.sum(dim=1)
    rows_B = torch.arange(len(states_BTH), device=states_BTH.device)
    if pooling == "cls":
        return states_BTH[rows_B, mask_BT.argmax(dim=1)]
    last_B = mask_BT.shape[1] - 1 - mask_BT.flip(1).argmax(dim=1)
    return states_BTH[rows_B, last_B]


def build_student(settings: StudentSettings, seed: int) -> Student:
    """Make the student before training: the body's weights, random heads drawn from `seed`."""
    torch.manual_seed(seed)
    return Student(load_body(settings.body), settings.heads, settings.pooling)


def meta_student(settings: StudentSettings, vision: bool = False) -> Student:
    """Make the student on torch's meta device, without memory, for counting parameters."""
    body = meta_body(settings.body)
    tower = meta_vision(settings.vision, body.config.hidden_size) if vision and settings.vision else None
    with torch.device("meta"):
        return Student(body, settings.heads, settings.pooling, tower)


def add_vision(student: Student, tokenizer: PreTrainedTokenizerBase, settings: VisionSettings, seed: int) -> Student:
    """Add untrained vision to the student; random weights are drawn from `seed`.

    The tokenizer gets the marks of images, and the body a row of embeddings for each: the mean of the others. Only
    texts that spell a mark, which is now one token, change their vectors.
    """
    from transformers import AddedToken

    torch.manual_seed(seed)
    vision = build_vision(settings, student.body.config.hidden_size)
    tokenizer.add_tokens(
        [AddedToken(mark, special=True, normalized=False) for mark in IMAGE_MARKS], special_tokens=True
    )
    add_rows(student.body, len(tokenizer))
    student.vision = vision
    student.freeze_all_but(["*"])
    return student


def add_rows(body: PreTrainedModel, rows: int) -> None:
    """Extend the body's embeddings to at least `rows` rows, with the mean of the others."""
    before_VH = body.get_input_embeddings().state_dict()["weight"].clone()
    if rows > len(before_VH):
        body.resize_token_embeddings(rows, mean_resizing=False)
        with torch.no_grad():
            body.get_input_embeddings().state_dict()["weight"][len(before_VH) :] = before_VH.mean(dim=0)
