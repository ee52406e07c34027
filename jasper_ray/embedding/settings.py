"""Settings of an embedding: the texts, the model, the columns of vectors, and the hardware."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import Field, ValidationError, model_validator

from jasper_ray.config import ConfigError, Settings, first_fault
from jasper_ray.resources import ModelSettings, Pool, Replicas

if TYPE_CHECKING:
    import pyarrow as pa

Format = Literal["parquet", "jsonl", "csv", "text"]
Stored = Literal["float32", "float16", "int8", "binary"]


class VectorColumn(Settings):
    """One column of vectors."""

    dim: int = Field(ge=1)
    """Dimensions of the vector: a head of a student; of another model its size or a prefix of it."""
    dtype: Stored = "float32"
    """Storage type of a dimension; `binary` keeps the sign, eight to a byte."""

    @model_validator(mode="after")
    def _bits_fill_bytes(self) -> VectorColumn:
        if self.dtype == "binary" and self.dim % 8:
            raise ConfigError(f"--dim {self.dim}:binary does not fill whole bytes; choose a multiple of 8")
        return self

    @property
    def name(self) -> str:
        """`vector_256`, `vector_256_int8`, …"""
        return f"vector_{self.dim}" + ("" if self.dtype == "float32" else f"_{self.dtype}")

    @property
    def width(self) -> int:
        """Numbers of a stored vector."""
        return self.dim // 8 if self.dtype == "binary" else self.dim

    @property
    def arrow_type(self) -> pa.DataType:
        """Fixed-size list that stores a vector."""
        import pyarrow as pa  # here and not above: options are parsed without it

        return pa.list_(pa.type_for_alias("int8" if self.dtype == "binary" else self.dtype), self.width)


def vector_column(text: str, dtype: Stored = "float32") -> VectorColumn:
    """Parse `256` or `256:int8`; `dtype` is the default type.

    Raises:
        ConfigError: the text is neither.
    """
    dim, _, own = text.partition(":")
    if not dim.isdigit() or (own and own not in get_args(Stored)):
        raise ConfigError(
            f"--dim {text} is not a size; expected one such as 256 or 256:int8, with {', '.join(get_args(Stored))}"
        )
    values = {"dim": int(dim), "dtype": own or dtype}
    try:
        return VectorColumn.model_validate(values)
    except ValidationError as error:
        raise ConfigError(first_fault(error, values, VectorColumn)) from error


class EmbedSettings(ModelSettings):
    """One embedding of a corpus. Settings that decide the vectors must not change between calls into one folder."""

    inputs: tuple[str, ...] = Field(min_length=1)
    """Files, folders, globs, or URIs that pyarrow can open."""
    format: Format | None = None
    """Format of the files. Default: by their names."""
    text_column: str = "text"
    """Column (parquet, csv) or key (jsonl) that holds the text."""
    id_column: str | None = None
    """Column of ids. Default: `<file>#<row>`, rows counted from 0."""
    carry: tuple[str, ...] = ()
    """Columns to copy beside the vectors."""
    vectors: tuple[VectorColumn, ...] = ()
    """Columns of vectors, all from one pass. Default: the model's default head."""
    dtype: Stored = "float32"
    """Storage type of vectors whose column names none."""
    truncate: bool = True
    """Truncate texts above the longest length, or with --no-truncate reject them."""
    unique: Literal["block", "job"] = "block"
    """Scope of deduplication: one chunk (`block`), or the whole job, in up to `unique_gib` of memory."""
    unique_gib: float = Field(default=2.0, gt=0)
    """Memory, in GiB, for the vectors of texts that a job deduplicates; a full memory keeps no new ones."""
    block_rows: int = Field(default=4096, ge=1)
    """Rows of a chunk: sorted by length together, written as one file, and the most that an actor ever repeats."""
    max_rejected: float = Field(default=0.1, ge=0, le=1)
    """Largest share of rows, or of files, that may be rejected; above it the job stops."""
    pool: Replicas | None = None
    """Replicas of the model. Default: by the cluster."""
    readers: Pool | None = None
    """Processes that read and tokenise. Default: 2; with many CPUs a quarter of them."""

    @model_validator(mode="after")
    def _columns_differ(self) -> EmbedSettings:
        names = [*self.copied, *(column.name for column in self.vectors), *(() if self.id_column else ("id",))]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"the columns {', '.join(twice)} would be written twice; name each once")
        return self

    @property
    def copied(self) -> tuple[str, ...]:
        """Columns of the input that are copied to the output."""
        return (*((self.id_column,) if self.id_column else ()), *self.carry)

    def decisive(self) -> dict[str, Any]:
        """Settings that must stay the same in one output folder."""
        identified = {"model", "revision", "inputs"}  # by weights, and file by file
        free = {"batch_tokens", "max_rejected", "pool", "readers", "unique", "unique_gib"}
        return self.model_dump(mode="json", exclude=identified | free)
