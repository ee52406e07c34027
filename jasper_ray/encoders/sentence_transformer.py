"""Any sentence-transformers model as an encoder, such as most teachers.

All names of that library that are not in its manual are used in this file.
"""

# Shape legend: N texts, B rows of a batch, D size of the vectors.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError

from jasper_ray.assets import locate
from jasper_ray.config import ConfigError, first_line
from jasper_ray.encoders.base import Encoder, as_list, known_dim, prompt_text
from jasper_ray.models.tokens import Ids, Tokenizing
from jasper_ray.vectors import Dtype, normalise

if TYPE_CHECKING:  # importing it takes seconds; reading settings does not need it
    from sentence_transformers import SentenceTransformer


NO_LIMIT = 1 << 20
"""Longest text, in tokens, of a model without a limit."""


class SentenceTransformerEncoder(Encoder):
    """A sentence-transformers model; its vectors are normalised here, whether or not the model does so."""

    def __init__(
        self, model: SentenceTransformer, prompts: Mapping[str, str] | None = None, batch_size: int = 32
    ) -> None:
        self.model = model
        self.prompts = dict(model.prompts) if prompts is None else prompts
        self.batch_size = batch_size
        self.prompt_lengths: dict[str, int] = {}
        """Tokens of the prompts met so far."""

    @property
    def dims(self) -> tuple[int, ...]:
        dim = self.model.get_embedding_dimension()
        assert dim is not None
        return (dim,)

    @property
    def default_prompt(self) -> str | None:
        return self.model.default_prompt_name

    @property
    def pools_prompts(self) -> bool:
        return all(getattr(module, "include_prompt", True) for module in self.model)

    @property
    def allows_prefixes(self) -> bool:
        return takes_tokens(self.model)

    def encode(self, texts: Sequence[str], prompt_name: str | None = None, dim: int | None = None) -> np.ndarray:
        size = known_dim(self.dims, dim)
        if not len(texts):
            return np.empty((0, size), np.float32)
        vectors_ND = self.model.encode(
            as_list(texts),
            prompt=prompt_text(self.prompts, prompt_name),  # apart from the text: some models do not pool over it
            batch_size=self.batch_size,
            show_progress_bar=False,
            convert_to_numpy=True,
        )
        return normalise(vectors_ND)

    def tokenizing(self, prompt_name: str | None = None) -> Tokenizing | None:
        prompt = prompt_text(self.prompts, prompt_name)
        if not takes_tokens(self.model):
            return None
        return Tokenizing(self.model.tokenizer, self.model.max_seq_length or NO_LIMIT, prompt)

    @torch.inference_mode()
    def encode_tokens(self, ids: Ids, dims: Sequence[int], prompt_name: str | None = None) -> dict[int, np.ndarray]:
        """See `Encoder.encode_tokens`. A size below the model's is a prefix, for models trained to allow it."""
        ids_BT, mask_BT = Tokenizing(self.model.tokenizer, NO_LIMIT).padded(ids)
        tensors = {"input_ids": torch.from_numpy(ids_BT), "attention_mask": torch.from_numpy(mask_BT)}
        if "token_type_ids" in self.model.tokenizer.model_input_names:
            tensors["token_type_ids"] = torch.zeros_like(tensors["input_ids"])
        features: dict[str, Any] = {name: tensor.to(self.model.device) for name, tensor in tensors.items()}
        features["modality"] = "text"
        if prompt := prompt_text(self.prompts, prompt_name):
            if prompt not in self.prompt_lengths:
                self.prompt_lengths[prompt] = self.model.preprocess(["text"], prompt=prompt)["prompt_length"]
            features["prompt_length"] = self.prompt_lengths[prompt]
        vectors_BD = self.model(features)["sentence_embedding"].float().cpu().numpy()
        return {dim: normalise(vectors_BD[:, :dim]) for dim in dims}


def load_sentence_transformer(
    name: str,
    revision: str | None = None,
    *,
    device: str | None = None,
    dtype: Dtype = "float32",
    max_length: int | None = None,
    batch_size: int = 32,
    prompts: Mapping[str, str] | None = None,
    trust_remote_code: bool = False,
    head: int | None = None,
) -> SentenceTransformerEncoder:
    """Load a model from a hub id, a local folder or a shipped asset.

    The transformer's weights are read from safetensors alone; a dense layer without any is read by torch's
    `weights_only`, which runs no code. `max_length` (tokens) and `prompts` replace the model's own. `head` selects the
    dense layer in the folder `2_Dense_<head>` instead of the one that the model names.

    Raises:
        ConfigError: nothing loads from there.
    """
    from sentence_transformers import SentenceTransformer

    location = locate(name, revision)
    try:
        model = SentenceTransformer(
            location,
            revision=revision,
            device=device,
            trust_remote_code=trust_remote_code,
            model_kwargs={"dtype": getattr(torch, dtype), "use_safetensors": True},
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConfigError(
            f"no sentence-transformers model could be loaded from {name!r}: {first_line(error)}"
        ) from error
    if head is not None:
        choose_head(model, head, location, revision)
    if max_length is not None:
        model.max_seq_length = max_length
    return SentenceTransformerEncoder(model, prompts, batch_size)


def takes_tokens(model: SentenceTransformer) -> bool:
    """Recognise a model whose first module is a transformer that reads the ids of its fast tokenizer unchanged.

    Others (bags of words, static embeddings, chat templates) tokenise in their own ways.
    """
    from sentence_transformers.sentence_transformer.modules import Transformer
    from transformers import PreTrainedTokenizerFast

    first = model[0]
    return (
        type(first) is Transformer
        and isinstance(getattr(first, "processor", None), PreTrainedTokenizerFast)
        and first.transformer_task == "feature-extraction"
        and first.modality_config.get("text", {}).get("method") == "forward"
        and "message" not in first.modality_config
        and not first.processing_kwargs
        and not first.can_flatten_inputs
    )


def choose_head(model: SentenceTransformer, head: int, location: str, revision: str | None) -> None:
    """Replace the model's last dense layer by that of `2_Dense_<head>`."""
    # a missing folder is read as an empty configuration, hence the TypeError below
    places = [place for place, module in enumerate(model) if type(module).__name__ == "Dense"]
    folder = f"2_Dense_{head}"
    try:
        dense = type(model[places[-1]]).load(location, subfolder=folder, revision=revision)
    except (IndexError, OSError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConfigError(
            f"{location!r} has no dense layer {folder} ({first_line(error)}); fix or remove head"
        ) from error
    model[places[-1]] = dense.to(model.device, model.dtype)
