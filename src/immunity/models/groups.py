"""The parts of θ that methods ask for by name, for the two ways in which denoisers take in text.

A U-Net and PixArt have cross-attention: the picture asks, the text answers. In joint attention (MMDiT) text and picture
are one sequence, but each has projections of its own: the text's are what cross-attention is elsewhere, the way by
which the text reaches the picture. So every family has every group; docs/design.md says what is in them.
"""

from collections.abc import Callable, Mapping

Group = Callable[[str], bool]
"""Whether a parameter of θ, by its name, is in the group."""

_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out")
_TEXT_KV = ("add_k_proj", "add_v_proj")
_TEXT_PROJECTIONS = ("add_q_proj", *_TEXT_KV, "to_add_out")


def cross_attending(denoiser: str, *, time_and_output: tuple[str, ...]) -> Mapping[str, Group]:
    """Of a denoiser whose blocks have self-attention `attn1` and cross-attention `attn2`.

    `time_and_output` names the denoiser's own parts that embed the time or write the output.
    """
    inside = _inside(denoiser)
    cross = _and(inside, _part("attn2"))
    return _common(
        inside,
        attention=_and(inside, _part(*_PROJECTIONS)),
        cross=cross,
        self_attention=_and(inside, _part("attn1")),
        text_kv=_and(cross, _part("to_k", "to_v")),
        outer=_outermost(*time_and_output),
    )


def jointly_attending(denoiser: str, *, time_and_output: tuple[str, ...]) -> Mapping[str, Group]:
    """Of a denoiser whose blocks attend to text and picture together.

    A second attention of the picture alone (SD 3.5) and blocks that project text and picture with the same weights
    (FLUX's single ones) count as self-attention.
    """
    inside = _inside(denoiser)
    text = _and(inside, _part(*_TEXT_PROJECTIONS, "norm_added_q", "norm_added_k"))
    return _common(
        inside,
        attention=_and(inside, _part(*_PROJECTIONS, *_TEXT_PROJECTIONS)),
        cross=text,
        self_attention=_and(inside, _part("attn", "attn2"), _not(text)),
        text_kv=_and(inside, _part(*_TEXT_KV)),
        outer=_outermost(*time_and_output),
    )


def _common(
    inside: Group, *, attention: Group, cross: Group, self_attention: Group, text_kv: Group, outer: Group
) -> Mapping[str, Group]:
    return {
        "all": lambda _: True,
        "attention": attention,
        "cross_attention": cross,
        "denoiser": inside,
        "non_cross_attention": _and(inside, _not(cross)),
        # Also without the time embedding and the output layers.
        "non_cross_attention_strict": _and(inside, _not(cross), _not(outer)),
        "self_attention": self_attention,
        "text_encoder": lambda name: name.startswith("text_encoder"),
        "text_kv": text_kv,
    }


def _inside(component: str) -> Group:
    return lambda name: name.startswith(f"{component}.")


def _part(*words: str) -> Group:
    wanted = frozenset(words)
    return lambda name: not wanted.isdisjoint(name.split("."))


def _outermost(*words: str) -> Group:
    return lambda name: name.split(".")[1] in words


def _and(*groups: Group) -> Group:
    return lambda name: all(group(name) for group in groups)


def _not(group: Group) -> Group:
    return lambda name: not group(name)
