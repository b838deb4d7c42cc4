"""Writes tokens/tokens.jsonl.gz: prompts and the ids of OpenAI's own CLIP tokenizer.

pip install openai-clip==1.0.1 ftfy==6.3.1
python tests/golden/tokens.py
"""

import gzip
import json
import random
import unicodedata
from pathlib import Path

import clip
import ftfy

assert ftfy.__version__ == "6.3.1", ftfy.__version__
FOLDER = Path(__file__).parent / "tokens"
PROMPTS = [
    line
    for name in ("prompts-hpsv2.txt", "prompts-animals.txt")
    for line in (FOLDER / name).read_text(encoding="utf-8").split("\n")
]
draw = random.Random(0)

ACCENTS = {"a": "àáâãäåāăą", "e": "èéêëēęě", "i": "ìíîïī", "o": "òóôõöøő", "u": "ùúûüůű", "c": "çćč", "n": "ñńň", "s": "šśş", "y": "ýÿ", "z": "žźż"}
LIGATURES = [("ffi", "ﬃ"), ("ffl", "ﬄ"), ("ff", "ﬀ"), ("fi", "ﬁ"), ("fl", "ﬂ"), ("st", "ﬆ"), ("ij", "ĳ"), ("dz", "ǳ")]
ENTITIES = ["&amp;", "&lt;", "&gt;", "&quot;", "&#39;", "&#x27;", "&nbsp;", "&eacute;", "&copy", "&hellip;", "&amp;amp;", "&amp;lt;b&amp;gt;",
            "&EACUTE;", "&notit;", "&not", "&#128512;", "&#150;", "&#0;", "&#1;", "&#xfffe;", "&unknown;", "&", "&#;", "&#x;", "&frac12;"]
EMOJI = ["😀", "🐱", "👩‍🚀", "🏳️‍🌈", "👍🏽", "❤️", "🇯🇵", "1️⃣", "🫠", "☃"]
FOREIGN = ["一只猫坐在窗台上", "夕焼けの海とカモメ", "고양이가 창가에 앉아 있다", "Кот на подоконнике", "Γάτα στο ΠΑΡΆΘΥΡΟΣ", "قطة على النافذة",
           "חתול על החלון", "बिल्ली खिड़की पर", "แมวบนหน้าต่าง", "con mèo trên cửa sổ", "İstanbul'da kedi", "STRASSE straße ẞ", "ǅ Ǆ ǆ", "ﾈｺとｶﾗｽ"]
CONTROLS = ["\x00", "\x07", "\x1b[31m", "\x1b[0m", "\x7f", "\u200b", "\u200d", "\u200e", "\u202e", "\ufeff", "\ufffc", "\ufff9", "\u2060", "\x85", "\xad",
            "\x9f", "\u206a", "\x1c", "\x0b", "\x0c", "\u180e"]
SPACES = ["  ", "\t", "\n", "\r\n", "\r", "\u00a0", "\u2003", "\u3000", "\u2028", "\u2029", " \n\n "]
QUOTES = [("‘", "’"), ("“", "”"), ("„", "“"), ("«", "»"), ("‹", "›"), ("「", "」"), ("´", "´"), ("ʼ", "ʼ"), ("‚", "‛")]
STYLES = ["8k uhd, (masterpiece:1.2), [soft light]", "--ar 16:9 --v 5", "f/1.4, 50mm, ISO-100", "trending on artstation!!!", "<lora:style:0.8>",
          "don't can't we've I'm they'll he'd it's y'all", "DON'T WE'VE IT'S", "3.14159 and 2,000,000 ½ ² Ⅷ ٣", "@user #tag $5 50% a^b a_b a|b ~", "<|endoftext|>",
          "<|startoftext|> twice <|startoftext|>", "<|EndOfText|>", "snake_case camelCase kebab-case", "http://example.com/a?b=c&d=e&copy=1", "e\u0301 n\u0303 o\u0308 a\u030a"]


def accented(text):
    return "".join(draw.choice(ACCENTS[c]) if c in ACCENTS and draw.random() < 0.4 else c for c in text)


def inserted(text, pieces, times=2):
    words = text.split(" ")
    for _ in range(times):
        words.insert(draw.randrange(len(words) + 1), draw.choice(pieces))
    return draw.choice([" ", " ", ""]).join(words) if len(words) < 4 else " ".join(words)


def spliced(text, pieces, times=2):
    """Pieces at any character, inside words too."""
    for _ in range(times):
        at = draw.randrange(len(text) + 1)
        text = text[:at] + draw.choice(pieces) + text[at:]
    return text


def mojibake(text, times=1):
    """UTF-8 read as a one-byte encoding, as broken pipelines do."""
    text = draw.choice([accented(text), text.replace(" a ", " “a” ") + " – “" + accented("fine") + "”…", text + " ’til " + draw.choice(["naïve", "☃", "日本", "кот", "😀"])])
    for _ in range(times):
        for encoding in draw.sample(["windows-1252", "latin-1", "windows-1250", "windows-1251", "windows-1254", "macroman", "cp437"], 7):
            try:
                text = text.encode().decode(encoding)
                break
            except UnicodeDecodeError:
                pass
    return text


def ligatured(text):
    for letters, ligature in LIGATURES:
        text = text.replace(letters, ligature)
    return text + " " + draw.choice(LIGATURES)[1]


def full_width(text):
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else "\u3000" if c == " " and draw.random() < 0.5 else c for c in text)


def quoted(text):
    left, right = draw.choice(QUOTES)
    return f"{left}{text}{right}".replace("'", "’")


MODIFICATIONS = [
    str.upper,
    str.title,
    accented,
    lambda text: accented(text).upper(),
    lambda text: unicodedata.normalize("NFD", accented(text)),
    lambda text: inserted(text, ENTITIES),
    lambda text: spliced(text, ENTITIES),
    mojibake,
    lambda text: mojibake(text, 2),
    lambda text: mojibake(text) + " " + draw.choice(ENTITIES),
    lambda text: inserted(text, EMOJI),
    lambda text: inserted(text, FOREIGN),
    lambda text: spliced(text, CONTROLS, 3),
    lambda text: draw.choice(SPACES) + draw.choice(SPACES).join(text.split(" ")) + draw.choice(SPACES),
    lambda text: spliced(text, SPACES),
    quoted,
    lambda text: inserted(text, STYLES),
    ligatured,
    full_width,
    lambda text: text.replace(" ", "").lower(),
    lambda text: f"<b>{text}</b> " + draw.choice(ENTITIES),
]

# Prompts with a reason of their own: ends of the range, and what a port gets wrong.
SINGLES = [
    "", " ", "\n", "\u3000", "\ufeff", "a", "'", "'s", "''s", "'S", "'ſ", "ſ", "K", "Σ", "ΑΣ ΟΔΟΣ", "İ", "I", "<", "&", ";", "&lt", "&ltx", "&amp", "&ampamp;",
    "&am&#1;p;", "&#x110000;", "&#99999999999999999999;", "&#xd800;", "&#x80;", "&#128;", "&#13;", "&#10;", "&#127;", "&#11;", "&CounterClockwiseContourIntegral;",
    "&CounterClockwiseContourIntegralx", "&nGg;", "&NotEqualTilde;", "&timesbar;", "&szlig;", "&SZLIG;", "&NTILDE; &nTILDE;", "1&lt;2 &amp;&amp; 3&gt;2",
    "AT&T R&D Q&A", "this&not that", "<a href=\"x\">&amp;eacute;</a>", "a < b &amp; c", "a < b &amp;amp;amp; c", "line one <\n&amp;amp;amp; line two",
    "&amp;amp;amp;amp;amp; five", "cat & dog", "cat &; dog", "\u00e9", "e\u0301", "\u212b", "ﷺ", "\U0001d400\U0001d401", "㎏ ℃ № ™ ½",
    "à la carte", "Ã  la carte", "Ã la carte", "cafÃ©", "cafÃƒÂ©", "caf\u00c3\u00a9 au lait", "l’humanitÃ©", "Ã¢â‚¬Å“quoteÃ¢â‚¬\u009d", "â€œquotedâ€\u009d", "â€œlostâ€�",
    "ðŸ˜€ smile", "ðŸ˜€ðŸ�°", "schÃ¶n grÃ¼n StraÃŸe", "æ\u0097¥æ\u009c¬", "æ—¥æœ¬èªž", "ÐšÐ¾Ñ‚", "ÎšÎ±Î»Î·Î¼Î­ÏÎ±", "×©×œ×•×", "Ø³Ù„Ø§Ù…", "Â£5 and 20Â°C", "voilÃ ",
    "Ã\xa0 la mode", "especially Ã s crianÃ§as", "naÃ¯ve faÃ§ade", "na\x95ve", "\x93quoted\x94 \x96 dash \x85", "it\x92s", "�", "a � b", "AHÅ™, the new sofa", "10 Å—", "BrontÃ«â€¦",
    "Ã perturber la rÃ©flexion", "Ⅳ ⅳ", "𝓯𝓪𝓷𝓬𝔂 𝐭𝐞𝐱𝐭", "ⓒⓘⓡⓒⓛⓔⓓ", "ʇxǝʇ uʍop ǝpısdn", "Z̸̢͓a̵l̷g̶o̴", "¯\\_(ツ)_/¯", "(╯°□°)╯︵ ┻━┻", "┌─┐│ │└─┘", "… ‥ ․", "–—―‐‑−",
    "0123456789 ０１２３ ٠١٢٣ ०१२ 〇一二 ①②", "a" * 300, "1" * 100, "!" * 100, "!?" * 60, "🐱" * 40, "猫" * 100, "ab" * 200,
    " ".join(["word"] * 75), " ".join(["word"] * 76), " ".join(["word"] * 74), " ".join(["cat"] * 74) + " \u00e9",
]
LONG = [" ".join(" ".join(draw.sample(PROMPTS, 30)).split()[:200]) for _ in range(20)]
LONG += [accented(text) for text in LONG[:5]] + [mojibake(text) for text in LONG[5:10]]

prompts = list(PROMPTS) + SINGLES + LONG
for repeat in range(2):
    for index, prompt in enumerate(PROMPTS):
        prompts.append(MODIFICATIONS[(index + 10 * repeat) % len(MODIFICATIONS)](prompt))
prompts = list(dict.fromkeys(prompts))

lines = []
for text in prompts:
    (ids,) = clip.tokenize([text], truncate=True).tolist()
    ids = ids[: max(index for index, token in enumerate(ids) if token) + 1]  # the end token is the last that is not padding
    lines.append(json.dumps({"text": text, "ids": ids}, ensure_ascii=False, separators=(",", ":")))
with open(FOLDER / "tokens.jsonl.gz", "wb") as file, gzip.GzipFile(fileobj=file, mode="wb", compresslevel=9, mtime=0, filename="") as out:
    out.write(("\n".join(lines) + "\n").encode())
print(len(lines), "prompts,", sum(not text.isascii() for text in prompts), "not ASCII")
