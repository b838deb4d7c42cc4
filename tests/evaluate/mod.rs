//! `social-reward evaluate` and its report.

pub(crate) mod figures;
mod kept;
mod report_browser;
mod sets;
