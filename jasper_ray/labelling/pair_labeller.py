"""Images on their way to a student: captions given their vectors, images decoded, in the order of a stage.

    visits ─▶ shards of pairs ─▶ captions' vectors (the student's own, in a pool) ─▶ blocks ─decode─▶ pixels

Images are decoded last, a micro-batch at a time: what waits in between is files, a tenth of the size of pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ray.data import Dataset

from jasper_ray.corpus.order import Visit
from jasper_ray.corpus.pair_shards import read_pair_shard
from jasper_ray.corpus.shards import Shard
from jasper_ray.images import Preprocessing
from jasper_ray.labelling.labeller import (
    LIGHT_TASK,
    add_teacher,
    pool_strategy,
    read_visits,
    repartition_lightly,
    whole_shards,
)
from jasper_ray.labelling.target_cache import TargetCache
from jasper_ray.labelling.tasks import Decode, ReadShard, arrange
from jasper_ray.resources import Pool
from jasper_ray.teachers import OwnTeacher


@dataclass(frozen=True)
class PairLabeller:
    """Who makes a stage's images and captions what the trainer takes."""

    pairs: Path
    """The folder that shard files are relative to."""
    teacher: OwnTeacher
    """The student as it is when the stage begins."""
    cache: TargetCache | None
    """Where captions' vectors are kept; None makes them anew every time."""
    preprocessing: Preprocessing
    pixel_limit: int
    """Pixels of the largest image among the pairs."""
    decoders: Pool

    def label(self, visits: Sequence[Visit]) -> Dataset:
        """A dataset with a block for each visit: id, caption, prompt, position, image as found, caption's vectors."""
        dataset = read_visits(visits, ReadShard(self.pairs, read_pair_shard))
        return add_teacher(dataset, self.teacher, self.cache, {visit.sha256 for visit in visits})

    def label_shards(self, shards: Sequence[Shard]) -> Dataset:
        """`label` for whole shards, with pixels for images."""
        return self.decoded(self.label(whole_shards(shards)))

    def stream(self, visits: Sequence[Visit], block_rows: int) -> Dataset:
        """`label` in the order of `position`, in blocks of exactly `block_rows`, with pixels for images."""
        arranged = self.label(visits).map_batches(arrange, batch_size=None, **LIGHT_TASK)
        return self.decoded(repartition_lightly(arranged, block_rows))

    def decoded(self, dataset: Dataset) -> Dataset:
        """`dataset` with pixels for images. Made by actors: a task a block would start a process for every block."""
        return dataset.map_batches(
            Decode,
            fn_constructor_args=(self.preprocessing, self.pixel_limit),
            batch_size=None,
            compute=pool_strategy(self.decoders),
            num_cpus=self.decoders.cpus,
        )
