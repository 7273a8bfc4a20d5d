"""What other versions of transformers read in an exported folder, and the installed one may not write."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_WHOLE = "text_model."
_BESIDE = "text_projection."
"""The one part of a CLIP text encoder that is outside its "text_model"."""
_SENTENCES = "spiece.model"
"""T5's words as its slow tokenizer reads them, which nothing but the folder that they came from has."""


def read_words(folder: Path, tokenizers: list[str]) -> dict[str, bytes]:
    """The files of words that no tokenizer can write again, by their path in the folder."""
    paths = [f"{part}/{_SENTENCES}" for part in tokenizers]
    return {path: (folder / path).read_bytes() for path in paths if (folder / path).is_file()}


def save_compatibly(
    pipeline: Any, folder: Path, *, parts: Mapping[str, Any], classes: Mapping[str, str], files: Mapping[str, bytes]
) -> None:
    """Writes a pipeline as a folder that other versions of diffusers and transformers read, too.

    `classes` are those that the family says its parts have; `files` are written where the libraries leave them out.
    """
    from safetensors import SafetensorError

    try:
        pipeline.save_pretrained(folder, safe_serialization=True)
        for part, module in parts.items():
            if part.startswith("tokenizer"):
                _complete_words(module, folder / part)
            elif classes.get(part, "").startswith("CLIPTextModel"):
                _publish_names(folder / part)
    except SafetensorError as error:  # which is how safetensors reports a full disk
        raise OSError(str(error)) from error
    _name_fast(folder)
    for path, content in files.items():
        if not (folder / path).exists():
            (folder / path).write_bytes(content)


def _complete_words(tokenizer: Any, folder: Path) -> None:
    """Writes vocab.json and merges.txt where the tokenizer's class has them and `save_pretrained` left them out.

    transformers 5 writes tokenizer.json alone, from which the slow tokenizer of 4.x takes only what was added. It has
    another word for a list of special tokens, too, which is a dictionary to 4.x; 5 knows both words.
    """
    if "merges_file" in tokenizer.vocab_files_names and not (folder / "merges.txt").exists():
        tokenizer.backend_tokenizer.model.save(str(folder))
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
        _write(path, settings)


def _name_fast(folder: Path) -> None:
    """Names T5's tokenizers in model_index.json after what is written of them, tokenizer.json.

    In transformers 5 the fast and the slow one are one class of the slow one's name; 4.x would look for sentencepiece.
    """
    path = folder / "model_index.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    for part, entry in index.items():
        if entry == ["transformers", "T5Tokenizer"] and (folder / part / "tokenizer.json").exists():
            entry[1] = "T5TokenizerFast"
    _write(path, index)


def _publish_names(encoder: Path) -> None:
    """Gives the weights of a CLIP text encoder the names that all versions know, "text_model.…".

    transformers 5 keeps the names that it has read, and reads them without the prefix, too; 4.x would then fill the
    encoder with random numbers and only warn.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    for file in encoder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            names = list(tensors.keys())
            if all(name.startswith((_WHOLE, _BESIDE)) for name in names):
                continue
            named = {
                name if name.startswith((_WHOLE, _BESIDE)) else f"{_WHOLE}{name}": tensors.get_tensor(name)
                for name in names
            }
            metadata = tensors.metadata()
        whole = file.with_suffix(".part")
        save_file(named, whole, metadata=metadata)
        whole.replace(file)


def _write(path: Path, settings: dict[str, Any]) -> None:
    """As the libraries write them."""
    path.write_text(json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
