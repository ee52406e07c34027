"""What the user asks for: which texts, which model, which vectors, and what it may take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import Field, ValidationError, model_validator

from jasper_ray.config import ConfigError, Settings, first_fault
from jasper_ray.resources import ActorPool, Pool
from jasper_ray.vectors import Precision

if TYPE_CHECKING:
    import pyarrow as pa

Format = Literal["parquet", "jsonl", "csv", "text"]
Stored = Literal["float32", "float16", "int8", "binary"]


class VectorColumn(Settings):
    """One column of vectors."""

    dim: int = Field(ge=1)
    """Dimensions of the vector: a head of a student, or of another model its size or a prefix of it."""
    dtype: Stored = "float32"
    """How a dimension is stored; `binary` keeps its sign, eight to a byte."""

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
        """The fixed-size list it is stored as."""
        import pyarrow as pa  # here and not above: options are parsed without it

        return pa.list_(pa.type_for_alias("int8" if self.dtype == "binary" else self.dtype), self.width)


def vector_column(written: str, dtype: Stored = "float32") -> VectorColumn:
    """`256` or `256:int8`, with `dtype` where none is written; raises `ConfigError` for anything else."""
    dim, _, own = written.partition(":")
    if not dim.isdigit() or (own and own not in get_args(Stored)):
        raise ConfigError(
            f"--dim {written} is not a size; expected one such as 256 or 256:int8, with {', '.join(get_args(Stored))}"
        )
    values = {"dim": int(dim), "dtype": own or dtype}
    try:
        return VectorColumn.model_validate(values)
    except ValidationError as error:
        raise ConfigError(first_fault(error, values, VectorColumn)) from error


class EmbedSettings(Settings):
    """One embedding of a corpus. What decides the vectors is kept beside them, and must not change between calls."""

    model: str
    """A student folder, any sentence-transformers folder or hub id, or an asset."""
    revision: str | None = None
    """Commit of a hub id; the newest when left out, and the same ever after in one output folder."""
    inputs: tuple[str, ...] = Field(min_length=1)
    """Files, folders, globs, or URIs that pyarrow can open."""
    format: Format | None = None
    """How the files are written; told by their names when left out."""
    text_column: str = "text"
    """The column (parquet, csv) or key (jsonl) that holds the text."""
    id_column: str | None = None
    """The column of ids; `<file>#<row>`, rows counted from 0, when left out."""
    carry: tuple[str, ...] = ()
    """Columns that are copied beside the vectors."""
    prompt: str | None = None
    """Name of the model's prompt that is put before every text; the model's default, mostly none, when left out."""
    vectors: tuple[VectorColumn, ...] = ()
    """Columns of vectors, all from one pass; the model's default head when empty."""
    dtype: Stored = "float32"
    """How vectors are stored when `vectors` is empty."""
    precision: Precision = "auto"
    """What the model computes in; `auto`: bfloat16 where the device is fast in it and a sample agrees with float32."""
    max_length: int | None = Field(default=None, ge=1)
    """Tokens a text is cut to; the model's own limit when left out."""
    truncate: bool = True
    """Off: a text above the greatest length is set aside instead of being cut."""
    unique: Literal["block", "job"] = "block"
    """Within what identical texts are embedded once. `job` remembers every text of a call, as far as memory goes."""
    unique_gib: float = Field(default=2.0, gt=0)
    """Memory for vectors that a job remembers; then new ones are not remembered."""
    block_rows: int = Field(default=4096, ge=1)
    """Rows of a block: sorted by length together, written as one file, and the most that an actor ever repeats."""
    batch_tokens: int | None = Field(default=None, ge=1)
    """Tokens that go through the model at once, padding included; 1,024 on processors and 65,536 on a GPU."""
    max_rejected: float = Field(default=0.1, ge=0, le=1)
    """The job stops when a larger share of its rows, or of its files, cannot be embedded."""
    pool: ActorPool | None = None
    """How many copies of the model run, and what each takes; what the cluster has when left out."""
    readers: Pool | None = None
    """How many processes read and tokenise; by what the cluster has when left out."""

    @model_validator(mode="after")
    def _columns_differ(self) -> EmbedSettings:
        names = [*self.copied, *(column.name for column in self.vectors), *(() if self.id_column else ("id",))]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"the columns {', '.join(twice)} would be written twice; name each once")
        return self

    @property
    def copied(self) -> tuple[str, ...]:
        """Columns of the input that stand in the output too."""
        return (*((self.id_column,) if self.id_column else ()), *self.carry)

    def decisive(self) -> dict[str, Any]:
        """What must stay the same in one output folder."""
        free = {
            "model",
            "revision",
            "inputs",
            "batch_tokens",
            "max_rejected",
            "pool",
            "readers",
            "unique",
            "unique_gib",
        }
        return self.model_dump(mode="json", exclude=free)
