"""Evaluation sets as settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, StrictInt, StrictStr, field_validator, model_validator

from jasper_ray.config import Settings
from jasper_ray.sources.pair_settings import PairSource

TableFormat = Literal["csv", "tsv", "jsonl"]
Position = Annotated[StrictInt, Field(ge=0)]
Column = Position | StrictStr
Name = Annotated[str, Field(min_length=1)]
ClassName = Annotated[str, Field(min_length=1, coerce_numbers_to_str=True)]


class PairColumns(Settings):
    """Where a row holds its two sentences and their score: column names, or positions counted from 0."""

    left: Column
    right: Column
    score: Column


class LabelColumns(Settings):
    """Where a row holds its text and its class: column names, or positions counted from 0."""

    text: Column
    label: Column


class _TableSet(Settings):
    """What sets that are read from rows have in common."""

    name: Name
    """Name in reports; unique among the sets."""
    format: TableFormat
    """csv (RFC 4180), tsv (no quoting), or jsonl (one object a line)."""
    header: bool = True
    """Whether the first row of a csv or tsv file names the columns."""
    prompt: str | None = None
    """Name of the prompt put before every text; a model that has no prompts at all gets the texts bare."""

    columns: PairColumns | LabelColumns
    """Which column holds what."""

    @model_validator(mode="after")
    def _columns_fit_the_format(self) -> _TableSet:
        named = [isinstance(column, str) for _, column in self.columns]
        if self.format == "jsonl" and not (self.header and all(named)):
            raise ValueError("the columns of a jsonl file are named, so `columns` takes names and `header` is left out")
        if not self.header and any(named):
            raise ValueError("a file without header has no column names, so `columns` takes positions counted from 0")
        return self


class PairSet(_TableSet):
    """Sentence pairs with a score: Spearman's rank correlation of the cosines with the scores, x100."""

    type: Literal["pairs"]
    path: Path
    """File of the pairs."""
    columns: PairColumns
    """Columns of the sentences and the score."""
    limit: PositiveInt | None = None
    """Number of pairs used, from the start of the file; all when left out."""


class RetrievalSet(Settings):
    """Documents, queries and relevance judgements: nDCG@10, x100."""

    type: Literal["retrieval"]
    name: Name
    """Name in reports; unique among the sets."""
    format: Literal["cranfield", "beir"]
    """cranfield: .I/.T/.W files, where the judgements count the queries from 1 in the order of their file, codes
    above 0 are relevant and gains are binary; beir: corpus.jsonl, queries.jsonl and a graded qrels tsv with header."""
    documents: Path
    """File of the documents."""
    queries: Path
    """File of the queries; those without a relevant document are left out."""
    qrels: Path
    """File of the relevance judgements."""
    query_prompt: str | None = None
    """Name of the prompt put before queries; a model that has no prompts at all gets them bare."""
    document_prompt: str | None = None
    """Name of the prompt put before documents; a model that has no prompts at all gets them bare."""


class ClassificationSet(_TableSet):
    """Labelled texts: accuracy of a logistic regression on the vectors, x100."""

    type: Literal["classification"]
    train: Path
    """File of the texts that the classifier learns from."""
    test: Path
    """File of the texts it is measured on."""
    columns: LabelColumns
    """Columns of the text and its class, in both files."""
    train_per_class: PositiveInt | None = None
    """Training texts used of each class, those with the smallest hashes; all when left out."""
    test_per_class: PositiveInt | None = None
    """Test texts used of each class, chosen in the same way; all when left out."""


class _ImageSet(Settings):
    """What sets of images have in common; a model without vision gets no score on them."""

    name: Name
    """Name in reports; unique among the sets."""
    images: PairSource
    """Where the images and their texts lie."""
    prompt: str | None = None
    """Name of the prompt put before every text; a model that has no prompts at all gets the texts bare."""

    @model_validator(mode="after")
    def _one_place_for_the_prompt(self) -> _ImageSet:
        if self.images.prompt is not None:
            raise ValueError(f"`images` has the prompt {self.images.prompt!r}; write it as `prompt` of the set instead")
        return self


class ImageCaptionSet(_ImageSet):
    """Images and their captions: recall at 1, 5 and 10 of captions by image and of images by caption, x100."""

    type: Literal["image_captions"]


class ZeroShotSet(_ImageSet):
    """Images of known classes: accuracy of taking the class whose texts' mean is the nearest to the image, x100.

    The caption column of `images` holds the class.
    """

    type: Literal["zero_shot"]
    templates: tuple[str, ...] = Field(min_length=1)
    """Texts about an image, with {} where the class stands: "a photo of a {}"."""
    classes: dict[ClassName, ClassName] | None = None
    """The words that stand for each class in the templates, or a list of classes that are their own words; those that
    no image has compete too, and classes of the same words are one. By default the classes of the images."""

    @field_validator("templates")
    @classmethod
    def _templates_have_a_place_for_the_class(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            if "{}" not in template:
                raise ValueError(
                    f"the template {template!r} has no {{}} for the class; write it where the class stands"
                )
        return templates

    @field_validator("classes", mode="before")
    @classmethod
    def _listed_classes_are_their_own_words(cls, value: Any) -> Any:
        return {str(name): name for name in value} if isinstance(value, list | tuple) else value


EvaluationSet = Annotated[
    PairSet | RetrievalSet | ClassificationSet | ImageCaptionSet | ZeroShotSet, Field(discriminator="type")
]
