//! OpenAI's text clean-up in front of the tokenizer: ftfy, `html.unescape` twice, white space, lower case.
//!
//! Reference: `basic_clean` and `whitespace_clean` of
//! <https://github.com/openai/CLIP/blob/a1d071733d7111c9c014f024669f959182114e33/clip/simple_tokenizer.py>. The port of
//! ftfy is [`plsfix`]; where it is known to differ from ftfy 6.3.1 the tokenizer's golden test says so. Stable
//! Diffusion's tokenizers use no ftfy: this is for CLIP scores only.

use std::borrow::Cow;
use std::sync::LazyLock;

pub(crate) use plsfix::Normalization;
use regex::{Captures, Regex};

/// What Python's `html.unescape` looks at: decimal, hexadecimal, named; the semicolon may be missing.
static REFERENCE: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"&(?:#([0-9]+);?|#[xX]([0-9a-fA-F]+);?|[^\t\n\x0c <&#;]{1,32};?)"));
/// The numbers that ftfy unescapes, and the ampersand that may hide one.
static CLOSED_NUMBER: LazyLock<Regex> = LazyLock::new(|| pattern("&(?:#[0-9]{1,24}|#[xX][0-9a-fA-F]{1,23}|amp);"));
/// What ftfy strips as a terminal's control sequence, which plsfix does not recognise.
static TERMINAL_ESCAPE: LazyLock<Regex> = LazyLock::new(|| pattern(r"\x1b\[[\d;]*[a-zA-Z]"));
/// What ftfy unescapes.
static CLOSED_REFERENCE: LazyLock<Regex> = LazyLock::new(|| pattern("&(#?[0-9A-Za-z]{1,24};)"));

/// A pattern of ours: it compiles, or the tests fail.
pub(crate) fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("a literal pattern")
}

/// `whitespace_clean(basic_clean(text)).lower()`
pub(super) fn clean(text: &str) -> String {
    let fixed = fix_text(text);
    let unescaped = unescape_html(&unescape_html(&fixed)).into_owned();
    unescaped.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()
}

/// The normalizer of transformers' `CLIPTokenizerFast`: composed (NFC), white space, lower case letter by letter.
pub(super) fn normalise(text: &str) -> String {
    let composed = if text.is_ascii() { text.into() } else { Cow::Owned(normal_form(text, Normalization::NFC)) };
    let single = composed.split_whitespace().collect::<Vec<_>>().join(" ");
    single.chars().flat_map(char::to_lowercase).collect()
}

/// A normal form of Unicode, by plsfix with everything else switched off; HTML it unescapes all the same (0.1.8), so it never
/// sees an ampersand, with which nothing composes.
pub(crate) fn normal_form(text: &str, form: Normalization) -> String {
    let config = plsfix::TextFixerConfig {
        unescape_html: Some(false),
        remove_terminal_escapes: false,
        fix_encoding: false,
        restore_byte_a0: false,
        replace_lossy_sequences: false,
        decode_inconsistent_utf8: false,
        fix_c1_controls: false,
        fix_latin_ligatures: false,
        fix_character_width: false,
        uncurl_quotes: false,
        fix_line_breaks: false,
        remove_control_chars: false,
        normalization: Some(form),
        max_decode_length: i32::MAX,
    };
    text.split('&').map(|part| plsfix::fix_text(part, Some(&config))).collect::<Vec<_>>().join("&")
}

/// `ftfy.fix_text`: plsfix, behind what it lacks.
fn fix_text(text: &str) -> Cow<'_, str> {
    // Nothing of ftfy's applies: most prompts, and its tables are never built.
    if text.bytes().all(|byte| (byte.is_ascii_graphic() && byte != b'&') || byte == b' ') {
        return text.into();
    }
    let text = TERMINAL_ESCAPE.replace_all(text, "");
    // From the first line with a `<` on, ftfy leaves HTML references alone.
    let html = text.find('<').map_or(text.len(), |found| text[..found].rfind('\n').map_or(0, |end| end + 1));
    let (plain, html) = text.split_at(html);
    let plain = unescape_closed_numbers(plain.into());
    if text.contains("&~") {
        return mend(&(plain + html)).into();
    }
    let hidden = CLOSED_REFERENCE.replace_all(html, "&~$1");
    (mend(&plain) + &mend(&hidden).replace("&~", "&")).into()
}

fn mend(text: &str) -> String {
    // A long line must not be cut: plsfix counts bytes there, and panics within a character.
    let config = plsfix::TextFixerConfig { max_decode_length: i32::MAX, ..Default::default() };
    plsfix::fix_text(text, Some(&config))
}

/// ftfy unescapes numbers as Python does, over and over; plsfix keeps control characters and non-characters.
fn unescape_closed_numbers(mut text: String) -> String {
    loop {
        let next = CLOSED_NUMBER.replace_all(&text, |reference: &Captures| match &reference[0] {
            "&amp;" => "&".into(),
            number => unescape_html(number).into_owned(),
        });
        match next {
            Cow::Borrowed(_) => return text,
            Cow::Owned(next) => text = next,
        }
    }
}

/// Python's `html.unescape`: as browsers do, except that references to control characters and non-characters vanish.
fn unescape_html(text: &str) -> Cow<'_, str> {
    REFERENCE.replace_all(text, |reference: &Captures| {
        let number = |group, radix| reference.get(group).map(|digits| u32::from_str_radix(digits.as_str(), radix));
        match number(1, 10).or(number(2, 16)) {
            Some(Ok(code)) if vanishes(code) => String::new(),
            _ => htmlize::unescape(&reference[0]).into_owned(),
        }
    })
}

/// `_invalid_codepoints` of Python's `html`, less those that `_invalid_charrefs` maps to characters.
fn vanishes(code: u32) -> bool {
    matches!(code, 0x1..=0x8 | 0xb | 0xe..=0x1f | 0x7f | 0xfdd0..=0xfdef)
        || (code <= 0x0010_ffff && code & 0xfffe == 0xfffe)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The right-hand sides are what Python's `html.unescape` answers.
    #[test]
    fn unescapes_as_python_does() {
        for (escaped, expected) in [
            ("&lt;&gt &amp;amp; &ampx &notit; &notin;", "<> &amp; &x ¬it; ∉"),
            ("&#128;&#x96;|&#129;|&#13;|&#0;|&#xd800;|&#x110000;", "€–|\u{81}|\r|\u{fffd}|\u{fffd}|\u{fffd}"),
            ("&#1;|&#11;|&#x7f;|&#xfdd0;|&#xFFFE;|&#x1ffff;|&#10;", "||||||\n"),
            ("&am&#1;p; &#; &#x; &; & &unknown; &NotEqualTilde;", "&amp; &#; &#x; &; & &unknown; ≂\u{338}"),
            ("&#99999999999999999999;", "\u{fffd}"),
        ] {
            assert_eq!(unescape_html(escaped), expected, "{escaped}");
        }
    }

    #[test]
    fn cleans() {
        assert_eq!(clean("  A\tCafÃ©\n &amp;amp; ﬁn  "), "a café & fin");
        assert_eq!(clean("ΟΔΟΣ ＦＵＬＬ “q”"), "οδος full \"q\"");
        assert_eq!(clean(""), "");
    }

    #[test]
    fn normalises_without_mending() {
        assert_eq!(normalise(" A\tCafe\u{301}  &amp; “q” Ã©ΟΣ "), "a café &amp; “q” ã©οσ");
        assert_eq!(normalise(""), "");
    }

    #[test]
    fn a_line_of_megabytes_is_no_panic() {
        assert_eq!(clean(&"é".repeat(600_000)).chars().count(), 600_000);
    }

    /// ftfy unescapes until nothing is left, unless there is a `<`: then only `html.unescape` does, twice.
    #[test]
    fn references_beside_a_less_than_sign_are_unescaped_twice() {
        assert_eq!(clean("&amp;amp;amp;lt;"), "<");
        assert_eq!(clean("a < b &amp;amp;amp; c"), "a < b &amp; c");
        assert_eq!(clean("&amp;amp;amp;\n< &amp;amp;amp;"), "& < &amp;");
    }
}
