"""Teachers: the models that a student learns from, and the target that their vectors make together."""

from jasper_ray.teachers.encoder import OWN, CaptionEncoder, CaptionTeacher, Ensemble, TeacherEncoder, split_heads
from jasper_ray.teachers.settings import (
    TEACHERS,
    HashTeacher,
    SentenceTransformerTeacher,
    Teacher,
    TeacherBase,
    any_teacher,
    described,
)
from jasper_ray.teachers.target import check_vectors, fuse, truncate_dims

__all__ = [
    "OWN",
    "TEACHERS",
    "CaptionEncoder",
    "CaptionTeacher",
    "Ensemble",
    "HashTeacher",
    "SentenceTransformerTeacher",
    "Teacher",
    "TeacherBase",
    "TeacherEncoder",
    "any_teacher",
    "check_vectors",
    "described",
    "fuse",
    "split_heads",
    "truncate_dims",
]
