"""The recipe: everything a run is told, in one strict YAML file, checked whole before anything starts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from jasper_ray.config import ConfigError, Settings, first_fault
from jasper_ray.data import Corpus
from jasper_ray.evaluation import EvaluationSet, resolve_paths
from jasper_ray.losses import HeadLosses
from jasper_ray.models.student import StudentSettings
from jasper_ray.teachers import Teacher

SHIPPED = Path(__file__).resolve().parent.parent / "jobs" / "recipes"


class RandomHeads(Settings):
    """Heads start from torch's usual random weights."""

    type: Literal["random"] = "random"


class RidgeHeads(Settings):
    """Heads start from a closed-form ridge fit on the frozen body: where training them alone would end.

    The full head is fitted to the target, every other head to the target's leading principal directions.
    """

    type: Literal["ridge"]
    rows: int = Field(default=4096, ge=8)
    """Labelled training texts the fit sees."""
    regularisation: float = Field(default=0.03, gt=0)
    """Ridge strength, as a share of the mean variance of the pooled state."""


HeadStart = Annotated[RandomHeads | RidgeHeads, Field(discriminator="type")]


class LiveTargets(Settings):
    """Teachers label every pass anew; no vector touches a disk."""

    type: Literal["live"]


class CachedTargets(Settings):
    """The first pass labels and keeps; later passes, stages and runs read."""

    type: Literal["cached"]
    path: str | None = None
    """A folder that several runs may share; `targets` in the run folder when left out. Vectors are kept in float16."""


Targets = Annotated[LiveTargets | CachedTargets, Field(discriminator="type")]


Decay = Annotated[float, Field(ge=0, lt=1)]


class Stage(Settings):
    """One training. The loop knows no stage by name: what differs between stages stands here."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    """Names the stage's folder and its row in the tables."""
    train: tuple[str, ...] = Field(min_length=1)
    """Shell-style patterns of the parameters that learn: `heads.1024.*`, `body.layers.2[567].*`, `*`."""
    losses: dict[int, HeadLosses] = Field(min_length=1)
    """For each head size, the weights of its losses."""
    reduction: Literal["sum", "mean"] = "sum"
    """How the heads' weighted losses become one."""
    scope: Literal["worker", "global"] = "worker"
    """Whose rows the relations of similarity span: one worker's, or all workers' together."""
    learning_rate: float = Field(gt=0)
    """Peak learning rate of AdamW."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's weight decay; biases and norms have none."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """How the learning rate falls to 0 after warm-up; constant keeps it."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps over which the learning rate rises from 0."""
    steps: int | None = Field(default=None, gt=0)
    """Optimiser steps. Give steps or passes."""
    passes: float | None = Field(default=None, gt=0)
    """Passes over the training texts. Give steps or passes."""
    batch_size: int = Field(gt=0)
    """Texts in one optimiser step, over all workers."""
    micro_batch_size: int | None = Field(default=None, gt=0)
    """Texts of one worker in one forward and backward pass; relations span at most these (times workers, when scope
    is global). Left out: batch_size divided by workers, no accumulation."""
    group_rows: int = Field(default=32, gt=0)
    """Texts of similar length that the body sees at once; smaller computes less padding, larger fills a GPU better."""
    workers: int = Field(default=1, gt=0)
    """Training processes."""
    cpus_per_worker: float = Field(default=1, ge=0)
    """Processors reserved for a worker."""
    gpus_per_worker: float = Field(default=0, ge=0)
    """GPUs reserved for a worker; 0 trains on processors."""
    threads: int | None = Field(default=None, ge=1)
    """Threads torch uses in a worker on processors; cpus_per_worker, at least 1, when left out."""
    zero: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage: 1 shards optimiser state over workers, 2 gradients too, 3 parameters too."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the body; losses and the optimiser's copy of the weights are fp32 either way."""
    gradient_clipping: float | None = Field(default=1.0, gt=0)
    """Largest gradient norm of a step."""
    gradient_checkpointing: bool = False
    """Compute the body's activations again in the backward pass instead of keeping them."""
    checkpoint_every: int = Field(default=500, gt=0)
    """Steps between checkpoints; the last step always has one."""
    max_restarts: int = Field(default=3, ge=0)
    """Times a lost worker is replaced before the stage gives up."""

    @model_validator(mode="after")
    def _length_is_given_once(self) -> Stage:
        if (self.steps is None) == (self.passes is None):
            raise ConfigError(f"stage {self.name!r}: give either steps or passes, and not both")
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> Stage:
        unit = self.micro_rows * self.workers
        if self.batch_size % unit:
            raise ConfigError(
                f"stage {self.name!r}: batch_size {self.batch_size} is no multiple of micro_batch_size "
                f"{self.micro_rows} x workers {self.workers} = {unit}; change one of the three"
            )
        compared = self.micro_rows * (self.workers if self.scope == "global" else 1)
        for loss, least in (("relative_similarity", 3), ("similarity", 2)):
            if compared < least and any(getattr(losses, loss) for losses in self.losses.values()):
                raise ConfigError(
                    f"stage {self.name!r}: {loss} compares texts with each other and needs micro batches of at least "
                    f"{least} texts; raise batch_size or micro_batch_size"
                )
        return self

    @property
    def micro_rows(self) -> int:
        """Texts of one worker in one forward pass."""
        return self.micro_batch_size or max(1, self.batch_size // self.workers)

    @property
    def accumulation(self) -> int:
        """Forward passes of a worker in one optimiser step."""
        return self.batch_size // (self.micro_rows * self.workers)

    @property
    def torch_threads(self) -> int:
        return self.threads or max(1, int(self.cpus_per_worker))

    def total_steps(self, batches_in_pass: int) -> int:
        """Optimiser steps over a corpus that gives so many whole batches in a pass."""
        return self.steps or max(1, round((self.passes or 0) * batches_in_pass))


class Evaluation(Settings):
    """What is measured before training and after each stage, on held-out texts and on sets of your own."""

    sets: tuple[EvaluationSet, ...] = ()
    """Sentence pairs with scores, query–document sets, labelled texts."""
    teachers: bool = True
    """Measure each teacher, and the teachers together, on the sets too."""
    ridge: bool = True
    """Also measure the starting student with a closed-form ridge fit of its heads on all training texts."""


class Recipe(Settings):
    """A whole run."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    """Names the run folder."""
    seed: int = 0
    """Decides the shuffle, augmentation, random heads and everything else that is drawn."""
    student: StudentSettings
    heads_start: HeadStart = RandomHeads()
    teachers: tuple[Teacher, ...] = Field(min_length=1)
    corpus: Corpus
    targets: Targets = LiveTargets(type="live")
    stages: tuple[Stage, ...] = Field(min_length=1)
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Recipe:
        check_names(self)
        check_prompts(self)
        check_losses(self)
        check_target_size(self)
        return self


def check_names(recipe: Recipe) -> None:
    """Names that become folders and columns are unique."""
    for place, names in (("stages", [s.name for s in recipe.stages]), ("teachers", [t.name for t in recipe.teachers])):
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ConfigError(f"{place}: the name {repeated[0]!r} appears more than once; give each its own name")


def check_prompts(recipe: Recipe) -> None:
    """Every prompt that a source or teacher names is one the student has."""
    known = set(recipe.student.prompts)
    named = [
        (f"corpus.sources.{i}.prompt", source.prompt) for i, source in enumerate(recipe.corpus.sources) if source.prompt
    ]
    named += [
        (f"teachers.{i}.prompts", prompt) for i, teacher in enumerate(recipe.teachers) for prompt in teacher.prompts
    ]
    for place, prompt in named:
        if prompt not in known:
            raise ConfigError(
                f"{place}: {prompt!r} is not among student.prompts ({', '.join(sorted(known)) or 'none'})"
            )


def check_losses(recipe: Recipe) -> None:
    """Losses name heads that exist, cosine only the full head, and no head stays untrained."""
    heads = recipe.student.heads
    for stage in recipe.stages:
        for dim, losses in stage.losses.items():
            if dim not in heads:
                raise ConfigError(f"stage {stage.name!r}: losses names head {dim}, but student.heads are {list(heads)}")
            if losses.cosine and dim != heads[0]:
                raise ConfigError(
                    f"stage {stage.name!r}: cosine compares coordinates, so only the full head {heads[0]} can have it; "
                    f"remove it from head {dim}"
                )
    trained = {dim for stage in recipe.stages for dim in stage.losses}
    idle = [dim for dim in heads if dim not in trained]
    if idle:
        raise ConfigError(
            f"student.heads: no stage's losses train head {idle[0]}; give it losses in a stage, or remove it"
        )


def check_target_size(recipe: Recipe) -> None:
    """The full head has the target's size, as far as the recipe tells sizes."""
    sizes = [teacher.size for teacher in recipe.teachers]
    known = [size for size in sizes if size is not None]
    if len(known) == len(sizes) and sum(known) != recipe.student.heads[0]:
        raise ConfigError(
            f"student.heads: the full head has size {recipe.student.heads[0]}, but the teachers' vectors together have "
            f"{' + '.join(map(str, known))} = {sum(known)}; change the first head"
        )


class RecipeLoader(yaml.SafeLoader):
    """YAML without its two traps: `1e-4` is a number here, and a key given twice is an error."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """A mapping as it is written, before `<<` mixes the keys of another into it."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if (key.tag, str(key.value)) in seen:
                raise ConfigError(f"line {key.start_mark.line + 1}: the key {key.value!r} is given twice; remove one")
            seen.add((key.tag, str(key.value)))
        return node


RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d+)([eE][-+]?\d+)$|^[-+]?\d[\d_]*\.[\d_]*$|^[-+]?\.\d+$"),
    list("-+0123456789."),
)


def load_recipe(name_or_path: str) -> Recipe:
    """A shipped recipe by name, or any by path. Evaluation sets are found from the recipe's folder.

    Raises:
        ConfigError: one sentence: file, place in it, what was found, what was expected.
    """
    path = recipe_path(name_or_path)
    recipe = parse_recipe(read_yaml(path), str(path))
    sets = resolve_paths(recipe.evaluation.sets, path.parent)
    return recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"sets": sets})})


def with_sets(recipe: Recipe, sets: tuple[EvaluationSet, ...]) -> Recipe:
    """The recipe with more evaluation sets."""
    evaluation = recipe.evaluation.model_copy(update={"sets": (*recipe.evaluation.sets, *sets)})
    return recipe.model_copy(update={"evaluation": evaluation})


def recipe_path(name_or_path: str) -> Path:
    """Where a recipe lies."""
    if name_or_path.endswith((".yaml", ".yml")):
        if not Path(name_or_path).is_file():
            raise ConfigError(f"there is no recipe file {name_or_path!r}; check the path")
        return Path(name_or_path)
    shipped = SHIPPED / f"{name_or_path}.yaml"
    if not shipped.is_file():
        names = ", ".join(shipped_recipes())
        raise ConfigError(
            f"there is no shipped recipe {name_or_path!r}; there are {names}, or give the path of a .yaml file"
        )
    return shipped


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the project."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a recipe file."""
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=RecipeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "somewhere"
        raise ConfigError(f"{path}: bad YAML at {where}: {getattr(error, 'problem', None) or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if not isinstance(value, dict):
        found = "nothing" if value is None else f"a {type(value).__name__}"
        raise ConfigError(
            f"{path}: found {found}, but a recipe is a mapping with the keys {', '.join(Recipe.model_fields)}"
        )
    return value


def parse_recipe(value: dict[str, Any], origin: str) -> Recipe:
    """The recipe in plain values; the first fault is told in one sentence with its place."""
    try:
        return Recipe.model_validate(value)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {first_fault(error, value, Recipe)}") from error


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every default spelled out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
