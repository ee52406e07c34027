"""Estimates of memory, parameters and processors for a recipe, on torch's meta device: no weights are read."""

from __future__ import annotations

from jasper_ray.models.student import Student, meta_student
from jasper_ray.recipe import Recipe, Stage, dump_recipe
from jasper_ray.recipe.checks import check_patterns, students
from jasper_ray.recipe.stage import DATA_KINDS
from jasper_ray.resources import Pool

GIB = 2**30
SPARE_CPUS = 0.5
"""Processors for reading and cutting shards, beside those that teachers and trainers reserve."""
ADAM_BYTES = 8
"""Bytes of the two fp32 moments of a parameter that learns."""


def describe(recipe: Recipe) -> str:
    """Describe a recipe: its resolved form, the parameters and memory of each stage, and the pools beside it."""
    check_patterns(recipe)
    student = meta_student(recipe.student, vision=recipe.student.vision is not None)
    lines = [dump_recipe(recipe), f"student: {parameters(student)}, heads {', '.join(map(str, student.dims))}", ""]
    return "\n".join([*lines, *stage_table(recipe), "", *demand(recipe)])


def parameters(student: Student) -> str:
    total = f"{millions(sum(p.numel() for p in student.parameters()))} parameters"
    if student.vision is None:
        return total
    return f"{total}, {millions(sum(p.numel() for p in student.vision.parameters()))} of them in its vision encoder"


def stage_table(recipe: Recipe) -> list[str]:
    lines = [f"{'stage':<12} {'learns':>10} {'of':>10}  {'memory a worker':>15}  {'workers':<24} batch"]
    shapes = students(recipe)
    for stage in recipe.stages:
        student = shapes[stage.data]
        learning = trained_parameters(student, stage)
        total = sum(p.numel() for p in student.parameters())
        memory = f"{state_bytes(total, learning, stage) / GIB:.1f} GiB + act."
        workers = f"{stage.workers} x {reservation(stage.cpus_per_worker, stage.gpus)}"
        lines.append(
            f"{stage.name:<12} {millions(learning):>10} {millions(total):>10}  {memory:>15}  {workers:<24} "
            f"{stage.batch_size} {stage.data}, ZeRO-{stage.zero}, {stage.precision}"
        )
    return [*lines, "act.: activations come on top; gradient_checkpointing and micro_batch_size bound them"]


def trained_parameters(student: Student, stage: Stage) -> int:
    names = set(student.trainable_names(stage.train))
    return sum(parameter.numel() for name, parameter in student.named_parameters() if name in names)


def state_bytes(total: int, learning: int, stage: Stage) -> int:
    """Estimate the bytes of parameters, gradients and optimiser state in one worker; ZeRO shards from its stage on."""
    width = 2 if stage.precision == "bf16" else 4
    masters = 4 * learning if stage.precision == "bf16" else 0
    zero = max(stage.zero, 1) if stage.precision == "bf16" else stage.zero  # as DeepSpeed does it
    shards = {name: stage.workers if zero >= level else 1 for name, level in (("state", 1), ("grad", 2), ("param", 3))}
    return (
        total * width // shards["param"]
        + learning * 4 // shards["grad"]
        + (learning * ADAM_BYTES + masters) // shards["state"]
    )


def demand(recipe: Recipe) -> list[str]:
    """List the pools of a recipe, and what they and the trainers reserve at the same time."""
    pools = {name: pool for kind in DATA_KINDS.values() for name, pool in kind.pools(recipe).items()}
    cpus, gpus = least_resources(recipe)
    lines = [
        f"{name}: {copies(pool)}, each {reservation(pool.cpus, pool.gpus_per_copy)}" for name, pool in pools.items()
    ]
    return [*lines, f"the cluster needs at least {cpus:g} CPUs and {gpus:g} GPUs"]


def least_resources(recipe: Recipe) -> tuple[float, float]:
    """Sum the CPUs and GPUs that the largest stage, the smallest pools beside it and the reading of shards reserve."""
    cpus, gpus = [], []
    for stage in recipe.stages:
        pools = stage.kind.pools(recipe).values()
        cpus.append(stage.workers * stage.cpus_per_worker + sum(pool.min_size * pool.cpus for pool in pools))
        gpus.append(stage.workers * stage.gpus + sum(pool.min_size * pool.gpus_per_copy for pool in pools))
    return max(cpus) + SPARE_CPUS, max(gpus)


def reservation(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPU" + (f" + {gpus:g} GPU" if gpus else "")


def copies(pool: Pool) -> str:
    least, most = pool.min_size, pool.max_size
    if least == most:
        return "1 copy" if least == 1 else f"{least} copies"
    return f"{least} to {most} copies"


def millions(count: int) -> str:
    return f"{count / 1e6:,.2f}M" if count < 1e9 else f"{count / 1e9:.3f}B"
