"""The recipe: every setting of a run, and the checks that its parts fit together."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from jasper_ray.config import ConfigError, Settings
from jasper_ray.corpus.settings import Corpus, Images
from jasper_ray.evaluation import EvaluationSet
from jasper_ray.models.student import StudentSettings
from jasper_ray.recipe.stage import DATA_KINDS, Stage
from jasper_ray.teachers import Teacher
from jasper_ray.vectors import Precision


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
    """Teachers label every pass again; no vector touches a disk."""

    type: Literal["live"]


class CachedTargets(Settings):
    """Teachers label before the first stage; every pass, and later runs, read."""

    type: Literal["cached"]
    path: str | None = None
    """A folder that several runs may share. Default: `targets` in the run folder. Vectors are stored in float16."""


Targets = Annotated[LiveTargets | CachedTargets, Field(discriminator="type")]


class Evaluation(Settings):
    """Measurements before training and after each stage, on held-out texts and on sets of your own."""

    sets: tuple[EvaluationSet, ...] = ()
    """Sentence pairs with scores, query–document sets, labelled texts, images with captions or classes."""
    teachers: bool = True
    """Measure each teacher, and the teachers together, on the sets too."""
    precision: Precision = "auto"
    """Precision in which students are measured, `auto`: the one the device is fast in."""
    ridge: bool = True
    """Also measure the starting student with a closed-form ridge fit of its heads on all training texts, and for a
    student with vision, one from the untrained tower to the captions' vectors."""


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
    images: Images | None = None
    """Image–caption pairs, for stages with `data: images`."""
    targets: Targets = LiveTargets(type="live")
    stages: tuple[Stage, ...] = Field(min_length=1)
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Recipe:
        check_names(self)
        check_prompts(self)
        check_losses(self)
        check_vision(self)
        check_target_size(self)
        return self

    def rows_of(self, data: str) -> Any:
        """Return the settings of the rows of a data kind; None if the recipe has no such rows."""
        return getattr(self, DATA_KINDS[data].settings)


def check_names(recipe: Recipe) -> None:
    """Refuse a repeated name: names become folders and columns."""
    for place, names in (("stages", [s.name for s in recipe.stages]), ("teachers", [t.name for t in recipe.teachers])):
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ConfigError(f"{place}: the name {repeated[0]!r} appears more than once; give each its own name")


def check_prompts(recipe: Recipe) -> None:
    """Refuse a prompt of a source or teacher that the student does not have."""
    known = set(recipe.student.prompts)
    named = [
        (f"{kind.settings}.sources.{i}.prompt", source.prompt)
        for data, kind in DATA_KINDS.items()
        if (rows := recipe.rows_of(data))
        for i, source in enumerate(rows.sources)
        if source.prompt
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
    """Refuse losses of an unknown head, of two sizes where they need equal ones, and a head without losses."""
    heads = recipe.student.heads
    for stage in recipe.stages:
        for dim, losses in stage.losses.items():
            if dim not in heads:
                raise ConfigError(f"stage {stage.name!r}: losses names head {dim}, but student.heads are {list(heads)}")
            coordinates = [name for name, loss in losses.weighed().items() if loss.same_size]
            if coordinates and dim != heads[0] and not stage.kind.own_targets:
                raise ConfigError(
                    f"stage {stage.name!r}: {coordinates[0]} compares coordinates, so only the full head {heads[0]} "
                    f"can have it; remove it from head {dim}"
                )
    trained = {dim for stage in recipe.stages if not stage.kind.own_targets for dim in stage.losses}
    idle = [dim for dim in heads if dim not in trained]
    if idle:
        raise ConfigError(
            f"student.heads: no stage's losses train head {idle[0]}; give it losses in a stage, or remove it"
        )


def check_vision(recipe: Recipe) -> None:
    """Refuse a stage whose rows or vision encoder are missing, and rows or a vision encoder that no stage uses."""
    for data, kind in DATA_KINDS.items():
        needed = {kind.settings: recipe.rows_of(data)}
        needed |= {"student.vision": recipe.student.vision} if kind.needs_vision else {}
        users = [stage.name for stage in recipe.stages if stage.data == data]
        for place, value in needed.items():
            if users and value is None:
                raise ConfigError(f"stage {users[0]!r} has data: {data}, but {place} is missing; describe it")
            if not users and value is not None:
                raise ConfigError(
                    f"{place} is given, but no stage has data: {data} and trains on it; add such a stage, or remove "
                    f"{place}"
                )


def check_target_size(recipe: Recipe) -> None:
    """Refuse a full head of another size than the target, if the recipe gives the sizes of all teachers."""
    sizes = [teacher.size for teacher in recipe.teachers]
    known = [size for size in sizes if size is not None]
    if len(known) == len(sizes) and sum(known) != recipe.student.heads[0]:
        raise ConfigError(
            f"student.heads: the full head has size {recipe.student.heads[0]}, but the teachers' vectors together have "
            f"{' + '.join(map(str, known))} = {sum(known)}; change the first head"
        )
