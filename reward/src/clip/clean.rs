//! OpenAI's text clean-up in front of the tokenizer: ftfy, `html.unescape` twice, white space, lower case.
//!
//! Reference: `basic_clean` and `whitespace_clean` of
//! <https://github.com/openai/CLIP/blob/a1d071733d7111c9c014f024669f959182114e33/clip/simple_tokenizer.py>.
//! ftfy is [`plsfix`], a port of ftfy; where it is known to differ from ftfy 6.3.1 the tokenizer's golden test says so.
//! Stable Diffusion's tokenizers use no ftfy: this is for CLIP scores only.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::{Captures, Regex};

/// What Python's `html.unescape` looks at: decimal, hexadecimal, named; the semicolon may be missing.
static REFERENCE: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"&(?:#([0-9]+);?|#[xX]([0-9a-fA-F]+);?|[^\t\n\x0c <&#;]{1,32};?)"));
/// What ftfy unescapes.
static CLOSED_REFERENCE: LazyLock<Regex> = LazyLock::new(|| pattern("&(#?[0-9A-Za-z]{1,24};)"));

/// A pattern of ours: it compiles, or the tests fail.
pub(super) fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("a literal pattern")
}

/// `whitespace_clean(basic_clean(text)).lower()`
pub(super) fn clean(text: &str) -> String {
    let fixed = fix_text(text);
    let unescaped = unescape_html(&unescape_html(&fixed)).into_owned();
    unescaped.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase()
}

/// `ftfy.fix_text`
fn fix_text(text: &str) -> Cow<'_, str> {
    // Nothing of ftfy's applies: most prompts, and its tables are never built.
    if text.bytes().all(|byte| (byte.is_ascii_graphic() && byte != b'&') || byte == b' ') {
        return text.into();
    }
    // From the first line with a `<` on, ftfy leaves HTML references alone; plsfix unescapes them all the same.
    if let Some(found) = text.find('<')
        && !text.contains("&~")
    {
        let (before, html) = text.split_at(text[..found].rfind('\n').map_or(0, |line_end| line_end + 1));
        let hidden = CLOSED_REFERENCE.replace_all(html, "&~$1");
        return (plsfix::fix_text(before, None) + &plsfix::fix_text(&hidden, None).replace("&~", "&")).into();
    }
    plsfix::fix_text(text, None).into()
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

    /// ftfy unescapes until nothing is left, unless there is a `<`: then only `html.unescape` does, twice.
    #[test]
    fn references_beside_a_less_than_sign_are_unescaped_twice() {
        assert_eq!(clean("&amp;amp;amp;lt;"), "<");
        assert_eq!(clean("a < b &amp;amp;amp; c"), "a < b &amp; c");
        assert_eq!(clean("&amp;amp;amp;\n< &amp;amp;amp;"), "& < &amp;");
    }
}
