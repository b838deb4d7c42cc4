//! What a table is written in: its name says it, and what lies in it is held to that.

use std::path::Path;

/// How a table is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Columns, compressed.
    Parquet,
    /// Cells between commas.
    Csv,
    /// Cells between tabs.
    Tsv,
    /// One array of objects.
    Json,
    /// An object a line.
    JsonLines,
}

impl Format {
    /// The format that the ending of a file's name says, in any case; `None` where it is no table's.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "parquet" => Some(Self::Parquet),
            "csv" => Some(Self::Csv),
            "tsv" | "tab" => Some(Self::Tsv),
            "json" => Some(Self::Json),
            "jsonl" | "ndjson" => Some(Self::JsonLines),
            _ => None,
        }
    }

    /// The name for messages.
    pub(crate) fn noun(self) -> &'static str {
        match self {
            Self::Parquet => "a parquet file",
            Self::Csv => "a CSV table",
            Self::Tsv => "a table of tab-separated values",
            Self::Json => "a JSON array",
            Self::JsonLines => "JSON lines",
        }
    }
}
