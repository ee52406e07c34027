"""What a recipe would take, counted on torch's meta device: nothing is started, and no weights are read."""

from __future__ import annotations

from jasper_ray.models.student import Student, meta_student
from jasper_ray.recipe import Recipe, Stage, dump_recipe
from jasper_ray.recipe.checks import check_patterns, students
from jasper_ray.resources import Pool

GIB = 2**30
SPARE_CPUS = 0.5
"""For reading and cutting shards, beside what teachers and trainers reserve."""
ADAM_BYTES = 8
"""Two fp32 moments a parameter that learns."""


def describe(recipe: Recipe) -> str:
    """The resolved recipe, then for each stage what learns and what a GPU holds, then what runs beside it."""
    check_patterns(recipe)
    student = meta_student(recipe.student, sees=recipe.student.vision is not None)
    lines = [dump_recipe(recipe), f"student: {parameters(student)}, heads {', '.join(map(str, student.dims))}", ""]
    lines += stage_table(recipe)
    lines += ["", *demand(recipe)]
    return "\n".join(lines)


def parameters(student: Student) -> str:
    """How many numbers a student is made of."""
    total = sum(p.numel() for p in student.parameters())
    if student.vision is None:
        return f"{millions(total)} parameters"
    vision = sum(p.numel() for p in student.vision.parameters())
    return f"{millions(total)} parameters, {millions(vision)} of them its vision encoder"


def stage_table(recipe: Recipe) -> list[str]:
    """One line a stage."""
    lines = [f"{'stage':<12} {'learns':>10} {'of':>10}  {'memory a worker':>15}  {'workers':<24} batch"]
    shapes = students(recipe)
    for stage in recipe.stages:
        student = shapes[stage.data]
        learning = trained_parameters(student, stage)
        total = sum(p.numel() for p in student.parameters())
        memory = f"{state_bytes(total, learning, stage) / GIB:.1f} GiB + act."
        lines.append(
            f"{stage.name:<12} {millions(learning):>10} {millions(total):>10}  {memory:>15}  {workers(stage):<24} "
            f"{stage.batch_size} {stage.data}, ZeRO-{stage.zero}, {stage.precision}"
        )
    return [*lines, "act.: activations, which gradient_checkpointing and micro_batch_size bound, come on top"]


def trained_parameters(student: Student, stage: Stage) -> int:
    """How many numbers learn in a stage."""
    names = set(student.trainable_names(stage.train))
    return sum(parameter.numel() for name, parameter in student.named_parameters() if name in names)


def state_bytes(total: int, learning: int, stage: Stage) -> int:
    """Bytes of parameters, gradients and optimiser state that one worker holds; ZeRO shards from its stage on."""
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
    """What teachers and trainers reserve at the same time."""
    lines = [pool_line(f"teacher {teacher.name}", teacher.pool) for teacher in recipe.teachers]
    if recipe.images:
        lines += [pool_line("captions", recipe.images.pool), pool_line("decoders", recipe.images.decoders)]
    cpus, gpus = least_resources(recipe)
    return [*lines, f"least the cluster must have: {cpus:g} CPUs and {gpus:g} GPUs"]


def least_resources(recipe: Recipe) -> tuple[float, float]:
    """CPUs and GPUs that the largest stage and the smallest pools beside it reserve together, with what reads and cuts
    shards."""
    stages = [stage_resources(recipe, stage) for stage in recipe.stages]
    return max(cpus for cpus, _ in stages) + SPARE_CPUS, max(gpus for _, gpus in stages)


def stage_resources(recipe: Recipe, stage: Stage) -> tuple[float, float]:
    """CPUs and GPUs that a stage's workers and the pools that feed them reserve at least."""
    images = recipe.images if stage.data == "images" else None
    pools: list[Pool] = [teacher.pool for teacher in recipe.teachers]
    if images:
        pools = [images.pool, images.decoders]
    cpus = stage.workers * stage.cpus_per_worker + sum(pool.min_size * pool.cpus for pool in pools)
    gpus = stage.workers * stage.gpus + sum(pool.min_size * pool.gpus_per_copy for pool in pools)
    return cpus, gpus


def pool_line(name: str, pool: Pool) -> str:
    return f"{name}: {copies(pool.min_size, pool.max_size)}, each {reserve(pool.cpus, pool.gpus_per_copy)}"


def workers(stage: Stage) -> str:
    return f"{stage.workers} x {reserve(stage.cpus_per_worker, stage.gpus)}"


def reserve(cpus: float, gpus: float) -> str:
    return f"{cpus:g} CPU" + (f" + {gpus:g} GPU" if gpus else "")


def copies(least: int, most: int) -> str:
    return f"{least} copies" if least == most else f"{least} to {most} copies"


def millions(count: int) -> str:
    return f"{count / 1e6:,.2f}M" if count < 1e9 else f"{count / 1e9:.3f}B"
