"""Verbs on files: convert, push."""

from pathlib import Path

from immunity.checks import unused
from immunity.cli.options import ModelOptions, OutputOptions
from immunity.errors import ImmunityError
from immunity.filenames import ADAPTER_KEY, LORA_FILE
from immunity.files import Adapter, read
from immunity.files.hub import push as push_folder
from immunity.files.lora import Layout, write_lora
from immunity.files.tensors import read_metadata


def convert(lora: Path, /, model: ModelOptions, output: OutputOptions, *, to: Layout) -> None:
    """Write a LoRA in the layout of another program: diffusers, or kohya's trainer.

    For example: immunity convert attack/pytorch_lora_weights.safetensors --model emoji --to kohya --out k.safetensors

    Args:
        lora: A LoRA or DoRA in any layout: a file, or the folder of an adapter.
        model: A model that it fits; without deltas, which change no layer's shape.
        output: The result.
        to: The layout.
    """
    output.check_file(".safetensors", inputs=(lora, *model.inputs))
    unused(model, "deltas", without="a layout has the names of the model's layers and none of its weights")
    # A folder that adapt wrote has a delta too, and that is what it would be read as.
    inside = lora / LORA_FILE
    source = inside if inside.is_file() else lora
    adapter = read(source)
    if not isinstance(adapter, Adapter):
        raise ImmunityError(
            expected="a LoRA, which both layouts have a place for", got=f"{lora}, which is none", remedy="a LoRA's file"
        )
    loaded = model.load()
    notes = read_metadata(source) if source.is_file() else None
    header = {key: value for key, value in (notes or {}).items() if key == ADAPTER_KEY}
    write_lora(adapter, loaded, output.out, layout=to, header=header, force=output.force)
    print(output.out)


def push(folder: Path, name: str, /, *, private: bool = False, force: bool = False) -> None:
    """Upload an exported model, or the folder of an attack, to the hub. Nothing else ever uploads anything.

    Args:
        folder: What export or adapt wrote.
        name: owner/name, which is made if it does not exist.
        private: Make it for your own eyes.
        force: Replace files of the same names in a repository that has files.
    """
    print(push_folder(folder, name, private=private, force=force))
