"""Settings of a run's data, texts and image–caption pairs: sources, held-out share, augmentation, shards."""

from __future__ import annotations

from pydantic import Field, model_validator

from jasper_ray.config import ConfigError, Settings
from jasper_ray.images.decode import PIXEL_LIMIT
from jasper_ray.resources import Pool, TeacherPool
from jasper_ray.sources.settings import PairSource, Source
from jasper_ray.vectors import Precision

LARGEST_PIXEL_LIMIT = 89_478_485
"""Largest limit: above so many pixels Pillow has warnings and limits of its own."""


class Augmentation(Settings):
    """Changes that widen the training texts (Jasper and Stella, section 3.2); decided by a text's hash and the seed."""

    cut_share: float = Field(default=0.0, ge=0, le=1)
    """Share of documents that are cut into short texts; the paper takes 0.30."""
    min_sentences: int = Field(default=1, ge=1)
    """Fewest sentences of a short text; the last one of a document may be shorter."""
    max_sentences: int = Field(default=10, ge=1)
    """Most sentences of a short text."""
    shuffle_share: float = Field(default=0.0, ge=0, le=1)
    """Share of texts whose words are shuffled; the paper prints 0.08 %, that is 0.0008."""

    @model_validator(mode="after")
    def _check_sentences(self) -> Augmentation:
        if self.min_sentences > self.max_sentences:
            raise ConfigError(
                f"min_sentences is {self.min_sentences} but max_sentences is {self.max_sentences}; "
                "set min_sentences to at most max_sentences in the corpus' augmentation"
            )
        return self


class Corpus(Settings):
    """The texts of a run: all sources together, mixed, augmented and split into training and held-out texts."""

    sources: tuple[Source, ...] = Field(min_length=1)
    """Sources of the texts. If two sources hold the same text, the earlier one keeps it."""
    holdout: float = Field(default=0.0, ge=0, le=0.5)
    """Share of texts, chosen by the hash of the text, that are kept for evaluation and never trained on."""
    heldout_limit: int = Field(default=1000, ge=1)
    """Most held-out texts that are stored; the others are not trained on either."""
    augmentation: Augmentation = Augmentation()
    """Augmentation of training texts; none by default."""
    shard_rows: int = Field(default=1024, ge=1)
    """Texts in one shard file; only the last shard holds fewer."""

    @model_validator(mode="after")
    def _check_weights(self) -> Corpus:
        without = [source.title for source in self.sources if source.weight is None]
        if 0 < len(without) < len(self.sources):
            raise ConfigError(
                f"sources {', '.join(without)} have no weight while others have one; "
                "give a weight to every source or to none"
            )
        return self


class Images(Settings):
    """The image–caption pairs of a run: all sources together, split into training and held-out pairs."""

    sources: tuple[PairSource, ...] = Field(min_length=1)
    """Sources of the pairs. If two sources hold the same pair, the earlier one keeps it."""
    holdout: float = Field(default=0.0, ge=0, le=0.5)
    """Share of images, chosen by the hash of their bytes, that are kept for evaluation and never trained on."""
    heldout_limit: int = Field(default=1000, ge=1)
    """Most held-out pairs that are stored; the others are not trained on either."""
    shard_rows: int = Field(default=256, ge=1)
    """Most pairs in one shard file."""
    pixel_limit: int = Field(default=PIXEL_LIMIT, ge=1, le=LARGEST_PIXEL_LIMIT)
    """Pixels (width times height) of the largest image that is used."""
    bad_share: float = Field(default=0.1, ge=0, le=1)
    """Largest share of pairs that may be unusable and rejected; above it nothing is trained."""
    decoders: Pool = Pool(max_size=4)
    """Processes that decode images while a stage trains."""
    pool: TeacherPool = TeacherPool()
    """Copies of the student that make the captions' vectors."""
    dtype: Precision = "auto"
    """Precision in which these copies compute; `auto` takes the one their device is fast in. Vectors are float32."""
    batch_size: int = Field(default=32, gt=0)
    """Captions in one forward pass of such a copy."""
