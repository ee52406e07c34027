"""Teachers: the models that a student learns from, and the target that their vectors make together."""

from jasper_ray.teachers.encoder import TeacherEncoder, Together
from jasper_ray.teachers.settings import (
    ActorPool,
    HashTeacher,
    SentenceTransformerTeacher,
    Teacher,
    described,
)
from jasper_ray.teachers.target import check_vectors, cut, fuse

__all__ = [
    "ActorPool",
    "HashTeacher",
    "SentenceTransformerTeacher",
    "Teacher",
    "TeacherEncoder",
    "Together",
    "check_vectors",
    "cut",
    "described",
    "fuse",
]
