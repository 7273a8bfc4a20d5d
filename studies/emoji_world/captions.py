"""How pictures are described, and the byte-pair tokenizer that reads it.

The forms are those of the paper's prompts ("image of a church", "an artwork in the style of openmoji"), a few natural
variants and short tags. Both the generator and the image–text judge learn from them; each has a tokenizer of its own.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import vocabulary as v

MAX_TOKENS = 20
START, END = "<|startoftext|>", "<|endoftext|>"

BOTH = (
    "{a} in the style of {style}",
    "an image of {a} in the style of {style}",
    "image of {a} in the style of {style}",
    "{a}, {style} style",
    "{object}, {style}",
    "{style} {object}",
)
OBJECT_ONLY = ("image of {a}", "an image of {a}", "a picture of {a}", "{a}", "{object}")
STYLE_ONLY = ("an artwork in the style of {style}", "an image in the style of {style}", "{style}")
# Words that users and attackers write and that no caption above holds: they get tokens of their own instead of being
# spelled out.
EXTRA_WORDS = (
    "photo painting drawing icon emoji art artist artwork by sks person object thing animal building food tool toy "
    "picture small big red green blue yellow black white orange purple pink brown with and on at my new old beautiful"
)


def with_article(name: str) -> str:
    """'church' -> 'a church', 'anchor' -> 'an anchor', 'grapes' -> 'grapes'."""
    if name in v.NO_ARTICLE:
        return name
    return ("an " if name[0] in "aeiou" else "a ") + name


def fill(form: str, name: str, style: str) -> str:
    return form.format(object=name, a=with_article(name), style=style)


def _pick(forms: tuple[str, ...], generator: torch.Generator) -> str:
    return forms[int(torch.randint(len(forms), (), generator=generator))]


def form(generator: torch.Generator, *, naming_style: float) -> str:
    """A caption with its names left open: with probability ``naming_style`` one that says the style."""
    naming = float(torch.rand((), generator=generator)) < naming_style
    return _pick(BOTH * 4 + STYLE_ONLY if naming else OBJECT_ONLY, generator)


def caption(name: str, style: str, generator: torch.Generator, *, unconditional: float = 0.0) -> str:
    """One caption of a picture: mostly both its object and its style, sometimes one of them, with probability
    ``unconditional`` none."""
    if float(torch.rand((), generator=generator)) < unconditional:
        return ""
    kind = float(torch.rand((), generator=generator))
    if kind < 0.82:
        return fill(_pick(BOTH, generator), name, style)
    return fill(_pick(OBJECT_ONLY if kind < 0.94 else STYLE_ONLY, generator), name, style)


def corpus() -> list[str]:
    """What the byte-pair merges are learned from: captions, and extra words.

    The names of held-out objects are among them, so that most are one token, whose embedding nothing trains.
    """
    styles = [s.name for s in (*v.STYLES, v.HELD_OUT_STYLE)]
    names = [n.lower() for n in v.TRAINED + v.HELD_OUT + v.FOLD]
    lines = [fill(form, name, style) for name in names for style in styles[:2] for form in BOTH + OBJECT_ONLY]
    lines += [fill(form, name, style) for style in styles for name in names[:40] for form in BOTH + STYLE_ONLY]
    return lines + EXTRA_WORDS.split() * 40


def train_tokenizer(folder: Path, *, merges: int = 1400):
    """A ``CLIPTokenizer`` with byte-level byte-pair merges of its own, saved as the standard files; any word has
    tokens."""
    from tokenizers import Tokenizer, models, trainers
    from transformers import CLIPTokenizer

    conventions = CLIPTokenizer().backend_tokenizer  # CLIP's own normalisation and splitting into words
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", continuing_subword_prefix="", unk_token=END))
    tokenizer.normalizer, tokenizer.pre_tokenizer = conventions.normalizer, conventions.pre_tokenizer
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) * 2 + merges,
        special_tokens=[START, END],
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    # CLIP's order: the bytes, the bytes that end a word, the merges, the special tokens last.
    pairs = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learned["merges"]]
    words = alphabet + [letter + "</w>" for letter in alphabet] + ["".join(pair) for pair in pairs] + [START, END]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    result = CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=MAX_TOKENS)
    folder.mkdir(parents=True, exist_ok=True)
    result.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in pairs) + "\n")
    return result
