"""Writes sd_tokens.jsonl: prompts and the ids of transformers' CLIPTokenizer, for both pad tokens.

`sd1` pads with the end token, `sd2` with `!`; `sd2` is left out where it is the same. `ids` (at most 77) come without the
padding, `tokens` counts the whole prompt.

pip install transformers==5.24.0
python tests/golden/sd_tokens.py
"""

import gzip
import json
import random
import tempfile
from pathlib import Path

from transformers import CLIPTokenizer

HERE = Path(__file__).parent
VOCABULARY = HERE.parent.parent / "reward/src/clip/bpe_simple_vocab_16e6.txt.gz"
START, END = "<|startoftext|>", "<|endoftext|>"
draw = random.Random(0)


def write_folder(folder, pad):
    """vocab.json, merges.txt, special_tokens_map.json as published folders have them."""
    merges = gzip.open(VOCABULARY, "rt", encoding="utf-8").read().split("\n")[1 : 49152 - 256 - 2 + 1]
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    pieces = letters + [letter + "</w>" for letter in letters] + [merge.replace(" ", "") for merge in merges] + [START, END]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({piece: id for id, piece in enumerate(pieces)}), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    token = lambda content: {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": token(START), "eos_token": token(END), "pad_token": pad, "unk_token": token(END)})
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77, "tokenizer_class": "CLIPTokenizer"}))


def prompts():
    base = [
        line
        for name in ("prompts-hpsv2.txt", "prompts-animals.txt")
        for line in (HERE / "tokens" / name).read_text(encoding="utf-8").split("\n")
        if line
    ]
    odd = ["é", "e\u0301 n\u0303 o\u0308 a\u030a", "ÀÉÎÕÜ ŻÓŁĆ ñandú", "İstanbul'da KEDİ", "STRASSE straße ẞ", "ǅ Ǆ ǆ", "ﬃ ﬁ ﬂ", "Γάτα στο ΠΑΡΆΘΥΡΟΣ",
           "一只猫坐在窗台上", "夕焼けの海とカモメ", "고양이가 창가에 앉아 있다", "Кот на подоконнике", "قطة على النافذة", "बिल्ली खिड़की पर", "แมวบนหน้าต่าง",
           "😀", "👩‍🚀 🏳️‍🌈 👍🏽 ❤️ 🇯🇵 1️⃣ 🫠", "\x00", "a\x07b\x1b[31mc\x7f", "zero\u200bwidth\u200djoin\ufeffbom\u00adsoft", "\x85\x9f\u2060\u206a\ufffc",
           "...!!!???", "(((masterpiece:1.2))), [soft light]!!", "--ar 16:9 --v 5", "f/1.4, 50mm, ISO-100", "don't can't we've I'm they'll he'd it's", "DON'T WE'VE IT'S",
           "3.14159 and 2,000,000 ½ ² Ⅷ ٣", "snake_case a^b ~ `x` {y} <z>", "http://example.com/a?b=c&d=e&amp;f", "&lt;b&gt; &amp; &eacute;", "hello!", "! !! !!! a!b",
           "<|endoftext|>", "a<|endoftext|>b", "<|EndOfText|> <|STARTOFTEXT|>", "<|startoftext|> twice <|startoftext|>", "<|endoftext|", "\u2028\u2029\u3000\u00a0", "\ud7ff",
           "“quoted” ‘single’ «guillemets»", "schÃ¶n mojibake â€™", "a\tb\nc\r\nd", "\U0010ffff", "K Å ﷺ", "x" * 300, "!" * 200]
    words = " ".join(base).split()
    yield from ["", " ", "   \t\n "]
    yield from odd
    yield from draw.sample(base, 60)
    for count in (*range(60, 84), 100, 150, 200, 200, 200):
        yield " ".join(draw.sample(words, count))
    for count in range(70, 82):
        yield " ".join(["cat"] * count)
    for _ in range(160):
        text = draw.choice(base)
        for _ in range(draw.randrange(1, 4)):
            at = draw.randrange(len(text) + 1)
            text = text[:at] + draw.choice(odd[:-2]) + text[at:]
        yield draw.choice([text, text.upper(), text.title()])


def main():
    with tempfile.TemporaryDirectory() as temporary:
        tokenizers, saved = {}, {}
        for name, pad in (("sd1", END), ("sd2", "!")):
            write_folder(Path(temporary) / name, pad)
            tokenizers[name] = CLIPTokenizer.from_pretrained(Path(temporary) / name)
            # What transformers 5 itself writes reads the same.
            tokenizers[name].save_pretrained(Path(temporary) / f"{name}-saved")
            saved[name] = CLIPTokenizer.from_pretrained(Path(temporary) / f"{name}-saved")
        assert tokenizers["sd1"].pad_token_id == 49407 and tokenizers["sd2"].pad_token_id == 0
        lines = []
        for text in dict.fromkeys(prompts()):
            line = {"text": text}
            for name, tokenizer in tokenizers.items():
                ids = tokenizer(text, padding="max_length", truncation=True, max_length=77).input_ids
                assert saved[name](text, padding="max_length", truncation=True, max_length=77).input_ids == ids
                tokens = len(tokenizer(text).input_ids)
                assert len(ids) == 77 and set(ids[tokens:]) <= {tokenizer.pad_token_id}
                line[name] = {"tokens": tokens, "ids": ids[:tokens]}
            if line["sd2"] == line["sd1"]:
                del line["sd2"]
            lines.append(json.dumps(line, separators=(",", ":")) + "\n")
    (HERE / "sd_tokens.jsonl").write_text("".join(lines))
    print(len(lines), "prompts")


main()
