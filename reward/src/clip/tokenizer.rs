//! Tokens.
/// x
pub struct Tokenizer;
impl Tokenizer { /// x
 pub fn openai() -> &'static Self { todo!() } /// x
 pub fn write_files(&self, _: &std::path::Path) -> crate::Result<()> { todo!() } }
