"""What other programs call the layers of a model.

diffusers says `unet.down_blocks.1.attentions.0.….to_k`. kohya's trainer writes `lora_unet_` and underscores for dots.
There for SDXL, and elsewhere always, the U-Net's layers go by the numbers of the first implementation
(`input_blocks.4.1.….to_k`). FLUX.1's own code keeps query, key and value in one layer.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from immunity.deltas import Patchable
from immunity.errors import ImmunityError

_KOHYA_ENCODERS = {"text_encoder": ("te", "te1"), "text_encoder_2": ("te2",), "text_encoder_3": ("te3",)}
_KOHYA_T5 = "te3"
"""What kohya's trainer calls T5 in every family. In FLUX it is the second encoder, and "te2" to others."""
_T5_LAYERS = "encoder.block."
"""CLIP's are in "encoder.layers."."""
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_FLUX = {
    "double_blocks.{}.img_attn.qkv": [f"transformer_blocks.{{}}.attn.to_{one}" for one in "qkv"],
    "double_blocks.{}.txt_attn.qkv": [f"transformer_blocks.{{}}.attn.add_{one}_proj" for one in "qkv"],
    "double_blocks.{}.img_attn.proj": ["transformer_blocks.{}.attn.to_out.0"],
    "double_blocks.{}.txt_attn.proj": ["transformer_blocks.{}.attn.to_add_out"],
    "double_blocks.{}.img_mlp.0": ["transformer_blocks.{}.ff.net.0.proj"],
    "double_blocks.{}.img_mlp.2": ["transformer_blocks.{}.ff.net.2"],
    "double_blocks.{}.txt_mlp.0": ["transformer_blocks.{}.ff_context.net.0.proj"],
    "double_blocks.{}.txt_mlp.2": ["transformer_blocks.{}.ff_context.net.2"],
    "double_blocks.{}.img_mod.lin": ["transformer_blocks.{}.norm1.linear"],
    "double_blocks.{}.txt_mod.lin": ["transformer_blocks.{}.norm1_context.linear"],
    "single_blocks.{}.linear1": [
        *(f"single_transformer_blocks.{{}}.attn.to_{one}" for one in "qkv"),
        "single_transformer_blocks.{}.proj_mlp",
    ],
    "single_blocks.{}.linear2": ["single_transformer_blocks.{}.proj_out"],
    "single_blocks.{}.modulation.lin": ["single_transformer_blocks.{}.norm.linear"],
}
_FLUX_OUTSIDE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    **{
        f"{original}.{end}_layer": f"time_text_embed.{ours}.linear_{number}"
        for original, ours in (
            ("time_in", "timestep_embedder"),
            ("vector_in", "text_embedder"),
            ("guidance_in", "guidance_embedder"),
        )
        for number, end in ((1, "in"), (2, "out"))
    },
    "final_layer.linear": "proj_out",
}
_FLUX_SWAPPED = "final_layer_adaLN"
"""FLUX.1's own code has the two halves of this layer's outputs the other way round."""
_IN_A_ROW = re.compile(
    r"(attentions[._]\d+|(input|output)_blocks[._]\d+[._]1|middle_block[._]1)[._]transformer_blocks[._][1-9]"
)
"""Up to ten transformers in a row are only in SDXL: SD 1.x and 2.x have one a block."""


class Layer(NamedTuple):
    """A layer of a model as a file names it: one, or several whose outputs the file has one after the other."""

    parts: tuple[str, ...]
    """The model's own names, e.g. "unet.mid_block.….to_k"."""

    def parameters(self, model: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
        """Its weights ("weight") or biases ("bias")."""
        return {name: model[name] for part in self.parts if (name := f"{part}.{kind}") in model}


@dataclass(frozen=True)
class Layers:
    """A model's layers by all names that are known for them."""

    model: str
    _known: Mapping[str, Layer]
    _kohya: Mapping[str, str]

    @classmethod
    def of(cls, model: Patchable) -> "Layers":
        paths = dict.fromkeys(name.rsplit(".", 1)[0] for name in model.parameters("all"))
        named: dict[str, set[tuple[str, ...]]] = defaultdict(set)
        kohya = {}
        by_component: dict[str, list[str]] = defaultdict(list)
        for path in paths:
            component, inner = path.split(".", 1)
            by_component[component].append(inner)
            for alias in _aliases(component, inner):
                named[alias].add((path,))
            kohya[path] = f"lora_{_kohya_prefixes(component, inner)[-1]}_{_underscored(_whole(component, inner))}"
        for component, inner_paths in by_component.items():
            originals = _unet_numbers(inner_paths) if component == "unet" else _flux_layers(inner_paths)
            for original, parts in originals.items():
                whole = tuple(f"{component}.{part}" for part in parts)
                for alias in (
                    f"model.diffusion_model.{original}",
                    f"diffusion_model.{original}",
                    f"{component}.{original}",
                    original,
                    f"lora_unet_{_underscored(original)}",
                ):
                    named[alias].add(whole)
                # SDXL is the one U-Net that kohya's trainer knows by the numbers.
                if component == "unet" and "add_embedding.linear_1" in inner_paths:
                    kohya[whole[0]] = f"lora_unet_{_underscored(original)}"
        if "text_encoder_2" not in by_component:
            kohya = {path: name.replace("lora_te1_", "lora_te_") for path, name in kohya.items()}
        # A name that two layers could mean is no name.
        known = {alias: Layer(next(iter(layers))) for alias, layers in named.items() if len(layers) == 1}
        return cls(model.name, known, kohya)

    def find(self, name: str) -> Layer | None:
        return self._known.get(plain(name))

    def diffusers(self, path: str) -> str:
        """What diffusers calls one of the model's layers in files."""
        component, inner = path.split(".", 1)
        return f"{component}.{_whole(component, inner)}"

    def kohya(self, path: str) -> str:
        """What kohya's trainer calls one of the model's layers."""
        if not path.startswith(("unet.", "text_encoder")):
            raise ImmunityError(
                expected="a U-Net (Stable Diffusion 1.x, 2.x, XL), as kohya's trainer has other layers in other models",
                got=f"{path} of {self.model}",
                remedy="the layout of diffusers",
            )
        return self._kohya[path]

    def require(self, names: Iterable[str], what: str) -> dict[str, Layer]:
        """The layers of these names. Raises `ImmunityError` if the model lacks one of them."""
        found = {name: self.find(name) for name in names}
        missing = [name for name, layer in found.items() if layer is None]
        if fused := next((name for name in missing if "joint_blocks" in name), None):
            raise ImmunityError(
                expected=f"{what} in the layout of diffusers, if it is for Stable Diffusion 3",
                got=f"names of fused layers (joint_blocks), which are not read, e.g. {fused}",
                remedy="converting it",
            )
        if swapped := next((name for name in missing if _FLUX_SWAPPED in _underscored(name)), None):
            raise ImmunityError(
                expected=f"{what} in the layout of diffusers, if it changes the last norm of FLUX.1",
                got=f"{swapped}, whose outputs diffusers has in another order, which is not read",
                remedy="converting it",
            )
        if missing:
            family, own = family_of(found), family_of(self._kohya)
            raise ImmunityError(
                expected=f"{what} for the layers of {self.model}",
                got=f"{len(missing)} of {len(found)} that it does not have, e.g. {missing[0]}"
                + (f": it seems to be for {family}" if family not in (None, own) else ""),
                remedy="the kind of model that it was made for",
            )
        return {name: layer for name, layer in found.items() if layer is not None}


def plain(name: str) -> str:
    """A name without what wrappers (peft, accelerate, old attention processors) have put before and into it."""
    for wrapper in ("base_model.model.", "module."):
        name = name.removeprefix(wrapper)
    return name.replace(".processor.", ".").removesuffix(".processor")


def component_of(name: str) -> str:
    """The part of a model that a layer's name points to, as far as the name alone tells."""
    name = plain(name)
    if found := re.match(r"(?:lora_)?(te[123]?|text_encoder(?:_[23])?|text_model|text_projection)[_.]", name):
        number = re.search(r"[23]$", found[1])
        return f"text_encoder_{number[0]}" if number else "text_encoder"
    if re.search(
        r"transformer_blocks[._]\d+[._]attn[._]|double_blocks|single_|joint_blocks|^transformer(\.|_blocks\.)"
        r"|(img|txt|time|vector|guidance)_in([._]|$)|final_layer[._]",
        name,
    ):
        return "transformer"
    if re.match(r"(cond_stage_model|conditioner)\.", name):
        return "text_encoder"
    return "vae" if name.startswith(("first_stage_model.", "vae.")) else "unet"


def kind_of(name: str) -> str:
    """What sort of layer a name is of."""
    kinds = {
        "cross-attention": r"attn2|add_[qkv]_proj|to_add_out|txt_attn",
        "self-attention": r"attn1|self_attn|img_attn|attn[._]to_",
        "feed-forward": r"[._]ff[._]|mlp|ff_net|proj_mlp|linear[12]$",
        "convolution": r"conv|in_layers|out_layers|skip_connection|samplers|[._]op$",
        "projection": r"proj_in|proj_out",
    }
    return next((kind for kind, pattern in kinds.items() if re.search(pattern, name)), "other")


def summary(names: Iterable[str]) -> dict[str, object]:
    """How many layers of what, for who asks what a file changes."""
    names = list(names)
    components, kinds = Counter(map(component_of, names)), Counter(map(kind_of, names))
    return {
        "changes": ", ".join(f"{count} layers of {part}" for part, count in sorted(components.items())),
        "layers": ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())),
    }


def family_of(names: Iterable[str]) -> str | None:
    """The models that layers of these names are found in, where that can be told."""
    names = list(names)
    joined = " ".join(names)
    if re.search(r"double_blocks|single_(transformer_)?blocks", joined):
        return "FLUX.1"
    if "joint_blocks" in joined or ("transformer_blocks" in joined and "add_k_proj" in joined):
        return "Stable Diffusion 3"
    if re.search(r"te2_|text_encoder_2|label_emb|add_embedding", joined) or _IN_A_ROW.search(joined):
        return "Stable Diffusion XL"
    if re.search(r"(down|input|up|output|mid|middle)_block", joined):
        return "Stable Diffusion 1.x or 2.x"
    if found := re.search(r"transformer_blocks[._]\d+[._]attn([12]?)[._]", joined):
        return "PixArt" if found[1] else "Stable Diffusion 3 or FLUX.1"
    return None


def _aliases(component: str, inner: str) -> Iterator[str]:
    spellings = {inner}
    if component.startswith("text_encoder"):
        # Some versions of transformers have the encoder inside a "text_model", others do not.
        spellings |= {f"text_model.{inner}", inner.removeprefix("text_model.")}
        for ours, theirs in (("q_proj", "to_q"), ("k_proj", "to_k"), ("v_proj", "to_v"), ("out_proj", "to_out")):
            spellings |= {f"{one.removesuffix(ours)}{theirs}" for one in tuple(spellings) if one.endswith(f".{ours}")}
    elif inner.endswith(".to_out.0"):
        spellings.add(inner.removesuffix(".0"))
    for spelling in spellings:
        yield spelling
        yield f"{component}.{spelling}"
        yield f"lycoris_{_underscored(spelling)}"
        for prefix in _kohya_prefixes(component, inner):
            yield f"lora_{prefix}_{_underscored(spelling)}"


def _whole(component: str, inner: str) -> str:
    """With the "text_model" that other programs expect of CLIP."""
    if not component.startswith("text_encoder") or inner.startswith(("text_model.", "text_projection", _T5_LAYERS)):
        return inner
    return f"text_model.{inner}"


def _kohya_prefixes(component: str, inner: str) -> tuple[str, ...]:
    """The last is what kohya's trainer writes."""
    prefixes = _KOHYA_ENCODERS.get(component, ("transformer", "unet"))
    return (*prefixes, _KOHYA_T5) if component == "text_encoder_2" and inner.startswith(_T5_LAYERS) else prefixes


def _underscored(name: str) -> str:
    return name.replace(".", "_")


def _unet_numbers(paths: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The layers of a U-Net by the names of the first implementation (Rombach et al., 2022), which counts blocks."""
    paths = list(paths)
    in_level = len({path.split(".")[3] for path in paths if path.startswith("down_blocks.0.resnets.")})
    found: dict[str, tuple[str, ...]] = {}
    for path in paths:
        original = _OUTSIDE.get(path) or _unet_number(path, in_level, paths)
        if original is not None:
            found[original] = (path,)
    return found


def _unet_number(path: str, in_level: int, paths: list[str]) -> str | None:
    matched = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", path)
    if matched:
        side, level, what, number, rest = matched[1], int(matched[2]), matched[3], int(matched[4]), matched[5]
        if side == "down":
            first = 1 + level * (in_level + 1)
            if what == "downsamplers":
                return f"input_blocks.{first + in_level}.0.op"
            block = f"input_blocks.{first + number}"
        else:
            first = level * (in_level + 1)
            if what == "upsamplers":
                attends = any(other.startswith(f"up_blocks.{level}.attentions.") for other in paths)
                return f"output_blocks.{first + in_level}.{2 if attends else 1}.conv"
            block = f"output_blocks.{first + number}"
        return f"{block}.0.{_resnet(rest)}" if what == "resnets" else f"{block}.1.{rest}"
    if middle := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", path):
        what, number, rest = middle[1], int(middle[2]), middle[3]
        return (
            f"middle_block.{2 * number}.{_resnet(rest)}"
            if what == "resnets"
            else f"middle_block.{1 + 2 * number}.{rest}"
        )
    return None


def _resnet(name: str) -> str:
    return _RESNET.get(name, name)


def _flux_layers(paths: Iterable[str]) -> dict[str, tuple[str, ...]]:
    paths = set(paths)
    if not any(path.startswith("single_transformer_blocks.") for path in paths):
        return {}
    found = {}
    for original, parts in _FLUX.items():
        for number in range(len(paths)):
            names = tuple(part.format(number) for part in parts)
            if not paths.issuperset(names):
                break
            found[original.format(number)] = names
    return found | {original: (path,) for original, path in _FLUX_OUTSIDE.items() if path in paths}
