"""Writes added_tokens.json: tokenizer folders with added tokens (textual inversion) in the layouts of transformers 4 and 5, and
the ids of prompts, several-vector tokens expanded as diffusers' pipelines do it.

A case lists the files that differ from a plain folder of OpenAI's vocabulary (`vocab.json` and `merges.txt` are not in the
fixture; `null` stands for a file that is not there). `ids` come without the padding.

pip install transformers==5.24.0 diffusers==0.42.1
python tests/golden/added_tokens.py
"""

import gzip
import json
import tempfile
from pathlib import Path

from diffusers.loaders import TextualInversionLoaderMixin
from transformers import CLIPTokenizer

HERE = Path(__file__).parent
VOCABULARY = HERE.parent.parent / "reward/src/clip/bpe_simple_vocab_16e6.txt.gz"
START, END = "<|startoftext|>", "<|endoftext|>"
PROMPTS = [
    "a photo of <cat-toy>",
    "<owl-toy> and a <cat-toy> backpack, <CAT-TOY>!",
    "two<cat-toy>glued  <cat-toy> , <cat-toys>",
    "Midjourney-Style painting of a fox, midjourney-style",
    "<|endoftext|> <|startoftext|> <cat-toy>_1",
    "no token at all",
    " ".join(["<cat-toy> fox"] * 30),
]


def token(content, special=False, normalized=None):
    normalized = (not special) if normalized is None else normalized
    return dict(content=content, lstrip=False, normalized=normalized, rstrip=False, single_word=False, special=special)


def plain(folder):
    merges = gzip.open(VOCABULARY, "rt", encoding="utf-8").read().split("\n")[1 : 49152 - 256 - 2 + 1]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    pieces = letters + [letter + "</w>" for letter in letters] + [merge.replace(" ", "") for merge in merges] + [START, END]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({piece: id for id, piece in enumerate(pieces)}), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")


SPECIAL = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
CONFIG = {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}
DECODER = {
    "49406": token(START, True, True),
    "49407": token(END, True, True),
    "49408": token("<cat-toy>"),
    "49409": token("<owl-toy>"),
}
CASES = {
    # Before 4.34: added_tokens.json alone.
    "added_tokens": {
        "added_tokens.json": {"<cat-toy>": 49408, "<owl-toy>": 49409, "Midjourney-Style": 49410},
        "special_tokens_map.json": SPECIAL,
        "tokenizer_config.json": CONFIG,
    },
    # From 4.34 on: both.
    "decoder": {
        "added_tokens.json": {"<cat-toy>": 49408, "<owl-toy>": 49409},
        "special_tokens_map.json": SPECIAL,
        "tokenizer_config.json": CONFIG | SPECIAL | {"added_tokens_decoder": DECODER},
    },
    # `load_textual_inversion` of several vectors: <cat-toy>, <cat-toy>_1, <cat-toy>_2.
    "several_vectors": {
        "added_tokens.json": {"<cat-toy>": 49408, "<cat-toy>_1": 49409, "<cat-toy>_2": 49410, "<owl-toy>": 49411},
        "special_tokens_map.json": SPECIAL,
        "tokenizer_config.json": CONFIG,
    },
    # Placed by `additional_special_tokens`, with an id and without.
    "additional": {
        "added_tokens.json": {"<cat-toy>": 49408},
        "special_tokens_map.json": SPECIAL | {"additional_special_tokens": ["<cat-toy>"]},
        "tokenizer_config.json": CONFIG,
    },
}


def main():
    cases = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, files in CASES.items():
            folder = Path(temporary) / name
            plain(folder)
            for file, content in files.items():
                (folder / file).write_text(json.dumps(content))
            tokenizer = CLIPTokenizer.from_pretrained(folder)
            # What transformers 5 itself writes of it is a case too, but for the vocabulary.
            tokenizer.save_pretrained(Path(temporary) / f"{name}-saved")
            saved = CLIPTokenizer.from_pretrained(Path(temporary) / f"{name}-saved")
            mixin = TextualInversionLoaderMixin()
            ids = {}
            for prompt in PROMPTS:
                expanded = mixin.maybe_convert_prompt(prompt, tokenizer)
                ids[prompt] = tokenizer(expanded, truncation=True, max_length=77).input_ids
                again = saved(expanded, truncation=True, max_length=77).input_ids
                if ids[prompt] != again: print(name, prompt, "saved differs", again)
            written = json.loads((Path(temporary) / f"{name}-saved/tokenizer.json").read_text())
            config = json.loads((Path(temporary) / f"{name}-saved/tokenizer_config.json").read_text())
            cases[name] = {"files": files, "saved_added_tokens": written["added_tokens"], "saved_config": config, "ids": ids}
    lines = [f"{json.dumps(name)}: {json.dumps(case)}" for name, case in cases.items()]
    (HERE / "added_tokens.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


main()
