"""Teachers: the models that a student learns from, and the target that their vectors make together."""

from jasper_ray.teachers.encoder import TeacherEncoder, Together, open_teacher
from jasper_ray.teachers.own import OWN, OwnEncoder, OwnTeacher, split_heads
from jasper_ray.teachers.settings import (
    HashTeacher,
    SentenceTransformerTeacher,
    Teacher,
    described,
)
from jasper_ray.teachers.target import check_vectors, cut, fuse

__all__ = [
    "OWN",
    "HashTeacher",
    "OwnEncoder",
    "OwnTeacher",
    "SentenceTransformerTeacher",
    "Teacher",
    "TeacherEncoder",
    "Together",
    "check_vectors",
    "cut",
    "described",
    "fuse",
    "open_teacher",
    "split_heads",
]
