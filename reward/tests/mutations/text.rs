//! Texts: prompts, a line each.

use crate::mutate::check;

#[test]
fn lines_of_prompts() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("prompts.txt");
    // A line that was changed is another prompt: what is compared is that there are any.
    check(&path, b"a red fox\nan owl, \"twice\"\n", || Ok(!reward::data::prompts::read(&path)?.is_empty()));
}
